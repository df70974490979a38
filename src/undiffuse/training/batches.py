"""The batch of a training step as a pure function of (seed, step): order, times, noise and augmentation.

The global batch is laid out by position; a process takes its share of positions, a micro-batch its share of those. So
the run does not depend on how many of either there are, and a resumed one needs no saved generator.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.objectives import DRAWS
from undiffuse.randomness import Given, Purpose, normal, stream, torch_generator


@dataclass(frozen=True)
class Batch:
    """x0 and noise float32 (B, C, H, W), data in [-1, 1]; labels int64 (B,) or None; u float64 (B,) in [0, 1)."""

    x0: Tensor
    labels: Tensor | None
    u: Tensor
    noise: Tensor

    @property
    def draw(self) -> Given:
        """The noise, as objectives take it."""
        return Given(self.noise)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, without waiting for it to arrive; u, from which the float64 levels follow, stays."""

        def moved(z: Tensor) -> Tensor:
            return z.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else z.to(device)

        return Batch(moved(self.x0), None if self.labels is None else moved(self.labels), self.u, moved(self.noise))


def batches(
    config: Config, data: ImageSet, step: int, shares: Sequence[slice], device: torch.device
) -> Iterator[Batch]:
    """The micro-batches from `step` on, for ever: `shares` of each global batch, in turn.

    For a GPU another thread makes the next one meanwhile; the cores of a CPU have enough to do as it is.
    """
    places = ((number, share) for number in itertools.count(step) for share in shares)
    if device.type == "cpu":
        for place in places:
            yield make_batch(config, data, *place)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(make_batch, config, data, *next(places))
        for place in places:
            ready, following = following, thread.submit(make_batch, config, data, *place)
            yield ready.result().to(device)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return stream(seed, Purpose.ORDER, epoch).permutation(count)


def order(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which items the global batch of `step` holds: every epoch a fresh permutation, batches running across its end."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(places, count)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = _permutation(seed, int(epoch), count)[offsets[here]]
    return items


def make_batch(config: Config, data: ImageSet, step: int, positions: slice) -> Batch:
    """The items at `positions` of the global batch of `step`."""
    training = config.training
    seed, size = training.seed, training.batch_size
    items = order(seed, step, size, len(data))[positions]
    images = np.asarray(data.images[items])
    images = _augment(images, config, stream(seed, Purpose.AUGMENT, step), positions)
    x0 = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32) / 127.5 - 1
    labels = None
    if data.labels is not None and data.classes and training.conditional:
        dropped = stream(seed, Purpose.CONDITION, step).random(size)[positions] < training.label_dropout
        labels = torch.from_numpy(np.where(dropped, len(data.classes), data.labels[items]))
    u = DRAWS[config.objective.draw](size, torch_generator(seed, Purpose.TIME, step))[positions]
    noise = normal(((seed, Purpose.NOISE, step, place) for place in range(size)[positions]), x0.shape[1:])
    return Batch(x0, labels, u, noise)


def _augment(images: np.ndarray, config: Config, random: np.random.Generator, positions: slice) -> np.ndarray:
    """Mirrors and shifts uint8 (B, H, W, C) images. Draws for the whole batch, so that positions agree."""
    size, shift = config.training.batch_size, config.data.shift
    mirrored = random.random(size)[positions] < 0.5
    if config.data.flip:
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    if shift:
        offsets = random.integers(0, 2 * shift + 1, (size, 2))[positions]
        height, width = images.shape[1:3]
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        images = np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)])
    return images
