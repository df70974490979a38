"""Domains: rows become x_0 and come back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.config import Data
from undiffuse.domains import Pictures


def test_pixels_and_back_are_exact() -> None:
    """All 256 values survive the way to [-1, 1] and back; between two the nearest wins; outside is clipped."""
    pictures, pixels = Pictures(16, 16, 1), np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x0 = pictures.encode(pixels)
    assert x0.shape == (1, *pictures.shape) and x0.dtype == torch.float32
    np.testing.assert_allclose(x0.numpy().ravel(), np.linspace(-1, 1, pictures.values), rtol=0, atol=6e-8)
    assert np.array_equal(pictures.decode(x0), pixels)
    for nudge in (-0.49, 0.49):
        assert np.array_equal(pictures.decode(x0 + nudge / 127.5), pixels)
    assert pictures.decode(torch.tensor([-7.0, 7.0]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_change_places(dtype: torch.dtype) -> None:
    """(B, C, H, W) becomes (B, H, W, C) and back, every value in its place, from any floating dtype."""
    pictures = Pictures(4, 5, 3)
    rows = np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3)
    x0 = pictures.encode(rows)
    assert x0[1, 2, 3, 4] == torch.tensor(float(rows[1, 3, 4, 2])) / 127.5 - 1
    assert torch.equal(x0, pictures.encode(torch.from_numpy(rows)))
    # bfloat16 has steps of 1/256 next to 1: half of a pixel's value
    assert np.abs(pictures.decode(x0.to(dtype)).astype(int) - rows).max() <= (dtype == torch.bfloat16)


def test_pictures_are_mirrored_and_shifted() -> None:
    """About half are mirrored; each is moved by up to `shift`, edges repeated: found again by trying all places.

    A share of the batch has what it has in the whole."""
    pictures, settings = Pictures(5, 6, 1), Data(flip=True, shift=2)
    rows = np.random.default_rng(0).integers(0, 256, (40, 5, 6, 1), dtype=np.uint8)
    moved = pictures.augment(rows, settings, np.random.default_rng(1), 40, slice(None))
    seen = []
    for row, result in zip(rows, moved, strict=True):
        found = [
            (mirrored, down, right)
            for mirrored in (False, True)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(_moved(row[:, ::-1] if mirrored else row, down, right), result)
        ]
        assert len(found) == 1
        seen.append(found[0])
    assert {place[1:] for place in seen} > {(0, 0)} and 8 < sum(place[0] for place in seen) < 32
    share = pictures.augment(rows[10:20], settings, np.random.default_rng(1), 40, slice(10, 20))
    assert np.array_equal(share, moved[10:20])
    assert pictures.augment(rows, Data(), np.random.default_rng(1), 40, slice(None)) is rows


def _moved(row: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = row.shape[:2]
    y, x = (np.arange(height) + down).clip(0, height - 1), (np.arange(width) + right).clip(0, width - 1)
    return row[y][:, x]


def test_pictures_are_saved_and_shown(tmp_path: Path) -> None:
    """One is saved pixel by pixel; many are shown in one file that holds each."""
    pictures = Pictures(64, 64, 3)
    rows = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pictures.save(rows[0], tmp_path / "one.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), rows[0])
    pictures.show(rows, tmp_path / "all.png")
    sheet = np.asarray(Image.open(tmp_path / "all.png"))
    for row in rows:
        windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (64, 64))
        assert (windows == row[:, :, 0]).all((2, 3)).any()
