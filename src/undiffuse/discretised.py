"""Probabilities of discrete data, whose elements take values evenly spaced on [-1, 1], such as the 256 of 8 bits.

A network with the target "categorical" predicts a probability for each value; a normal distribution gives one to the
interval around it.
"""

import torch
from torch import Tensor

from undiffuse.process import NoiseLevel, Normal, Prediction, expand, float64_device

VALUES = 256  # of 8 bits
OUTPUTS = VALUES + 2
"""The output channels per element for the target "categorical": a Gaussian's mean and sharpness, and 256 logits."""
SHARPEST = 6.0
"""The Gaussian's standard deviation is at least sigma_data exp(-6), at most a third of the gap between values."""


def predict(output: Tensor, x_t: Tensor, level: NoiseLevel, sigma_data: float) -> Prediction:
    """The prediction of a network with the target "categorical": x_0 is the mean over an element's values.

    The network's probabilities, a Gaussian's times free ones, are conditional on an element's surroundings; Bayes' rule
    adds the element's own x_t. So at low noise, where x_0 is the value nearest x_t, nothing has to be learned.

    Args:
        output: (B, 258 C, ...).
        x_t: (B, C, ...), at the noise `level`.
    """
    channels = x_t.shape[1]
    mean, sharpness, free = output.to(x_t.dtype).split([channels, channels, VALUES * channels], 1)
    precision = (sharpness.clamp(max=SHARPEST).exp() / sigma_data) ** 2
    free = free.unflatten(1, (channels, VALUES)).movedim(2, -1)
    logits = value_logits(x_t, level, free, sigma_data * mean, precision)
    x0 = (logits.softmax(-1) * grid(VALUES, x_t)).sum(-1)  # not a matrix product: autocast would round it
    return Prediction(x0, x0, logits=logits).with_x0(x0, x_t, level)


def grid(values: int, like: Tensor) -> Tensor:
    """The values themselves, ascending on [-1, 1]: (values,)."""
    return torch.arange(values, device=like.device, dtype=like.dtype) / ((values - 1) / 2) - 1


def value_logits(
    x_t: Tensor, level: NoiseLevel, logits: Tensor, mean: Tensor | float = 0.0, precision: Tensor | float = 0.0
) -> Tensor:
    """ln p(x_0 = v | x_t) for every value v, up to a constant: ln of exp(logits) N(v; mean, 1 / precision) q(x_t | v).

    Args:
        x_t: (B, C, ...), with some signal (alpha > 0) or else a `precision` > 0.
        logits: (values,), the same for all elements, or (B, C, ..., values), like the result.
        mean, precision: (B, C, ...); precision 0: no such Gaussian.
    """
    values = grid(logits.shape[-1], x_t)
    signal = expand(level.alpha / level.sigma**2, x_t)  # the product of two Gaussians of v is one
    both = precision + expand((level.alpha / level.sigma) ** 2, x_t)
    root, centre = both.sqrt().to(x_t), (precision * mean + signal * x_t) / both
    distance = torch.addcmul((-root * centre).unsqueeze(-1), root.unsqueeze(-1), values)
    return torch.addcmul(logits, distance, distance, value=-0.5)


def value_log_prob(x0: Tensor, logits: Tensor) -> Tensor:
    """ln of the probability of each element of x0 (B, C, ...) under logits (B, C, ..., values)."""
    index = ((x0 + 1) * ((logits.shape[-1] - 1) / 2)).round().long()
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def discretised_log_prob(x: Tensor, normal: Normal, values: int = VALUES) -> Tensor:
    """The log-probability under `normal` of the interval around x, per element, in nats (Ho et al. 2020, eq. 13).

    x takes `values` values evenly spaced on [-1, 1]; the intervals at the ends reach to infinity, so the probabilities
    sum to one. Exact in the tails: the difference of distribution functions is taken on the side where both are small.
    """
    scale = expand(normal.variance.sqrt(), x)
    half = 1 / (values - 1)
    offset = x - normal.mean
    infinity = torch.full_like(x, torch.inf)
    upper = torch.where(x > 1 - half, infinity, (offset + half) / scale)
    lower = torch.where(x < -1 + half, -infinity, (offset - half) / scale)
    flip = offset > 0  # P(l < z < u) = P(-u < z < -l)
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high = _log_ndtr(high)
    # An open interval has low = -inf; until the last line it gets finite numbers, or its gradient would be 0 * inf.
    open_below = low == -torch.inf
    log_low = _log_ndtr(torch.where(open_below, torch.zeros_like(low), low))
    gap = torch.where(open_below, torch.full_like(low, -1.0), log_low - log_high)
    return log_high + torch.where(open_below, torch.zeros_like(low), torch.log1p(-gap.exp()))


def _log_ndtr(z: Tensor) -> Tensor:
    return torch.special.log_ndtr(float64_device(z)).to(z.device)  # MPS lacks it too
