"""From Clips to a finished cache folder: every file is read once, as `read_sound` says, and cut into rows."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from undiffuse.cache import writing
from undiffuse.data import splits
from undiffuse.data.clips import Clips
from undiffuse.data.reading import report
from undiffuse.data.soundfiles import pcm16, read_sound, stored_rate
from undiffuse.data.soundrows import Span, default_length, step, write_rows
from undiffuse.data.soundstore import finish
from undiffuse.errors import UndiffuseError, UsageError

HIGHEST_RATE = 16_000
"""Of those that are chosen from the files; another one can be asked for."""
RATES = range(4_000, 48_001, 200)
"""Multiples of 200 Hz: then 20 ms are a multiple of 4 samples, and rows, 16 of these, can be divided into 64 bands."""


def build(
    clips: Clips,
    folder: Path,
    rate: int | None,
    seconds: float | None,
    trim: bool,
    skip_corrupt: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes the rows of all sounds to the cache folder, atomically; arguments as in `load_sounds`.

    Raises UndiffuseError with one report of all unreadable files, unless `skip_corrupt` leaves them out, and if none
    remain.
    """
    count = len(clips.names)
    rate = rate or clips.rate or _commonest_rate(clips)
    with writing(folder) as temporary:
        flat = temporary / "flat"
        good, lengths, reasons, notes = [], [], [], Counter[str]()
        with flat.open("wb") as file:
            for index in range(count):
                try:
                    sound = read_sound(clips.place(index), rate, trim)
                except UsageError:  # a missing package
                    raise
                except UndiffuseError as error:
                    reasons.append((clips.names[index], str(error)))
                else:
                    pcm16(sound.samples).tofile(file)
                    good.append(index)
                    lengths.append(len(sound.samples))
                    notes += Counter(sound.notes(rate))
                if progress is not None:
                    progress(index + 1, count)
        remarks = [*clips.remarks, *(f"{number:,} of {count:,} sounds {note}" for note, number in notes.items())]
        if reasons:
            message = report(reasons, count, "sounds")
            if not skip_corrupt or not good:
                raise UndiffuseError(message + ("" if skip_corrupt else "\nUse --skip-corrupt to leave them out."))
            remarks.append(f"{message}\nThey are left out.")
        held_out = (splits.held_out(count, clips.labels) if clips.test is None else clips.test)[good]
        row = default_length(lengths, rate) if seconds is None else math.ceil(seconds * rate / step(rate)) * step(rate)
        order = np.argsort(held_out, kind="stable").tolist()
        spans = write_rows(temporary / "rows.npy", flat, lengths, order, row)
        flat.unlink()
        remarks += _cuts(spans, lengths, row / rate)
        train = sum(not held_out[span.sound] for span in spans)
        of_clips = [replace(span, sound=good[span.sound]) for span in spans]
        finish(temporary, clips, of_clips, rate, train, {"skipped": len(reasons), "remarks": remarks})


def _commonest_rate(clips: Clips) -> int:
    """The rate that most of the files have, but a multiple of 200 Hz, from 4,000 to 16,000."""
    rates = Counter[int]()
    for index in range(len(clips.names)):
        with suppress(UndiffuseError):  # reading it reports it, with its reason
            rates[stored_rate(clips.place(index))] += 1
    commonest = max(rates, key=lambda rate: (rates[rate], rate), default=HIGHEST_RATE)
    return min(max(-(-commonest // RATES.step) * RATES.step, RATES[0]), HIGHEST_RATE)


def _cuts(spans: Sequence[Span], lengths: Sequence[int], seconds: float) -> list[str]:
    """Remarks on sounds that are longer than a row."""
    last = {span.sound: span for span in spans}
    cut = sum(count > 1 for count in Counter(span.sound for span in spans).values())
    short = [sound for sound, span in last.items() if span.end < lengths[sound]]
    return [
        *([f"{cut:,} of {len(last):,} sounds are longer than a row of {seconds:.2f} s, and cut"] * bool(cut)),
        *([f"the ends of {len(short):,} sounds are left out: they are shorter than half a row"] * bool(short)),
    ]
