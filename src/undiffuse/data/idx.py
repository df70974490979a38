"""IDX, the file format of MNIST and its kin: four files, plain or gzipped, in one folder."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from undiffuse.data.source import NOT_STATED, Content, Source, from_arrays
from undiffuse.errors import UndiffuseError, UsageError

PREFIX = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
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


def read_idx(path: Path) -> np.ndarray:
    """The array of one IDX file of bytes, gzipped or not: uint8 (N, H, W) or (N,).

    Raises UndiffuseError naming the file when it is truncated or is something else.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UndiffuseError(f"cannot read {path}: {error}") from error
    dimensions = {UBYTE_IMAGES: 3, UBYTE_LABELS: 1}.get(raw[:4])
    if dimensions is None:
        raise UndiffuseError(f"cannot read {path}: not an IDX file of images or labels")
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(raw[4:start], dtype=">u4").tolist())
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise UndiffuseError(f"cannot read {path}: {len(raw)} bytes where its header promises {expected}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


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
        images.append(pixels)
        if label_path := _find(folder, split, LABELS):
            labels.append(read_idx(label_path))
            if labels[-1].shape != pixels.shape[:1]:
                raise UndiffuseError(f"{label_path} has {labels[-1].shape} labels for {len(pixels)} images")
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
