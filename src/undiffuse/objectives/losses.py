"""How a denoiser learns: an objective maps a batch of data and its randomness to one loss per sample.

    objective(denoiser, x0 (B, ...), condition, u (B,) float64 in [0, 1), noise like x0) -> (B,)

`u` chooses the time and `noise` the corruption, so that a loss is a pure function of its arguments.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoiser import Denoiser, reverse
from undiffuse.objectives.times import TimeSampler, uniform
from undiffuse.objectives.weighting import Weighting, simple
from undiffuse.process import Normal, expand, float64

Objective = Callable[[Denoiser, Tensor, Any, Tensor, Tensor], Tensor]


def weighted_error(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Any,
    u: Tensor,
    noise: Tensor,
    times: TimeSampler = uniform,
    weighting: Weighting = simple,
) -> Tensor:
    """weighting(log-SNR) ||x_0 - x_0_hat||^2, the mean over elements; by default L_simple (Ho et al. 2020, eq. 14).

    Computed where the network speaks: x_0_hat = p x_t + q output, so an error in the output is q times that in x_0.
    """
    schedule = denoiser.process.schedule
    t = times(schedule, u)
    output, _ = denoiser.output(denoiser.process.corrupt(x0, t, noise), t, condition)
    error = (output.to(x0.dtype) - denoiser.target_of(x0, noise, t)) ** 2
    weight = weighting(schedule.log_snr(t)) * denoiser.coefficients(t).q ** 2
    return expand(weight, error).flatten() * error.flatten(1).mean(1)


def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Any,
    u: Tensor,
    noise: Tensor,
    variance: str = "small",
    steps: int | None = None,
    levels: int = 256,
) -> Tensor:
    """One term of the variational bound, scaled to be an unbiased estimate of L_0 + ... + L_{T-1}, in nats/dimension.

    L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for s = t - 1/T > 0, and L_0 = -log p(x_0 | x_1), the discretised
    decoder (Sohl-Dickstein et al. 2015, eq. 14; Ho et al. 2020, eq. 5 and 13). L_T holds nothing to learn.

    Args:
        variance: that of p(x_s | x_t): "small", "large" or "learned". The decoder's is beta_1 unless it is learned.
        steps: T; by default the schedule's own, or 1000 for a continuous one.
        levels: how many values a data element takes, evenly spaced on [-1, 1].
    """
    process = denoiser.process
    steps = steps or process.schedule.steps or 1000
    index = (u * steps).floor().clamp(max=steps - 1)
    s, t = index / steps, (index + 1) / steps
    x_t = process.corrupt(x0, t, noise)
    model = reverse(process, denoiser(x_t, t, condition), x_t, s, t, variance)
    # The decoder needs a width: beta_1 where the posterior's variance is 0 (index 0, the step onto the data).
    decoder = model.variance
    if decoder.ndim == 1:
        decoder = torch.where(index > 0, decoder, process.level(t).sigma ** 2)
    model = Normal(model.mean, decoder)
    first = expand(index, x0) == 0
    posterior = process.posterior(x0, x_t, s, t)
    safe = Normal(posterior.mean, torch.where(index > 0, posterior.variance, float64(1.0)))
    term = torch.where(first, -discretised_log_prob(x0, model, levels), safe.kl(model))
    return steps * term.flatten(1).mean(1)


def discretised_log_prob(x: Tensor, normal: Normal, levels: int = 256) -> Tensor:
    """The log-probability `normal` gives to the interval around x, per element, in nats (Ho et al. 2020, eq. 13).

    x takes `levels` values evenly spaced on [-1, 1]; the intervals at the ends reach to infinity, so the probabilities
    sum to one. Exact in the tails: the difference of distribution functions is taken on the side where both are small.
    """
    scale = expand(normal.variance.sqrt(), x)
    half = 1 / (levels - 1)
    offset = x - normal.mean
    infinity = torch.full_like(x, torch.inf)
    upper = torch.where(x > 1 - half, infinity, (offset + half) / scale)
    lower = torch.where(x < -1 + half, -infinity, (offset - half) / scale)
    flip = offset > 0  # P(l < z < u) = P(-u < z < -l)
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high = torch.special.log_ndtr(high)
    # An open interval has low = -inf; until the last line it gets finite numbers, or its gradient would be 0 * inf.
    open_below = low == -torch.inf
    log_low = torch.special.log_ndtr(torch.where(open_below, torch.zeros_like(low), low))
    gap = torch.where(open_below, torch.full_like(low, -1.0), log_low - log_high)
    return log_high + torch.where(open_below, torch.zeros_like(low), torch.log1p(-gap.exp()))
