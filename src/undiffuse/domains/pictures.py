"""Pictures of 8 bits: rows uint8 (N, H, W, C), x_0 (N, C, H, W) in [-1, 1]."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import Data


def scaled(pixels: Tensor) -> Tensor:
    """Pixel values from 0 to 255, of any floating dtype and shape, brought to [-1, 1]."""
    return pixels / 127.5 - 1


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size. A `Domain`.

    Attributes:
        height, width: in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    height: int
    width: int
    channels: int
    values = 256

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    def encode(self, rows: np.ndarray | Tensor) -> Tensor:
        """As `Domain.encode`."""
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(np.array(rows.transpose(0, 3, 1, 2), order="C"))
        else:
            rows = rows.permute(0, 3, 1, 2)
        return scaled(rows.float())

    def decode(self, x0: Tensor) -> np.ndarray:
        """As `Domain.decode`; what lies outside of [-1, 1] becomes black or white."""
        pixels = ((x0.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    def augment(
        self, rows: np.ndarray, settings: Data, random: np.random.Generator, size: int, positions: slice
    ) -> np.ndarray:
        """Mirrors and shifts pictures, as `settings` have it."""
        mirrored = random.random(size)[positions] < 0.5
        if settings.flip:
            rows = np.where(mirrored[:, None, None, None], rows[:, :, ::-1], rows)
        if shift := settings.shift:
            offsets = random.integers(0, 2 * shift + 1, (size, 2))[positions]
            padded = np.pad(rows, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
            places = zip(padded, offsets, strict=True)
            rows = np.stack([one[y : y + self.height, x : x + self.width] for one, (y, x) in places])
        return rows

    def show(self, rows: np.ndarray, path: Path) -> None:
        """All of them as a grid, in a PNG file."""
        from undiffuse.plots import save_grid  # and with it matplotlib, which takes its time

        save_grid(rows, path)

    def save(self, row: np.ndarray, path: Path) -> None:
        """As a PNG file."""
        from undiffuse.plots import save_image

        save_image(row, path)
