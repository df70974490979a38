"""The variational bound on -ln p(x_0) of each image: prior, diffusion and reconstruction, for any model of the family.

The diffusion term is estimated with the training objectives (`undiffuse.objectives`), at stratified times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives import Objective, continuous_bound, reconstruction_share, step_times, variational_bound
from undiffuse.process import GaussianProcess
from undiffuse.randomness import Draw
from undiffuse.streams import GOLDEN


@dataclass(frozen=True)
class Formula:
    """Which bound to compute.

    Attributes:
        steps: T of the discrete bound (Ho et al. 2020, eq. 5), None for the continuous one (Kingma et al. 2021).
        variance: of p(x_s | x_t) in the discrete one: "small", "large", "learned", or (T,) numbers, one per step.
        values: how many values an element takes, evenly spaced on [-1, 1]; None: data is continuous.
    """

    steps: int | None
    variance: str | Tensor = "small"
    values: int | None = 256

    @property
    def objective(self) -> Objective:
        """The term of the bound that a u in [0, 1) selects, scaled to estimate all but the prior's."""
        if self.steps is None:
            return partial(continuous_bound, values=self.values)
        return partial(variational_bound, variance=self.variance, steps=self.steps, values=self.values)


@dataclass(frozen=True)
class Bound:
    """Nats per dimension of each image, float64 (B,): the mean over noise of prior + diffusion + reconstruction is at
    least -ln p(x_0) / D.

    Attributes:
        prior: L_T, the KL of q(x_1 | x_0) and the prior; exact.
        diffusion: L_1 + ... + L_{T-1}, or its integral: estimated by the mean of `draws`.
        reconstruction: L_0 = -ln p(x_0 | x_1), for one draw of x_1.
        times: t of each draw, float64 (B, K).
        draws: estimates of `diffusion`, float64 (B, K).
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    times: Tensor
    draws: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, float64 (B,)."""
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def estimate_bound(
    denoiser: Denoiser,
    x0: Tensor,
    formula: Formula,
    draws: Callable[[int], Draw],
    u: Tensor,
    condition: Condition | None = None,
) -> Bound:
    """The bound of every image of a batch.

    Args:
        x0: data (B, ...), with `formula.values` values on [-1, 1] if it is discrete.
        draws: estimate number -> its random numbers; 0 is the reconstruction's.
        u: selects the time of each draw, float64 (B, K) in [0, 1): from `stratified` or `all_steps`.
    """
    process, objective = denoiser.process, formula.objective
    share = reconstruction_share(denoiser, formula.steps is None, formula.steps)
    first = share * objective(denoiser, x0, condition, torch.zeros(len(x0), dtype=torch.float64), draws(0))
    inside = (share + (1 - share) * u).clamp(min=share * (1 + 2**-50))  # (1 / T) T may round to less than 1
    estimates = [
        (1 - share) * objective(denoiser, x0, condition, inside[:, k], draws(k + 1)).cpu().double()
        for k in range(u.shape[1])
    ]
    exact = x0.cpu().double() if x0.is_floating_point() else x0.cpu()  # not every device has float64
    prior = process.marginal(exact, 1.0).kl(process.prior(exact)).flatten(1).mean(1)
    terms = torch.stack(estimates, 1) if estimates else torch.zeros(len(x0), 0, dtype=torch.float64)  # T = 1 has none
    diffusion = terms.sum(1) / max(len(estimates), 1)
    return Bound(prior, diffusion, first.cpu().double(), times_of(denoiser, formula, inside), terms)


def times_of(denoiser: Denoiser, formula: Formula, u: Tensor) -> Tensor:
    """The t that each u of an objective selects, float64 like u."""
    schedule = denoiser.process.schedule
    if formula.steps is None:
        share = reconstruction_share(denoiser, True)
        if share == 0:
            return u
        return schedule.t_min + (1 - schedule.t_min) * ((u - share) / (1 - share)).clamp(min=0)
    times = step_times(schedule, formula.steps)
    return times[(u * formula.steps).long().clamp(max=formula.steps - 1) + 1]


def stratified(samples: Tensor, draws: int) -> Tensor:
    """K stratified u for each of the samples numbered `samples`, one in each K-th of [0, 1), shifted by a golden ratio
    from sample to sample: float64 (B, K). Their mean is unbiased over the samples, for any T."""
    shift = torch.frac((samples.double() + 0.5) * GOLDEN)
    return (shift[:, None] + torch.arange(draws, dtype=torch.float64)) / draws


def all_steps(count: int, steps: int) -> Tensor:
    """The middle of each of the T - 1 steps' shares, the same for `count` samples: float64 (count, T - 1)."""
    return ((torch.arange(steps - 1, dtype=torch.float64) + 0.5) / max(steps - 1, 1)).expand(count, -1)


@torch.no_grad()
def squared_errors(
    denoiser: Denoiser,
    x0: Tensor,
    steps: int,
    draws: Callable[[int], Draw],
    u: Tensor,
    condition: Condition | None = None,
) -> Tensor:
    """Errors of the predicted x_0 at each of T steps: the sum of mean squared errors, and their number, float64 (2, T).

    Args:
        x0, draws, u: as for `estimate_bound`; u covers all T steps.
    """
    times = step_times(denoiser.process.schedule, steps)
    sums = torch.zeros(2, steps, dtype=torch.float64)
    for k in range(u.shape[1]):
        index = (u[:, k] * steps).long().clamp(max=steps - 1)
        t = times[index + 1]
        error = denoiser(denoiser.process.corrupt(x0, t, draws(k)), t, condition).x0 - x0
        square = (error.cpu().double() ** 2).flatten(1).mean(1)
        sums.index_add_(1, index, torch.stack([square, torch.ones_like(square)]))
    return sums


def optimal_variance(process: GaussianProcess, errors: Tensor) -> Tensor:
    """The variance of p(x_s | x_t) that minimises the bound, one number for each of T steps, float64 (T,).

    The posterior's plus the mean squared error of the predicted x_0, propagated to x_s (Bao et al. 2022, Analytic-DPM,
    theorem 1, with the error measured instead of taken from the score's norm). Steps without errors are interpolated.

    Args:
        errors: the sum of `squared_errors` of images other than those whose bound is computed, (2, T).
    """
    total, count = errors
    steps = len(count)
    times = step_times(process.schedule, steps)
    seen = count.nonzero().flatten()
    square = torch.from_numpy(np.interp(np.arange(steps), seen.numpy(), (total[seen] / count[seen]).numpy()))
    s, t = times[:-1], times[1:]
    c = process.noise_fraction(s, t)
    at_s = process.noise_level(s)
    return c * at_s.sigma**2 + (c * at_s.alpha) ** 2 * square
