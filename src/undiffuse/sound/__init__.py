"""Representations of sound: the MDCT, companding, log-mel spectrograms and the way back from them.

Waveforms are float tensors (B, L), full scale at 1. Importing this package does not import torch, because model
cards need what is here.
"""

MEL_BANDS = 64


def hop_length(rate: int) -> int:
    """The samples from one frame to the next, 20 ms at `rate` Hz. Raises ValueError if that is no whole number."""
    if rate % 50:
        raise ValueError(f"a rate of {rate} Hz: it must be a multiple of 50 Hz, so that 20 ms are whole samples")
    return rate // 50
