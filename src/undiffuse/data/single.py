"""Single pictures, masks and strokes for editing, brought to a model's size by the policy that data sets have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from undiffuse.data import policy
from undiffuse.errors import UsageError
from undiffuse.names import format_shape

BLACK, WHITE = 16, 239
"""Greys up to BLACK and from WHITE on are black and white: JPEG does not keep them exactly."""
OPAQUE = 128
"""Alpha from which a stroke covers a pixel."""


def read_pictures(paths: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Picture files as rows of a model, uint8 (N, H, W, C) for its `shape` (H, W, C).

    Any kind and size that `undiffuse train` reads; as there, the central square is scaled. A model whose pictures are
    not squares takes only pictures of its size. Raises UsageError, naming the file, for what is no picture.
    """
    return np.stack([_fitted(_decoded(path), path, shape) for path in paths])


def read_mask(path: Path, picture: Path, shape: tuple[int, ...], threshold: int | None = None) -> np.ndarray:
    """A mask file, bool (H, W): True where it is white, which is where the picture is repainted.

    Args:
        path: black and white, of the model's size or of that of `picture`, with which it is cropped.
        picture: the file that it belongs to.
        shape: the model's (H, W, C).
        threshold: the grey from which a soft mask counts as white.

    Raises UsageError for a soft mask without a threshold, one of another size, and one without any white.
    """
    mask, size = _decoded(path).convert("L"), (shape[1], shape[0])
    if mask.size != size:
        whole = _decoded(picture).size
        if mask.size != whole or shape[0] != shape[1]:
            raise UsageError(
                f"--mask {path} is {format_shape(mask.size)}: it must have the size of the picture, "
                f"{format_shape(whole)}, or of the model's, {format_shape(size)}"
            )
        mask = policy.central_square(mask, shape[0], Image.Resampling.NEAREST)
    grey = np.asarray(mask)
    soft = ((grey > BLACK) & (grey < WHITE)).mean()
    if soft and threshold is None:
        raise UsageError(
            f"--mask {path} is soft: {soft:.1%} of it is grey; paint it in black and white, or make it "
            "hard with --mask-threshold 128"
        )
    repaint: np.ndarray = grey >= (OPAQUE if threshold is None else threshold)
    if not repaint.any():
        raise UsageError(f"--mask {path} has no white, and white is what is repainted: invert it?")
    return repaint


def read_strokes(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A layer of strokes with transparency: uint8 (H, W, C) for a model's `shape`, and bool (H, W), where it covers.

    Raises UsageError for a picture without transparency, which would cover everything.
    """
    _exists(path)
    try:
        with Image.open(path, formats=policy.FORMATS) as image:
            has_alpha, layer = image.has_transparency_data, image.convert("RGBA")
    except Exception:  # Pillow's plugins raise all kinds of errors for broken files
        _decoded(path)  # says what is wrong
        raise
    alpha = layer.getchannel("A")
    if not has_alpha or alpha.getextrema()[0] == 255:
        raise UsageError(f"--strokes {path} has no transparent part: save the strokes alone, as a layer, in PNG")
    if shape[0] != shape[1]:
        raise UsageError("--strokes are for models of square pictures")
    covered = np.asarray(policy.central_square(alpha, shape[0], Image.Resampling.BOX)) >= OPAQUE
    # Premultiplied, so that the colour stored under transparent pixels does not bleed into the strokes.
    small = policy.central_square(layer.convert("RGBa"), shape[0], Image.Resampling.BOX).convert("RGBA")
    return policy.fit(small.convert("RGB"), None, shape[2]), covered


def _decoded(path: Path) -> Image.Image:
    _exists(path)
    try:
        return policy.decode(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: {error}") from None


def _exists(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the pictures in it")


def _fitted(image: Image.Image, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    if height != width and image.size != (width, height):
        raise UsageError(
            f"{path} is {format_shape(image.size)}, and the model's pictures are {format_shape((width, height))}, no "
            "squares: bring it to that size first"
        )
    return policy.fit(image, height if height == width else None, channels)
