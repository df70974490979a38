"""How a denoiser learns: an objective maps a batch of data and its randomness to one loss per sample.

    objective(denoiser, x0 (B, ...), condition, u (B,) float64 in [0, 1), draw) -> (B,)

`u` chooses the time and `draw` the corruption, so that a loss is a pure function of its arguments.
"""

from collections.abc import Callable

from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.times import TimeSampler, uniform
from undiffuse.objectives.weighting import Weighting, simple
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
    """weighting(log-SNR) ||x_0 - x_0_hat||^2, the mean over elements; by default L_simple (Ho et al. 2020, eq. 14).

    Computed where the network speaks: x_0_hat = p x_t + q output, so an error in the output is q times that in x_0.
    """
    schedule = denoiser.process.schedule
    t = times(schedule, u)
    noise = draw.normal(x0)
    output, _ = denoiser.output(denoiser.process.marginal(x0, t).at(noise), t, condition)
    error = (output.to(x0.dtype) - denoiser.target_of(x0, noise, t)) ** 2
    weight = weighting(schedule.log_snr(t)) * denoiser.coefficients(t).q ** 2
    return expand(weight, error).flatten() * error.flatten(1).mean(1)
