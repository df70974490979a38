"""Grids that go up, from data to noise, and grids that no sampler can follow."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from references import SCHEDULES, as64, gaussian_denoiser, walk
from torch import Tensor

from undiffuse.denoiser import Denoiser
from undiffuse.process import GaussianProcess, Schedule, cosine, linear, zero_terminal_snr
from undiffuse.sampling import SAMPLERS, Step, ancestral, ddim, make_grid

MEAN, STD = as64(0.0, -0.4, 0.7), as64(1.0, 0.3, 1.7)
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm++2m": 2, "dpm++3m": 3, "unipc": 2, "unipc3": 3}
ENDS: dict[str, Schedule] = SCHEDULES | {
    "cosine-1000": cosine(1000),
    "cosine-zero-snr": zero_terminal_snr(cosine(1000)),
}
STOCHASTIC: dict[str, Step] = {
    **{name: SAMPLERS[name].step for name in ("ddpm", "ddpm-large", "ddpm-learned")},
    "ddim-0.5": partial(ddim, eta=0.5),
}


def carried(x: Tensor, process: GaussianProcess, start: float, end: float) -> Tensor:
    """The probability flow of N(MEAN, STD^2): x keeps its place among the quantiles of q(x_t)."""
    at, to = process.noise_level(start), process.noise_level(end)
    place = (x - at.alpha * MEAN) / (at.alpha**2 * STD**2 + at.sigma**2).sqrt()
    return to.alpha * MEAN + (to.alpha**2 * STD**2 + to.sigma**2).sqrt() * place


def up(process: GaussianProcess, steps: int, first: float = 8.0, last: float = -6.0) -> Tensor:
    """A grid that ascends through even log-SNRs."""
    return process.schedule.time(torch.linspace(first, last, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", ORDERS)
def test_an_ascending_grid_is_the_exact_map_from_data_to_noise(sampler: str, name: str) -> None:
    """Within the rule's error, which falls with its order, or the second: the first steps are of lower order."""
    process = GaussianProcess(SCHEDULES[name])
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * STD + MEAN
    errors = []
    for steps in (200, 400):
        grid = up(process, steps)
        start = process.marginal(x, grid[0]).at(torch.zeros_like(x))
        denoise = gaussian_denoiser(process, MEAN, STD)
        *_, last = walk(denoise, process, grid, SAMPLERS[sampler].step, torch.empty, start)
        r = math.hypot(*(float(v) for v in (process.noise_level(grid[-1]).alpha, process.noise_level(grid[-1]).sigma)))
        errors.append(((last.x - carried(start, process, grid[0], grid[-1])).abs().max() / r).item())
    assert errors[0] < (0.1 if ORDERS[sampler] == 1 else 5e-3)
    assert math.log2(errors[0] / errors[1]) > min(ORDERS[sampler], 2) - 0.15


@pytest.mark.parametrize("sampler", ORDERS)
def test_up_and_down_again_is_where_it_began(sampler: str) -> None:
    process = GaussianProcess(cosine(1000))
    start = as64(0.9, -0.3, 0.1)[None]
    denoise, grid = gaussian_denoiser(process, MEAN, STD), up(process, 400)
    *_, noisy = walk(denoise, process, grid, SAMPLERS[sampler].step, torch.empty, start)
    *_, again = walk(denoise, process, grid.flip(0), SAMPLERS[sampler].step, torch.empty, noisy.x)
    torch.testing.assert_close(again.x, start, rtol=0, atol=0.1 if ORDERS[sampler] == 1 else 2e-3)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("sampler", ORDERS)
def test_an_ascending_grid_reaches_pure_noise(sampler: str, name: str) -> None:
    """t = 1 itself, with signal left or without: finite, and where the exact map ends, to the error of a last step."""
    process = GaussianProcess(ENDS[name])
    low = max(process.schedule.log_snr(1.0).item(), -8.7) + 0.1
    grid = torch.cat([up(process, 300, last=low), as64(1.0)])
    start = as64(0.9, -0.3, 0.1)[None]
    denoise = gaussian_denoiser(process, MEAN, STD)
    *_, last = walk(denoise, process, grid, SAMPLERS[sampler].step, torch.empty, start)
    assert last.t == 1 and last.x.isfinite().all()
    expected = carried(start, process, grid[0], 1.0)
    torch.testing.assert_close(last.x / process.prior_scale(), expected / process.prior_scale(), rtol=0, atol=0.1)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_rules_with_noise_do_not_go_up(name: str) -> None:
    """ValueError before anything is evaluated."""
    process = GaussianProcess(linear(20))
    states = walk(_never, process, as64(0.2, 0.5, 0.9), STOCHASTIC[name], torch.zeros, torch.zeros(1, 1))
    next(states)
    with pytest.raises(ValueError, match=r"adds noise and cannot go up from t = 0\.2 to 0\.5"):
        next(states)


def _never(*_: object) -> None:
    raise AssertionError("nothing was to be evaluated")


@pytest.mark.parametrize("step", [ancestral, *(SAMPLERS[name].step for name in ORDERS)])
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((0.0, 0.5, 1.0), "t = 0 there is no noise"),
        ((1.0, 0.5, 0.5, 0.0), r"number 1 is 0\.5 and number 2 is 0\.5"),
        ((1.0, 0.5, 0.7, 0.0), r"number 1 is 0\.5 and number 2 is 0\.7"),
        ((0.1, 0.5, 0.3, 0.9), r"number 1 is 0\.5 and number 2 is 0\.3"),
        ((1.0, 1.0, 1.0), "strictly"),
        ((0.3, 0.8, 0.3), "strictly"),
        ((1.0, math.nan, 0.0), r"times in \[0, 1\]"),
        ((1.5, 0.5, 0.0), r"times in \[0, 1\]"),
        ((1.0, 0.5, -0.1), r"times in \[0, 1\]"),
        ((), r"times in \[0, 1\]"),
    ],
)
def test_grids_that_cannot_be_followed_are_refused_at_once(grid: tuple, message: str, step: Step) -> None:
    process = GaussianProcess(linear(20))
    with pytest.raises(ValueError, match=message):
        walk(_never, process, as64(*grid), step, torch.zeros, torch.zeros(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ORDERS)
def test_a_denoiser_of_float32_goes_up_and_stays_float32(sampler: str) -> None:
    process = GaussianProcess(cosine(1000))
    denoise = Denoiser(lambda x, *_: 0.1 * x, process).bind(None)
    states = list(walk(denoise, process, up(process, 5), SAMPLERS[sampler].step, torch.empty, torch.ones(2, 3)))
    assert all(state.x.dtype == torch.float32 and state.x.isfinite().all() for state in states)
    assert [state.t for state in states] == up(process, 5).tolist()


def test_grids_that_go_down_are_what_they_were() -> None:
    """From the prior at t = 1, or from a start at any time: the first state is it."""
    process = GaussianProcess(linear(20))
    denoise, grid = gaussian_denoiser(process, MEAN, STD), make_grid("trailing", process.schedule, 4)
    drawn = list(walk(denoise, process, grid, ddim, lambda k: torch.ones(1, 3, dtype=torch.float64)))
    onward = list(walk(denoise, process, grid[2:], ddim, torch.empty, drawn[2].x))
    np.testing.assert_array_equal(onward[-1].x.numpy(), drawn[-1].x.numpy())
