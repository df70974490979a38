"""Quality after the same minutes of training: undiffuse, diffusers and denoising-diffusion-pytorch.

    python benchmarks/speed/time_to_quality.py OUT [--minutes 5,10,20] [--ours 2,5,10,20] [--n 500]

Trains each in turn on all cores, unconditionally, in the wall-clock time of its training steps alone; draws n samples
in 20 evaluations of the network (undiffuse also in 10, the peers from 20 minutes on also in 50) and measures their
Frechet distance to the test images in the features of undiffuse's classifier, with its interval. In the peers' favour:
their data is already in memory; their learning rate is the better of the recommended one and 1e-3 after a minute of
each; both their averaged and their trained weights are measured, and the better counts. Results already in OUT are
kept. Writes OUT/time-to-quality.json, .png and -samples.png.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from peers import BATCH, PEERS, Peer
from safetensors.torch import load_file, save_file

from undiffuse import sample
from undiffuse.config import parse_settings, preset, preset_for
from undiffuse.data import load as load_data
from undiffuse.devices import conditions
from undiffuse.domains.pictures import Pictures
from undiffuse.evaluation import evaluate
from undiffuse.files import read_json, write_json
from undiffuse.model import checkpoints, read_card
from undiffuse.plots import curves, save_figure
from undiffuse.training import train

RATES = (None, 1e-3)
PILOT = 60.0


def batches(images: np.ndarray, size: int, seed: int) -> Iterator[tuple[torch.Tensor]]:
    """Batches of images in [-1, 1], without end."""
    generator = np.random.default_rng(seed)
    while True:
        picked = np.array(images[generator.integers(len(images), size=size)])
        yield (Pictures(images.shape[1:]).encode(picked),)


def steps(peer: Peer, examples: Iterable[tuple[torch.Tensor, ...]], seconds: float) -> Iterator[tuple[float, float]]:
    """(seconds so far, loss) of each step until the time is over. A step of more than five medians counts as a median:
    the process was paused.
    """
    torch.manual_seed(0)
    now, recent = 0.0, []
    for example in examples:
        began = time.perf_counter()
        loss = float(peer.step(*example))
        took = time.perf_counter() - began
        recent = [*recent[-20:], took]
        now += took if took < 5 * (median := statistics.median(recent)) else median
        yield now, loss
        if now >= seconds:
            return


def train_peer(name: str, out: Path, minutes: list[float], images: np.ndarray) -> None:
    """Writes OUT/NAME-MINUTES.json, and beside it the weights: averaged and as trained."""
    if all((out / f"{name}-{m:g}.json").exists() for m in minutes):
        return
    pilots = {}
    for rate in RATES:
        torch.manual_seed(0)
        peer = PEERS[name](images.shape[1], images.shape[3], rate)
        losses = [loss for _, loss in steps(peer, batches(images, BATCH, 0), PILOT)]
        pilots[rate] = statistics.fmean(losses[-len(losses) // 3 :])
        print(f"{name}: rate {rate or 'recommended'}: loss {pilots[rate]:.4f} after {PILOT:g} s", flush=True)
    torch.manual_seed(0)
    peer = PEERS[name](images.shape[1], images.shape[3], min(RATES, key=lambda rate: pilots[rate]))
    left = sorted(minutes)
    for number, (now, _) in enumerate(steps(peer, batches(images, BATCH, 0), 60 * left[-1]), 1):
        if now < 60 * left[0]:
            continue
        for which, network in (("averaged", peer.average()), ("trained", peer.network)):
            weights = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
            save_file(weights, out / f"{name}-{left[0]:g}-{which}.safetensors")
        facts = {"seconds": now, "steps": number, "images": number * BATCH}
        write_json(
            out / f"{name}-{left[0]:g}.json",
            {
                **facts,
                **peer.facts,
                "batch": BATCH,
                "parameters": sum(p.numel() for p in peer.network.parameters()),
                "pilot losses": {str(rate or "recommended"): loss for rate, loss in pilots.items()},
            },
        )
        print(f"{name}: {left[0]:g} minutes: {facts}", flush=True)
        left.pop(0)


def sample_peer(name: str, weights: Path, evaluations: int, n: int, shape: tuple[int, int, int]) -> Path:
    """n samples of a peer with these weights, saved beside them as .npz."""
    path = weights.with_name(f"{weights.stem}-{evaluations}.npz")
    if not path.exists():
        peer = PEERS[name](shape[0], shape[2])
        network = peer.average() if name == "denoising-diffusion-pytorch" else peer.network
        network.load_state_dict(load_file(weights))
        torch.manual_seed(0)
        np.savez(path, images=peer.sample(network.eval(), n, evaluations))
    return path


def ours(out: Path, data: str, minutes: float, settings: list[str]) -> None:
    """Trains `undiffuse train DATA --minutes MINUTES`, unconditionally, into OUT/undiffuse-MINUTES."""
    run = out / f"undiffuse-{minutes:g}"
    if not (run / "done").exists():
        values = {"data.source": data, "training.minutes": minutes, "training.conditional": False}
        values = preset(preset_for(minutes)) | values | parse_settings(settings)
        train(values, run, resume=(run / "run.json").exists())
        (run / "done").touch()


def measured(path: Path, data: str, n: int) -> dict[str, Any]:
    """The Frechet distance, with its interval, precision and recall of samples."""
    (evaluation,) = evaluate(str(path), data, n=n, metrics="frechet,manifold")
    metrics = evaluation.to_json()["metrics"]
    return {
        key: {k: metrics[key][k] for k in ("value", "interval", "floor")} for key in ("frechet", "precision", "recall")
    }


def measure_peer(name: str, out: Path, data: str, n: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The results in OUT for a peer, by minutes."""
    results = {}
    times = sorted(float(path.stem.rpartition("-")[2]) for path in out.glob(f"{name}-*.json"))
    for minutes in times:
        results[f"{minutes:g}"] = found = dict(read_json(out / f"{name}-{minutes:g}.json"))
        for evaluations in (20,) if minutes < 20 else (20, 50):
            kinds = {
                path.stem.rpartition("-")[2]: measured(sample_peer(name, path, evaluations, n, shape), data, n)
                for path in sorted(out.glob(f"{name}-{minutes:g}-*.safetensors"))
            }
            best = min(kinds, key=lambda kind: kinds[kind]["frechet"]["value"])
            found[f"in {evaluations} evaluations"] = {**kinds[best], "weights": best, "measured": sorted(kinds)}
            found["samples"] = f"{name}-{minutes:g}-{best}-20.npz"
    return results


def measure_ours(out: Path, data: str, n: int) -> dict[str, Any]:
    """The results in OUT for undiffuse, by minutes."""
    results = {}
    runs = {float(path.parent.name.rpartition("-")[2]): path.parent for path in out.glob("undiffuse-*/done")}
    for minutes, run in sorted(runs.items()):
        config, _, training, _ = read_card(checkpoints(run)[-1])
        found: dict[str, Any] = {"training": training, "precision": config.training.precision}
        for evaluations in (10, 20):
            found[f"in {evaluations} evaluations"] = measured_model(run, data, n, evaluations)
        results[f"{minutes:g}"] = {**found, "samples": f"{run.name}/20.npz"}
    return results


def main() -> None:
    """Trains, samples, measures and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--minutes", default="5,10,20", help="minutes of the peers")
    parser.add_argument("--ours", default="2,5,10,20", help="minutes of undiffuse")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--only", choices=["undiffuse", *PEERS], help="train only this one, without measuring")
    parser.add_argument("--measure", action="store_true", help="train nothing: measure what is in OUT")
    parser.add_argument("--set", action="append", default=[], help="a setting of undiffuse train")
    options = parser.parse_args()
    out, data, n = options.out, options.data, options.n
    out.mkdir(parents=True, exist_ok=True)
    images = np.asarray(load_data(data, "train").images)
    for name in () if options.measure else PEERS:
        if options.only in (None, name):
            train_peer(name, out, [float(m) for m in options.minutes.split(",")], images)
    for minutes in () if options.measure or options.only in PEERS else options.ours.split(","):
        ours(out, data, float(minutes), options.set)
    if options.only:
        return
    results: dict[str, Any] = {"data": data, "n": n, **conditions(*PEERS)}
    results["undiffuse"] = measure_ours(out, data, n)
    for name in PEERS:
        results[name] = measure_peer(name, out, data, n, images.shape[1:])
    write_json(out / "time-to-quality.json", results)
    draw(results, out / "time-to-quality.png")
    picture(results, out)
    for name in ("undiffuse", *PEERS):
        for minutes, found in results[name].items():
            distance = found["in 20 evaluations"]["frechet"]["value"]
            print(f"{name:30} {minutes:>4} minutes: {distance:.2f}")


def measured_model(run: Path, data: str, n: int, evaluations: int) -> dict[str, Any]:
    """The same for n samples of a run of undiffuse, with its default sampler."""
    path = run / f"{evaluations}.npz"
    if not path.exists():
        np.savez(path, images=sample(str(run), n, steps=evaluations))
    return measured(path, data, n)


def draw(results: dict[str, Any], path: Path) -> None:
    """Frechet distance against minutes of training, one line for each."""
    lines = {
        name: (
            [float(m) for m in results[name]],
            [found["in 20 evaluations"]["frechet"]["value"] for found in results[name].values()],
        )
        for name in ("undiffuse", *PEERS)
    }
    curves([("Frechet distance after training, 20 evaluations", "minutes", lines)], path, log="xy")


def picture(results: dict[str, Any], out: Path, count: int = 16) -> None:
    """OUT/time-to-quality-samples.png: a row of the first samples of each, in 20 evaluations."""
    rows = [(name, m, found["samples"]) for name in (*PEERS, "undiffuse") for m, found in results[name].items()]
    figure = Figure(figsize=(11, 0.62 * len(rows)))
    for axes, (name, minutes, path) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        images = np.load(out / path, allow_pickle=False)["images"][:count]
        axes.imshow(np.concatenate(list(images[..., 0]), 1), cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(f"{name}\n{minutes} minutes", rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
    save_figure(figure, out / "time-to-quality-samples.png")


if __name__ == "__main__":
    main()
