"""A folder of images of any mode, size and depth; its subfolders are splits and classes, its text files captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from undiffuse.data import policy
from undiffuse.data.caption_files import find_captions, read_captions
from undiffuse.data.layout import arrange
from undiffuse.data.remarks import kinds, readable, some, warn
from undiffuse.data.source import Content, Source
from undiffuse.data.walk import PICTURES, Kind, walk
from undiffuse.errors import UsageError


@dataclass(frozen=True)
class Survey:
    """The files of one kind in a folder, and what its layout says of them.

    files      paths relative to the folder
    classes    the class of each, None for one without any
    test       whether each is of the test split; None if the folder does not say
    captions   () -> captions, and remarks on them: reads the files that hold them
    identity   JSON values; equal ones promise equal content
    """

    files: list[PurePosixPath]
    classes: list[str | None]
    test: np.ndarray | None
    captions: Callable[[], tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]]
    identity: list[Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names, as users can read them."""
        return tuple(readable(str(file)) for file in self.files)


def survey(root: Path, kind: Kind, noun: str) -> Survey:
    """Every file of a kind under `root`, with the splits and classes that `layout.arrange` finds, and captions.

    Raises UsageError when there is none, or when splits or classes are unclear; logs what is left out.
    """
    found = walk(root, kind)
    place = readable(str(root))
    for remark in found.remarks:
        warn(remark)
    if not found.pictures:
        unread = f": {kinds(found.unread)} cannot be read; convert them to {kind.target}" if found.unread else ""
        raise UsageError(f"no {noun} in {place}{unread} (looked for {' '.join(sorted(kind.read))})")
    layout = arrange(root, found)
    texts = find_captions(root, found)
    for remark in (*layout.remarks, *texts.remarks):
        warn(remark)
    written = class_names(place, {name for name in layout.classes if name is not None})
    return Survey(
        layout.files,
        [None if name is None else written[name] for name in layout.classes],
        None if layout.test is None else np.array(layout.test),
        lambda: read_captions(root, found.pictures, layout.files, texts),
        [str(root.resolve()), stamps(root, (*layout.files, *texts.paths())), layout.classes, layout.test],
    )


def open_folder(root: Path) -> Source:
    """Source over every image under `root`. Raises as `survey` does."""
    found = survey(root, PICTURES, "images")
    files = found.files

    def opened() -> Content:
        captions, remarks = found.captions()
        labels, classes = labelled(found.classes)
        return Content(
            count=len(files),
            read=lambda index: policy.decode(root / files[index]),
            header=lambda index: policy.header(root / files[index]),
            where=lambda index: readable(str(files[index])),
            labels=labels,
            classes=classes,
            names=found.names,
            captions=captions,
            test=found.test,
            remarks=remarks,
        )

    return Source(["folder", *found.identity], opened)


def labelled(classes: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels, int64 (N,), -1 for None, and the names of the classes in order; (None, ()) if there are none."""
    names = sorted({name for name in classes if name is not None})
    position: dict[str | None, int] = {None: -1} | {name: label for label, name in enumerate(names)}
    return (np.array([position[name] for name in classes], dtype=np.int64) if names else None), tuple(names)


def class_names(place: str, names: set[str]) -> dict[str, str]:
    """Folder names -> class names. Raises UsageError if two become equal."""
    texts = {name: readable(name) for name in names}
    if len(set(texts.values())) < len(texts):
        raise UsageError(f"{place}: two class folders are both written {some(sorted(texts.values()))}; rename one")
    if odd := sorted(text for name, text in texts.items() if name != text):
        warn(f"{place}: class folders whose names are not plain UTF-8 text; their classes are written {some(odd)}")
    return texts


def stamps(root: Path, files: Sequence[PurePosixPath]) -> list[list[str | int]]:
    """The name, size and time of last change of each file."""
    return [[str(file), *stamp(root / file)] for file in files]


def stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:  # a broken link: reading it raises the error
        return 0, 0
    return facts.st_size, facts.st_mtime_ns
