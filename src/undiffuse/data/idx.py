"""IDX, the file format of MNIST and its kin: four files, plain or gzipped, in one folder."""

import gzip
import math
from pathlib import Path

import numpy as np

from undiffuse.data.reading import reading
from undiffuse.data.remarks import some
from undiffuse.data.source import NOT_STATED, Content, Source, from_arrays
from undiffuse.errors import UndiffuseError, UsageError

PREFIX = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
DEFLATE_AT_BEST = 1032  # bytes that one byte of a deflate stream can expand to: 258 from 2 bits
UBYTE_IMAGES, UBYTE_LABELS = b"\x00\x00\x08\x03", b"\x00\x00\x08\x01"


def is_idx_folder(folder: Path) -> bool:
    """Whether `folder` holds the training images of an IDX set."""
    return _find(folder, "train", IMAGES) is not None


def open_idx(folder: Path, classes: tuple[str, ...] = (), licence: str = NOT_STATED) -> Source:
    """Source over {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] in `folder`.

    The t10k files are the test split; labels may be absent. Without `classes` the class names are the numbers.
    """
    files = [file for split in PREFIX for kind in (IMAGES, LABELS) if (file := _find(folder, split, kind)) is not None]
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return Source(["idx", stamps, classes], lambda: _content(folder, classes, licence))


def is_idx_file(path: Path) -> bool:
    """Whether a file has the name of an IDX file."""
    return path.name.removesuffix(".gz").endswith(("-ubyte", ".ubyte"))


def refuse_others(folder: Path) -> None:
    """Raises UsageError for a folder that holds IDX files, but none named like MNIST's training images."""
    if files := sorted(path.name for path in folder.iterdir() if is_idx_file(path)):
        raise UsageError(
            f"{folder}: the IDX file {PREFIX['train']}-{IMAGES} is missing, there are {some(files)}: rename them"
        )


def read_idx(path: Path) -> np.ndarray:
    """The array of one IDX file of bytes, gzipped or not: uint8 (N, H, W) or (N,).

    Raises UndiffuseError naming the file if it is truncated or not IDX. Unpacks no more than the header states, and
    nothing if the file is too short for that.
    """
    with reading(str(path)), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        begins = file.read(4)
        dimensions = {UBYTE_IMAGES: 3, UBYTE_LABELS: 1}.get(begins)
        if dimensions is None:
            raise ValueError("it is empty" if not begins else "not an IDX file of images or labels (bytes)")
        sizes = file.read(4 * dimensions)
        if len(sizes) < 4 * dimensions:
            raise ValueError("it ends within its header")
        shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
        expected = math.prod(shape)
        if expected > path.stat().st_size * (DEFLATE_AT_BEST if path.suffix == ".gz" else 1):
            raise ValueError(f"it is too short for the {expected:,} bytes that its header promises")
        values = file.read(expected + 1)
        if len(values) != expected:
            there = "more" if len(values) > expected else f"{len(values):,}"
            raise ValueError(f"it holds {there} bytes where its header promises {expected:,}")
        return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _find(folder: Path, split: str, kind: str) -> Path | None:
    name = f"{PREFIX[split]}-{kind}"
    # Some mirrors write a dot where the original has its second dash.
    candidates = [folder / (stem + end) for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _content(folder: Path, classes: tuple[str, ...], licence: str) -> Content:
    images, labels = [], []
    for split in PREFIX:
        path = _find(folder, split, IMAGES)
        if path is None:
            continue
        pixels = read_idx(path)
        if pixels.ndim != 3:
            raise UndiffuseError(f"cannot read {path}: it holds labels, not images")
        if pixels.size == 0:
            raise UsageError(f"{path} is empty: {len(pixels)} images of {pixels.shape[1]}x{pixels.shape[2]}")
        images.append(pixels)
        if label_path := _find(folder, split, LABELS):
            labels.append(read_idx(label_path))
            if labels[-1].shape != pixels.shape[:1]:
                raise UndiffuseError(f"{label_path} has labels of shape {labels[-1].shape} for {len(pixels)} images")
    if len(labels) not in (0, len(images)) or len({one.shape[1:] for one in images}) > 1:
        raise UsageError(f"{folder}: train and test must both have labels or neither, and images of one shape")
    every_label = np.concatenate(labels).astype(np.int64) if labels else None
    if every_label is None:
        classes = ()
    elif not classes:
        classes = tuple(map(str, range(int(every_label.max()) + 1)))
    elif every_label.max() >= len(classes):
        raise UndiffuseError(f"{folder}: a label is {every_label.max()}, but there are only {len(classes)} classes")
    pixels = np.concatenate(images)[..., None]
    test = np.arange(len(pixels)) >= len(images[0]) if len(images) > 1 else None
    return from_arrays(pixels, every_label, classes, test=test, licence=licence)
