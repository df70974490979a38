"""Objectives: functions from a batch of data and its randomness to one loss per sample.

    objective(denoiser, x0 (B, ...), condition, u (B,) float64 in [0, 1), draw) -> (B,)

`u` chooses the time and `draw` the corruption, so that a loss is a pure function of its arguments.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.times import TimeSampler, log_normal, uniform
from undiffuse.objectives.weighting import Weighting, edm, simple
from undiffuse.process import expand
from undiffuse.randomness import Draw

Objective = Callable[[Denoiser, Tensor, Condition | None, Tensor, Draw], Tensor]


def weighted_error(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: Draw,
    times: TimeSampler = uniform,
    weighting: Weighting = simple,
) -> Tensor:
    """weighting(log-SNR) ||x_0 - x_0_hat||^2, the mean over elements, at the time that u selects.

    Computed from the output: x_0_hat = c_skip x_t + c_out output, so an error e in the output is c_out e in x_0.
    """
    schedule = denoiser.process.schedule
    t = times(schedule, u)
    noise = draw.normal(x0)
    output, _ = denoiser.output(denoiser.process.marginal(x0, t).at(noise), t, condition)
    error = (output.to(x0.dtype) - denoiser.target_of(x0, noise, t)) ** 2
    weight = weighting(schedule.log_snr(t)) * denoiser.coefficients(t).c_out ** 2
    return expand(weight, error).flatten() * error.flatten(1).mean(1)


def l_simple(denoiser: Denoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw) -> Tensor:
    """L_simple = ||eps - eps_theta(x_t, t)||^2, t uniform (Ho et al. 2020, eq. 14): SNR(t) weights an error in x_0."""
    return weighted_error(denoiser, x0, condition, u, draw, times=uniform, weighting=simple)


def edm_loss(denoiser: Denoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw) -> Tensor:
    """EDM's ||F - (x_0 - c_skip x_t) / c_out||^2 at log-normal noise levels (Karras et al. 2022, eq. 8 and table 1): an
    error in x_0 has weight lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / sigma_data^2 + SNR.
    """
    weighting = partial(edm, sigma_data=denoiser.sigma_data)
    return weighted_error(denoiser, x0, condition, u, draw, times=log_normal, weighting=weighting)
