"""From what the user wrote to an ImageSet."""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from undiffuse.data import arrays, cache, idx, splits
from undiffuse.data.entries import OPENERS
from undiffuse.data.imageset import ImageSet
from undiffuse.data.source import Source
from undiffuse.errors import UsageError

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
FILES = (".npz", ".npy", ".parquet", ".zip")
LARGEST_SIZE = 4096
SOURCES = (
    "a folder of images, a .npz, .npy or .parquet file, a folder of IDX (*-ubyte) files, "
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
    """Reads a data set once, keeps it as memory-mapped uint8 in the cache, and opens it from there ever after.

    source is a name of the catalogue (which wins over a path: write ./name for that), a path, or
    owner/dataset[@revision] of the hub.
    split is "train", "test" or "all". size, 1 to 4096, is the side of the square every image is brought to; None
    chooses as docs/data.md says or, with keep_size, leaves images as they are: they must then be of one size.
    channels is 1 or 3; None gives 1 when every image is stored as grey.
    progress is called with (images done, images in all) while the cache is built.

    Raises UsageError for a source, split, size or channels that cannot be (MixedSizes, where keep_size cannot), and
    UndiffuseError when the data are missing, unreadable (unless skip_corrupt leaves such images out) or cannot be
    cached.
    """
    _check("split", split, splits.SPLITS)
    _check("channels", channels, (None, 1, 3))
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise UsageError(f"size must be from 1 to {LARGEST_SIZE}, not {size}")
    name = os.fspath(source)
    opened = _source(name)
    kept = ["keep_size"] if keep_size and size is None else []
    folder = cache.folder_for("data", [cache.FORMAT, [opened.identity, split, size, channels, skip_corrupt, *kept]])
    stored = cache.read(folder)
    if stored is None:
        with cache.locked(folder):
            stored = cache.read(folder)  # another process may have built it meanwhile
            if stored is None:
                stored = _build(opened, folder, split, size, channels, skip_corrupt, bool(kept), progress)
    return ImageSet(
        name=name,
        split=split,
        images=stored.images,
        labels=stored.labels,
        classes=stored.classes,
        names=stored.names,
        licence=stored.licence,
        fingerprint=stored.fingerprint,
        skipped=stored.skipped,
    )


def stored_sizes(source: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """The sizes (height, width) that the images of a source are stored in, ascending. Raises what `load` raises."""
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
) -> cache.Stored:
    from undiffuse.data.build import build, of_own_size  # Pillow is only needed when the cache has nothing

    content = of_own_size(source.open()) if keep_size else source.open()
    test = splits.held_out(content.count) if content.test is None else content.test
    build(content, splits.select(test, split), folder, size, channels, skip_corrupt, progress)
    stored = cache.read(folder)
    assert stored is not None, "what was just written can be read"
    return stored


def _source(name: str) -> Source:
    if name in OPENERS:
        return OPENERS[name]()
    path = Path(name).expanduser()
    if path.exists():
        return _at_path(path)
    if HUB_NAME.fullmatch(name) and path.suffix.lower() not in FILES:
        from undiffuse.data.hub import open_hub

        return open_hub(name)
    near = difflib.get_close_matches(name.lower(), OPENERS, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"no data set and no path is called {name!r}.{hint} A source is one of {', '.join(OPENERS)}; {SOURCES}."
    )


def _at_path(path: Path) -> Source:
    from undiffuse.data import folder, hub  # these import Pillow

    if path.is_dir():
        return idx.open_idx(path) if idx.is_idx_folder(path) else folder.open_folder(path)
    match path.suffix.lower():
        case ".npz" | ".npy":
            return arrays.open_arrays(path)
        case ".parquet":
            return hub.open_parquet(path)
    raise UsageError(f"cannot use {path} as a data set: a source is {SOURCES}")


def _check(what: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{what} must be one of {', '.join(map(str, allowed))}, not {value!r}")
