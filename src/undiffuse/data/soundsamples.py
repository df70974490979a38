"""Samples of sounds in files, as they are: a folder of .wav, or .npz with `sounds`. Nothing is resampled or cut."""

import os
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undiffuse.data.labels import class_names, indices, plain
from undiffuse.data.npy import Archive, open_npy
from undiffuse.errors import UndiffuseError, UsageError

ARRAY = "sounds"


@dataclass(frozen=True)
class SoundSamples:
    """Sounds of one length: rows int16 (N, L), mono, read-only.

    rate      in Hz; None for arrays that do not say
    labels    the class that was asked for, int64 (N,), an index into `classes`; None where that is not known
    """

    rows: np.ndarray
    rate: int | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def are_samples(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a .wav file in it, or a .npz file with an array `sounds`."""
    place = Path(path)
    if place.is_dir():
        return any(place.glob("*.wav"))
    if place.suffix.lower() != ".npz" or not place.is_file():
        return False
    found = open_npy(place)
    return isinstance(found, Archive) and ARRAY in found.names


def read_samples(path: str | os.PathLike[str]) -> SoundSamples:
    """What `are_samples` says is there; of a folder, the .wav files directly in it, in the order of their names.

    Raises UsageError for sounds that are not 16 bits and mono, or of several lengths or rates; UndiffuseError for files
    that are broken.
    """
    place = Path(path)
    return _folder(place) if place.is_dir() else _archive(place)


def _folder(place: Path) -> SoundSamples:
    rows, first = [], None
    for file in sorted(place.glob("*.wav")):
        row, rate = _read(file)
        first = first or (len(row), rate)
        if (len(row), rate) != first:
            raise UsageError(
                f"{file} has {len(row):,} samples at {rate:,} Hz, and those before it {first[0]:,} at {first[1]:,} Hz: "
                "samples to measure have one length and one rate"
            )
        rows.append(row)
    assert first is not None, "there is one"
    return SoundSamples(np.stack(rows), first[1])


def _read(file: Path) -> tuple[np.ndarray, int]:
    """int16 (L,) and the rate in Hz."""
    try:
        with wave.open(str(file), "rb") as sound:
            if (sound.getnchannels(), sound.getsampwidth()) != (1, 2):
                raise UsageError(
                    f"{file} has {sound.getnchannels()} channels of {8 * sound.getsampwidth()} bits: samples to "
                    "measure are mono and of 16 bits, as undiffuse sample writes them"
                )
            return np.frombuffer(sound.readframes(sound.getnframes()), "<i2"), sound.getframerate()
    except (wave.Error, EOFError, OSError) as error:
        raise UndiffuseError(f"cannot read {file}: {error or 'it ends too early'}") from None


def _archive(place: Path) -> SoundSamples:
    arrays = open_npy(place)
    assert isinstance(arrays, Archive)
    rows = arrays.read(ARRAY)
    if rows.dtype != np.int16 or rows.ndim != 2:
        raise UsageError(f"{place}: {ARRAY} are {rows.dtype} of shape {rows.shape}; they have to be int16 (N, L)")
    rate = int(arrays.read("rate")) if "rate" in arrays.names else None
    if "labels" not in arrays.names:
        return SoundSamples(rows, rate)
    where = f"{place}: labels"
    named = class_names(f"{place}: classes", arrays.read("classes")) if "classes" in arrays.names else None
    labels, classes = indices(where, [plain(where, arrays.read("labels"), len(rows))], named)
    return SoundSamples(rows, rate, labels, classes)
