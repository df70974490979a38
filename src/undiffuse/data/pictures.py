"""What the numbers in an array of pictures mean: which axis is the channels, which value is white. Never guesses."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from undiffuse.errors import UsageError

CHANNELS = (1, 3, 4)
CHUNK = 1 << 24  # values
WHITE_AT_LEAST = 128  # integers with a smaller maximum may well have another white than 255
GENERAL = (
    "The right conversion is unknown. With BLACK and WHITE the values of black and white it is "
    "`((x - BLACK) * (255 / (WHITE - BLACK))).clip(0, 255).round().astype('uint8')`; "
    "undo a standardisation first, with `x * std + mean`."
)


def views_of(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """Views (N, H, W, C) of all arrays (name in the file -> array), and remarks; `picture` converts a row to uint8.

    The values are judged together, so that a dark split is read like the others. Raises UsageError if the layout or
    the values are ambiguous, or the pictures' shapes differ.
    """
    remarks = [
        f"{name} of shape {array.shape} is read as {len(array)} grey pictures"
        for name, array in arrays.items()
        if array.ndim == 3 and len(array) in CHANNELS[1:] and array.shape[2] not in CHANNELS
    ]
    views = [_channels_last(path, name, array) for name, array in arrays.items()]
    if len({view.shape[1:] for view in views}) > 1:
        shapes = ", ".join(f"{name} {view.shape[1:]}" for name, view in zip(arrays, views, strict=True))
        raise UsageError(f"{path}: the pictures must all have one shape, not {shapes}")
    _check_values(path, dict(zip(arrays, views, strict=True)))
    if views[0].shape[3] == 4 and all(view[..., 3].max() == 0 for view in views):
        raise UsageError(f"{path}: every picture is fully transparent; leave out the fourth channel: x[..., :3]")
    return views, remarks


def picture(stored: np.ndarray) -> np.ndarray:
    """A stored picture (H, W, C) accepted by `views_of`, as uint8 (H, W, 1 or 3); alpha is composited on white."""
    if stored.dtype == np.bool_:
        stored = stored * np.uint8(255)
    stored = stored.astype(np.uint8, copy=False)
    if stored.shape[2] == 4:
        alpha = stored[..., 3:].astype(np.uint16)
        return ((stored[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return stored


def _channels_last(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.size == 0:
        raise UsageError(f"{path}: {name} is empty, its shape is {array.shape}")
    if array.ndim == 3 and array.shape[2] not in CHANNELS:
        return array[..., None]
    if array.ndim == 4:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if last and not first:
            return array
        if first and not last:
            return array.transpose(0, 2, 3, 1)
    raise UsageError(
        f"{path}: {name} has shape {array.shape}, which is not clearly (N, H, W), (N, H, W, C) or (N, C, H, W) "
        f"with C in {CHANNELS}.{_layout_advice(array.shape)}"
    )


def _layout_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        for channels in (1, 3):
            side = round((shape[1] / channels) ** 0.5)
            if side * side * channels == shape[1] and side > 1:
                either = f"`x.reshape(-1, 3, {side}, {side})` or `x.reshape(-1, {side}, {side}, 3)`"
                return f" Flattened? Write {f'`x.reshape(-1, {side}, {side})`' if channels == 1 else either}."
    if len(shape) == 3 and shape[2] in CHANNELS:
        return " Write pictures 1, 3 or 4 wide as `x[..., None]`, a single picture as `x[None]`."
    if len(shape) == 4 and 2 in (shape[1], shape[3]):
        return " Two channels are not supported: choose one, or write three."
    return ""


def _check_values(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if all(array.dtype in (np.uint8, np.bool_) for array in arrays.values()):
        return
    odd = [name for name, array in arrays.items() if array.dtype not in (np.uint8, np.bool_)]
    kinds = {array.dtype.kind for array in arrays.values()}
    what = f"{path}: {' and '.join(odd)} {'are' if len(odd) > 1 else 'is'} {arrays[odd[0]].dtype}"
    if not kinds <= set("iuf") or ("f" in kinds and len(kinds) > 1):
        every = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise UsageError(f"{path}: images must be uint8 from 0 to 255, or bool, and all of one type; here are {every}")
    low, high, not_finite = _range(list(arrays.values()))
    if kinds <= set("iu") and low >= 0 and WHITE_AT_LEAST <= high <= 255:
        return
    if not_finite:
        raise UsageError(
            f"{what}, {not_finite:,} of the values NaN or infinite, the others from {low:.6g} to {high:.6g}; images "
            "must be uint8 from 0 to 255. Replace or leave out what is not finite, then convert."
        )
    advice = _float_advice(low, high) if kinds == {"f"} else _integer_advice(low, high)
    raise UsageError(f"{what} from {low:.6g} to {high:.6g}; images must be uint8 from 0 to 255. {advice}")


def _range(arrays: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Lowest and highest of the finite values of all arrays, and how many are not finite."""

    def chunks() -> Iterator[np.ndarray]:
        for array in arrays:
            rows = max(1, CHUNK * len(array) // array.size)
            yield from (array[start : start + rows] for start in range(0, len(array), rows))

    low, high, not_finite = np.inf, -np.inf, 0
    for chunk in chunks():
        finite = chunk[np.isfinite(chunk)]
        not_finite += chunk.size - finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high, not_finite


def _float_advice(low: float, high: float) -> str:
    """How to convert floats in this range to uint8. The margin of 0.1 allows for the overshoot of scaling filters."""
    if low > -0.1 and high < 1.1:
        return "Convert them once: `(x.clip(0, 1) * 255).round().astype('uint8')`."
    if low > -1.1 and high < 1.1:
        return "Convert them once: `((x.clip(-1, 1) + 1) * 127.5).round().astype('uint8')`."
    if low < 0 or high > 65535:
        return GENERAL
    return _scale_advice(high, "x.round().astype('uint8')")


def _integer_advice(low: float, high: float) -> str:
    if -128 <= low < 0 and high <= 127:
        return "Convert them once, if -128 is black: `(x.astype('int16') + 128).astype('uint8')`."
    if low < 0 or high > 65535:
        return GENERAL
    if high <= 1:
        return "Convert them once: `(x * 255).astype('uint8')`."
    return _scale_advice(high, "x.astype('uint8')")


def _scale_advice(high: float, as_they_are: str) -> str:
    """For values from 0 up to `high`, 1 < high <= 65535: only the user knows which is white, unless it is 255."""
    scaled = "`(x * (255 / WHITE)).round().astype('uint8')`"
    if WHITE_AT_LEAST <= high <= 255:
        return f"Convert them once: `{as_they_are}`."
    if high <= 255:
        return (
            f"Convert them once: `{as_they_are}` if white is 255, else {scaled} with WHITE = {high:.6g} "
            "or its true value."
        )
    white = next(2**bits - 1 for bits in (10, 12, 14, 16) if high <= 2**bits - 1)
    also = "" if white == 65535 else ", or 65535 if they use all 16"
    return f"Convert them once: {scaled} with WHITE = {white} if they have {white.bit_length()} bits{also}."
