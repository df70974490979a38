"""Searches a time grid for one model, with which a few steps come close to the result of many.

The ends of short deterministic trajectories are compared with those of fine ones from the same noise, and the times are
moved until they come no closer (following Watson et al. 2022; Tong et al. 2024, LD3). The distance is not that between
the two ends of each sample, which few steps minimise with the mean of the possible results, a blurred image, but that
between the two distributions.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.process import Denoise, GaussianProcess
from undiffuse.sampling.grids import at_log_snrs
from undiffuse.sampling.steps import State, Step

FINEST = 0.02
"""The search ends at moves of this share of the mean distance between two times, in log-SNR."""


def bands(x: Tensor) -> list[Tensor]:
    """Images (B, C, H, W) decomposed by scale: each band (B, K), from the finest detail to the coarse rest (Burt &
    Adelson 1983). Data other than images is one band, unchanged.
    """
    parts = []
    while x.ndim == 4 and min(x.shape[2:]) > 4:
        coarse = functional.avg_pool2d(x, 2, ceil_mode=True)
        parts.append((x - functional.interpolate(coarse, size=x.shape[2:], mode="nearest")).flatten(1))
        x = coarse
    return [*parts, x.flatten(1)]


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Of the distributions of x_i and y_i, (B, K), drawn in pairs: 2 E|X - Y'| - E|X - X'| - E|Y - Y'|, relative to
    E|Y - Y'| (Szekely & Rizzo 2013). The distances |x_i - y_i| within pairs are left out: 0 for equal sets.
    """
    count = len(x)
    both = torch.cat([x, y]).double()
    distances = torch.cdist(both, both)
    within_x, within_y, across = (
        part.sum() - part.diagonal().sum()
        for part in (distances[:count, :count], distances[count:, count:], distances[:count, count:])
    )
    return ((2 * across - within_x - within_y) / within_y).item()


def difference(x: Tensor, y: Tensor) -> float:
    """The mean energy distance of the bands of two sets of images (B, C, H, W)."""
    distances = [energy_distance(a, b) for a, b in zip(bands(x), bands(y), strict=True)]
    return sum(distances) / len(distances)


class _NoDraw:
    def normal(self, like: Tensor) -> Tensor:
        raise ValueError("a grid can be searched only for deterministic samplers")

    uniform = normal

    def fold(self, number: int) -> "_NoDraw":
        return self


def _states(start: State, times: list[float], denoise: Denoise, process: GaussianProcess, step: Step) -> list[State]:
    states = [start]
    for s in times:
        states.append(step(states[-1], s, denoise, process, _NoDraw()))
    return states


@torch.no_grad()
def search_grid(
    denoise: Denoise,
    process: GaussianProcess,
    step: Step,
    grid: Tensor,
    start: Tensor,
    target: Tensor,
    trials: int = 400,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[list[float], list[float]]:
    """The N - 1 log-SNRs of a better grid of N steps, for `at_log_snrs`, and the successive differences, beginning with
    the old grid's.

    Moves one time after the other, in log-SNR, up and down by a length that halves when no move helps any more; a
    trial repeats only the steps that it changes.

    Args:
        grid: the initial grid, as from `make_grid`; its ends, pure noise and the data, are kept.
        start: x at grid[0], (B, ...).
        target: where a fine trajectory from `start` ends; see `difference`.
        trials: the maximum; the search mostly ends earlier.
        tick: called with 1 after every trial.
    """
    schedule = process.schedule
    lowest = schedule.log_snr(1.0).clamp(min=-30).item()
    inner = [lowest, *schedule.log_snr(grid[1:-1]).tolist()]
    highest = schedule.log_snr(schedule.t_min).item()

    def times(log_snrs: list[float]) -> list[float]:
        return at_log_snrs(schedule, log_snrs).tolist()[1:]

    states = _states(State(start, 1.0), times(inner[1:]), denoise, process, step)
    differences = [difference(states[-1].x, target)]
    mean_distance = (inner[-1] - inner[1]) / (len(inner) - 2) if len(inner) > 2 else 1.0
    length = mean_distance / 2
    while length > FINEST * mean_distance and len(inner) > 1 and trials > 0:
        moved = False
        for i in range(1, len(inner)):
            for move in (length, -length):
                place = inner[i] + move
                following = inner[i + 1] if i + 1 < len(inner) else highest
                if not inner[i - 1] + length / 4 < place < following - length / 4:
                    continue
                tried = [*inner[:i], place, *inner[i + 1 :]]
                onward = _states(states[i - 1], times(tried[i:]), denoise, process, step)
                found = difference(onward[-1].x, target)
                tick(1)
                trials -= 1
                if found < differences[-1]:
                    inner, states, moved = tried, states[: i - 1] + onward, True
                    differences.append(found)
                    break
        if not moved:
            length /= 2
    return inner[1:], differences
