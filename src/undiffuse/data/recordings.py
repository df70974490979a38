"""Sound files for editing: as rows of a model by the policy of `data.soundfiles`, and edits back at their own level."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undiffuse.data.remarks import readable, warn
from undiffuse.data.soundfiles import pcm16, read_sound
from undiffuse.domains.sounds import FULL_SCALE, Sounds
from undiffuse.errors import UndiffuseError, UsageError


@dataclass(frozen=True)
class Recordings:
    """N sounds of L samples.

    rows     what a model is given: at the loudness of its training data, int16 (N, L), filled up with digital silence
    stored   the same at the level of the files, int16 (N, L)
    gains    by how much they differ, float64 (N,): rows are `stored` times that, rounded
    lengths  how many samples of each are the file's, int64 (N,)
    """

    rows: np.ndarray
    stored: np.ndarray
    gains: np.ndarray
    lengths: np.ndarray

    def repeated(self, count: int) -> "Recordings":
        """Each of them `count` times."""
        return Recordings(
            *(np.repeat(values, count, axis=0) for values in (self.rows, self.stored, self.gains, self.lengths))
        )

    def at_their_level(self, edited: np.ndarray) -> np.ndarray:
        """Edits of `rows`, int16 (N, L), with the gain undone, saturated. Samples that are not changed are the
        files' own."""
        return np.where(edited == self.rows, self.stored, _with_gain(edited, 1 / self.gains))

    def between(self, last: "Recordings", frames: np.ndarray) -> np.ndarray:
        """Frames of an interpolation from the first of these to the first of `last`, int16 (F, L): the gain changes
        evenly in dB, and the ends are the files' own."""
        found = _with_gain(frames, 1 / np.geomspace(self.gains[0], last.gains[0], len(frames)))
        found[0], found[-1] = self.stored[0], last.stored[0]
        return found


def read_sounds(paths: Sequence[str | os.PathLike[str]], domain: Sounds, trim: bool) -> Recordings:
    """Sound files of any kind, rate and number of channels, as `data.load_sounds` reads them, with remarks on
    those that hold less than they seem to.

    Mono files of 16 bits and of the domain's rate are `stored` byte for byte. A file that is longer than the domain's
    clips by at most half of one loses its end with a remark, as in training.

    Args:
        trim: whether silence at both ends is removed. Without, times are those of the files.

    Raises UsageError for a missing file and one that is longer still, UndiffuseError for one that cannot be read or is
    silent; all name the file.
    """
    longest = domain.stored[0]
    stored, gains, lengths = np.zeros((len(paths), longest), np.int16), np.ones(len(paths)), np.zeros(len(paths), int)
    for number, path in enumerate(map(Path, paths)):
        name = readable(str(path))
        if not path.exists():
            raise UsageError(f"{name}: there is no such file")
        try:
            sound = read_sound(path, domain.rate, trim)
        except UsageError:  # a missing package
            raise
        except UndiffuseError as error:
            raise UndiffuseError(f"{name}: {error}") from error
        seconds, most = len(sound.samples) / domain.rate, domain.seconds
        if seconds > 1.5 * most:
            silence = " without the silence at its ends" if trim else ""
            raise UsageError(f"{name} has {seconds:.2f} s{silence}, and this model {most:g} s: cut a piece out of it")
        if seconds > most:
            warn(f"{name} has {seconds:.2f} s: the end is left out, for this model has {most:g} s")
        for note in sound.notes(domain.rate):
            warn(f"{name}: the sounds in it {note}")
        part = sound.samples[:longest].astype(np.float64) / sound.gain
        stored[number, : len(part)], gains[number], lengths[number] = pcm16(part), sound.gain, len(part)
    return Recordings(_with_gain(stored, gains), stored, gains, lengths)


def _with_gain(rows: np.ndarray, gains: np.ndarray) -> np.ndarray:
    return pcm16(rows * (gains[:, None] / FULL_SCALE))
