"""Trains a noise-aware classifier, with the batches, optimiser, rates and EMA of a run; noise levels 1/80 to 80."""

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse import output
from undiffuse.build import make_data
from undiffuse.classifier import (
    CARD,
    LARGEST_RATIO,
    WEIGHTS,
    Classifier,
    make_classifier,
    make_classifier_network,
    write_classifier,
)
from undiffuse.conditions import Labels
from undiffuse.config import Config, make_config
from undiffuse.data import ImageSet
from undiffuse.devices import conditions, placed
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_folder
from undiffuse.metrics.intervals import mean
from undiffuse.process import NoiseLevel, expand
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose, normal
from undiffuse.training.batches import Batch, batches
from undiffuse.training.ema import EMA
from undiffuse.training.loop import learning_rate
from undiffuse.training.muon import make_optimizer
from undiffuse.training.settings import decided
from undiffuse.training.statistics import data_facts

USUAL = {
    "training.condition": "labels",
    "training.label_dropout": 0.0,
    "training.precision": "fp32",
    "network.blocks": 2,
    "network.attention": (),
}
MINUTES = 3.0
KEYS = {
    "data": "source size channels flip shift skip_corrupt",
    "network": "patch channels width blocks attention dropout",
    "training": "steps minutes batch_size optimizer learning_rate weight_decay betas warmup decay clip ema seed",
    "denoiser": "sigma_data",
}
"""The settings that a classifier has."""
RATIOS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 80.0)
"""sigma / alpha at which it is measured."""
MOST_MEASURED = 2000
CHECK_EVERY = 50  # steps between looks at the loss


def train_classifier(
    values: dict[str, Any],
    out: str | os.PathLike[str],
    *,
    data: ImageSet | None = None,
    held_out: ImageSet | None = None,
    force: bool = False,
    bar: Bar = no_bar,
) -> Classifier:
    """Trains a noise-aware classifier, measures it on the held-out split and writes it to the folder `out`.

    Args:
        values: settings by dotted name, such as {"data.source": "emoji", "training.minutes": 3.0}; those of `KEYS`, and
            3 minutes if neither steps nor minutes are given. With steps, the result follows from training.seed.
        out: a new folder, or an empty one; it is written as a whole at the end.
        data, held_out: train on `data` instead of `data.source`, and measure on `held_out`, if given.
        force: write into a folder that is not empty.
        bar: makes progress bars.

    Raises UsageError for wrong settings and for data with fewer than two classes, UndiffuseError for failures.
    """
    output.claim_folder("--out", Path(out), force)
    config = classifier_config(values if data is None else {"data.source": data.name, **values})
    if data is None:
        with bar(f"reading {config.data.source}", 0) as tick:
            data, held_out = make_data(config.data, progress=tick), _held_out(config)
    if data.labels is None or len(np.unique(data.labels)) < 2:
        raise UsageError(
            f"{data.name} has fewer than two classes, too few for a classifier: give pictures in one folder per class"
        )
    if len(domain_of(data).shape) == 1:
        config = make_config({"network.kind": "mlp"}, config)
    config = decided(config, data, "fp32")
    facts = data_facts(config, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        network = make_classifier_network(config, facts)
    placed(network, "cuda" if torch.cuda.is_available() else "cpu")
    classifier = make_classifier(str(out), config, facts, network, {})
    with bar("training a classifier", 0) as tick:
        training = _fit(config, data, classifier, network, tick)
    if held_out is not None:
        with bar("measuring it", len(RATIOS)) as tick:
            levels = accuracy(classifier, held_out, config.training.seed, tick)
        images = min(len(held_out), MOST_MEASURED)
        about = {"split": held_out.split, "images": images, "fingerprint": held_out.fingerprint}
        training["accuracy"] = {**about, "levels": levels}

    def write(place: Path) -> None:
        with atomic_folder(place) as temporary:
            write_classifier(temporary, config, facts, training, network.state_dict())

    place = output.put_folder(Path(out), write, re.compile(f"{re.escape(CARD)}|{re.escape(WEIGHTS)}"), force)
    return replace(classifier, name=str(place), training=training)


def classifier_config(values: dict[str, Any]) -> Config:
    """The settings with a classifier's defaults. Raises UsageError for those it does not have, and for invalid ones."""
    make_config(values)  # suggests similar names
    for name in values:
        section, key = name.split(".")[:2]
        if key not in KEYS.get(section, "").split():
            raise UsageError(f"{name} is not a setting of a classifier, which has {', '.join(KEYS)}.*: leave it out")
    if values.get("training.steps") and values.get("training.minutes"):
        raise UsageError("training.steps and training.minutes exclude each other: give one")
    if not values.get("training.steps") and not values.get("training.minutes"):
        values = {**values, "training.minutes": MINUTES}
    return make_config({**USUAL, **values})


def _held_out(config: Config) -> ImageSet | None:
    try:
        return make_data(config.data, "test")
    except UsageError:  # the training split could be read, so this one is empty
        return None


def noise_levels(u: Tensor) -> NoiseLevel:
    """The noise levels of a batch, alpha = 1 and ln sigma even from -ln 80 to ln 80; alpha makes no difference to a
    classifier, which sees x_t at unit variance. `u`: float64 (B,) in [0, 1)."""
    return NoiseLevel(torch.ones_like(u), (math.log(LARGEST_RATIO) * (2 * u - 1)).exp())


def loss(classifier: Classifier, batch: Batch) -> Tensor:
    """The mean of -ln p(y | x_t), 0-dim."""
    assert isinstance(batch.condition, Labels)
    level = noise_levels(batch.u)
    x_t = batch.x0 + expand(level.sigma, batch.x0) * batch.noise
    return functional.nll_loss(classifier.log_probs(x_t, level), batch.condition.index)


@dataclass
class _Budget:
    """The share of a run that is done, and its number of steps, which a budget of minutes decides when the learning
    rate begins to fall."""

    config: Config
    began: float
    total: int | None

    def share(self, step: int) -> float:
        """The share done after `step` steps, in [0, 1]."""
        training = self.config.training
        if self.total is not None:
            return step / self.total
        share = min(1.0, (time.monotonic() - self.began) / (60 * (training.minutes or MINUTES)))
        if share >= 1 - training.decay:
            self.total = max(step + 1, round(step / share))
        return share


def _fit(
    config: Config, data: ImageSet, classifier: Classifier, network: nn.Module, tick: Callable[..., None]
) -> dict[str, Any]:
    """Trains the network in place, leaving the averaged weights in it; returns the facts."""
    training, parameters = config.training, list(network.parameters())
    optimizer, average = make_optimizer(training, network), EMA(parameters, training.ema)
    budget = _Budget(config, time.monotonic(), training.steps)
    network.train()
    for step, batch in enumerate(batches(config, data, 0, [slice(0, training.batch_size)], parameters[0].device), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step - 1, budget.total)
        found = loss(classifier, batch)
        found.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update(parameters, step)
        share = budget.share(step)
        if (step % CHECK_EVERY == 0 or share == 1) and not found.isfinite():
            raise UndiffuseError(f"the loss is {found.item()} at step {step}: lower training.learning_rate")
        tick(round(1000 * share), 1000)
        if step == budget.total:
            break
    with torch.no_grad():
        for parameter, averaged in zip(parameters, average.average, strict=True):
            parameter.copy_(averaged)
    network.eval().requires_grad_(False)
    return {
        "steps": step,
        "images": step * training.batch_size,
        "seconds": round(time.monotonic() - budget.began, 1),
        "device": str(parameters[0].device),
        "parameters": sum(parameter.numel() for parameter in parameters),
        **conditions(),
    }


@torch.inference_mode()
def accuracy(
    classifier: Classifier, data: ImageSet, seed: int = 0, tick: Callable[[int], None] = lambda done: None
) -> list[dict[str, Any]]:
    """How often the most probable class is the right one at the ratios sigma / alpha of RATIOS, with 95% intervals, and
    the mean of -ln p(y | x_t) in nats: of the first 2000 images, with noise that is a function of (seed, image, level).
    """
    assert data.labels is not None
    count, domain, device = min(len(data), MOST_MEASURED), domain_of(data), classifier.log_prior.device
    labels, rows = torch.from_numpy(np.array(data.labels[:count])), []
    for number, ratio in enumerate(RATIOS):
        level, parts = NoiseLevel(torch.tensor(1.0).double(), torch.tensor(ratio).double()), []
        for first in range(0, count, 250):
            x0 = domain.encode(np.asarray(data.images[first : min(count, first + 250)]))
            keys = ((seed, Purpose.PROBE, first + row, number) for row in range(len(x0)))
            x_t = x0 + ratio * normal(keys, x0.shape[1:])
            parts.append(classifier.log_probs(x_t.to(device), level).cpu())
        log_probs = torch.cat(parts)
        right = mean((log_probs.argmax(1) == labels).numpy())
        nats = functional.nll_loss(log_probs, labels).item()
        interval = None if right.low is None else [right.low, right.high]
        rows.append({"ratio": ratio, "accuracy": right.value, "interval": interval, "nats": nats})
        tick(1)
    return rows
