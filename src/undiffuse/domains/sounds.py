"""Sounds: int16 rows (N, L), mono clips of one rate and length, and three ways to make x_0 of them.

`Waves` are the samples and `MDCT` their transform, both exact: every row comes back as it was. `LogMel` is smaller and
closer to hearing, but has no phases; Griffin-Lim finds some.
"""

import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.domain import refuse_picture_settings
from undiffuse.errors import UsageError
from undiffuse.files import atomic_file
from undiffuse.names import shown
from undiffuse.sound import MEL_BANDS, hop_length

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.config import DataConfig
    from undiffuse.randomness import BatchDraw

FULL_SCALE = 32768
"""Steps of 16 bits in an amplitude of 1."""
RATES = (1000, 192_000)
LEAST_MEL_RATE = 2000
"""Hz; below it some mel bands would lie between two bins."""
FADE = 200
"""The fraction of a second, 5 ms, over which what was made anew is joined to what is known."""
MARGIN = 9.0
"""dB above the noise, from where on a sound is taken to be louder than it."""
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
        """Raises UsageError for settings that only pictures have."""
        refuse_picture_settings(settings, "these are sounds")

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
        return _steps(made if gap is None else joined(made, waveforms(rows), gap, self.rate // FADE))

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

        parts = [coloured(log_mel(waveforms(part).float(), self.rate).numpy()) for part in _blocks(rows)]
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
        return _steps(x0[:, 0].cpu().double())

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


@dataclass(frozen=True)
class LogMel(Sounds):
    """x_0 is the log-mel spectrogram, (1, 64, L / hop): see `undiffuse.sound.mel`. Raises ValueError below 2,000 Hz."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < LEAST_MEL_RATE:
            raise ValueError(f"a rate of {self.rate} Hz: log-mel spectrograms need at least {LEAST_MEL_RATE} Hz")

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, 64, L / hop): low bands first."""
        return 1, MEL_BANDS, self.stored[0] // hop_length(self.rate)

    def encode(self, rows: np.ndarray) -> "Tensor":
        """int16 (N, L) -> float32 (N, 1, 64, L / hop): -1 for 80 dB below full scale and less, 1 for a full sine."""
        import torch

        from undiffuse.sound.mel import log_mel

        parts = [log_mel(waveforms(part).float(), self.rate) for part in _blocks(rows)]
        return torch.cat(parts)[:, None] if parts else torch.empty(0, *self.shape)

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, 1, 64, L / hop) -> int16 (N, L) with nearly that spectrogram: 32 steps of fast Griffin-Lim.

        Each clip alone, which is no slower: in a batch it would be rounded otherwise, and the steps amplify that.
        """
        from undiffuse.sound.griffin_lim import griffin_lim
        from undiffuse.sound.mel import spectrum_of

        rows = np.empty((len(x0), *self.stored), np.int16)
        for row, levels in zip(rows, x0.float(), strict=True):
            row[:] = _steps(griffin_lim(spectrum_of(levels, self.rate), hop_length(self.rate))[0].cpu())[0]
        return rows

    def reached(self, gap: range) -> np.ndarray:
        """Every band of the frames whose window is not 0 at some sample in `gap`, bool (64, L / hop).

        Frame k begins a hop before hop k, where its window is exactly 0, and ends with the hop after that one.
        """
        from undiffuse.sound.stft import FRAME

        bands, frames = self.shape[1:]
        hop = hop_length(self.rate)
        begin = hop * (np.arange(frames) - 1)
        return np.tile((begin + 1 < gap.stop) & (begin + FRAME * hop > gap.start), (bands, 1))

    def above(self, hertz: float) -> np.ndarray:
        """The bands that do not end below `hertz`, bool (64, L / hop)."""
        from undiffuse.sound.mel import band_edges

        ends: np.ndarray = band_edges(self.rate)[:, 2].numpy()
        return np.tile(ends[:, None] > hertz, (1, self.shape[2]))

    def noisy(self, rows: np.ndarray, lengths: np.ndarray, piece: range | None = None) -> np.ndarray:
        """The elements of x_0 of noisy clips int16 (N, L) that noise decides, bool (N, 64, L / hop): those less than
        9 dB above the noise.

        By them nothing is known of the clean sound but that it is no louder: the mask of missing features of Cooke,
        Green, Josifovski and Vizinho (2001). 9 dB above its mean lie .04 % of the noise's own cells where a band is one
        bin, whose power is exponentially distributed. What is known to be silent, after `lengths` samples, is no noise.

        Args:
            piece: samples that hold nothing but noise; None: the noise is estimated in the quietest tenth of the frames
                of each clip, and two at least.

        Raises UsageError for a piece without a whole frame in it.
        """
        from undiffuse.sound.mel import decibels, noise_level

        hop, masks = hop_length(self.rate), np.zeros((len(rows), *self.shape[1:]), bool)
        for mask, levels, length in zip(masks, self.encode(rows)[:, 0], lengths.tolist(), strict=True):
            heard = -(-length // hop)
            if piece is None:
                level = noise_level(levels[:, :heard])
            else:
                first, last = -(-piece.start // hop) + 1, piece.stop // hop - 1
                if last <= first:
                    raise UsageError("a piece of noise must hold a whole frame of 60 ms: name 80 ms at least")
                level = noise_level(levels[:, first:last], 1.0)
            mask[:, :heard] = (decibels(levels[:, :heard]) < level + MARGIN).numpy()
        return masks

    def _made(self, x0: "Tensor", rows: np.ndarray, repaint: "Tensor", gap: range | None) -> "Tensor":
        """By Griffin-Lim, with the spectra of `rows` where they are known and, with a gap, the samples around it.

        Without a gap all phases of `rows` are near, and few plain steps keep them so. For 16 syllables in noise 10 dB
        below them, with the true levels in the missing cells, that ends 11.1 dB above the error, and 32 fast steps 9.5.
        """
        import torch

        from undiffuse.sound.griffin_lim import griffin_lim
        from undiffuse.sound.joining import joined
        from undiffuse.sound.mel import share_of, spectrum_of
        from undiffuse.sound.stft import stft

        hop, x = hop_length(self.rate), waveforms(rows).float()
        share, made = share_of(~repaint, self.rate), []
        for levels, kept, heard in zip(x0[:, 0].float(), share, x, strict=True):
            spectra = stft(heard[None], hop)
            magnitude = torch.lerp(spectrum_of(levels[None], self.rate), spectra.abs(), kept)
            if gap is None:
                found, _ = griffin_lim(magnitude, hop, steps=8, momentum=0, initial=spectra)
            else:
                impose = partial(joined, known=heard[None], gap=gap, fade=self.rate // FADE)
                found, _ = griffin_lim(magnitude, hop, initial=spectra * (kept > 0), impose=impose)
            made.append(found)
        return torch.cat(made).double()


@dataclass(frozen=True)
class MDCT(Sounds):
    """x_0 is the signed root of the MDCT, (1, M, L / M): see `undiffuse.sound.mdct` and `undiffuse.sound.companding`.

    x_0 has no bound: of speech, 7 % of the elements are beyond 1, and clipped to it there is 4 dB of signal to noise
    left.
    `scale` has one number for each of the M bands (`band_scales`), the amplitude of 1 being full scale. Raises
    ValueError for a scale that is not positive and finite, and for a number of bands that is odd or does not divide L.
    """

    scale: tuple[float, ...]
    bounded = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scale, tuple | list) or not all(
            type(scale) is float and 0 < scale < math.inf for scale in self.scale
        ):
            raise ValueError(f"scale = {shown(self.scale)}: must be positive finite numbers with a point, one per band")
        object.__setattr__(self, "scale", tuple(self.scale))  # JSON has lists
        bands = len(self.scale)
        if not bands or bands % 2 or self.stored[0] % bands:
            raise ValueError(f"{bands} bands: must be an even number that divides {self.stored[0]} samples")

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, M, L / M): low bands first."""
        return 1, len(self.scale), self.stored[0] // len(self.scale)

    def encode(self, rows: np.ndarray) -> "Tensor":
        """int16 (N, L), or floats in the same steps -> float32 (N, 1, M, L / M), about 0.5 in root mean square."""
        import torch

        from undiffuse.sound.companding import compress
        from undiffuse.sound.mdct import mdct

        scale = self._scale()
        parts = [compress(mdct(waveforms(part), len(scale)), scale).float() for part in _blocks(rows)]
        return torch.cat(parts)[:, None] if parts else torch.empty(0, *self.shape)

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, 1, M, L / M) -> int16 (N, L), rounded to the nearest step and saturated.

        float32 keeps u to a relative 2^-24, so a coefficient to 2^-23. A sample is a combination, with weights of norm
        1, of the coefficients of two blocks, whose norm is at most 32768 sqrt(3 M): it is wrong by at most
        0.0039 sqrt(3 M) steps. That is less than 1/2 for M up to 5,000, so every row comes back exactly.
        """
        from undiffuse.sound.companding import expand
        from undiffuse.sound.mdct import inverse_mdct

        return _steps(inverse_mdct(expand(x0[:, 0].cpu().double(), self._scale())))

    def reached(self, gap: range) -> np.ndarray:
        """Every band of the blocks whose window reaches into `gap`: M / 2 samples beyond a block on either side."""
        bands, blocks = self.shape[1:]
        begin = bands * np.arange(blocks) - bands // 2
        return np.tile((begin < gap.stop) & (begin + 2 * bands > gap.start), (bands, 1))

    def above(self, hertz: float) -> np.ndarray:
        """The bands that do not end below `hertz`, bool (M, L / M)."""
        bands, blocks = self.shape[1:]
        ends = self.rate / (2 * bands) * (np.arange(bands) + 1)
        return np.tile(ends[:, None] > hertz, (1, blocks))

    def log_volume(self, x0: "Tensor") -> "Tensor":
        """ln |d row / d x_0| in nats, the row in its steps: as `Waves.log_volume`, and used as that is.

        row = 32768 D^T c with an orthogonal D, so |det| = 32768^L, and c = s sign(u) u^2 in each place, so
        dc / du = 2 s |u|: together L ln 32768 + sum ln(2 s |u|). It is minus infinity where a coefficient is exactly 0,
        which digital silence has and dequantised rows almost never do.
        """
        from undiffuse.sound.companding import log_slope

        slopes = log_slope(x0[:, 0].cpu().double(), self._scale()).flatten(1).sum(1)
        return slopes + self.stored[0] * math.log(FULL_SCALE)

    def _scale(self) -> "Tensor":
        import torch

        return torch.tensor(self.scale, dtype=torch.float64)


def band_scales(rows: np.ndarray, bands: int = 64) -> tuple[float, ...]:
    """The scale of each MDCT band of rows int16 (N, L), N > 0: with it x_0 has a root mean square of 0.5 in each."""
    from undiffuse.sound.companding import scales
    from undiffuse.sound.mdct import mdct

    sums = [mdct(waveforms(part), bands).abs().mean(2).sum(0) for part in _blocks(rows)]
    return scales(sum(sums[1:], sums[0]) / len(rows))


def waveforms(rows: np.ndarray) -> "Tensor":
    """int16 (N, L), or floats in the same steps -> float64 (N, L), full scale at 1."""
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.float64)) / FULL_SCALE


def _steps(amplitudes: "Tensor") -> np.ndarray:
    """float (N, L) -> int16, rounded and saturated."""
    rows: np.ndarray = (amplitudes * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).short().numpy()
    return rows


def _blocks(rows: np.ndarray) -> Sequence[np.ndarray]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
