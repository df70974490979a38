"""Quality after the same time of training: undiffuse, diffusers and denoising-diffusion-pytorch.

    pip install diffusers einops ema-pytorch && pip install --no-deps denoising-diffusion-pytorch
    OMP_NUM_THREADS=1 python benchmarks/speed/time_to_quality.py OUT [--minutes 4,10,20,40] [--seeds 3] [--only SYSTEM]
    python benchmarks/speed/time_to_quality.py OUT --report time-to-quality.json --figure time-to-quality.png

Each trains unconditionally on one thread, for minutes of CPU time; n samples in 20 evaluations of the network (of the
peers, which take long, 500, and after the longest time also in 50; of undiffuse also in 10) are measured as
`undiffuse evaluate` does. A run of undiffuse is one of `undiffuse train --minutes`, for each time its own, whose rate
falls to 0 in it. In the peers' favour: their data is in memory already, and to make batches costs nothing; their
learning rate is the better of the recommended one and 1e-3 after a minute of each; both their averaged and their
trained weights are measured, and the better counts. Writes OUT/SYSTEM-SEED.json; what is there is kept. --figure draws
distances over time, and beside it the first samples of seed 0 where they are in OUT.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, better_rate, finish, losses_in
from peers import BATCH, PEERS, Peer
from seeds import Rows, measure, missing, options_of, report

from undiffuse import load, sample
from undiffuse.config import preset, preset_for
from undiffuse.data import load as load_data
from undiffuse.domains.pictures import Pictures
from undiffuse.evaluation import evaluate
from undiffuse.files import read_json
from undiffuse.plots import curves, save_figure

OURS = "undiffuse"
EVALUATIONS, SHOWN, OF_PEERS = 20, 16, 500


def batches(images: np.ndarray, size: int, seed: int) -> Iterator[tuple[torch.Tensor]]:
    """Batches of images in [-1, 1], without end."""
    generator = np.random.default_rng(seed)
    while True:
        picked = np.array(images[generator.integers(len(images), size=size)])
        yield (Pictures(images.shape[1:]).encode(picked),)


def distances(images: np.ndarray, path: Path, data: str) -> dict[str, Any]:
    """The figures of samples, which are kept in `path`."""
    np.savez(path, images=images)
    (evaluation,) = evaluate(str(path), data, n=len(images), metrics="frechet,manifold")
    return {key: one.value for key, one in evaluation.values.items()}


def times(options: argparse.Namespace) -> list[float]:
    """Those asked for, in order."""
    return sorted(float(minutes) for minutes in options.minutes.split(","))


def row(system: str, minutes: float, evaluations: int = EVALUATIONS) -> str:
    """The name of a row."""
    return f"{system}, {minutes:g} minutes" + ("" if evaluations == EVALUATIONS else f", {evaluations} evaluations")


def of_ours(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A run for each time."""
    rows: Rows = {}
    for minutes in times(options):
        run = options.out / f"{OURS}-{seed}-{minutes:g}-run"
        values = {"data.source": options.data, "training.conditional": False, "training.seed": seed, **QUIET}
        finish(preset(preset_for(minutes)) | values, run, minutes)
        for evaluations in (EVALUATIONS, 10):
            images = sample(str(run), options.n, steps=evaluations)
            path = options.out / f"{OURS}-{seed}-{minutes:g}-{evaluations}.npz"
            rows[row(OURS, minutes, evaluations)] = distances(images, path, options.data)
        print(row(OURS, minutes), rows[row(OURS, minutes)], flush=True)
    return {"training": load(run).training, "rows": rows}


def drawn(
    peer: Peer, network: torch.nn.Module, evaluations: int, path: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The figures of a peer's samples, kept in `path`; its training's random numbers stay as they were."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    images = peer.sample(network.eval(), min(options.n, OF_PEERS), evaluations)
    torch.random.set_rng_state(state)
    network.train()
    return distances(images, path, options.data)


def of_peer(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run, measured on its way."""
    pixels = np.asarray(load_data(options.data, "train").images)
    make = partial(PEERS[name], pixels.shape[1], pixels.shape[3])
    examples = partial(batches, pixels, BATCH, seed)
    pilots, rows, chosen, passed, seen = better_rate(make, examples), Rows(), {}, 0.0, 0
    torch.manual_seed(seed)
    peer, going = make(next(iter(pilots))), examples()
    for minutes in times(options):
        seen += BATCH * len(losses_in(minutes - passed, peer.step, going))
        passed = minutes
        kinds = {"averaged": peer.average(), "trained": peer.network}
        stem = f"{name}-{seed}-{minutes:g}"
        found = {
            kind: drawn(peer, network, EVALUATIONS, options.out / f"{stem}-{EVALUATIONS}-{kind}.npz", options)
            for kind, network in kinds.items()
        }
        best = min(found, key=lambda kind: found[kind]["frechet"])
        rows[row(name, minutes)], chosen[row(name, minutes)] = found[best] | {"seen": seen}, best
        if minutes == times(options)[-1]:
            rows[row(name, minutes, 50)] = drawn(peer, kinds[best], 50, options.out / f"{stem}-50.npz", options)
        print(row(name, minutes), rows[row(name, minutes)], flush=True)
    losses = {str(rate or "recommended"): loss for rate, loss in pilots.items()}
    parameters = sum(p.numel() for p in peer.network.parameters())
    return {**peer.facts, "pilot losses": losses, "weights": chosen, "parameters": parameters, "rows": rows}


def draw(rows: Rows, options: argparse.Namespace) -> None:
    """Distances over time, a line for each; and the first samples of each."""
    lines = {}
    for system in (OURS, *PEERS):
        known = [minutes for minutes in times(options) if row(system, minutes) in rows]
        lines[system] = (np.array(known), np.array([rows[row(system, m)]["frechet"]["mean"] for m in known]))
    title = f"Frechet distance after training on one thread, {EVALUATIONS} evaluations"
    curves([(title, "minutes", lines)], options.figure, log="xy")
    shown = []
    for system in (*PEERS, OURS):
        found = options.out / f"{system}-0.json"
        counted = read_json(found).get("weights", {}) if found.exists() else {}
        for minutes in times(options):
            kind = f"-{counted[name]}" if (name := row(system, minutes)) in counted else ""
            path = options.out / f"{system}-0-{minutes:g}-{EVALUATIONS}{kind}.npz"
            shown += [(f"{system}\n{minutes:g} minutes", path)] if path.exists() else []
    if not shown:
        return
    figure = Figure(figsize=(11, 0.62 * len(shown)))
    for axes, (name, path) in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        images = np.load(path, allow_pickle=False)["images"][:SHOWN]
        axes.imshow(np.concatenate(list(images[..., 0]), 1), cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
    save_figure(figure, options.figure.with_stem(f"{options.figure.stem}-samples"))


def main() -> None:
    """Trains and measures what OUT has not, or reports."""
    options = options_of(__doc__, (OURS, *PEERS), minutes="4,10,20,40", n=2000, figure=True, data="fashion-mnist")
    if options.report:
        rows = report(options.out, options.report, ("frechet", "precision", "recall", "coverage"))
        if options.figure:
            draw(rows, options)
        return
    for name in PEERS if options.only in (None, *PEERS) else ():
        PEERS[name](28, 1)  # what is missing is missed now
    for name, seed, path in missing(options, (OURS, *PEERS)):
        measure(path, options, seed, partial(of_ours if name == OURS else partial(of_peer, name), seed, options))


if __name__ == "__main__":
    main()
