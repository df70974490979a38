"""Single pictures for editing, their masks and strokes, brought to a model's size by the policy of `data.policy`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from undiffuse.data import policy
from undiffuse.data.build import nearly_black, quiet_pillow
from undiffuse.data.remarks import readable, warn
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import format_shape

BLACK, WHITE = 16, 239
"""Values below and above which a mask's pixel is black and white: JPEG moves them by this much."""
T = TypeVar("T")


def read_pictures(paths: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Picture files of any size as uint8 (N, H, W, C), (H, W, C) being `shape`: as `data.load` reads them.

    Raises UsageError for a shape that is not one of pictures and for a missing file, UndiffuseError for one that cannot
    be read; both name the file.
    """
    if len(shape) != 3:
        raise UsageError(f"the model generates rows of shape {format_shape(shape)}: pictures cannot be edited with it")
    *size, channels = shape
    rows = np.stack([policy.fit(_read(path, policy.decode), (size[0], size[1]), channels) for path in paths])
    for remark in nearly_black(rows):
        warn(f"{', '.join(map(_shown, paths[:3]))}: {remark}")
    return rows


def read_mask(path: Path, pictures: Sequence[Path], shape: tuple[int, ...], threshold: int | None = None) -> np.ndarray:
    """What to repaint, bool (H, W): white in a black and white picture.

    A mask has the size of a model's picture (H, W, C), `shape`, or that of the original `pictures`, whose central part
    is then cut out of both, with the nearest pixel where the picture has the filtered one.

    Args:
        threshold: 1 to 255: repaint values from here on; None refuses values other than black and white.

    Raises UsageError for a mask that is soft, transparent, of another size or without white, UndiffuseError for a file
    that cannot be read.
    """
    (layer, alpha), name = _layer(path), _shown(path)
    if threshold is not None and not 1 <= threshold <= 255:
        raise UsageError(f"--mask-threshold {threshold} must lie between 1 and 255")
    if alpha.min() < 255:
        raise UsageError(f"the mask {name} has transparency, which may mean either: save it in black and white alone")
    values = np.asarray(layer.convert("L"))
    soft = (values >= BLACK) & (values <= WHITE)
    if threshold is None and soft.any():
        raise UsageError(
            f"the mask {name} is soft: {soft.mean():.1%} of it is neither black (below {BLACK}) nor white (above "
            f"{WHITE}). --mask-threshold 128 repaints what is at least half white"
        )
    white = values >= (threshold or 128)
    mask = _at_model_size(f"the mask {name}", Image.fromarray(white), pictures, shape, Image.Resampling.NEAREST)
    repaint = np.asarray(mask)
    if not repaint.any():
        cut = " in the central part, which is what the model sees" if white.any() else ""
        raise UsageError(
            f"the mask {name} has no white{cut}, and white is what is repainted: the brightest value of the file is "
            f"{values.max()} of 255. Invert the mask if black is to be repainted"
        )
    if repaint.all():
        warn(f"the mask {name} is white all over: everything is repainted and nothing is kept")
    return repaint


@dataclass(frozen=True)
class Strokes:
    """Paint for pictures: the colour, uint8 (H, W, C), and how opaque it is, uint8 (H, W), 255 being opaque."""

    colour: np.ndarray
    alpha: np.ndarray

    def over(self, rows: np.ndarray) -> np.ndarray:
        """The pictures, uint8 (N, H, W, C), with the paint on them, rounded to the nearest value."""
        alpha = self.alpha[..., None].astype(np.uint16)
        painted: np.ndarray = ((self.colour * alpha + rows * (255 - alpha) + 127) // 255).astype(np.uint8)
        return painted


def read_strokes(path: Path, pictures: Sequence[Path], shape: tuple[int, ...]) -> Strokes:
    """A drawing program's layer of strokes, transparent where nothing is painted. Sizes and errors as `read_mask`;
    edges are reduced by area, with the colour of transparent pixels left out. Refuses a layer without transparency, and
    one without paint.
    """
    (layer, alpha), name = _layer(path), _shown(path)
    if alpha.min() == 255:
        raise UsageError(
            f"the strokes {name} have no transparent part and would hide the picture: save their layer alone"
        )
    layer = _at_model_size(f"the layer of strokes {name}", layer, pictures, shape, Image.Resampling.BOX)
    if not (kept := np.asarray(layer.getchannel("A"))).any():
        cut = " in the central part, which is what the model sees" if alpha.any() else ""
        raise UsageError(f"the strokes {name} are transparent all over{cut}")
    colour = np.asarray(layer.convert("RGB").convert("L" if shape[2] == 1 else "RGB"))
    return Strokes(colour.reshape(*kept.shape, -1), kept)


def _layer(path: Path) -> tuple[Image.Image, np.ndarray]:
    """A picture of mode RGBA, and its alpha, uint8 (H, W)."""
    layer = _read(path, policy.decode_layer)
    return layer, np.asarray(layer.getchannel("A"))


def _at_model_size(
    what: str, layer: Image.Image, pictures: Sequence[Path], shape: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    """`layer` as it lies on the pictures once they have the model's size. Raises UsageError for another size."""
    height, width = shape[:2]
    if layer.size == (width, height):
        return layer
    sizes = sorted({_read(picture, policy.decode).size for picture in pictures})
    if sizes == [layer.size]:
        box = policy.central_box(*layer.size, (height, width))
        return layer.resize((width, height), resample, box=box)
    theirs = f"the size of the picture, {format_shape(sizes[0])}" if len(sizes) == 1 else "the one size of all pictures"
    raise UsageError(
        f"{what} is {format_shape(layer.size)}: it must have {theirs}, or that of the model, {width}x{height}"
    )


def _read(path: Path, decode: Callable[[Path], T]) -> T:
    try:
        with quiet_pillow():
            return decode(path)
    except FileNotFoundError:
        raise UsageError(f"{_shown(path)}: there is no such file") from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise UndiffuseError(f"cannot read the picture {_shown(path)}: {str(error) or type(error).__name__}") from error


def _shown(path: Path) -> str:
    return readable(str(path))
