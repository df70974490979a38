"""Pictures: uint8 rows (N, H, W, C), x_0 (N, C, H, W)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.domain import refuse_settings
from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.config import DataConfig
    from undiffuse.randomness import BatchDraw


@dataclass(frozen=True)
class Pictures:
    """8-bit pictures of one size (H, W, C), grey or colour. Raises ValueError for another number of channels."""

    stored: tuple[int, ...]
    values = 256
    bounded = True
    noun = "images"
    suffix = ".png"
    features = ("classifier", "efficientnet-lite0", "inception")

    def __post_init__(self) -> None:
        if len(self.stored) != 3:
            raise ValueError(f"images have a shape (H, W, C), not {self.stored}")
        if self.stored[2] not in (1, 3):
            raise ValueError(f"images of {self.stored[2]} channels: only 1 (grey) and 3 (colour) are supported")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        height, width, channels = self.stored
        return channels, height, width

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C), what strips of rows show: the rows."""
        return rows

    def check(self, settings: "DataConfig") -> None:
        """Raises UsageError for settings of other kinds of data, and for a shift that leaves nothing of the images."""
        refuse_settings(settings, "pictures", "these are pictures")
        height, width, _ = self.stored
        if settings.shift >= min(height, width):
            raise UsageError(f"data.shift = {settings.shift} leaves nothing of images of {height}x{width} pixels")

    def augment(self, rows: np.ndarray, settings: "DataConfig", draw: "BatchDraw") -> np.ndarray:
        """Mirrored left to right, and shifted with the edges repeated, as `data.flip` and `data.shift` say."""
        mirrored, shift = draw.uniform() < 0.5, settings.shift
        if settings.flip:
            rows = np.where(mirrored[:, None, None, None], rows[:, :, ::-1], rows)
        if shift:
            offsets = draw.integers(2 * shift + 1, 2)
            height, width = rows.shape[1:3]
            padded = np.pad(rows, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
            rows = np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)])
        return rows

    def encode(self, rows: np.ndarray) -> "Tensor":
        """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]: 0 is -1, 255 is 1."""
        import torch

        return torch.from_numpy(np.array(rows.transpose(0, 3, 1, 2), order="C")).to(torch.float32) / 127.5 - 1

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, C, H, W) -> uint8 (N, H, W, C), rounded to the nearest value and clipped to the range."""
        rows: np.ndarray = ((x0.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return rows

    def save(self, row: np.ndarray, path: Path) -> None:
        """As PNG."""
        from undiffuse.plots import save_image

        save_image(row, path)

    def show(self, rows: np.ndarray, path: Path) -> None:
        """As a grid."""
        from undiffuse.plots import save_grid

        save_grid(rows, path)
