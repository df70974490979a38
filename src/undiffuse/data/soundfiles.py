"""One file with sound -> mono samples at one rate: the one policy for mixing, resampling, silence and loudness."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from undiffuse.data.reading import reading
from undiffuse.errors import UndiffuseError, UsageError

if TYPE_CHECKING:
    from soundfile import SoundFile

FRAMES_PER_SECOND = 50
LOUDNESS = -23.0
"""The root mean square of a sound's active part, in dB of full scale (a sine of amplitude 1 has -3.01)."""
PEAK = 0.99
SILENT = 1e-4
"""Frames below this share of the power of the loudest one (-40 dB) are silence."""
NOTHING = 1e-8
"""A sound none of whose frames reaches this power (-80 dB of full scale) is nothing but silence."""
CLIPPED = 1e-3
"""More than this share of the samples at full scale is called clipped."""
FULL = 1 - 2**-15  # the largest sample of 16 bits
BLOCK = 1 << 16  # frames of a file that are in memory as they were stored

Place = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class Sound:
    """What was read from one file.

    samples  float32 (n,), mono, in [-.99, .99]
    gain     what the samples were multiplied by
    rate     the file's own rate, in Hz
    clipped  whether more than `CLIPPED` of the file's samples are at full scale
    short    whether the file holds fewer samples than its header says
    """

    samples: np.ndarray
    gain: float
    rate: int
    clipped: bool
    short: bool

    def notes(self, rate: int) -> list[str]:
        """What a user should know about the sound at `rate`, as the end of "some sounds ..."."""
        low = f"were stored at {self.rate:,} Hz: there is nothing above {self.rate / 2:,.0f} Hz in them"
        return [
            *(["are clipped: more than 0.1% of their samples are at full scale"] * self.clipped),
            *([low] * (self.rate < rate)),
            *(["hold fewer samples than their headers say, and may be damaged"] * self.short),
        ]


def stored_rate(place: Place) -> int:
    """The rate of a file in Hz, from its header. Raises UndiffuseError if it is not audio."""
    with reading("it as audio"), _opened(place) as file:
        return int(file.samplerate)


def read_sound(place: Place, rate: int, trim: bool = True) -> Sound:
    """Reads a sound: a path, or an open binary file.

    In this order:

    1. The channels are averaged.
    2. Another rate is converted by soxr (its quality VHQ, whose filter is steep and has linear phase).
    3. The sound is divided into frames of 20 ms, and those 40 dB below the loudest are silence. With `trim`, all of it
       at the beginning and at the end goes but for 20 ms (one frame).
    4. One gain brings the root mean square of the other frames to -23 dB of full scale, or the peak to .99 where that
       is less. So nothing is clipped that was not.

    The file is read block by block, so that of a long one only the result is held in memory, up to three times.

    Raises UndiffuseError with the reason for a file that is not audio, is empty, or holds nothing but silence, NaN
    or infinite samples; UsageError without the package soundfile.
    """
    mono, facts = _mono(place, rate)
    power = _power(mono, rate // FRAMES_PER_SECOND)
    if power.max() < NOTHING:
        raise UndiffuseError("it is silent: all of it is below -80 dB of full scale")
    active = power > power.max() * SILENT
    if trim:
        mono = mono[_span(active, rate // FRAMES_PER_SECOND)]
    # Every frame has as many samples, but for the last of the file: its missing ones count as zero.
    loudness = float(np.sqrt(power[active].mean()))
    gain = min(10 ** (LOUDNESS / 20) / loudness, PEAK / float(np.abs(mono).max()))
    return Sound(mono * np.float32(gain), gain, *facts)


def pcm16(samples: np.ndarray) -> np.ndarray:
    """float32 (n,) -> int16 (n,): 32,768 steps for 1, rounded to nearest, saturated, without dither.

    At -23 dB the error of rounding is 78 dB below speech, and dither would be one more noise that a model has to learn.
    """
    return np.clip(np.rint(samples * np.float32(2**15)), -(2**15), 2**15 - 1).astype(np.int16)


def _opened(place: Place) -> "SoundFile":
    try:
        from soundfile import SoundFile
    except ImportError as error:
        raise UsageError('sounds need the package soundfile: pip install "undiffuse[audio]"') from error
    return SoundFile(place)


def _mono(place: Place, rate: int) -> tuple[np.ndarray, tuple[int, bool, bool]]:
    """The mean of the channels at `rate`, float32 (n,), and the file's own rate, whether it is clipped, and short."""
    parts, count, full = [np.zeros(0, np.float32)], 0, 0
    with reading("it as audio"), _opened(place) as file:
        convert = _converter(file.samplerate, rate)
        for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
            if not np.isfinite(block).all():
                raise UndiffuseError("it holds samples that are NaN or infinite")
            count += len(block)
            full += int(np.count_nonzero((np.abs(block) >= FULL).any(axis=1)))
            parts.append(convert(block.mean(axis=1), False))
        parts.append(convert(np.zeros(0, np.float32), True))
        facts = int(file.samplerate), full > count * CLIPPED, count < file.frames
    mono = np.concatenate(parts)
    if not len(mono):
        raise UndiffuseError("it is empty: it has no samples")
    return mono, facts


def _converter(given: int, rate: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Converts a stream of samples to `rate`, block by block; the second argument says that one is the last."""
    if given == rate:
        return lambda block, last: block
    try:
        from soxr import ResampleStream
    except ImportError as error:
        raise UsageError(f'to convert {given} Hz needs the package soxr: pip install "undiffuse[audio]"') from error
    stream = ResampleStream(given, rate, 1, dtype="float32", quality="VHQ")
    return lambda block, last: stream.resample_chunk(block, last=last)


def _power(mono: np.ndarray, frame: int) -> np.ndarray:
    """The mean square of each frame, float64; the last one is filled up with zeros."""
    whole = mono[: len(mono) // frame * frame].reshape(-1, frame)
    power = np.einsum("nf,nf->n", whole, whole, dtype=np.float64)
    rest = mono[whole.size :].astype(np.float64)
    return np.append(power, rest @ rest if len(rest) else []) / frame


def _span(active: np.ndarray, frame: int) -> slice:
    """The samples from one frame before the first active one to one frame after the last."""
    frames = np.flatnonzero(active)
    return slice(max(0, int(frames[0]) - 1) * frame, (int(frames[-1]) + 2) * frame)
