"""Which times a network is trained at: quantile functions, from u in [0, 1) to t, and ways to draw the u of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.process import Schedule

TimeSampler = Callable[[Schedule, Tensor], Tensor]
"""(schedule, u float64 (B,)) -> t float64 (B,) in [t_min, 1]: u is mapped through the inverse CDF."""


def uniform(schedule: Schedule, u: Tensor) -> Tensor:
    """Every step i / T with the same probability; for a continuous schedule, uniformly on [t_min, 1]."""
    if schedule.steps is None:
        return schedule.t_min + (1 - schedule.t_min) * u
    return schedule.time_of(1 + (u * schedule.steps).floor().clamp(max=schedule.steps - 1))


def log_normal(schedule: Schedule, u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, section 5).

    Values outside the schedule's range are clamped to it.
    """
    log_sigma = mean + std * torch.special.ndtri(u)
    return schedule.time(-2 * log_sigma).clamp(schedule.t_min, 1)


def independent(count: int, generator: torch.Generator) -> Tensor:
    """`count` independent uniform numbers, float64."""
    return torch.rand(count, generator=generator, dtype=torch.float64)


def antithetic(count: int, generator: torch.Generator) -> Tensor:
    """Pairs u and 1 - u (with an odd count the last is unpaired)."""
    half = independent((count + 1) // 2, generator)
    return torch.stack([half, 1 - half], 1).flatten()[:count].clamp(max=1 - 2.0**-53)


def low_discrepancy(count: int, generator: torch.Generator) -> Tensor:
    """One u in each interval of length 1 / count, all shifted together (Kingma et al. 2021, appendix I.1), shuffled.

    Shuffled so that no position in the batch, and so no process or micro-batch, is tied to certain times.
    """
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    u = torch.frac((shift + torch.arange(count, dtype=torch.float64)) / count)
    return u[torch.randperm(count, generator=generator)]
