"""Log-mel spectrograms, and spectra that have a given one.

The bands are triangles on the mel scale of HTK, 2595 log10(1 + f / 700 Hz) (O'Shaughnessy 1987), of height 1, from
50 Hz to half the rate: at every frequency between the first and the last centre they sum to 1. Power is relative to a
sine of full scale, in one bin of `stft`.
"""

import math

import torch
from torch import Tensor

from undiffuse.sound import MEL_BANDS, hop_length
from undiffuse.sound.stft import FRAME, stft

LOWEST = 50.0
"""Hz."""
FLOOR = -8.0
"""The least log10 of a band's power: 80 dB below full scale, which is not heard beside speech.

Of the cells of 20 spoken syllables, 4 % of those in frames with sound lie there.
"""


def band_edges(rate: int) -> Tensor:
    """Lower edge, centre and upper edge of each band in Hz, float64 (MEL_BANDS, 3): neighbours share theirs."""
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (LOWEST, rate / 2))
    mel = torch.linspace(low, high, MEL_BANDS + 2, dtype=torch.float64)
    return (700 * (10 ** (mel / 2595) - 1)).unfold(0, 3, 1)


def filters(rate: int) -> Tensor:
    """The weight of each bin of `stft` in each band, float64 (MEL_BANDS, F)."""
    bins = torch.fft.rfftfreq(FRAME * hop_length(rate), 1 / rate, dtype=torch.float64)
    low, centre, high = (edge[:, None] for edge in band_edges(rate).unbind(1))
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def log_mel(x: Tensor, rate: int) -> Tensor:
    """Waveforms (B, L) -> (B, MEL_BANDS, L / hop): -1 at the floor, 80 dB below full scale, 1 for a sine of full scale.

    Raises ValueError if the hop does not divide L.
    """
    spectra = stft(x, hop_length(rate))
    power = filters(rate).to(x) @ (spectra.real.square() + spectra.imag.square())
    return 1 - 2 * power.log10().clamp(min=FLOOR) / FLOOR


def decibels(levels: Tensor) -> Tensor:
    """Levels of `log_mel` in dB of a sine of full scale."""
    return 10 * FLOOR * (1 - levels) / 2


def share_of(cells: Tensor, rate: int) -> Tensor:
    """How much of each bin lies in the bands that are chosen: bool (B, MEL_BANDS, K) -> float32 (B, F, K) in [0, 1].

    Bins outside of all bands count as chosen where all bands are.
    """
    weights = filters(rate).float()
    total = weights.sum(0)[:, None]
    inside = (weights.T @ cells.float()) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, inside, cells.all(1, keepdim=True).float()).clamp(max=1)


def noise_level(levels: Tensor, share: float = 0.1) -> Tensor:
    """The mean power of each band in the quietest frames of one clip, (MEL_BANDS, K) -> dB (MEL_BANDS, 1).

    These are the `share` of the frames, and two at least, whose power in all bands together is least: whole frames,
    because the least values of each band by itself would lie far below the noise's mean.
    """
    power = 10 ** (decibels(levels.double()) / 10)
    count = min(max(round(share * power.shape[1]), 2), power.shape[1])
    quiet = power.sum(0).topk(count, largest=False).indices
    return 10 * power[:, quiet].mean(1, keepdim=True).log10()


def spectrum_of(levels: Tensor, rate: int, steps: int = 16) -> Tensor:
    """Magnitudes (B, F, K) whose log-mel spectrogram is `levels` (B, MEL_BANDS, K) nearly.

    There are fewer bands than bins. The power begins as the bands' density, interpolated between their centres, and
    `steps` multiplicative updates for the Kullback-Leibler divergence (Lee and Seung 2000, eq. 5; Richardson and Lucy)
    bring its bands to what they should be. It stays smooth and positive. Bins outside of all bands are 0.
    """
    weights = filters(rate).to(levels)
    power = 10 ** (FLOOR * (1 - levels.clamp(max=1.5)) / 2)
    total = weights.sum(0).clamp(min=torch.finfo(levels.dtype).tiny)[:, None]
    spectrum = weights.T @ (power / weights.sum(1, keepdim=True))
    for _ in range(steps):
        spectrum = spectrum * (weights.T @ (power / (weights @ spectrum))) / total
    return spectrum.sqrt()
