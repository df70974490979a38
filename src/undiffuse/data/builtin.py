"""The small data sets that need no download: avatars and emoji (in the package), and digits (in scikit-learn)."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np

from undiffuse.data import avatars
from undiffuse.data.arrays import open_arrays
from undiffuse.data.avatar_captions import captions_of
from undiffuse.data.source import Content, Source, from_arrays
from undiffuse.errors import UndiffuseError

AVATARS = Path(__file__).parent / "assets" / "avatars.npz"
EMOJI = Path(__file__).parent / "assets" / "emoji.npz"
EMOJI_LICENCE = "SIL OFL 1.1 (Noto Emoji, Google)"
DIGITS_LICENCE = "CC BY 4.0 (UCI, E. Alpaydin and C. Kaynak)"
DIGITS_COMMAND = "pip install scikit-learn"
DIGITS_FULL_SCALE = 16


def open_avatars() -> Source:
    """Source over the embedded avatars: RGB 32x32 on white, with attributes, and captions made from them."""

    def opened() -> Content:
        content = open_arrays(AVATARS).open()
        return replace(content, captions=captions_of(content.attributes), licence=avatars.LICENCE)

    facts = AVATARS.stat()
    return Source(
        ["avatars", captions_of(avatars.columns([avatars.avatar(0, 0)]), each=100), facts.st_size, facts.st_mtime_ns],
        opened,
    )


def open_emoji() -> Source:
    """Source over the embedded emoji: RGB 32x32 on white, with captions, labelled with the nine Unicode groups."""
    facts = EMOJI.stat()
    return Source(
        ["emoji with captions", facts.st_size, facts.st_mtime_ns],
        lambda: replace(open_arrays(EMOJI).open(), licence=EMOJI_LICENCE),
    )


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
