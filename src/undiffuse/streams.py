"""Generators as pure functions of a key, and numbers that are spread evenly. Imports no torch."""

import numpy as np

GOLDEN = 0.6180339887498949
"""The golden ratio's fraction: its multiples fill [0, 1) evenly, however many there are."""


def stream(*key: int) -> np.random.Generator:
    """The counter-based generator of a key (Philox; Salmon et al. 2011). Keys are integers in 0 .. 2^32 - 1."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def evenly(numbers: np.ndarray) -> np.ndarray:
    """A u in [0, 1) for each number, float64 like `numbers` (N,) in shape: multiples of GOLDEN, so evenly spread."""
    return np.modf((numbers + 0.5) * GOLDEN)[0]
