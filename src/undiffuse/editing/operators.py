"""What can have happened to a picture, y = H x_0 + n: the names that each H is asked for by.

A picture x_0 is (B, C, H, W) in [-1, 1].
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.editing.maps import Masked, Matrix, Separable
from undiffuse.errors import UsageError
from undiffuse.guidance import LinearMap
from undiffuse.names import cut, format_shape, shown
from undiffuse.registry import RESTORATIONS

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue, as stored (ITU-R BT.601): what JPEG and Pillow call grey."""
TRUNCATE = 4.0
"""Standard deviations after which a Gaussian kernel is cut off."""
BYTE = 2 / 255
"""The step from one 8-bit value to the next, in x_0."""
MOST_NUMBERS = 1 << 28
"""Of a matrix from a file: 2 GiB."""


@dataclass(frozen=True)
class Degradation:
    """What happened to a picture, apart from noise.

    Attributes:
        map: H.
        step: between neighbouring values of y, in x_0: rounding to it is taken for noise of the variance step^2 / 12
            (Bennett 1948), an approximation for coarse steps.
        name: as it was written, for errors.
    """

    map: LinearMap
    step: float = BYTE
    name: str = "restoration"

    def encode(self, rows: np.ndarray) -> Tensor:
        """What was observed, as an array -> y, float64 (B, *observed).

        Args:
            rows: uint8 pictures (B, H', W', C'), or (B, *observed) floats in the scale of x_0. Of `inpaint`, the whole
                pictures. Where H does not keep the brightness of a constant picture, its rows applied to values 0..255.

        Raises UsageError for another shape or type.
        """
        observed = self.map.observed
        if rows.dtype == np.uint8 and rows.ndim == 4 and isinstance(self.map, Masked):
            self._check(rows.shape[1:], self.map.shape)
            return self.map.forward(torch.from_numpy(rows / 127.5 - 1).permute(0, 3, 1, 2))
        if rows.dtype == np.uint8 and rows.ndim == 4:
            flat = isinstance(self.map, Matrix)
            if not flat:
                self._check(rows.shape[1:], observed)
            elif math.prod(rows.shape[1:]) != observed[0]:
                raise UsageError(f"{self.name} observes {observed[0]} values, not {math.prod(rows.shape[1:])}")
            values = torch.from_numpy(rows / 127.5)
            values = values.flatten(1) if flat else values.permute(0, 3, 1, 2)
            return values - self.map.forward(torch.ones(1, *self.map.shape, dtype=torch.float64))
        if rows.dtype.kind == "f" and rows.shape[1:] == observed:
            return torch.from_numpy(rows.astype(np.float64))
        raise UsageError(f"{self.name} observes {format_shape(observed)} numbers, not {rows.dtype} {rows.shape[1:]}")

    def _check(self, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
        channels, height, width = expected
        if given != (height, width, channels):
            raise UsageError(
                f"{self.name} observes pictures of {height}x{width}x{channels} with this model, and this one is "
                f"{format_shape(given)}"
            )


def parse(spec: str, shape: tuple[int, ...], mask: np.ndarray | None = None) -> Degradation:
    """What `spec` says: a name in RESTORATIONS with its argument ("superres:4"), or a file ("blur.npz").

    Args:
        shape: (C, H, W) of the model's pictures.
        mask: bool or uint8 (H, W), of `inpaint` alone: what is white is to be repainted.

    Raises UsageError, in one line, for a name that there is not, an argument or a mask that cannot be, a model that
    draws no pictures, and a file that is no linear map of these.
    """
    if len(shape) != 3:
        raise UsageError(f"{cut(spec)}: only pictures are restored, and this model draws {format_shape(shape)}")
    if spec.lower().endswith(".npz"):
        name, argument = "matrix", spec
    else:
        name, _, argument = spec.partition(":")
    if name in ("denoise", "bandwidth"):
        raise UsageError(
            f"{cut(spec)} mends sounds, and this model draws pictures: choose from {', '.join(RESTORATIONS)}"
        )
    make = RESTORATIONS.find(name)
    if (mask is not None) != (name == "inpaint"):
        raise UsageError(
            "inpaint needs a mask: a picture, white where it is to be repainted"
            if mask is None
            else f"{cut(spec)} takes no mask: that is for inpaint"
        )
    made: Degradation = make(shape, argument) if mask is None else make(shape, argument, mask)
    return replace(made, name=cut(spec))


def area_mean(shape: tuple[int, ...], argument: str) -> Degradation:
    """superres:FACTOR: each pixel of y is the mean of FACTOR x FACTOR pixels."""
    channels, height, width = shape
    factor = _number("superres", argument, int, 2, min(height, width))
    if height % factor or width % factor:
        raise UsageError(f"superres:{factor} does not divide pictures of {height}x{width}")
    rows, columns = (
        torch.eye(side // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor for side in (height, width)
    )
    return Degradation(Separable(torch.eye(channels, dtype=torch.float64), rows, columns))


def blur(shape: tuple[int, ...], argument: str) -> Degradation:
    """blur:SIGMA: a Gaussian of this standard deviation in pixels, cut off at 4 of them and of sum 1; beyond its edge
    the picture is mirrored, edge pixels twice (dcba|abcd|dcba)."""
    channels, height, width = shape
    sigma = _number("blur", argument, float, 0.1, max(height, width))
    rows, columns = (_gaussian(side, sigma) for side in (height, width))
    return Degradation(Separable(torch.eye(channels, dtype=torch.float64), rows, columns))


def _gaussian(side: int, sigma: float) -> Tensor:
    reach = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.softmax(-0.5 * (offsets.double() / sigma) ** 2, 0)
    place = torch.arange(side)[:, None] + offsets
    folded = place % (2 * side)  # the mirrored picture repeats after 2 sides
    source = torch.where(folded < side, folded, 2 * side - 1 - folded)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source, kernel.expand(side, -1))


def luma(shape: tuple[int, ...], argument: str) -> Degradation:
    """colour: y is the luma of a colour picture, as Pillow makes a picture grey."""
    _none("colour", argument)
    channels, height, width = shape
    if channels != 3:
        raise UsageError("colour is for models of colour pictures; this one draws grey ones")
    weights = torch.tensor([LUMA], dtype=torch.float64)
    return Degradation(Separable(weights, *(torch.eye(side, dtype=torch.float64) for side in (height, width))))


def masked(shape: tuple[int, ...], argument: str, mask: np.ndarray) -> Degradation:
    """inpaint: y is the pixels where the mask is black."""
    _none("inpaint", argument)
    if mask.shape != shape[1:]:
        raise UsageError(f"the mask is {format_shape(mask.shape)} and the picture {format_shape(shape[1:])}: resize it")
    white = mask.astype(bool)
    if mask.dtype != bool and not np.isin(mask, (0, 255)).all():
        raise UsageError("the mask has greys: make it black (keep) and white (repaint) alone, such as at the value 128")
    if white.all():
        raise UsageError("the mask is all white: nothing of the picture is left to see; draw samples instead")
    return Degradation(Masked(shape, torch.from_numpy(~white)))


def quantised(shape: tuple[int, ...], argument: str) -> Degradation:
    """dequantise:LEVELS: every number was rounded to the nearest of LEVELS values, evenly from -1 to 1; 256 of them
    unless said."""
    levels = _number("dequantise", argument, int, 2, 256) if argument else 256
    same = Separable(*(torch.eye(side, dtype=torch.float64) for side in shape))
    return Degradation(same, step=2 / (levels - 1))


def from_file(shape: tuple[int, ...], argument: str) -> Degradation:
    """FILE.npz: a matrix `H` (K, H W C), or a sparse one as `scipy.sparse.save_npz` writes it (csr, csc, coo)."""
    if not argument:
        raise UsageError("a linear map is given by its file: --restore FILE.npz")
    path = Path(argument).expanduser()
    numbers = math.prod(shape)
    try:
        with np.load(path, allow_pickle=False) as file:
            matrix = _matrix({name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = cut(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise UsageError(
            f"{cut(argument)} is no linear map: {reason}. It holds a matrix H, or what scipy.sparse.save_npz writes"
        ) from error
    if matrix.shape[1] != numbers or not matrix.shape[0]:
        raise UsageError(
            f"{cut(argument)} is a map of {matrix.shape[1]} numbers to {matrix.shape[0]}; the model's pictures have "
            f"{numbers} (height, width, channel)"
        )
    return Degradation(Matrix(shape, matrix))


def _matrix(arrays: dict[str, np.ndarray]) -> Tensor:
    if "format" not in arrays:
        if "H" not in arrays:
            raise ValueError(f"it has {', '.join(arrays) or 'nothing'}")
        dense = arrays["H"]
        if dense.ndim != 2 or dense.dtype.kind not in "fiu" or dense.size > MOST_NUMBERS:
            raise ValueError(f"H is {dense.dtype} {dense.shape}")
        matrix = torch.from_numpy(dense.astype(np.float64))
        values = matrix
    else:
        kind = str(arrays["format"].item().decode())
        values = torch.from_numpy(arrays["data"].astype(np.float64))
        size = tuple(int(side) for side in arrays["shape"])
        if kind == "coo":
            places = torch.from_numpy(np.stack([arrays["row"], arrays["col"]]).astype(np.int64))
        elif kind in ("csr", "csc"):
            ends = torch.from_numpy(arrays["indptr"].astype(np.int64))
            major = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())
            minor = torch.from_numpy(arrays["indices"].astype(np.int64))
            places = torch.stack([major, minor] if kind == "csr" else [minor, major])
        else:
            raise ValueError(f"a sparse matrix of the format {kind}")
        matrix = torch.sparse_coo_tensor(places, values, size, check_invariants=True).coalesce()
    if not values.isfinite().all():
        raise ValueError("not all of its numbers are finite")
    return matrix


def _number(name: str, argument: str, kind: Any, low: float, high: float) -> Any:
    try:
        value = kind(argument)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} takes {what} from {low:g} to {high:g}, as {name}:2, not {shown(argument)}")
    return value


def _none(name: str, argument: str) -> None:
    if argument:
        raise UsageError(f"{name} takes no argument, and was given {shown(argument)}")
