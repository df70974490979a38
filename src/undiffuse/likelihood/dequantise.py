"""From the density of a continuous variable to the probability of pixels: dequantisation.

Pixels have values k = 0 .. L - 1, represented as x = 2 k / (L - 1) - 1. With u in [0, 1) for each, the points

    y = 2 (k + u) / L - 1

fill [-1, 1) with bins of width 2 / L, without gaps. So for any density p and any q(u | k)

    ln P(k) >= E_q[ln p(y) - ln q(u | k)] - D ln(L / 2)

(Uria et al. 2013 and Theis et al. 2016 for a uniform q; Ho et al. 2019, Flow++, section 3.1), the last term exactly 7
bits per element for L = 256. The density of a model trained on x is evaluated at y unchanged: no y is further from its
x than 2 / L. (Bins of width 2 / (L - 1) around x, whose term is 6.994 bits, gave 0.003 to 0.009 bits more on images.)

A dequantiser is q: a function (data x (B, ...), v like x, uniform on [0, 1)) -> (u like x, ln q(u | x) in nats, (B,)).
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undiffuse.randomness import Purpose, stream

Dequantiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
STEP = 2.0**-24
"""The spacing of the numbers from `uniform_draws`; the last float32 before 1 is 1 - STEP."""


def uniform_draws(seed: int, samples: Iterable[int], shape: Sequence[int], draw: int = 0) -> Tensor:
    """v for the samples numbered `samples`, a pure function of (seed, sample, draw): float32 (B, *shape) in [0, 1).

    Multiples of STEP, so that k + v is exact in float64.
    """
    keys = [(seed, Purpose.DEQUANTISE, sample, draw) for sample in samples]
    return torch.from_numpy(np.stack([stream(*key).random(shape, dtype=np.float32) for key in keys]))


def uniform(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The dequantiser with u = v and ln q = 0."""
    return v, v.new_zeros(len(v))


def dequantised(x: Tensor, u: Tensor, values: int = 256) -> Tensor:
    """y in [-1, 1), float64, for data x: exact where L is a power of 2, so that floor((y + 1) L / 2) is k again."""
    k = ((x.double() + 1) * (0.5 * (values - 1))).round()
    return 2 * (k + u.double()) / values - 1


def offset_bits(values: int = 256) -> float:
    """log2(L / 2), in bits per element: what bins of width 2 / L add to -log2 p(y). Exactly 7 for 256 values."""
    return math.log2(values) - 1


def bits_per_dim(log_prob: Tensor, elements: int, values: int = 256) -> Tensor:
    """-log2 P(k) / D, or a bound on it, in bits per element: like `log_prob`, ln p(y) - ln q(u | x) in nats per sample.

    `elements` is D.
    """
    return offset_bits(values) - log_prob / (elements * math.log(2))


class LogisticDequantiser(nn.Module):
    """A learned q(u | x): u = sigmoid(mean + scale logit(v)), where a small network predicts mean and scale from x.

    A logistic variable mapped to (0, 1). It starts with mean 0 and scale 1, where u = v: the uniform dequantiser.

    Args:
        channels: of the images x (B, C, H, W).
        width: hidden channels.
    """

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        last = nn.Conv2d(width, 2 * channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.network = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """u in (0, 1), like x, and ln q(u | x), in nats (B,); differentiable in the weights.

        With a = logit(v) and b = logit(u) = mean + scale a, q(u) = v (1 - v) / (scale u (1 - u)).
        """
        mean, log_scale = self.network(x).chunk(2, dim=1)
        a = torch.logit(v.to(x.dtype).clamp(min=STEP / 2))
        b = mean + log_scale.exp() * a
        log_q = log_slope(a) - log_slope(b) - log_scale
        return torch.sigmoid(b).clamp(max=1 - STEP), log_q.flatten(1).sum(1)


def log_slope(a: Tensor) -> Tensor:
    """ln of the sigmoid's derivative, sigmoid(a) sigmoid(-a)."""
    return F.logsigmoid(a) + F.logsigmoid(-a)


def dequantiser_loss(
    dequantiser: Dequantiser, log_prob: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, values: int = 256
) -> Tensor:
    """The bound on -log2 P(k) with `dequantiser`, in bits per element: its mean over the batch, to be minimised.

    Args:
        log_prob: y (B, ...), of the dtype of x -> ln p(y) in nats (B,), differentiable in y. An estimate whose mean is
            a lower bound will do: the variational bound of a diffusion model at one random time costs one evaluation of
            the network, the ODE a hundred.
    """
    u, log_q = dequantiser(x, v)
    y = dequantised(x, u, values).to(x.dtype)
    return bits_per_dim(log_prob(y) - log_q, x[0].numel(), values).mean()
