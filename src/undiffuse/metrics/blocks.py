"""Arrays read a block at a time, so that what is measured on them need not fit in memory; and the same few of them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from undiffuse.randomness import Purpose, stream

ROWS = 2048


def blocks(array: np.ndarray, rows: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """Each block of rows, flattened to float64 (B, D), and which rows they are."""
    for first in range(0, len(array), rows):
        here = slice(first, min(first + rows, len(array)))
        yield here, torch.from_numpy(np.array(array[here], dtype=np.float64)).flatten(1)


def pick(array: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, in order, always the same ones; all where there are no more."""
    if n >= len(array):
        return array
    return array[np.sort(stream(0, Purpose.CHOICE, n).choice(len(array), n, replace=False))]
