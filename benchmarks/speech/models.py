"""Spoken words after equal time: undiffuse, diffusers' U-Nets on the same spectrograms, LMNT's DiffWave on waveforms.

    apt-get install espeak-ng; pip install diffusers && pip install --no-deps diffwave
    OMP_NUM_THREADS=1 python benchmarks/speech/models.py OUT [--minutes 60] [--n 500] [--only SYSTEM]

Each trains on `digits-spoken`, on one thread, in the same CPU time, in bf16 where the CPU has it; then n samples of the
classes in turn, in 20 evaluations, are measured as `undiffuse evaluate` measures sounds. Spectrograms become waveforms
by Griffin-Lim, for all; "griffin-lim" is what it makes of test clips' own. In the peers' favour: making their batches
costs them nothing; their learning rate is the better of the recommended one and 1e-3 after a minute of each (DiffWave:
four). How they are set up, and what of that is scaled: systems.py. Writes OUT/SYSTEM.json; what is there is kept, of a
peer also samples that are not measured yet.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, better_rate, finish, losses_in
from systems import EVALUATIONS, Peer, diffwave, unet1d, unet2d

from undiffuse import load
from undiffuse.build import make_data
from undiffuse.conditions import Labels
from undiffuse.config import DataConfig, preset, preset_for
from undiffuse.data.sounds import SoundSet
from undiffuse.devices import conditions
from undiffuse.domains import domain_of
from undiffuse.evaluation.sounds import measured
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe, generate

DATA = "digits-spoken"

Facts = dict[str, Any]
System = Callable[[Path, float, np.ndarray], tuple[np.ndarray, Facts]]
"""Trains in a folder for some minutes, and draws samples of these classes: int16 (N, L)."""


def batches(data: SoundSet, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Representations and labels, without end."""
    x0, random = domain_of(data).encode(np.asarray(data.images)), np.random.default_rng(seed)
    assert data.labels is not None
    labels = torch.from_numpy(np.array(data.labels))
    while True:
        rows = torch.from_numpy(random.integers(len(x0), size=size))
        yield x0[rows], labels[rows]


@torch.inference_mode()
def drawn(peer: Peer, labels: np.ndarray, data: SoundSet) -> np.ndarray:
    """Samples of these classes by the averaged network: int16 (N, L)."""
    torch.manual_seed(0)
    domain, network = domain_of(data), peer.average()
    parts = np.array_split(labels, -(-len(labels) // 50))
    x0 = [peer.draw(network, torch.from_numpy(part), domain.shape) for part in parts]  # type: ignore[arg-type]
    return domain.decode(torch.cat(x0))


def of_peer(make: Callable[..., Peer], sound: str, batch: int = 32, pilot: float = 1.0) -> System:
    """Trains a peer at its better rate, which `pilot` minutes of each decide, and draws its samples."""

    def run(out: Path, minutes: float, labels: np.ndarray) -> tuple[np.ndarray, Facts]:
        data = make_data(DataConfig(source=DATA, sound=sound))  # type: ignore[arg-type]
        assert isinstance(data, SoundSet)
        drawn(make(len(data.classes), None), labels[:2], data)  # what fails, fails now
        examples = partial(batches, data, batch)
        pilots = better_rate(partial(make, len(data.classes)), examples, min(pilot, minutes))
        torch.manual_seed(0)
        peer = make(len(data.classes), next(iter(pilots)))
        losses = losses_in(minutes, peer.step, examples())
        began = time.process_time()
        rows = drawn(peer, labels, data)
        return rows, {
            "parameters": sum(p.numel() for p in peer.network.parameters()),
            "steps": len(losses),
            "sounds seen": batch * len(losses),
            "pilot losses": {str(rate or "recommended"): loss for rate, loss in pilots.items()},
            "real-time factor": (time.process_time() - began) / (len(rows) * rows.shape[1] / data.rate),
        }

    return run


def of_undiffuse(sound: str) -> System:
    """`undiffuse train digits-spoken --set data.sound=SOUND`, for as many steps as the time allows."""

    def run(out: Path, minutes: float, labels: np.ndarray) -> tuple[np.ndarray, Facts]:
        folder = out / f"run-{sound}"
        values = preset(preset_for(minutes)) | {"data.source": DATA, "data.sound": sound} | QUIET
        finish(values, folder, minutes)
        model = load(folder)
        began = time.process_time()
        condition = Labels(torch.from_numpy(labels), len(model.data.classes))
        rows = np.concatenate(list(generate(model, Recipe(steps=EVALUATIONS), range(len(labels)), condition)))
        seconds = time.process_time() - began
        factor = seconds / (len(rows) * rows.shape[1] / model.domain.rate)  # type: ignore[attr-defined]
        return rows, {"parameters": model.parameters, "training": model.training, "real-time factor": factor}

    return run


def griffin_lim(out: Path, minutes: float, labels: np.ndarray) -> tuple[np.ndarray, Facts]:
    """Clips of the test split, their phases guessed: what any model of spectrograms can reach. Nothing is trained."""
    data = make_data(DataConfig(source=DATA), "test")
    assert isinstance(data, SoundSet) and data.labels is not None
    order = [np.flatnonzero(data.labels == label) for label in range(len(data.classes))]
    rows = [order[label][number // len(order)] for number, label in enumerate(labels)]
    domain = domain_of(data)
    return domain.decode(domain.encode(np.asarray(data.images[rows]))), {}


SYSTEMS = {
    "griffin-lim": griffin_lim,
    "undiffuse": of_undiffuse("log-mel"),
    "undiffuse-mdct": of_undiffuse("mdct"),
    "diffusers-2d": of_peer(unet2d, "log-mel"),
    "diffusers-1d": of_peer(unet1d, "log-mel"),
    "diffwave": of_peer(diffwave, "waves", batch=16, pilot=4.0),
}


def main() -> None:
    """Trains and measures what OUT has not, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--only", choices=SYSTEMS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in [options.only] if options.only else SYSTEMS:
        path = options.out / f"{name}.json"
        if path.exists():
            continue
        labels, samples = np.arange(options.n) % 10, options.out / f"{name}.npz"
        if not samples.exists():
            rows, facts = SYSTEMS[name](options.out, options.minutes, labels)
            write_json(options.out / f"{name}-training.json", facts)
            np.savez(samples, sounds=rows, labels=labels)
        rows, facts = np.load(samples)["sounds"], read_json(options.out / f"{name}-training.json")
        train_set, test = (make_data(DataConfig(source=DATA), split) for split in ("train", "test"))
        assert isinstance(train_set, SoundSet)
        asked = None if name == "diffusers-1d" else labels
        found = measured(rows, test, train_set, train_set.rate, requested=asked)
        measures = [dataclasses.asdict(row) for row in found]
        write_json(path, {"minutes": options.minutes, **conditions(), **facts, "rows": measures})
        for row in found:
            print(f"{name:16} {row.measure:45} {row.value.value:.3f}", flush=True)


if __name__ == "__main__":
    main()
