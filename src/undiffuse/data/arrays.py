"""A user's own arrays: .npz and .npy files. Nothing is unpickled, and no layout or value range is guessed."""

import zipfile
from pathlib import Path

import numpy as np

from undiffuse.data.source import Content, Source, from_arrays
from undiffuse.errors import UndiffuseError, UsageError

IMAGES = ("images", "x", "arr_0")
LABELS = ("labels", "y", "arr_1")
CHANNELS = (1, 3, 4)
LARGEST_UNNAMED_LABEL = 100_000


def open_arrays(path: Path) -> Source:
    """Source over a .npy (images) or .npz file: images, and where present labels, classes and names.

    Splits of its own are images_train with images_test, x_train with x_test, train_images with test_images.
    """
    facts = path.stat()
    return Source(["arrays", str(path.resolve()), facts.st_size, facts.st_mtime_ns], lambda: _content(path))


def _content(path: Path) -> Content:
    arrays = read_arrays(path)
    test = None
    if isinstance(arrays, np.ndarray):
        return from_arrays(_as_images(path, "the array", arrays))
    if train := _first(arrays, IMAGES, "train"):
        held_out = _first(arrays, IMAGES, "test")
        images = [_as_images(path, name, arrays[name]) for name in (train, held_out) if name]
        labels = [arrays[name] for split in ("train", "test") if (name := _first(arrays, LABELS, split))]
        if len(labels) not in (0, len(images)) or len({one.shape[1:] for one in images}) > 1:
            raise UsageError(f"{path}: train and test must both have labels or neither, and images of one shape")
        pixels = np.concatenate(images)
        raw_labels = np.concatenate(labels) if labels else None
        if held_out:
            test = np.arange(len(pixels)) >= len(images[0])
    else:
        name = _first(arrays, IMAGES)
        if name is None:
            raise UsageError(f"{path}: no array named {', '.join(IMAGES)}, only {', '.join(arrays) or 'nothing'}")
        pixels = _as_images(path, name, arrays[name])
        label_name = _first(arrays, LABELS)
        raw_labels = arrays[label_name] if label_name else None
    names = tuple(map(str, arrays.get("names", ())))
    if names and len(names) != len(pixels):
        raise UsageError(f"{path}: {len(names)} names for {len(pixels)} images")
    labels_, classes = _as_labels(path, raw_labels, arrays.get("classes"), len(pixels))
    return from_arrays(pixels, labels_, classes, names, test)


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file (memory-mapped) or the arrays of a .npz file, never unpickling anything.

    Raises UndiffuseError naming the file when it is broken or holds Python objects.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UndiffuseError(f"cannot read {path}: {error}") from error


def _first(arrays: dict[str, np.ndarray], keys: tuple[str, ...], split: str = "") -> str | None:
    patterns = [f"{key}_{split}" for key in keys] + [f"{split}_{key}" for key in keys] if split else keys
    return next((name for name in patterns if name in arrays), None)


def _as_images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 1 or 3) from NHW, NHWC or NCHW; alpha is laid on white."""
    array = _channels_last(path, name, array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        low, high = (array.min(), array.max()) if array.size and array.dtype.kind in "iuf" else ("?", "?")
        raise UsageError(
            f"{path}: {name} is {array.dtype} from {low} to {high}; images must be uint8 from 0 to 255. "
            "Convert them once: (x * 255).round().astype('uint8') if they reach from 0 to 1, "
            "((x + 1) * 127.5).round().astype('uint8') if from -1 to 1."
        )
    if array.shape[3] == 4:
        alpha = array[..., 3:].astype(np.uint16)
        return ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return array


def _channels_last(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.size == 0:
        raise UsageError(f"{path}: {name} is empty")
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
        f"with C in {CHANNELS}"
    )


def _as_labels(
    path: Path, labels: np.ndarray | None, classes: np.ndarray | None, count: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """int64 (N,) labels and the class names: given, else the sorted text labels, else the numbers."""
    if labels is None:
        return None, ()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "biuU":
        raise UsageError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected {count} integers or texts"
        )
    if labels.dtype.kind == "U":
        known, positions = np.unique(labels, return_inverse=True)
        return positions.astype(np.int64), tuple(map(str, known))
    low, high = int(labels.min()), int(labels.max())
    limit = LARGEST_UNNAMED_LABEL if classes is None else len(classes) - 1
    if low < 0 or high > limit:
        raise UsageError(f"{path}: labels reach from {low} to {high}, expected 0 to {limit}")
    names = tuple(map(str, range(high + 1) if classes is None else classes))
    return labels.astype(np.int64), names
