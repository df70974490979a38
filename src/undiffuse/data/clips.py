"""What every reader of sounds returns: a SoundSource, opened as Clips when needed; here those of files and folders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.folder import labelled, stamp, survey
from undiffuse.data.remarks import readable
from undiffuse.data.soundfiles import Place
from undiffuse.data.source import NOT_STATED
from undiffuse.data.walk import SOUNDS


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
    """Every sound under `root`. Raises as `survey` does."""
    found = survey(root, SOUNDS, "sounds")

    def opened() -> Clips:
        captions, remarks = found.captions()
        labels, classes = labelled(found.classes)
        return Clips(
            names=found.names,
            place=lambda index: root / found.files[index],
            labels=labels,
            classes=classes,
            captions=captions,
            test=found.test,
            remarks=remarks,
        )

    return SoundSource(["sounds", *found.identity], opened)
