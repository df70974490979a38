"""The log-mel spectrograms that measures of sounds use, whatever a model's own representation is."""

import numpy as np
import torch
from torch import Tensor

from undiffuse.sound import MEL_BANDS
from undiffuse.sound.mel import FLOOR, LOWEST, log_mel
from undiffuse.sound.stft import FRAME

BLOCK = 500
DECIBELS = -10 * FLOOR / 2
"""In a step of 1 of a spectrogram."""
FACTS = (
    f"log-mel, {MEL_BANDS} bands from {LOWEST:g} Hz, {20 * FRAME} ms Hann windows every 20 ms, floor {10 * FLOOR:g} dB"
)


def spectrogram(rows: np.ndarray, rate: int) -> Tensor:
    """int16 (N, L) at `rate` Hz -> float32 (N, 64, L / hop), as `undiffuse.sound.mel.log_mel`."""
    return log_mel(torch.from_numpy(np.asarray(rows, dtype=np.float32) / 32768), rate)


def spectrograms(rows: np.ndarray, rate: int) -> np.ndarray:
    """`spectrogram` of any number of rows, a block at a time."""
    blocks = [spectrogram(rows[first : first + BLOCK], rate).numpy() for first in range(0, len(rows), BLOCK)]
    return np.concatenate(blocks)
