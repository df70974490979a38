"""Texts as token numbers: uint16 rows (N, L), used as x_0 unchanged."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.domain import refuse_settings
from undiffuse.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.config import DataConfig
    from undiffuse.randomness import BatchDraw


@dataclass(frozen=True)
class Texts:
    """Windows of L tokens. What they spell is known to the model's tokenizer (`undiffuse.data.tokens`), not here."""

    stored: tuple[int, ...]
    values = None
    bounded = True
    noun = "texts"
    suffix = ".txt"
    features = ()

    def __post_init__(self) -> None:
        if len(self.stored) != 1:
            raise ValueError(f"texts have a shape (L,), not {self.stored}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return self.stored

    def check(self, settings: "DataConfig") -> None:
        """Raises UsageError for settings of other kinds of data."""
        refuse_settings(settings, "texts", "this is a text")

    def augment(self, rows: np.ndarray, settings: "DataConfig", draw: "BatchDraw") -> np.ndarray:
        """The rows: texts are not augmented."""
        return rows

    def encode(self, rows: np.ndarray) -> "Tensor":
        """The same numbers, int64 (N, L)."""
        import torch

        return torch.from_numpy(rows.astype(np.int64))

    def decode(self, x0: "Tensor") -> np.ndarray:
        """The same numbers, uint16 (N, L), of integers 0 to 65535 on any device."""
        rows: np.ndarray = x0.cpu().numpy().astype(np.uint16)
        return rows

    def save(self, row: np.ndarray, path: Path) -> None:
        """The numbers, with spaces between them: without the tokenizer they have no letters."""
        with atomic_file(path) as temporary:
            temporary.write_text(" ".join(map(str, row)) + "\n", encoding="utf-8")

    def show(self, rows: np.ndarray, path: Path) -> None:
        """A picture of the numbers: a line of colours for each row."""
        from matplotlib.figure import Figure

        from undiffuse.plots import save_figure

        figure = Figure(figsize=(6, 4))
        figure.subplots().imshow(rows, aspect="auto", interpolation="nearest")
        save_figure(figure, path)
