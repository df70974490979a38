"""The interface of a kind of data: how its rows become x_0, and x_0 becomes rows again."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.config import DataConfig
    from undiffuse.randomness import BatchDraw


class Domain(Protocol):
    """A frozen object made from the shape of a stored row, and for sounds from what `DataFacts.sound` says: all that
    `model.json` holds of it besides its name.

    Rows are NumPy arrays (N, *stored), as data sets hold them and samples are written; x_0 is a float tensor
    (N, *shape) in [-1, 1], or about so, as networks and processes use it.
    """

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of a stored row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x_0: channels first, then the axes that a network convolves over, if any."""

    @property
    def values(self) -> int | None:
        """How many values an element of a row can take, 0 .. values - 1; None for continuous data."""

    @property
    def bounded(self) -> bool:
        """Whether x_0 lies in [-1, 1], so that predictions of it may be clipped to that."""

    @property
    def noun(self) -> str:
        """The plural noun for them, and the name of their array in an .npz file."""

    @property
    def suffix(self) -> str:
        """The suffix of a file that holds one of them."""

    @property
    def features(self) -> tuple[str, ...]:
        """The features that samples can be measured in (`undiffuse.metrics.features`)."""

    def check(self, settings: "DataConfig") -> None:
        """Raises UsageError for settings that do not fit rows of this shape."""

    def augment(self, rows: np.ndarray, settings: "DataConfig", draw: "BatchDraw") -> np.ndarray:
        """The rows of a training batch, augmented at random as the settings say."""

    def encode(self, rows: np.ndarray) -> "Tensor":
        """Rows -> x_0, float32."""

    def decode(self, x0: "Tensor") -> np.ndarray:
        """x_0, of any floating dtype and on any device -> rows: the inverse of `encode`, to the nearest row."""

    def save(self, row: np.ndarray, path: Path) -> None:
        """One row as a file with `suffix`, written atomically."""

    def show(self, rows: np.ndarray, path: Path) -> None:
        """All of them in one .png, written atomically: previews and grids."""


SETTINGS = {
    "pictures": ("size", "channels", "flip", "shift", "augment"),
    "texts": ("length", "tokens", "vocabulary"),
    "sounds": ("sound", "rate", "seconds", "trim"),
}
"""Those of the data that one kind of it alone takes."""


def refuse_settings(settings: "DataConfig", ours: str, what: str) -> None:
    """Raises UsageError for settings of other kinds of data than `ours`, `what` saying what this is."""
    for kind, keys in SETTINGS.items():
        for key in keys:
            if kind != ours and getattr(settings, key) != type(settings).model_fields[key].default:
                raise UsageError(f"data.{key} is for {kind}, and {what}: leave it out")
