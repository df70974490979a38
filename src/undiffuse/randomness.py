"""Random numbers as pure functions of their purpose, whatever the batch size, the process or earlier draws.

Keys are tuples of integers: (seed, purpose, ...). Sampling keys by (seed, sample, step), training by (seed, step,
position in the global batch), so sample k is the same in every batch, and a resumed run needs no saved state.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.streams import stream as stream


class Purpose(IntEnum):
    """What the numbers are for; a key holds one so that no two uses share a stream."""

    SAMPLE = 1
    ORDER = 2
    TIME = 3
    NOISE = 4
    AUGMENT = 5
    CONDITION = 6
    DROPOUT = 7
    RESAMPLE = 8
    CHOICE = 9
    PROBE = 10
    DEQUANTISE = 11
    BOUND = 12
    VARIANCE = 13
    UNIFORM = 14
    FOLD = 15
    MASK = 16
    PATHS = 17


def normal(keys: Iterable[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, one key per sample: float32 (B, *shape) on the CPU."""
    keys = list(keys)
    noise = np.empty((len(keys), *shape), dtype=np.float32)
    for row, key in zip(noise, keys, strict=True):
        stream(*key).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(noise)


def uniform(keys: Iterable[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), one key per sample: float64 (B, *shape) on the CPU."""
    keys = list(keys)
    u = np.empty((len(keys), *shape))
    for row, key in zip(u, keys, strict=True):
        stream(*key, Purpose.UNIFORM).random(out=row)
    return torch.from_numpy(u)


class Draw(Protocol):
    """The random numbers of one step of a batch. Repeated calls return the same numbers."""

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, of the shape, dtype and device of `like` (B, ...)."""

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), float64, of the shape and device of `like` (B, ...)."""

    def fold(self, number: int) -> "Draw":
        """Independent numbers for the same samples, different ones for every `number` from 1 on."""


@dataclass(frozen=True)
class KeyedDraw:
    """A draw with a key for each sample: the same bits whatever the batch."""

    keys: tuple[tuple[int, ...], ...]

    def normal(self, like: Tensor) -> Tensor:
        """As `Draw.normal`."""
        return normal(self.keys, like.shape[1:]).to(like)

    def uniform(self, like: Tensor) -> Tensor:
        """As `Draw.uniform`."""
        return uniform(self.keys, like.shape[1:]).to(like.device)

    def __getitem__(self, rows: Tensor) -> "KeyedDraw":
        """The same numbers of some of the samples, bool (B,)."""
        return KeyedDraw(tuple(key for key, kept in zip(self.keys, rows.tolist(), strict=True) if kept))

    def fold(self, number: int) -> "KeyedDraw":
        """Independent numbers for the same samples, different ones for every `number` >= 1."""
        return KeyedDraw(tuple((*key, Purpose.FOLD, number) for key in self.keys))


@dataclass(frozen=True)
class Given:
    """A draw of precomputed numbers, which have the shape that is requested: normal, or uniform for tokens."""

    noise: Tensor
    is_uniform: bool = False

    def normal(self, like: Tensor) -> Tensor:
        """The numbers. Raises ValueError if they are uniform."""
        if self.is_uniform:
            raise ValueError("only uniform numbers were given")
        return self.noise

    def uniform(self, like: Tensor) -> Tensor:
        """The numbers. Raises ValueError if they are normal."""
        if not self.is_uniform:
            raise ValueError("only normal numbers were given")
        return self.noise

    def fold(self, number: int) -> "Given":
        """There are no others. Raises ValueError."""
        raise ValueError("only numbers for one use were given")


@dataclass(frozen=True)
class BatchDraw:
    """Random numbers for the rows at `positions` of a global batch of `size`, the same however it is divided.

    Each call draws for the whole batch and advances the generator.
    """

    random: np.random.Generator
    size: int
    positions: slice

    def uniform(self, *shape: int) -> np.ndarray:
        """Uniform numbers in [0, 1), float64 (B, *shape)."""
        return self.random.random((self.size, *shape))[self.positions]

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, float64 (B, *shape)."""
        return self.random.standard_normal((self.size, *shape))[self.positions]

    def integers(self, count: int, *shape: int) -> np.ndarray:
        """Whole numbers from 0 to count - 1, int64 (B, *shape)."""
        return self.random.integers(0, count, (self.size, *shape))[self.positions]


def keyed_draws(seed: int, samples: Iterable[int], purpose: Purpose = Purpose.SAMPLE) -> Callable[[int], KeyedDraw]:
    """step -> the numbers of the samples numbered `samples` at that step: pure functions of (seed, sample, step)."""
    samples = [int(sample) for sample in samples]
    return lambda step: KeyedDraw(tuple((seed, purpose, sample, step) for sample in samples))


def torch_generator(*key: int) -> torch.Generator:
    """A torch generator seeded by a key, for draws that torch makes."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
