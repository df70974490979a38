"""What kind of data a model is of: the shape and values of x_0, and how rows of a data set become x_0 and come back."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from undiffuse.config import Data


class Domain(Protocol):
    """A kind of data. Rows are what data sets hold and samples are stored as; x_0 is what a process adds noise to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x_0, without the batch: (C, H, W), (C, L) or (D,)."""

    @property
    def values(self) -> int | None:
        """How many values an element of x_0 takes, even on [-1, 1]; None where it is continuous."""

    def encode(self, rows: Any) -> Tensor:
        """Rows (B, ...), an array or a tensor -> x_0 (B, *shape), float32 in [-1, 1]."""

    def decode(self, x0: Tensor) -> np.ndarray:
        """x_0, also an approximate one -> the nearest rows: undoes `encode` exactly."""

    def augment(
        self, rows: np.ndarray, settings: Data, random: np.random.Generator, size: int, positions: slice
    ) -> np.ndarray:
        """Rows for training, changed at random. Draws for a global batch of `size`, of which these are `positions`."""

    def show(self, rows: np.ndarray, path: Path) -> None:
        """Writes a picture in which many rows can be seen at once."""

    def save(self, row: np.ndarray, path: Path) -> None:
        """Writes one row as a file of its own."""
