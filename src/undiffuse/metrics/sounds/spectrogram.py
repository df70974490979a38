"""The log-mel spectrogram that measures of sounds use, whatever a model's own representation is."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

BANDS = 64
LOWEST = 50.0  # Hz
BLOCK = 500
FLOOR = -100.0  # dB, relative to a sine wave of full scale
HANN = 3
"""The sum of the power over the bins of a sine wave: 1.5 for a Hann window (Harris 1978), twice for padding."""
DECIBELS = -FLOOR / 2
"""In a step of 1 of a spectrogram."""
FACTS = f"log-mel, {BANDS} bands from {LOWEST:g} Hz, 40 ms Hann windows every 20 ms, floor {FLOOR:g} dB"


def log_mel(rows: np.ndarray, rate: int) -> Tensor:
    """int16 (N, L) at `rate` Hz, a multiple of 50 -> float32 (N, 1, 64, ceil(L / hop)), hop = rate / 50.

    The power in mel bands, from -1, which is 100 dB below a sine wave of full scale or less, to about 1, which is
    that sine wave. Frame t is centred on sample t hop.
    """
    hop = rate // 50
    window = torch.hann_window(2 * hop)
    x = torch.from_numpy(np.asarray(rows, dtype=np.float32) / 32768)
    x = torch.nn.functional.pad(x, (2 * hop, 2 * hop + -x.shape[1] % hop))
    # Transforms of twice the window's length have bins of 12.5 Hz: no mel band is without any.
    spectrum = torch.stft(x, 4 * hop, hop, 2 * hop, window, center=False, return_complex=True)[..., :-1]
    power = (spectrum.abs() / (window.sum() / 2)).square() / HANN
    decibels = 10 * (filters(rate) @ power).clamp(min=10 ** (FLOOR / 10)).log10()
    return (1 + decibels / DECIBELS).unsqueeze(1)


def spectrograms(rows: np.ndarray, rate: int) -> np.ndarray:
    """`log_mel` of any number of rows, a block at a time: float32 (N, 64, T)."""
    blocks = (log_mel(rows[first : first + BLOCK], rate)[:, 0].numpy() for first in range(0, len(rows), BLOCK))
    return np.concatenate(list(blocks))


@cache
def filters(rate: int) -> Tensor:
    """Triangles of height 1, evenly spaced in mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987), float32 (64, bins).

    Each goes from the centre of the one below to that of the one above, so between the first and the last centre all
    add up to 1.
    """
    frequencies = np.fft.rfftfreq(4 * (rate // 50), 1 / rate)
    lowest, highest = (2595 * np.log10(1 + frequency / 700) for frequency in (LOWEST, rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))
