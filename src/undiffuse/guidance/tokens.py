"""Guidance of tokens by the difference of two denoisers of a categorical process."""

import torch
from torch import Tensor

from undiffuse.guidance.difference import Pair, linear
from undiffuse.process import Categorical, Denoise, Time


def guided_tokens(pair: Pair, scale: float) -> Denoise:
    """The denoiser of log p_u + w (log p_c - log p_u), normalised for every token: p_c^w p_u^(1 - w).

    Classifier-free guidance (Ho & Salimans 2022) of discrete data (Schiff et al. 2024, section 3.1), on the prediction
    of x_0 and not of x_s, so that masks are revealed as often as the process says, whatever the scale. What an element
    itself says of x_0 is in both predictions and is counted once. Values that either rules out get probability 0.

    Args:
        pair: (x_t, t) -> two `Categorical` (B, L, K), such as `with_and_without` of a `TokenDenoiser`.
        scale: w; 1 is the first of the pair, 0 the second, as everywhere.
    """
    rule = linear(scale)

    def denoise(x_t: Tensor, t: Time) -> Categorical:
        towards, away = (one.log_probs for one in pair(x_t, t))
        possible = (towards > -torch.inf) & (away > -torch.inf)
        return Categorical(rule(towards, away).where(possible, -torch.inf).log_softmax(-1))

    return denoise
