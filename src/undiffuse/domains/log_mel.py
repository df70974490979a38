"""Sounds as log-mel spectrograms, and the way back by Griffin-Lim."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.domains.sounds import FADE, Sounds, blocks_of, steps_of, waveforms
from undiffuse.errors import UsageError
from undiffuse.sound import MEL_BANDS, hop_length

if TYPE_CHECKING:
    from torch import Tensor

LEAST_MEL_RATE = 2000
"""Hz; below it some mel bands would lie between two bins."""
MARGIN = 9.0
"""dB above the noise, from where on a sound is taken to be louder than it."""


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

        parts = [log_mel(waveforms(part).float(), self.rate) for part in blocks_of(rows)]
        return torch.cat(parts)[:, None] if parts else torch.empty(0, *self.shape)

    def decode(self, x0: "Tensor") -> np.ndarray:
        """float (N, 1, 64, L / hop) -> int16 (N, L) with nearly that spectrogram: 32 steps of fast Griffin-Lim.

        Each clip alone, which is no slower: in a batch it would be rounded otherwise, and the steps amplify that.
        """
        from undiffuse.sound.griffin_lim import griffin_lim
        from undiffuse.sound.mel import spectrum_of

        rows = np.empty((len(x0), *self.stored), np.int16)
        for row, levels in zip(rows, x0.float(), strict=True):
            row[:] = steps_of(griffin_lim(spectrum_of(levels, self.rate), hop_length(self.rate))[0].cpu())[0]
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
