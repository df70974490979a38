"""Random numbers as pure functions of what they are for: never of a batch size, a process or what was drawn before.

Keys are tuples of integers: (seed, purpose, ...). Sampling keys by (seed, sample, step), training by (seed, step,
position in the global batch), so sample k is the same alone or in a crowd, and a resumed run needs no saved state.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


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


def stream(*key: int) -> np.random.Generator:
    """The counter-based generator of a key (Philox; Salmon et al. 2011). Keys are integers in 0 .. 2^32 - 1."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def normal(keys: Iterable[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, one key per sample: float32 (B, *shape) on the CPU."""
    keys = list(keys)
    noise = np.empty((len(keys), *shape), dtype=np.float32)
    for row, key in zip(noise, keys, strict=True):
        stream(*key).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(noise)


def torch_generator(*key: int) -> torch.Generator:
    """A torch generator seeded by a key, for draws that torch makes."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
