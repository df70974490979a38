"""A user's own arrays: .npz and .npy files. Nothing is unpickled, and no layout or value range is guessed."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from undiffuse.data import labels, pictures
from undiffuse.data.captions import BROKEN, clean
from undiffuse.data.layout import role as split_of
from undiffuse.data.npy import Archive, open_npy
from undiffuse.data.remarks import some
from undiffuse.data.source import Content, Header, Source
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut, shown

# Usual names of arrays, the least ambiguous first; case is ignored.
WORDS = {
    "images": ("images", "image", "x", "imgs", "img", "pictures", "pixels", "data", "arr_0"),
    "labels": ("labels", "label", "y", "targets", "target", "class", "arr_1"),
    "classes": ("classes", "class_names", "label_names"),
    "names": ("names",),
    "captions": ("captions", "caption", "texts", "text", "sentences", "prompts"),
    "attributes": ("attributes",),
}


class Meaning(NamedTuple):
    """What an array's name means: its sort (a key of WORDS), split ("" if none is named) and rank among the names."""

    sort: str
    split: str
    rank: int


def open_arrays(path: Path) -> Source:
    """Source over a .npy (images) or .npz file: images, and where present labels, classes, names, captions, attributes.

    Names, captions and attributes are those of all images, the training ones first. Captions are an array of strings,
    (N,) or (N, K), or a JSON list in bytes with a sentence or a list of them for each image; attributes a JSON table.

    Its own splits are x_train (or x) with x_test (else x_val), and likewise for the other words for images; the split
    may come before or after the word.
    """
    facts = path.stat()
    return Source(["arrays", str(path.resolve()), facts.st_size, facts.st_mtime_ns], lambda: _content(path))


def _content(path: Path) -> Content:
    arrays = open_npy(path)
    if isinstance(arrays, np.ndarray):
        return _of(*pictures.views_of(path, {"the array": arrays}))
    images = _images(path, arrays.names)
    label_names = [_first(arrays.names, "labels", split) for split in images.values()]
    if "arr_0" not in images:  # arr_1 holds the labels only of arr_0
        label_names = [None if name == "arr_1" else name for name in label_names]
    labelled = [name for name in label_names if name]
    if labelled and len(labelled) < len(images):
        missing = [name for name, label in zip(images, label_names, strict=True) if not label]
        raise UsageError(f"{path}: {labelled[0]} are labels, but {missing[0]} has none; all splits need them, or none")
    views, remarks = pictures.views_of(path, {name: arrays.read(name) for name in images})
    used = [*images, *labelled]
    found: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if labelled:
        parts = [
            labels.plain(f"{path}: {name}", arrays.read(name), len(view))
            for name, view in zip(labelled, views, strict=True)
        ]
        given = _first(arrays.names, "classes", "")
        named = labels.class_names(f"{path}: {given}", arrays.read(given)) if given else None
        used += [given] if given else []
        found, classes = labels.indices(f"{path}: {' and '.join(labelled)}", parts, named)
    count = sum(map(len, views))
    names, captions, attributes = _names(path, arrays, count), *described(path, arrays, count)
    for sort, value in (("names", names), ("captions", captions), ("attributes", attributes)):
        used += [_first(arrays.names, sort, "") or ""] if value else []
    if unused := [_described(arrays, name) for name in arrays.names if name not in used]:
        remarks.append(f"arrays not used: {some(unused)}")
    whole = _of(views, remarks, found, classes, names)
    return replace(whole, captions=captions, attributes=attributes)


def _of(
    views: Sequence[np.ndarray],
    remarks: Sequence[str],
    found: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
) -> Content:
    """Content over views (N, H, W, C), the second (if any) being the test split; pictures are converted when read."""
    starts = np.cumsum([0, *map(len, views)])
    height, width, channels = views[0].shape[1:]
    header = Header(width, height, grey=channels == 1)

    def read(index: int) -> np.ndarray:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return pictures.picture(views[part][index - starts[part]])

    return Content(
        count=int(starts[-1]),
        read=read,
        header=lambda index: header,
        labels=found,
        classes=classes,
        names=names,
        test=np.arange(starts[-1]) >= starts[1] if len(views) > 1 else None,
        keep_size=True,
        remarks=tuple(remarks),
    )


def meaning(name: str) -> Meaning | None:
    """The meaning of an array's name, such as X_train, testImages or val-labels; None if unknown."""
    words = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower().replace("-", "_").split("_")
    named = [(word, split) for word in words if (split := split_of(word))]
    if len(named) > 1:
        return None
    word, split = named[0] if named else ("", "")
    rest = "_".join(one for one in words if one != word)
    return next((Meaning(sort, split, known.index(rest)) for sort, known in WORDS.items() if rest in known), None)


def _first(names: Sequence[str], sort: str, split: str) -> str | None:
    """The best-ranked name for this sort of array in this split."""
    ranked = [(found.rank, name != name.lower(), name) for name in names if (found := meaning(name))
              if (found.sort, found.split) == (sort, split)]  # fmt: skip
    return min(ranked)[2] if ranked else None


def _images(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of the images to train on and, if there are any, to hold out, each with its split."""
    found = {split: name for split in ("train", "", "test", "val") if (name := _first(names, "images", split))}
    if len(names) == 1 and not found:
        return {names[0]: ""}  # the only array there is
    train = next((split for split in ("train", "") if split in found), None)
    if train is None:
        words = ", ".join(WORDS["images"])
        what = f"only {', '.join(map(repr, found.values()))} (held out)" if found else "none"
        raise UsageError(
            f"{path}: training images must be named {words}, or one of these with _train; found {what} among "
            f"{some(names)}"
        )
    held_out = [split for split in ("test", "val") if split in found][:1]
    return {found[split]: split for split in [train, *held_out]}


def _names(path: Path, arrays: Archive, count: int) -> tuple[str, ...]:
    """The pictures' names, () if there are none or they are Python objects."""
    name = _first(arrays.names, "names", "")
    if name is None:
        return ()
    try:
        names = arrays.read(name)
    except UsageError:
        return ()
    if names.shape != (count,):
        raise UsageError(
            f"{path}: {len(names) if names.ndim else 1} names for {count} images (those of classes go in `classes`)"
        )
    return tuple(map(str, labels.texts(f"{path}: {name}", names) if names.dtype.kind == "S" else names))


def described(
    path: Path, arrays: Archive, count: int
) -> tuple[tuple[tuple[str, ...], ...], dict[str, tuple[str, ...]]]:
    """The captions and attributes of `count` images; () and {} where there are none."""
    captions: list[Any] = []
    if name := _first(arrays.names, "captions", ""):
        found = arrays.read(name)
        rows = _json(path, name, found) if found.dtype == np.uint8 else _texts(f"{path}: {name}", found)
        if not isinstance(rows, list):
            raise UsageError(f"{path}: {name} should be a list with a sentence, or a list of them, per image")
        captions = [[row] if isinstance(row, str) else row for row in rows]
        if len(captions) != count:
            raise UsageError(f"{path}: {len(captions):,} captions for {count:,} images")
    attributes: dict[str, Any] = {}
    if name := _first(arrays.names, "attributes", ""):
        attributes = _json(path, name, arrays.read(name))
        columns = attributes.values() if isinstance(attributes, dict) else [None]
        if not all(isinstance(column, list) and len(column) == count for column in columns):
            raise UsageError(f"{path}: {name} should hold a list with one value per image for each attribute")
    for row in (*captions, list(attributes), *attributes.values()):
        if not isinstance(row, list) or not all(isinstance(one, str) and not BROKEN.search(one) for one in row):
            raise UsageError(f"{path}: captions and attributes must be text, not {shown(row)}")
    cleaned = tuple(tuple(filter(None, map(clean, row))) for row in captions)
    return cleaned if any(cleaned) else (), {key: tuple(column) for key, column in attributes.items()}


def _texts(where: str, found: np.ndarray) -> list[Any]:
    """An array of strings, or of bytes in UTF-8, as lists. Raises UsageError for another kind or shape."""
    found = labels.texts(where, found) if found.dtype.kind == "S" else found
    if found.dtype.kind != "U" or found.ndim not in (1, 2):
        raise UsageError(f"{where} are {found.dtype} of shape {found.shape}, expected strings, (N,) or (N, K)")
    rows: list[Any] = found.tolist()
    return rows


def _json(path: Path, name: str, found: np.ndarray) -> Any:
    try:
        return json.loads(found.astype(np.uint8).tobytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {name} is not JSON: {cut(str(error))}") from None


def _described(arrays: Archive, name: str) -> str:
    """An array's name, with its number of items if the name's meaning is known."""
    found = meaning(name)
    try:
        return f"{name} ({arrays.shape(name)[0]:,} {found.sort})" if found else name
    except (UndiffuseError, IndexError):  # broken, Python objects or a single number
        return name
