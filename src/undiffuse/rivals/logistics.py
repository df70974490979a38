"""The discretised mixture of logistics, a law of 8-bit pixels (Salimans et al. 2017, sections 2.1 and 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.discretised import VALUES

HALF = 1 / (VALUES - 1)  # from a value to the borders of its interval
SMALLEST = -7.0
"""The smallest logarithm of a scale. The interval of a value is then 8 scales wide and can hold 98% of a component."""


def size_of_component(channels: int) -> int:
    """How many numbers a component has: a weight; for each channel a mean and a scale; one for each pair of them."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


@dataclass(frozen=True)
class Logistics:
    """K components for every pixel. A value on [-1, 1] has the mass of the interval around it, the first and the last
    also all that lies beyond. Within a component, a channel's mean is linear in the channels before it.

    All floating-point, (B, ..., K, H, W), with C channels.
    """

    log_weights: Tensor
    """(B, 1, K, H, W): logarithms, normalised over K."""
    means: Tensor
    """(B, C, K, H, W)."""
    log_scales: Tensor
    """(B, C, K, H, W)."""
    coefficients: Tensor
    """(B, C (C - 1) / 2, K, H, W) in [-1, 1]: channel 1's for channel 0; channel 2's for 0 and for 1; and so on."""

    @classmethod
    def of(cls, output: Tensor, channels: int) -> "Logistics":
        """The law that an output (B, size_of_component(C) K, H, W) of a network means."""
        parts = output.unflatten(1, (size_of_component(channels), -1))
        pairs = parts.shape[1] - 1 - 2 * channels
        logits, means, log_scales, coefficients = parts.split([1, channels, channels, pairs], 1)
        return cls(logits.log_softmax(2), means, log_scales.clamp(min=SMALLEST), coefficients.tanh())

    def log_prob(self, x: Tensor) -> Tensor:
        """ln of the probability of each pixel of x (B, C, H, W), of the 256 values on [-1, 1]: (B, H, W), in nats."""
        value = x.unsqueeze(2)
        channels = value.unbind(1)
        offset = value - torch.stack([self._mean(c, channels) for c in range(len(channels))], 1)
        sharpness = (-self.log_scales).exp()
        # The logistic function s has s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which is exact in both tails.
        below = functional.logsigmoid((offset + HALF) * sharpness).masked_fill(value > 1 - HALF, 0.0)
        above = functional.logsigmoid((HALF - offset) * sharpness).masked_fill(value < HALF - 1, 0.0)
        between = (-torch.expm1(-2 * HALF * sharpness)).log().masked_fill(value.abs() > 1 - HALF, 0.0)
        return (self.log_weights[:, 0] + (below + above + between).sum(1)).logsumexp(1)

    def at(self, u: Tensor) -> Tensor:
        """The sample, (B, C, H, W) of the 256 values, for uniform u, float64 (B, 1 + C, H, W) in [0, 1).

        The first number of a pixel chooses its component; the others are the quantiles of its channels.
        """
        upper = self.log_weights.double().exp().cumsum(2)[:, :, :-1]
        component = (upper <= u[:, :1].unsqueeze(2)).sum(2, keepdim=True)
        parts = (self.log_weights, self.means, self.log_scales, self.coefficients)
        one = Logistics(*(part.take_along_dim(component, 2) for part in parts))
        noise = torch.logit(u[:, 1:], eps=1e-15).to(self.means).unsqueeze(2) * one.log_scales.exp()
        channels: list[Tensor] = []
        for c, step in enumerate(noise.unbind(1)):
            value = (one._mean(c, channels) + step).clamp(-1, 1)
            channels.append(_rounded(value))
        return torch.cat(channels, 1)

    def centre(self) -> Tensor:
        """The average of the components' means, clamped: one of the 256 values each, (B, C, H, W)."""
        weights, channels = self.log_weights[:, 0].exp(), list[Tensor]()
        for c in range(self.means.shape[1]):
            means = self._mean(c, channels).clamp(-1, 1)
            channels.append(_rounded((weights * means).sum(1, keepdim=True)))
        return torch.cat(channels, 1)

    def _mean(self, channel: int, before: Sequence[Tensor]) -> Tensor:
        """The means of a channel, (B, K, H, W), where the channels before it are (B, 1, H, W) each."""
        first = channel * (channel - 1) // 2
        shifts = (self.coefficients[:, first + other] * before[other] for other in range(channel))
        return sum(shifts, start=self.means[:, channel])


def _rounded(value: Tensor) -> Tensor:
    """The nearest of the 256 values on [-1, 1]."""
    return ((value + 1) / (2 * HALF)).round() * (2 * HALF) - 1
