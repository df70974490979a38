"""The one resize and crop policy: any image in, uint8 (size, size, channels) out. docs/data.md states it for users."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from undiffuse.data.source import Header

DEFAULT_SIZE = 32
LARGEST_KEPT = 64
SIXTEEN_BIT_FULL_SCALE = 65535
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})


def header(file: Path | BinaryIO) -> Header:
    """Size and greyness of an image file; reads no pixels. Raises whatever Pillow raises for a broken file."""
    with Image.open(file) as image:
        return Header(image.width, image.height, grey=_is_grey(image))


def decode(file: Path | BinaryIO) -> Image.Image:
    """The first frame of an image file, upright, mode L or RGB.

    Raises whatever Pillow raises for a broken file, and ValueError for pixel values that have no certain meaning.
    """
    with Image.open(file) as image:
        return to_eight_bit(ImageOps.exif_transpose(image))


def default_size(headers: Iterable[Header]) -> int:
    """The common side when all images are squares of one side up to 64, else 32."""
    sizes = {(one.width, one.height) for one in headers}
    if len(sizes) == 1:
        width, height = sizes.pop()
        if width == height <= LARGEST_KEPT:
            return width
    return DEFAULT_SIZE


def default_channels(headers: Iterable[Header]) -> int:
    """1 when every image is stored as grey, else 3."""
    return 1 if all(one.grey for one in headers) else 3


def fit(image: Image.Image | np.ndarray, size: int | None, channels: int) -> np.ndarray:
    """The central square, scaled with antialiasing: uint8 (size, size, channels); size None keeps the image's shape.

    `image` is a Pillow image of mode L or RGB, or uint8 (H, W, C) with C in {1, 3}.
    """
    if isinstance(image, np.ndarray):
        if image.shape[2] == channels and (size is None or image.shape[:2] == (size, size)):
            return image
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if size is not None and image.size != (size, size):
        image = _central_square(image, size)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Any Pillow image as mode L or RGB: full scale maps to full scale, transparency is laid on white."""
    if image.mode == "F":
        return _scaled(np.asarray(image), 1.0, "floating-point")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), SIXTEEN_BIT_FULL_SCALE, "integer")
    grey = _is_grey(image)
    if image.has_transparency_data:
        # Before scaling, so that the colour stored under transparent pixels never bleeds into the edges.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _is_grey(image: Image.Image) -> bool:
    return image.mode in GREY_MODES or image.mode.startswith("I;16")


def _scaled(values: np.ndarray, full_scale: float, kind: str) -> Image.Image:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= full_scale):  # written so that NaN is refused as well
        raise ValueError(f"{kind} pixels reach from {low:g} to {high:g}, expected 0 to {full_scale:g}")
    return Image.fromarray(np.rint(values * (255 / full_scale)).astype(np.uint8))


def _central_square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Lanczos widens its support when it shrinks, which is the antialiasing.
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
