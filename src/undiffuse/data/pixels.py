"""What the numbers in an image file mean: converts any Pillow mode to 8-bit grey or RGB on white."""

import numpy as np
from PIL import Image

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
SIXTEEN_BITS = 65535
TWELVE_BITS = 4095
UNUSED_ALPHA = frozenset({"TGA", "BMP", "DIB", "ICO"})  # formats whose writers often leave the alpha they store at 0
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8
KEY_SCALE = {"1": 255, "L;2": 85, "L;4": 17}  # how Pillow scales the greys of a PNG, but not the transparent one


def is_grey(image: Image.Image) -> bool:
    """Whether an image is stored as grey: its mode counts, not its colours."""
    return image.mode in GREY_MODES or image.mode.startswith("I;16") or _raw_mode(image) == "LA;16B"


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Any Pillow image as mode L or RGB: full scale maps to full scale, transparency is composited on white.

    Raises ValueError for integers and floats outside the range with an unambiguous meaning.
    """
    grey, raw_mode = is_grey(image), _raw_mode(image)  # loading forgets the raw mode
    image.load()
    if image.mode == "F":
        return _scaled(image, 1.0, "floating-point")
    if image.mode == "I" or image.mode.startswith("I;16"):
        twelve = _tag(image, BITS_PER_SAMPLE) == (12,)
        return _scaled(image, TWELVE_BITS if twelve else SIXTEEN_BITS, "integer")
    if image.has_transparency_data and not _alpha_is_unused(image):
        # Before scaling, so that the colour stored under transparent pixels never bleeds into the edges.
        image = _on_white(_with_alpha(image, raw_mode))
    return image.convert("L" if grey else "RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """Any Pillow image as mode RGBA, with the transparency that `to_eight_bit` composites on white."""
    raw_mode = _raw_mode(image)
    image.load()
    if image.has_transparency_data and not _alpha_is_unused(image) and image.mode[0] not in "FI":
        return _with_alpha(image, raw_mode)
    return to_eight_bit(image).convert("RGBA")


def _alpha_is_unused(image: Image.Image) -> bool:
    return image.format in UNUSED_ALPHA and image.mode[-1] == "A" and image.getchannel("A").getextrema() == (0, 0)


def _with_alpha(image: Image.Image, raw_mode: str) -> Image.Image:
    """The image as RGBA. Pillow compares a PNG's transparent colour with values already converted to 8 bits."""
    key = image.info.get("transparency")
    if isinstance(key, int) and raw_mode in KEY_SCALE:
        image.info["transparency"] = key * KEY_SCALE[raw_mode]
    if isinstance(key, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _raw_mode(image: Image.Image) -> str:
    """How the file stores a pixel: Pillow's raw mode, "" once the image is loaded."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else ""


def _tag(image: Image.Image, number: int) -> object:
    return getattr(image, "tag_v2", {}).get(number)


def _scaled(image: Image.Image, full_scale: float, kind: str) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= full_scale):  # NaN is refused as well
        raise ValueError(f"{kind} pixels range from {low:g} to {high:g}, expected 0 to {full_scale:g}")
    eight_bit = np.rint(values * (255 / full_scale)).astype(np.uint8)
    if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts these for 8 bits only
        eight_bit = 255 - eight_bit
    if isinstance(key := image.info.get("transparency"), int):
        eight_bit[values == key] = 255
    return Image.fromarray(eight_bit)
