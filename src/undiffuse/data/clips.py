"""What every reader of sounds returns: a SoundSource, opened as Clips when needed; here those of files and folders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from undiffuse.data.caption_files import find_captions, read_captions
from undiffuse.data.folder import class_names, stamp
from undiffuse.data.layout import arrange
from undiffuse.data.remarks import kinds, readable, warn
from undiffuse.data.soundfiles import Place
from undiffuse.data.source import NOT_STATED
from undiffuse.data.walk import SOUND, SOUNDS, walk
from undiffuse.errors import UsageError


@dataclass(frozen=True)
class Clips:
    """All sounds of a source, of both splits, none of them read yet.

    names     one per sound
    place     takes an index and returns what `read_sound` reads
    rate      what they are converted to unless another one is asked for; None: `load_sounds` decides it from the files
    labels    class of each, int64 (N,), -1 where a sound has none
    test      marks the sounds of the test split, bool (N,); None lets `splits.held_out` choose them
    captions and attributes are as in ImageSet; remarks are logged whenever the sounds are loaded
    """

    names: tuple[str, ...]
    place: Callable[[int], Place]
    rate: int | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test: np.ndarray | None = None
    licence: str = NOT_STATED
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SoundSource:
    """Where sounds come from. Equal identities (JSON values) promise equal sounds, so `open` runs once per cache."""

    identity: Any
    open: Callable[[], Clips]


def file_source(path: Path) -> SoundSource:
    """One file; it has neither classes nor captions."""
    clips = Clips(names=(readable(path.name),), place=lambda index: path)
    return SoundSource(["sound file", str(path.resolve()), *stamp(path)], lambda: clips)


def folder_source(root: Path) -> SoundSource:
    """Every sound under `root`, with splits and classes that `layout.arrange` finds, and captions.

    Raises UsageError when there is no sound, or when splits or classes are unclear; logs what is left out.
    """
    found = walk(root, SOUNDS)
    place = readable(str(root))
    for remark in found.remarks:
        warn(remark)
    if not found.pictures:
        unread = f": {kinds(found.unread)} cannot be read; convert them to FLAC" if found.unread else ""
        raise UsageError(f"no sounds in {place}{unread} (looked for {' '.join(sorted(SOUND))})")
    layout = arrange(root, found)
    texts = find_captions(root, found)
    for remark in (*layout.remarks, *texts.remarks):
        warn(remark)
    files = layout.files
    written = class_names(place, {name for name in layout.classes if name is not None})

    def opened() -> Clips:
        captions, remarks = read_captions(root, found.pictures, files, texts)
        labels, classes = labelled([None if name is None else written[name] for name in layout.classes])
        return Clips(
            names=tuple(readable(str(file)) for file in files),
            place=lambda index: root / files[index],
            labels=labels,
            classes=classes,
            captions=captions,
            test=None if layout.test is None else np.array(layout.test),
            remarks=remarks,
        )

    identity = ["sounds", str(root.resolve()), stamps(root, (*files, *texts.paths())), layout.classes, layout.test]
    return SoundSource(identity, opened)


def stamps(root: Path, files: Sequence[PurePosixPath]) -> list[list[str | int]]:
    """The name, size and time of last change of each file."""
    return [[str(file), *stamp(root / file)] for file in files]


def labelled(classes: Sequence[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels, int64 (N,), -1 for None, and the names of the classes in order; (None, ()) if there are none."""
    names = sorted({name for name in classes if name is not None})
    position: dict[str | None, int] = {None: -1} | {name: label for label, name in enumerate(names)}
    return (np.array([position[name] for name in classes], dtype=np.int64) if names else None), tuple(names)
