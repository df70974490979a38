"""Sounds: int16 rows (N, L), mono clips of one rate and length, and three ways to make x_0 of them.

`Waves` are the samples and `MDCT` (`undiffuse.domains.mdct`) their transform, both exact: every row comes back as it
was. `LogMel` (`undiffuse.domains.log_mel`) is smaller and closer to hearing, but has no phases; Griffin-Lim finds some.
"""

import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.domain import refuse_settings
from undiffuse.errors import UsageError
from undiffuse.files import atomic_file
from undiffuse.names import shown
from undiffuse.sound import hop_length

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.config import DataConfig
    from undiffuse.randomness import BatchDraw

FULL_SCALE = 32768
"""Steps of 16 bits in an amplitude of 1."""
RATES = (1000, 192_000)
FADE = 200
"""The fraction of a second, 5 ms, over which what was made anew is joined to what is known."""
BLOCK = 256
"""Rows that are transformed at a time where there may be many: a few hundred megabytes."""
MOST_SHOWN = 16


@dataclass(frozen=True)
class Sounds:
    """What all three have in common: clips of L samples at `rate` Hz.

    Raises ValueError for a rate outside of 1,000 to 192,000 Hz, and for a length that is not a whole number of hops of
    20 ms.
    """

    stored: tuple[int, ...]
    rate: int
    values = None
    bounded = True
    noun = "sounds"
    suffix = ".wav"
    features = ()

    def __post_init__(self) -> None:
        if len(self.stored) != 1:
            raise ValueError(f"sounds have a shape (L,), not {self.stored}")
        if type(self.rate) is not int or not RATES[0] <= self.rate <= RATES[1]:
            raise ValueError(f"a rate of {shown(self.rate)}: must be an integer from {RATES[0]} to {RATES[1]} Hz")
        hop = hop_length(self.rate)
        if self.stored[0] % hop:
            raise ValueError(
                f"sounds of {self.stored[0]} samples at {self.rate} Hz: the length must be a multiple of {hop} (20 ms)"
            )

    @property
    def seconds(self) -> float:
        """The length of a clip."""
        return self.stored[0] / self.rate

    def check(self, settings: "DataConfig") -> None:
        """Raises UsageError for settings of other kinds of data."""
        refuse_settings(settings, "sounds", "these are sounds")

    def augment(self, rows: np.ndarray, settings: "DataConfig", draw: "BatchDraw") -> np.ndarray:
        """The rows: sounds are not augmented."""
        return rows

    def reached(self, gap: range) -> np.ndarray:
        """The elements of x_0 that depend on some sample in `gap`, bool (*shape[1:])."""
        raise NotImplementedError

    def above(self, hertz: float) -> np.ndarray:
        """The elements of x_0 that tell of frequencies above `hertz`, bool (*shape[1:]). Raises UsageError for
        samples, which tell of all frequencies."""
        raise UsageError(
            "this model draws samples, which tell of all frequencies: take one of log-mel spectrograms or of the MDCT"
        )

    def rejoin(self, x0: "Tensor", rows: np.ndarray, repaint: np.ndarray, gap: range | None = None) -> np.ndarray:
        """An edit of `rows`, int16 (N, L), back as rows: what it has not changed stays as near as the domain can keep.

        Args:
            x0: (N, *shape), edited.
            repaint: the elements that the edit may have changed, bool (N, *shape[1:]); all others are those of `rows`.
            gap: the samples that may change: all others are those of `rows`, and there is no step between them.
        """
        import torch

        from undiffuse.sound.joining import joined

        mask = torch.from_numpy(np.array(repaint)).unsqueeze(1)
        made = self._made(torch.where(mask, x0.cpu(), self.encode(rows)), rows, mask[:, 0], gap)
        return steps_of(made if gap is None else joined(made, waveforms(rows), gap, self.rate // FADE))

    def _made(self, x0: "Tensor", rows: np.ndarray, repaint: "Tensor", gap: range | None) -> "Tensor":
        """The waveforms of x_0, float64 (N, L); those of `rows` may help to find them."""
        return waveforms(self.decode(x0))

    def decode(self, x0: "Tensor") -> np.ndarray:
        """x_0 -> int16 (N, L)."""
        raise NotImplementedError

    def encode(self, rows: np.ndarray) -> "Tensor":
        """int16 (N, L) -> x_0."""
        raise NotImplementedError

    def save(self, row: np.ndarray, path: Path) -> None:
        """As WAV: 16 bits, mono."""
        with atomic_file(path) as temporary:
            temporary.write_bytes(self.wav(row))

    def wav(self, row: np.ndarray) -> bytes:
        """The content of a WAV file: 16 bits, mono."""
        made = io.BytesIO()
        with wave.open(made, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(row.astype("<i2").tobytes())
        return made.getvalue()

    def join(self, rows: np.ndarray, path: Path) -> None:
        """All of them in one WAV, with a fifth of a second of silence between them."""
        between = np.zeros((len(rows), self.rate // 5), np.int16)
        self.save(np.concatenate([rows, between], 1).reshape(-1)[: -between.shape[1]], path)

    def show(self, rows: np.ndarray, path: Path) -> None:
        """Each waveform above its log-mel spectrogram; 16 of them at most."""
        from undiffuse.plots import sounds

        shown = rows[:MOST_SHOWN]
        sounds(waveforms(shown).numpy(), self.pictures(shown), self.rate, path)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """Log-mel spectrograms in colours, uint8 (N, 64, L / hop, 3): low bands at the bottom."""
        from undiffuse.plots import coloured
        from undiffuse.sound.mel import log_mel

        parts = [coloured(log_mel(waveforms(part).float(), self.rate).numpy()) for part in blocks_of(rows)]
        return np.concatenate(parts)[:, ::-1]


@dataclass(frozen=True)
class Waves(Sounds):
    """x_0 is the waveform, (1, L): a sample of 16 bits divided by 32,768, exactly."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, L)."""
        return 1, *self.stored

    def encode(self, rows: np.ndarray) -> "Tensor":
        """int16 (N, L), or floats in the same steps -> float32 (N, 1, L) in [-1, 1)."""
        return waveforms(rows)[:, None].float()

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, 1, L) -> int16 (N, L), rounded to the nearest step and saturated."""
        return steps_of(x0[:, 0].cpu().double())

    def reached(self, gap: range) -> np.ndarray:
        """The samples themselves, bool (L,)."""
        mask = np.zeros(self.stored, bool)
        mask[gap.start : gap.stop] = True
        return mask

    def log_volume(self, x0: "Tensor") -> "Tensor":
        """ln |d row / d x_0| in nats, the row in its steps: L ln 32768, whatever x_0 (N, 1, L) is.

        float64 (N,) on the CPU.

        For a density p of x_0, that of the row is p(x_0) / |d row / d x_0|, and a row of integers has a cell of volume
        1. So (-ln p(x_0) + log_volume) / (L ln 2) are its bits per sample where the density is even over the cell, and
        in the mean a bound on them if the row is dequantised, by up to half a step to either side, before `encode`
        (Theis et al. 2016, eq. 2).
        """
        import torch

        return torch.full((len(x0),), self.stored[0] * math.log(FULL_SCALE), dtype=torch.float64)


def waveforms(rows: np.ndarray) -> "Tensor":
    """int16 (N, L), or floats in the same steps -> float64 (N, L), full scale at 1."""
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.float64)) / FULL_SCALE


def steps_of(amplitudes: "Tensor") -> np.ndarray:
    """float (N, L) -> int16, rounded and saturated."""
    rows: np.ndarray = (amplitudes * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).short().numpy()
    return rows


def blocks_of(rows: np.ndarray) -> Sequence[np.ndarray]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
