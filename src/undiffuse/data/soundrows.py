"""How sounds become rows of one length: which length, windows, and the file that holds the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from undiffuse.data.soundfiles import FRAMES_PER_SECOND

HOPS = 16
"""Rows are a multiple of this many frames of 20 ms, so that networks can halve their representations four times."""
SHORTEST, LONGEST = 1, 4  # times 16 hops: .32 to 1.28 s
COVERED = 0.95


@dataclass(frozen=True)
class Span:
    """What a row holds: the samples from start to end of a sound, given by its index."""

    sound: int
    start: int
    end: int


def step(rate: int) -> int:
    """What the length of a row is a multiple of, in samples: 16 hops of 20 ms."""
    return HOPS * rate // FRAMES_PER_SECOND


def default_length(lengths: Sequence[int], rate: int) -> int:
    """L in samples for sounds of these lengths: it covers 95% of them, but is from .32 to 1.28 s."""
    covered = float(np.quantile(lengths, COVERED, method="inverted_cdf"))
    return int(np.clip(np.ceil(covered / step(rate)), SHORTEST, LONGEST)) * step(rate)


def windows(length: int, row: int) -> list[tuple[int, int]]:
    """Where the rows of a sound begin and end, in samples; the last one is left out if shorter than half of `row`,
    unless it is the only one."""
    spans = [(start, min(start + row, length)) for start in range(0, length, row)]
    start, end = spans[-1]
    return spans[:-1] if len(spans) > 1 and 2 * (end - start) < row else spans


def write_rows(path: Path, flat: Path, lengths: Sequence[int], order: Sequence[int], row: int) -> list[Span]:
    """Cuts sounds into rows, int16 (N, row), written to a .npy file; digital silence follows those that are shorter.

    flat     a file of all sounds, one after the other, int16
    lengths  their lengths, in the order of that file
    order    which of them, in which order

    Returns what each row holds.
    """
    starts = [0, *accumulate(lengths)]
    spans = [Span(sound, *ends) for sound in order for ends in windows(lengths[sound], row)]
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=(len(spans), row))
    samples = np.memmap(flat, dtype=np.int16, mode="r")
    for index, span in enumerate(spans):
        rows[index, : span.end - span.start] = samples[starts[span.sound] :][span.start : span.end]
    rows.flush()
    return spans
