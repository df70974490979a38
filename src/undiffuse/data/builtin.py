"""The two small data sets that need no download: emoji (inside the package) and digits (inside scikit-learn)."""

import importlib.util
from pathlib import Path

import numpy as np

from undiffuse.data.npy import Archive, open_npy
from undiffuse.data.source import Content, Source, from_arrays
from undiffuse.errors import UndiffuseError

EMOJI = Path(__file__).parent / "assets" / "emoji.npz"
EMOJI_LICENCE = "SIL OFL 1.1 (Noto Emoji, Google)"
DIGITS_LICENCE = "CC BY 4.0 (UCI, E. Alpaydin and C. Kaynak)"
DIGITS_COMMAND = "pip install scikit-learn"
DIGITS_FULL_SCALE = 16


def open_emoji() -> Source:
    """Source over the embedded emoji: RGB 32x32 on white, named, labelled with the nine Unicode groups."""

    def opened() -> Content:
        arrays = open_npy(EMOJI)
        assert isinstance(arrays, Archive)  # .npz files are
        return from_arrays(
            arrays.read("images"),
            arrays.read("labels").astype(np.int64),
            tuple(map(str, arrays.read("classes"))),
            tuple(map(str, arrays.read("names"))),
            licence=EMOJI_LICENCE,
        )

    facts = EMOJI.stat()
    return Source(["emoji", facts.st_size, facts.st_mtime_ns], opened)


def has_digits() -> bool:
    """Whether scikit-learn, which contains the digits, is installed; does not import it."""
    return importlib.util.find_spec("sklearn") is not None


def open_digits() -> Source:
    """Source over scikit-learn's 8x8 digits, scaled from 0..16 to 0..255. UndiffuseError without scikit-learn."""

    def opened() -> Content:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / DIGITS_FULL_SCALE)).astype(np.uint8)
        return from_arrays(
            pixels[..., None],
            digits.target.astype(np.int64),
            tuple(map(str, digits.target_names)),
            licence=DIGITS_LICENCE,
        )

    if not has_digits():
        raise UndiffuseError(f"digits needs scikit-learn: `{DIGITS_COMMAND}` (or install undiffuse[digits])")
    return Source(["digits"], opened)
