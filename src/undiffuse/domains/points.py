"""Points in D dimensions: float32 rows (N, D) in [-1, 1], used as x_0 unchanged."""

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
class Points:
    """Points (D,), which must be scaled to [-1, 1] already: no scale is estimated or stored."""

    stored: tuple[int, ...]
    values = None
    bounded = True
    noun = "points"
    suffix = ".txt"
    features = ()

    def __post_init__(self) -> None:
        if len(self.stored) != 1:
            raise ValueError(f"points have a shape (D,), not {self.stored}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return self.stored

    def check(self, settings: "DataConfig") -> None:
        """Raises UsageError for settings of other kinds of data."""
        refuse_settings(settings, "points", "these are points")

    def augment(self, rows: np.ndarray, settings: "DataConfig", draw: "BatchDraw") -> np.ndarray:
        """The rows: points are not augmented."""
        return rows

    def encode(self, rows: np.ndarray) -> "Tensor":
        """The same numbers, float32 (N, D)."""
        import torch

        return torch.from_numpy(np.array(rows, dtype=np.float32))

    def decode(self, x0: "Tensor") -> np.ndarray:
        """The same numbers, float32 (N, D)."""
        rows: np.ndarray = x0.float().cpu().numpy()
        return rows

    def save(self, row: np.ndarray, path: Path) -> None:
        """As text, one number per line, at full precision."""
        with atomic_file(path) as temporary:
            temporary.write_text("".join(f"{number}\n" for number in row))

    def show(self, rows: np.ndarray, path: Path) -> None:
        """A scatter plot of the first two dimensions, or a histogram of a single one."""
        from matplotlib.figure import Figure

        from undiffuse.plots import save_figure

        figure = Figure(figsize=(4, 4))
        axes = figure.subplots()
        if rows.shape[1] > 1:
            axes.scatter(rows[:, 0], rows[:, 1], s=4)
        else:
            axes.hist(rows[:, 0], bins=50, range=(-1, 1))
        axes.set(xlim=(-1.1, 1.1))
        save_figure(figure, path)
