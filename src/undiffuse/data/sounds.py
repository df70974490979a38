"""Sounds as rows of samples: `load_sounds` reads a source once, caches its rows, and opens them from then on."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.cache import folder_for, locked
from undiffuse.data.clips import SoundSource, file_source, folder_source
from undiffuse.data.corpora import CORPORA
from undiffuse.data.entries import OPENERS
from undiffuse.data.imageset import ImageSet
from undiffuse.data.remarks import readable, warn
from undiffuse.data.soundbuild import RATES, build
from undiffuse.data.soundstore import read
from undiffuse.data.speech import SPEECH
from undiffuse.data.splits import SPLITS
from undiffuse.data.walk import PICTURES, SOUND, SOUNDS, first_kind
from undiffuse.errors import UsageError
from undiffuse.names import one_of, shown

FORMAT = 1
LONGEST = 60  # seconds in a row
SOURCES = f"a sound file ({' '.join(sorted(SOUND))}) or a folder of them"
Tick = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SoundSet(ImageSet):
    """One split of a data set of sounds; `images` are mono waveforms, int16 (N, L), a read-only memory map.

    rate         samples a second
    lengths      how many samples of each row are sound, int64 (N,); digital silence follows
    fingerprint  sha256 over the rows (little-endian), labels, classes, captions and the rate
    skipped      how many unreadable files `skip_corrupt` left out
    """

    rate: int
    lengths: np.ndarray
    domain: str = "waves"

    @cached_property
    def sound(self) -> dict[str, Any]:
        """What their domain is made from: the rate, and for the MDCT the scale of each band in these rows."""
        from undiffuse.domains.mdct import band_scales

        return {"rate": self.rate} | ({"scale": list(band_scales(self.images))} if self.domain == "mdct" else {})


def is_sounds(source: str | os.PathLike[str]) -> bool:
    """Whether a source holds sounds: a named set, a file by its ending, a folder by the first sound or picture in it.

    Reads no content.
    """
    name = os.fspath(source)
    if name in SPEECH or name in OPENERS or name in CORPORA:
        return name in SPEECH
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return first_kind(path, SOUNDS, PICTURES) is SOUNDS
    return path.suffix.lower() in SOUND


def load_sounds(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    rate: int | None = None,
    seconds: float | None = None,
    trim: bool = True,
    skip_corrupt: bool = False,
    progress: Tick | None = None,
) -> SoundSet:
    """Reads sounds once, caches their rows memory-mapped, and opens them from the cache from then on.

    Every file is mixed to mono, resampled, trimmed and brought to one loudness as `read_sound` says, rounded to 16
    bits, cut into rows of L samples from its beginning, and filled up with digital silence. Files, never rows, are held
    out.

    Args:
        source: a name in `undiffuse.data.speech.SPEECH` (write ./name for a path of that name), a file or a folder.
        split: "train", "test" or "all": the source's own, else one file in ten is held out (`splits.held_out`).
        rate: in Hz, a multiple of 200 from 4,000 to 48,000; None: the commonest of the files, at most 16,000.
        seconds: the length of a row, up to 60, rounded up to a multiple of .32 s; None: 95% of the files, trimmed, are
            no longer, but from .32 to 1.28 s.
        trim: whether silence at the beginning and the end of a file is removed.
        skip_corrupt: leave out files that cannot be read instead of refusing the set.
        progress: called with (files read, files in all) while the cache is built.

    Raises UsageError for an invalid source or option; UndiffuseError if files cannot be read, in one report, or if the
    rows cannot be cached.
    """
    one_of("split", split, SPLITS)
    if rate is not None and rate not in RATES:
        raise UsageError(f"rate must be a multiple of {RATES.step} from {RATES[0]:,} to {RATES[-1]:,} Hz, not {rate}")
    if seconds is not None and not 0 < seconds <= LONGEST:
        raise UsageError(f"seconds must be above 0 and at most {LONGEST}, not {seconds}")
    name = os.fspath(source)
    opened = _source(name)
    folder = folder_for("sounds", [FORMAT, opened.identity, rate, seconds, trim, skip_corrupt])
    stored = read(folder)
    if stored is None:
        with locked(folder):
            stored = read(folder)  # another process may have built it meanwhile
            if stored is None:
                build(opened.open(), folder, rate, seconds, trim, skip_corrupt, progress)
                stored = read(folder)
                assert stored is not None, "finished sounds can be read"
    for remark in stored.remarks:
        warn(f"{readable(name)}: {remark}")
    part = stored.part(split)
    if not len(stored.rows[part]):
        raise UsageError(f"{readable(name)} has no {split} split: too few files to hold one out. Use split 'all'.")
    labels = None if stored.labels is None else stored.labels[part]
    if labels is not None and (labels < 0).any():
        labels = None
    return SoundSet(
        name=name,
        split=split,
        images=stored.rows[part],
        labels=labels,
        classes=() if labels is None else stored.classes,
        names=stored.names[part],
        captions=stored.captions[part],
        attributes={key: values[part] for key, values in stored.attributes.items()},
        licence=stored.licence,
        fingerprint=stored.fingerprints[split],
        skipped=stored.skipped,
        rate=stored.rate,
        lengths=stored.lengths[part],
    )


def _source(name: str) -> SoundSource:
    if name in SPEECH:
        return SPEECH[name].source()
    if name != readable(name):
        raise UsageError(f"the path {readable(name)} is not plain UTF-8 text: rename it, or link to it by another name")
    path = Path(os.path.expanduser(name))
    if not name or not os.path.exists(path):
        near = difflib.get_close_matches(name.lower(), SPEECH, n=1)
        raise UsageError(
            f"no sounds and no path are called {shown(name)}." + (f" Did you mean {near[0]}?" if near else "")
            + f" Sounds are one of {', '.join(SPEECH)}; {SOURCES}"
        )  # fmt: skip
    if path.is_dir():
        return folder_source(path)
    if path.suffix.lower() not in SOUND:
        raise UsageError(f"cannot use {name} as sounds: give {SOURCES}")
    return file_source(path)
