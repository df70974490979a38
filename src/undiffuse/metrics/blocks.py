"""Reads arrays a block at a time, so that they need not fit in memory, and picks fixed subsets of them."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from undiffuse.randomness import Purpose, stream

ROWS = 2048
MOST = 1 << 23  # numbers in a block: 64 MiB


def blocks(array: np.ndarray, rows: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of at most `rows` rows (fewer if rows are long) and those rows, flattened to float64 (B, D)."""
    rows = max(1, min(rows, MOST // max(1, math.prod(array.shape[1:]))))
    for first in range(0, len(array), rows):
        here = slice(first, min(first + rows, len(array)))
        yield here, torch.from_numpy(np.array(array[here], dtype=np.float64)).flatten(1)


def pick(array: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, in order, always the same ones; all rows if there are no more."""
    if n >= len(array):
        return array
    return array[np.sort(stream(0, Purpose.CHOICE, n).choice(len(array), n, replace=False))]
