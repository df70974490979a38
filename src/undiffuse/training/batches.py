"""The batch of a training step as a pure function of (seed, step): order, times, noise and augmentation.

The global batch is laid out by position; a process takes its share of positions, a micro-batch its share of those. So
a run does not depend on the number of either, and a resumed one needs no saved generator.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from undiffuse.build import draws_by_key
from undiffuse.conditions import Captions, Condition, Labels, Several, Spectra, augmented, drawn, known_pixels
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.data.sounds import SoundSet
from undiffuse.devices import sent
from undiffuse.domains import domain_of
from undiffuse.domains.augmentation import draw_moves, moved
from undiffuse.objectives import DRAWS
from undiffuse.randomness import BatchDraw, Given, KeyedDraw, Purpose, normal, stream, torch_generator, uniform
from undiffuse.training.masks import draw_masks
from undiffuse.training.spectrograms import spectrograms


@dataclass(frozen=True)
class Batch:
    """x0, in [-1, 1], float32 (B, *domain.shape); the condition or None; u float64 (B,) in [0, 1); the random numbers.

    These are noise float32 like x0; of tokens, where x0 is int64, uniform numbers, float64; or what the loss asks for.
    """

    x0: Tensor
    condition: Condition | None
    u: Tensor
    draw: Given | KeyedDraw

    @property
    def noise(self) -> Tensor:
        """The numbers that were given."""
        assert isinstance(self.draw, Given)
        return self.draw.noise

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, copied asynchronously; u, from which the float64 levels follow, stays where it is."""
        condition = None if self.condition is None else self.condition.to(device)
        draw = replace(self.draw, noise=sent(self.noise, device)) if isinstance(self.draw, Given) else self.draw
        return Batch(sent(self.x0, device), condition, self.u, draw)


def batches(
    config: Config, data: ImageSet, step: int, shares: Sequence[slice], device: torch.device
) -> Iterator[Batch]:
    """The micro-batches from `step` on, without end: `shares` of each global batch, in turn.

    For a GPU, another thread prepares the next one meanwhile; the cores of a CPU are busy already.
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
    """Which items the global batch of `step` holds: each epoch is a new permutation, and batches may span two."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(places, count)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = _permutation(seed, int(epoch), count)[offsets[here]]
    return items


def conditions_of(config: Config, data: ImageSet) -> "dict[str, Condition | Captions]":
    """What of the data a run conditions on, by the name of its encoder."""
    training, network = config.training, config.network
    found: dict[str, Condition | Captions] = {}
    if not training.conditional:
        return found
    if network.kind == "vocoder" and isinstance(data, SoundSet):
        return {Spectra.kind: spectrograms(data)}
    if training.condition != "sentences" and data.condition is not None:
        found["label" if isinstance(data.condition, Labels) else data.condition.kind] = data.condition
    if training.condition != "labels" and (captions := data.described(network.text, network.tokens)) is not None:
        found["sentence"] = captions
    return found


def condition_of(
    config: Config, data: ImageSet, items: np.ndarray, uniform: Callable[[], np.ndarray]
) -> Condition | None:
    """The condition of rows of the data, dropped at random: all of it, and of several parts also each alone.

    Args:
        uniform: gives new uniform numbers in [0, 1), (len(items),), at each call.
    """
    parts, share = conditions_of(config, data), config.training.label_dropout
    if not parts:
        return None
    dropped = torch.from_numpy(uniform() < share)
    found = {name: drawn(part, items, uniform()) for name, part in parts.items()}
    if len(found) == 1:
        return next(iter(found.values())).dropped(dropped)
    for name, part in found.items():
        found[name] = part.dropped(dropped | torch.from_numpy(uniform() < share))
    return Several(found)


def make_batch(config: Config, data: ImageSet, step: int, positions: slice) -> Batch:
    """The items at `positions` of the global batch of `step`."""
    training = config.training
    seed, size = training.seed, training.batch_size
    items = order(seed, step, size, len(data))[positions]
    domain = domain_of(data)
    draw = BatchDraw(stream(seed, Purpose.AUGMENT, step), size, positions)
    rows = domain.augment(np.asarray(data.images[items]), config.data, draw)
    condition = condition_of(
        config, data, items, BatchDraw(stream(seed, Purpose.CONDITION, step), size, positions).uniform
    )
    if config.data.augment:
        moves = draw_moves(config.data.augment, draw)
        rows, condition = moved(rows, moves), augmented(condition, torch.from_numpy(moves.labels))
    x0 = domain.encode(rows)
    if config.network.inpaint:
        hidden = draw_masks((x0.shape[2], x0.shape[3]), BatchDraw(stream(seed, Purpose.MASK, step), size, positions))
        condition = known_pixels(condition, x0, torch.from_numpy(hidden))
    u = DRAWS[config.objective.draw](size, torch_generator(seed, Purpose.TIME, step))[positions]
    keys = tuple((seed, int(Purpose.NOISE), step, place) for place in range(size)[positions])
    if draws_by_key(config.objective.loss):
        return Batch(x0, condition, u, KeyedDraw(keys))
    of_tokens = not x0.is_floating_point()
    return Batch(x0, condition, u, Given((uniform if of_tokens else normal)(keys, x0.shape[1:]), of_tokens))
