"""Time grids: the N + 1 times that a sampler visits in N steps, from exactly 1 to exactly 0, strictly decreasing.

Whatever the rule, the first time is that of the prior and the last that of the data, so no noise is ever left.
The rules by index (`leading`, `trailing`, `linspace`, `quadratic`) are rounded to the steps of a discrete-time schedule
and are valid for every N up to its T; the rules by noise level (`karras`, `log_snr`) need no steps and take any N.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from undiffuse.process import Schedule, float64
from undiffuse.registry import GRIDS
from undiffuse.sampling.steps import PURE_NOISE

Grid = Callable[[Schedule, int], Tensor]
"""(schedule, N) -> float64 (N + 1,)."""

USEFUL = (0.002, PURE_NOISE)
"""The range of sigma / alpha that steps by noise level cover (Karras et al. 2022, table 1): below it 8-bit data is as
good as clean, above it nothing of the data is visible. Schedules that go further (the cosine table, down to a log-SNR
of -20) would spend half of their steps outside it."""

LEVELS = 32
"""The noise levels at which a flow map's jumps can end, the data among them."""


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """1 - i / N: evenly spaced, counted back from pure noise (Lin et al. 2024, table 2)."""
    return _on_steps(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def leading(schedule: Schedule, steps: int) -> Tensor:
    """Evenly spaced, counted up from the step nearest the data, as DDPM's and DDIM's code do (1, 1 + T/N, ...).

    Their first time is short of the last step, but they start from pure noise; here it is moved to 1.
    """
    stride = 1 / steps if schedule.steps else (1 - schedule.t_min) / steps
    return _evenly(schedule, stride * (steps - 1), steps)


def linspace(schedule: Schedule, steps: int) -> Tensor:
    """N times evenly spaced between 1 and the step nearest the data, then the data (Nichol & Dhariwal 2021)."""
    return _evenly(schedule, 1 - schedule.t_min, steps)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """(1 - i / N)^2: denser towards the data (Song et al. 2021, DDIM, appendix D.2)."""
    return _on_steps(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2)


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Tensor:
    """(sigma / alpha)^(1 / rho) spaced evenly over useful noise levels, then the data (Karras et al. 2022, eq. 5)."""
    start, end = (-0.5 * _useful_log_snr(schedule)).exp() ** (1 / rho)
    sigma = torch.lerp(start, end, torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    return _with_ends(schedule.time(-2 * sigma.log()))


def jumps(schedule: Schedule, steps: int) -> Tensor:
    """The times between which flow maps jump: every n-th of the LEVELS of `karras`, or the nearest to it; for more
    steps than that, those of `karras`."""
    if steps > LEVELS:
        return karras(schedule, steps)
    return karras(schedule, LEVELS)[torch.linspace(0, LEVELS, steps + 1, dtype=torch.float64).round().long()]


def log_snr(schedule: Schedule, steps: int) -> Tensor:
    """The log-SNR evenly spaced over the useful noise levels, then the data (Lu et al. 2022)."""
    start, end = _useful_log_snr(schedule)
    return _with_ends(schedule.time(torch.lerp(start, end, torch.linspace(0, 1, steps, dtype=torch.float64))))


def make_grid(name: str, schedule: Schedule, steps: int) -> Tensor:
    """The grid `name` in GRIDS for `steps` steps. Raises ValueError unless 1 <= steps (<= T if it is by index).

    It is shared between callers, as what a schedule says of a time is.
    """
    rule = GRIDS.find(name)
    known: dict[tuple[Grid, int], Tensor] = schedule.__dict__.setdefault("_grids", {})
    if (rule, steps) not in known:
        known[rule, steps] = _grid(name, rule, schedule, steps)
    return known[rule, steps]


def _grid(name: str, rule: Grid, schedule: Schedule, steps: int) -> Tensor:
    grid = rule(schedule, _checked(steps))
    if not (grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()):
        raise ValueError(
            f"{steps} steps are too many for the grid {name} on this schedule, whose times are no longer distinct: "
            "take fewer (1 always works)"
        )
    return grid


def at_log_snrs(schedule: Schedule, values: Sequence[float]) -> Tensor:
    """The grid of N steps that visits N - 1 log-SNRs, increasing, between pure noise and the data.

    Raises ValueError unless the schedule has each of them, at distinct times.
    """
    grid = torch.cat([float64([1.0]), schedule.time(float64(list(values))), float64([0.0])])
    if not (grid.diff() < 0).all():
        listed = ", ".join(f"{value:.4g}" for value in values)
        raise ValueError(
            f"the log-SNRs {listed} are not a grid here: they must increase, above the schedule's last, "
            f"{schedule.log_snr(1.0).item():.4g}"
        )
    return grid


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a sampler takes at least 1 step, not {steps}")
    return steps


def _evenly(schedule: Schedule, length: float, steps: int) -> Tensor:
    """The data, then N times evenly spaced from t_min to t_min + length, with the noisiest moved to 1.

    With t_min = 0 the first of them would be the data once more: evenly, that is `trailing`.
    """
    if schedule.t_min == 0:
        return trailing(schedule, steps)
    noisy = schedule.t_min + torch.linspace(length, 0, steps, dtype=torch.float64)
    return _on_steps(schedule, torch.cat([float64([1.0]), noisy[1:], float64([0.0])]))


def _on_steps(schedule: Schedule, times: Tensor) -> Tensor:
    """`times` rounded to the steps of a discrete-time schedule, kept distinct and in order; else as they are."""
    if schedule.steps is None:
        return times
    count = len(times) - 1
    if count > schedule.steps:
        raise ValueError(f"{count} steps are too many: the schedule has {schedule.steps}")
    # Ascending from 0 at least 1 apart, then descending from T likewise: both passes are running extremes of k_i - i.
    ranks = torch.arange(count + 1, dtype=torch.float64)
    apart = ((times.flip(0) * schedule.steps).round() - ranks).cummax(0).values.clamp(max=schedule.steps - count)
    return schedule.time_of((apart + ranks).flip(0).long())


def _useful_log_snr(schedule: Schedule) -> Tensor:
    """Where a rule by noise level starts and ends: the schedule's range, as far as sigma / alpha is in USEFUL."""
    ends = schedule.log_snr(float64([1.0, schedule.t_min]))
    least, most = USEFUL
    return ends.clamp(-2 * math.log(most), -2 * math.log(least))


def _with_ends(noisy: Tensor) -> Tensor:
    """The noisy times with the first moved to exactly 1, then the data."""
    return torch.cat([float64([1.0]), noisy[1:], float64([0.0])])
