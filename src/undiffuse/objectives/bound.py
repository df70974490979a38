"""The variational bound on -ln p(x_0) as an objective: a random term of it, scaled to an unbiased estimate of the sum.

For u < `reconstruction_share` it is the first term, the reconstruction of x_0 from the least noisy state; otherwise a
step's KL, or in continuous time the integrand. The prior's term has nothing to train; `undiffuse.likelihood` adds it.
"""

from typing import Any

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.discretised import discretised_log_prob, value_log_prob, value_logits
from undiffuse.objectives.categorical import categorical_bound
from undiffuse.objectives.weighting import simple
from undiffuse.process import (
    CategoricalProcess,
    NoiseLevel,
    Normal,
    Prediction,
    Process,
    Schedule,
    Time,
    expand,
    float64,
    float64_device,
)
from undiffuse.randomness import Draw
from undiffuse.token_denoiser import TokenDenoiser

RECONSTRUCTION = 1 / 64
"""The share of u that the continuous bound gives to its first term (importance sampling may give it more samples)."""
STEPS = 1000
"""T of the discrete bound for a continuous schedule."""
HYBRID = 1e-3
"""The weight of the bound in L_hybrid (Nichol & Dhariwal 2021, section 3.1), in nats here; their code uses bits."""
CROSS_ENTROPY = 0.01
"""The weight of the cross-entropy in D3PM's hybrid loss, for text (Austin et al. 2021, section 4)."""


def step_times(schedule: Schedule, steps: int | None = None) -> Tensor:
    """The T + 1 times of the discrete bound, ascending: i / T; if continuous, 0 and then evenly from t_min to 1.

    A schedule with t_min = 0 needs no first time above 0: i / T.
    """
    steps = steps or schedule.steps or STEPS
    if schedule.steps is not None or schedule.t_min == 0:
        return torch.arange(steps + 1, dtype=torch.float64) / steps
    if steps == 1:
        return float64([0.0, 1.0])
    from_first = torch.linspace(schedule.t_min, 1, steps, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), from_first])


def variational_bound(
    denoiser: Denoiser | TokenDenoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: Draw,
    variance: str | Tensor = "small",
    steps: int | None = None,
    values: int | None = 256,
) -> Tensor:
    """T times the term floor(u T) of L_0 + ... + L_{T-1}, in nats/dimension.

    L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for the step from t to s > 0, and L_0 = -log p(x_0 | x_1), the
    decoder (Sohl-Dickstein et al. 2015, eq. 14; Ho et al. 2020, eq. 5 and 13).

    Args:
        variance: that of p(x_s | x_t): "small", "large", "learned", or (T,) numbers, one per step. The decoder's is
            beta_1 unless it is given (the code of Ho et al. 2020 takes the posterior's at the second step instead); a
            denoiser of the target "categorical" is its own decoder.
        steps: T; by default the schedule's own, or 1000 for a continuous one.
        values: how many values a data element takes, evenly spaced on [-1, 1]; None: data is continuous.
    """
    times = step_times(denoiser.process.schedule, steps)
    index = _index(u, len(times) - 1)
    t = times[index + 1]
    x_t = denoiser.process.corrupt(x0, t, draw)
    prediction = denoiser(x_t, t, condition)
    return (len(times) - 1) * _terms(denoiser.process, prediction, x0, x_t, times, index, variance, values)


def hybrid(
    denoiser: Denoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw, steps: int | None = None
) -> Tensor:
    """L_simple + 0.001 L_vlb, where the bound trains only the variance (Nichol & Dhariwal 2021, eq. 16).

    The bound is in nats/dimension; its gradient does not reach the mean.
    """
    times = step_times(denoiser.process.schedule, steps)
    index = _index(u, len(times) - 1)
    t = times[index + 1]
    x_t = denoiser.process.corrupt(x0, t, draw)
    prediction = denoiser(x_t, t, condition)
    weight = simple(denoiser.process.schedule.log_snr(t))
    error = expand(weight, x0).flatten() * ((prediction.x0 - x0) ** 2).flatten(1).mean(1)
    fixed = Prediction(prediction.x0.detach(), prediction.eps.detach(), prediction.v)
    return error + HYBRID * (len(times) - 1) * _terms(denoiser.process, fixed, x0, x_t, times, index, "learned", 256)


def hybrid_cross_entropy(
    denoiser: TokenDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw, steps: int | None = None
) -> Tensor:
    """L_vb + 0.01 E[-ln p(x_0 | x_t)], in nats/token, for categorical data (Austin et al. 2021, eq. 5)."""
    times = step_times(denoiser.process.schedule, steps)
    index = _index(u, len(times) - 1)
    t = times[index + 1]
    x_t = denoiser.process.corrupt(x0, t, draw)
    prediction = denoiser(x_t, t, condition)
    error = -prediction.log_prob(x0).flatten(1).mean(1)
    return CROSS_ENTROPY * error + (len(times) - 1) * _terms(
        denoiser.process, prediction, x0, x_t, times, index, "small", None
    )


def continuous_bound(
    denoiser: Denoiser | TokenDenoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: Draw,
    values: int | None = 256,
) -> Tensor:
    """The reconstruction term, or the integrand of the diffusion term, of the bound with T -> infinity, nats/dimension.

        -ln p(x_0 | x_t) at t_min,  and  1/2 integral of (-d lambda/dt) SNR(t) ||x_0 - x_0_hat||^2 from t_min to 1

    (Kingma et al. 2021, eq. 11 and 17). The schedule between its ends changes the variance of this estimate, not its
    mean (section 5.1). p(x_0 | x_t) is the network's for the target "categorical", else proportional to q(x_t | x_0).
    For a categorical process: `categorical_bound`, from 0 to 1, with no reconstruction term.
    """
    if isinstance(denoiser, TokenDenoiser):
        return categorical_bound(denoiser, x0, condition, u, draw)
    schedule = denoiser.process.schedule
    first = u < RECONSTRUCTION
    t = schedule.t_min + (1 - schedule.t_min) * ((u - RECONSTRUCTION) / (1 - RECONSTRUCTION)).clamp(min=0)
    x_t = denoiser.process.corrupt(x0, t, draw)
    prediction = denoiser(x_t, t, condition)
    weight = -0.5 * (1 - schedule.t_min) / (1 - RECONSTRUCTION) * schedule.snr_derivative(t)
    bound = expand(weight, x0).flatten() * ((prediction.x0 - x0) ** 2).flatten(1).mean(1)
    if first.any():
        at = first.nonzero().flatten().to(x0.device)
        logits = None if prediction.logits is None else prediction.logits[at]
        level = denoiser.process.noise_level(schedule.t_min)
        reconstruction = -reconstruction_log_prob(x0[at], x_t[at], level, logits, values)
        bound = bound.index_copy(0, at, reconstruction.flatten(1).mean(1) / RECONSTRUCTION)
    return bound


def reconstruction_share(denoiser: Denoiser | TokenDenoiser, continuous: bool, steps: int | None = None) -> float:
    """The share of u that selects the first term: 0 for the continuous bound of tokens, which needs none."""
    if continuous:
        return 0.0 if isinstance(denoiser, TokenDenoiser) else RECONSTRUCTION
    return 1 / (len(step_times(denoiser.process.schedule, steps)) - 1)


def _index(u: Tensor, steps: int) -> Tensor:
    return (u * steps).floor().long().clamp(max=steps - 1)


def step_kl(
    process: Process, prediction: Any, x0: Tensor, x_t: Tensor, s: Time, t: Time, variance: str | Tensor
) -> Tensor:
    """L_{t-1} = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of every element, in nats, for any kind of process."""
    return process.posterior(x0, x_t, s, t).kl(process.reverse(prediction, x_t, s, t, variance))


def _terms(
    process: Process,
    prediction: Any,
    x0: Tensor,
    x_t: Tensor,
    times: Tensor,
    index: Tensor,
    variance: str | Tensor,
    values: int | None,
) -> Tensor:
    """L_index of each sample, index 0 .. T - 1, nats/dimension: (B,)."""
    if isinstance(process, CategoricalProcess):
        process = process.double()
    steps, first = (index > 0).nonzero().flatten(), (index == 0).nonzero().flatten()
    terms = []
    if len(steps):
        at, number = steps.to(x0.device), index[steps]
        numbers = variance[number] if isinstance(variance, Tensor) else variance
        # In float64: with many steps the two laws are nearly equal, and their difference loses precision.
        exact = (prediction.double().rows(at), _double(x0)[at], _double(x_t)[at])
        terms.append(step_kl(process, *exact, times[number], times[number + 1], numbers))
    if len(first):
        at = first.to(x0.device)
        width = variance[0] if isinstance(variance, Tensor) else None
        terms.append(-first_log_prob(process, prediction.rows(at), x0[at], x_t[at], times[1], width, values))
    means = torch.cat([term.flatten(1).mean(1).to(x0.device) for term in terms])
    ordered = means[torch.cat([steps, first]).argsort().to(x0.device)]
    return ordered.to(x_t.dtype) if x_t.is_floating_point() else ordered


def _double(x: Tensor) -> Tensor:
    return float64_device(x).double() if x.is_floating_point() else x


def first_log_prob(
    process: Process, prediction: Any, x0: Tensor, x_t: Tensor, t: Time, variance: Tensor | None, values: int | None
) -> Tensor:
    """ln p(x_0 | x_t) of every element, in nats, where x_t is the least noisy state: -L_0.

    Under `reverse` at s = 0; but for a Gaussian process that is a point, so a decoder is used: the prediction's own
    probabilities of values, else a normal distribution, with variance beta_1 unless a `variance` is given.
    """
    if not isinstance(prediction, Prediction):
        return process.reverse(prediction, x_t, 0.0, t).log_prob(x0)
    if prediction.logits is not None:
        return value_log_prob(x0, prediction.logits)
    if variance is None:
        variance = process.schedule.noise_level(t).sigma ** 2
    decoder = Normal(prediction.x0, variance)
    return decoder.log_prob(x0) if values is None else discretised_log_prob(x0, decoder, values)


def reconstruction_log_prob(
    x0: Tensor, x_t: Tensor, level: NoiseLevel, logits: Tensor | None, values: int | None
) -> Tensor:
    """ln p(x_0 | x_t) per element, nats, like x0: the network's, or by Bayes' rule from a flat prior.

    Kingma et al. 2021, eq. 8: p(x_0 | x_t) proportional to q(x_t | x_0), over the values or, if None, the real line.
    """
    if logits is not None:
        return value_log_prob(x0, logits)
    if values is None:
        return Normal(x_t / level.alpha, (level.sigma / level.alpha) ** 2).log_prob(x0)
    return value_log_prob(x0, value_logits(x_t, level, torch.zeros(values, device=x0.device, dtype=x0.dtype)))
