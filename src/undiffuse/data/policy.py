"""The one resize and crop policy: any image in, uint8 (size, size, channels) out. docs/data.md states it for users."""

import errno
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from undiffuse.data import pixels
from undiffuse.data.png import without_metadata
from undiffuse.data.source import Header

DEFAULT_SIZE = 32
LARGEST_KEPT = 64
# Formats that may be opened, whatever the file name. Pillow's others run programs (EPS) or are no complete pictures.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO"),
    *("QOI", "SGI"),
)
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FOREIGN = {b"ftyphei": "HEIC", b"ftyphev": "HEIC", b"ftypmif1": "HEIF", b"ftypmsf1": "HEIF", b"JXL ": "JPEG XL"}
LONGEST_REASON = 200
T = TypeVar("T")


def header(file: Path | BinaryIO) -> Header:
    """Size and greyness of an image file; reads no pixels. Raises ValueError for a broken file."""
    return _opened(file, lambda image: Header(image.width, image.height, pixels.is_grey(image)))


def decode(file: Path | BinaryIO) -> Image.Image:
    """The first frame of an image file, upright, mode L or RGB.

    Raises ValueError with the reason for a broken file, and for pixel values of ambiguous meaning.
    """
    return _opened(file, lambda image: _upright(pixels.to_eight_bit(image), image))


def decode_layer(file: Path | BinaryIO) -> Image.Image:
    """As `decode`, but mode RGBA: transparency is kept, not composited."""
    return _opened(file, lambda image: _upright(pixels.to_rgba(image), image))


def _opened(file: Path | BinaryIO, use: Callable[[Image.Image], T]) -> T:
    """`use(image)` for the opened image; a PNG that fails because of its metadata is read without them."""
    if isinstance(file, Path):
        if file.exists() and not file.is_file():
            raise ValueError("not a regular file")
        with file.open("rb") as opened:
            return _opened(opened, use)
    _check_canvas(file)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return use(image)
    except Exception as error:  # Pillow's plugins raise all kinds of errors for broken files
        file.seek(0)
        if bare := without_metadata(file.read()):
            return _opened(io.BytesIO(bare), use)
        raise ValueError(_reason(file, error)) from error


def _check_canvas(file: BinaryIO) -> None:
    """Refuses a WebP too large to be safe: its decoder allocates the whole canvas before Pillow can check it."""
    begins = file.read(30)
    file.seek(0)
    if begins[8:16] == b"WEBPVP8X" and Image.MAX_IMAGE_PIXELS:
        width, height = (1 + int.from_bytes(begins[start : start + 3], "little") for start in (24, 27))
        if width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"Image size ({width * height} pixels) is beyond the limit against decompression bombs")


def _reason(file: BinaryIO, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return "broken: it refers to positions before its start"
    if not isinstance(error, UnidentifiedImageError):
        return (str(error) or f"broken ({type(error).__name__})")[:LONGEST_REASON]
    file.seek(0)
    begins = file.read(16)
    if not begins:
        return "the file is empty"
    for mark, kind in FOREIGN.items():
        if mark in begins:
            return f"a {kind} picture, which is not supported: convert it to PNG"
    return "cannot identify image file: broken at the start, or in an unsupported format"


def _upright(turned: Image.Image, original: Image.Image) -> Image.Image:
    """`turned`, transposed according to the EXIF orientation of `original`; broken EXIF is ignored."""
    try:
        orientation = original.getexif().get(ORIENTATION)
    except Exception:  # EXIF is parsed with struct and XML
        return turned
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return turned if method is None else turned.transpose(method)


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


def fit(image: Image.Image | np.ndarray, size: int | tuple[int, int] | None, channels: int) -> np.ndarray:
    """The central part, resized with antialiasing: uint8 (H, W, channels).

    Args:
        image: a Pillow image of mode L or RGB, or uint8 (H, W, C) with C in {1, 3}.
        size: (H, W), or the side of a square; None keeps the image's shape.
        channels: 1 or 3.
    """
    shape = (size, size) if isinstance(size, int) else size
    if isinstance(image, np.ndarray):
        if image.shape[2] == channels and (shape is None or image.shape[:2] == shape):
            return image
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if shape is not None and image.size != shape[::-1]:
        # Lanczos widens its support when it shrinks, which is the antialiasing.
        image = image.resize(shape[::-1], Image.Resampling.LANCZOS, box=central_box(*image.size, shape))
    values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return values.reshape(*values.shape[:2], channels)


def central_box(width: int, height: int, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest central part of an image with the proportions of `shape`, (H, W)."""
    across, down = min(width, height * shape[1] / shape[0]), min(height, width * shape[0] / shape[1])
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
