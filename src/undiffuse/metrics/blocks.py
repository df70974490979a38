"""Arrays read a block at a time, so that what is measured on them need not fit in memory; and the same few of them."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from undiffuse.randomness import Purpose, stream

ROWS = 2048
MOST = 1 << 23  # numbers in a block: 64 MiB


def blocks(array: np.ndarray, rows: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """Each block of at most `rows` rows, fewer where they are long, flattened to float64 (B, D), and which they are."""
    rows = max(1, min(rows, MOST // max(1, math.prod(array.shape[1:]))))
    for first in range(0, len(array), rows):
        here = slice(first, min(first + rows, len(array)))
        yield here, torch.from_numpy(np.array(array[here], dtype=np.float64)).flatten(1)


def pick(array: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, in order, always the same ones; all where there are no more."""
    if n >= len(array):
        return array
    return array[np.sort(stream(0, Purpose.CHOICE, n).choice(len(array), n, replace=False))]
