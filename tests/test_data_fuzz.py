"""Spoilt picture files: a picture or one clear sentence, never a crash, a hang, a flood of warnings or much memory."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse import data
from undiffuse.data import policy, remarks

KINDS = ("png", "jpeg", "gif", "webp", "bmp", "tiff", "tga", "ppm", "jpeg2000", "avif", "ico", "pcx", "sgi", "qoi")
EACH = 120


@pytest.fixture(autouse=True)
def _small_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # twice as many are refused
    remarks.warn.cache_clear()


def originals(kind: str, random: np.random.Generator) -> list[bytes]:
    """Valid files of a kind: colour, and what else it stores (grey, palettes, alpha, metadata, frames)."""
    image = Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"):
        for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [image.convert("RGB")]}):
            file = io.BytesIO()
            try:
                image.convert("L" if mode == "I;16" else mode).convert(mode).save(file, kind, **options)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
                continue  # the kind has no such mode
            files.append(file.getvalue())
    return files


def spoilt(files: list[bytes], random: np.random.Generator) -> bytes:
    """One of the files with bytes flipped, set to extremes, cut off, cut out, or joined with another's."""
    raw = bytearray(files[random.integers(len(files))])
    where = random.integers(0, len(raw), 2)
    match random.integers(5):
        case 0:
            for place in random.integers(0, len(raw), random.integers(1, 9)):
                raw[place] ^= 1 << random.integers(8)
        case 1:  # most of what counts is in the first bytes: sizes, numbers of channels, offsets
            for place in random.integers(0, min(len(raw), 64), random.integers(1, 5)):
                raw[place] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        case 2:
            del raw[where[0] :]
        case 3:
            del raw[min(where) : max(where)]
        case 4:
            other = files[random.integers(len(files))]
            raw[where[0] :] = other[min(where[1], len(other) - 1) :]
    return bytes(raw)


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_pictures(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(list(kind.encode()))
    files = originals(kind, random)
    assert files
    for raw in files:
        policy.decode(io.BytesIO(raw))
    (tmp_path / "root").mkdir()
    paths = [tmp_path / "root" / f"{index:03d}.png" for index in range(EACH)]
    for path in paths:
        path.write_bytes(spoilt(files, random))
    with warnings.catch_warnings(action="ignore"):
        outcomes = [outcome(path) for path in paths]
    reasons = [reason for reason in outcomes if isinstance(reason, str)]
    assert 0 < len(reasons) < EACH
    assert all(0 < len(reason) < 200 and "object at 0x" not in reason for reason in reasons)
    with warnings.catch_warnings(record=True) as told:
        got = data.load(tmp_path / "root", "all", size=8, skip_corrupt=True)
    assert (len(got), got.skipped) == (EACH - len(reasons), len(reasons))
    assert not told
    assert capfd.readouterr() == ("", "")


def outcome(path: Path) -> Image.Image | str:
    """The picture, or why there is none; any other exception is a failure."""
    try:
        image = policy.decode(path)
    except ValueError as error:
        return str(error)
    assert image.mode in ("L", "RGB")
    assert image.width * image.height <= 2 * 500_000
    return image
