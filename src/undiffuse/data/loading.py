"""Loads the data set that a user names as an ImageSet."""

import difflib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from undiffuse.cache import folder_for, locked
from undiffuse.data import arrays, idx, splits
from undiffuse.data.entries import OPENERS
from undiffuse.data.imageset import ImageSet
from undiffuse.data.remarks import readable, some, warn
from undiffuse.data.source import Source
from undiffuse.data.stored import FORMAT, Stored, read
from undiffuse.errors import UsageError

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
FILES = (".npz", ".npy", ".parquet", ".arrow", ".zip")
LARGEST_SIZE = 4096
ALIKE, MOST_COMPARED = 2, 2000
LONGEST_SHOWN = 100
SOURCES = (
    "a folder of images, a .npz, .npy or .parquet file, a folder of .parquet or IDX (*-ubyte) files, "
    "or owner/dataset on the Hugging Face hub"
)


def load(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int | None = None,
    channels: int | None = None,
    skip_corrupt: bool = False,
    keep_size: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Reads a data set once, caches it as memory-mapped uint8, and opens it from the cache from then on.

    Args:
        source: a name in the catalogue (write ./name for a path of that name), a path, or owner/dataset[@revision] on
            the hub.
        split: "train", "test" or "all".
        size: side of the square that every image is resized to, 1 to 4096; None: chosen as in docs/data.md.
        channels: 1 or 3; None: 1 if every image is stored as grey, else 3.
        skip_corrupt: leave unreadable images out.
        keep_size: without size, leave images as they are: they must then have one size.
        progress: called with (images done, images in all) while the cache is built.

    Raises UsageError for an invalid source, split, size or channels (MixedSizes if keep_size fails), and
    UndiffuseError if the data are missing, unreadable or cannot be cached.
    """
    _check("split", split, splits.SPLITS)
    _check("channels", channels, (None, 1, 3))
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise UsageError(f"size must be from 1 to {LARGEST_SIZE}, not {size}")
    name = os.fspath(source)
    if name != readable(name):
        raise UsageError(f"the path {readable(name)} is not plain UTF-8 text: rename it, or link to it by another name")
    opened = _source(name)
    kept = ["keep_size"] if keep_size and size is None else []
    folder = folder_for("data", [FORMAT, [opened.identity, split, size, channels, skip_corrupt, *kept]])
    stored = read(folder)
    if stored is None:
        with locked(folder):
            stored = read(folder)  # another process may have built it meanwhile
            if stored is None:
                stored = _build(opened, folder, split, size, channels, skip_corrupt, bool(kept), progress)
    for remark in (*stored.remarks, *_unlearnable(stored, split)):
        warn(f"{name}: {remark}")
    return ImageSet(
        name=name,
        split=split,
        images=stored.images,
        labels=stored.labels,
        classes=stored.classes,
        names=stored.names,
        captions=stored.captions,
        attributes=stored.attributes,
        licence=stored.licence,
        fingerprint=stored.fingerprint,
        skipped=stored.skipped,
    )


def stored_sizes(source: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """The distinct stored sizes (height, width) of a source's images, ascending. Raises as `load` does."""
    from undiffuse.data.build import sizes

    return sizes(_source(os.fspath(source)).open())


def _build(
    source: Source,
    folder: Path,
    split: str,
    size: int | None,
    channels: int | None,
    skip_corrupt: bool,
    keep_size: bool,
    progress: Callable[[int, int], None] | None,
) -> Stored:
    from undiffuse.data.build import build, of_own_size  # Pillow is only needed when the cache has nothing

    content = of_own_size(source.open()) if keep_size else source.open()
    test = splits.held_out(content.count, content.labels) if content.test is None else content.test
    build(content, splits.select(test, split), folder, size, channels, skip_corrupt, progress)
    stored = read(folder)
    assert stored is not None, "a finished data set can be read"
    return stored


def _unlearnable(stored: Stored, split: str) -> list[str]:
    """A remark on classes without a training image."""
    if split != "train" or stored.labels is None:
        return []
    empty = np.flatnonzero(np.bincount(stored.labels, minlength=len(stored.classes)) == 0)
    if not len(empty):
        return []
    names = some([stored.classes[label] for label in empty])
    return [
        f"no image to train on in {len(empty)} of {len(stored.classes)} classes: {names}. Models cannot learn them."
    ]


def _source(name: str) -> Source:
    if name in OPENERS:
        return OPENERS[name]()
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        return _at_path(path)
    alike = _alike(path)
    hint = f" (did you mean {' or '.join(alike)}?)" if alike else ""
    # A missing name in an existing folder is a mistyped path.
    if HUB_NAME.fullmatch(name) and path.suffix.lower() not in FILES and not os.path.exists(path.parts[0]):
        from undiffuse.data.hub import open_hub

        return open_hub(name, hint)
    near = [*difflib.get_close_matches(name.lower(), OPENERS, n=2, cutoff=0.6), *alike]
    did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = repr(name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}...")
    raise UsageError(
        f"no data set and no path is called {shown}.{did_you_mean} A source is a name that undiffuse data list has; "
        f"{SOURCES}; or a file or folder of texts or sounds."
    )


def _refuse_models(path: Path) -> None:
    """Raises UsageError for the folder of a run or a model with no pictures but its own."""
    from undiffuse.data.walk import holds_pictures

    if any((path / name).is_file() for name in ("run.json", "model.json")) and not holds_pictures(path):
        raise UsageError(f"{path} holds a model and no data: undiffuse sample {path} draws from it")


def _alike(path: Path) -> list[str]:
    """Existing paths spelled similarly to `path`, part by part, the likeliest first."""
    found = [Path(path.anchor)]
    for part in path.parts[1 if path.anchor else 0 :]:
        found = [folder / name for folder in found for name in _names_alike(folder, part)][:ALIKE]
    return [str(one) if path.anchor or path.parts[:1] == ("..",) else f"./{one}" for one in found if one.parts]


def _names_alike(folder: Path, name: str) -> list[str]:
    if name == ".." or os.path.exists(folder / name):
        return [name]
    try:
        with os.scandir(folder) as entries:
            here = {entry.name.lower(): entry.name for entry in itertools.islice(entries, MOST_COMPARED)}
    except OSError:
        return []
    return [here[one] for one in difflib.get_close_matches(name.lower(), here, n=ALIKE, cutoff=0.6)]


def _at_path(path: Path) -> Source:
    from undiffuse.data import folder, shards  # these import Pillow

    if path.is_dir():
        _refuse_models(path)
        if idx.is_idx_folder(path):
            return idx.open_idx(path)
        idx.refuse_others(path)
        return shards.open_tables(path) or folder.open_folder(path)
    match path.suffix.lower():
        case ".npz" | ".npy":
            return arrays.open_arrays(path)
        case ".parquet" | ".arrow":
            return shards.open_table(path)
        case ".zip" | ".tar" | ".gz" | ".tgz" if not idx.is_idx_file(path):
            raise UsageError(f"cannot use {path} as a data set: unpack it, and give the folder it makes")
    if idx.is_idx_file(path):
        raise UsageError(f"cannot use {path} as a data set: give the folder that holds it, {path.parent}")
    raise UsageError(f"cannot use {path} as a data set: a source is {SOURCES}")


def _check(what: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{what} must be one of {', '.join(map(str, allowed))}, not {value!r}")
