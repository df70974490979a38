"""The loop: a generator of states. Progress bars, previews, early stops and streaming are the caller's business."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from undiffuse.denoiser import Denoise
from undiffuse.process import GaussianProcess
from undiffuse.randomness import Purpose, normal
from undiffuse.sampling.solvers import dpm_solver_pp, unipc
from undiffuse.sampling.steps import State, Step, ddim, ddpm, heun

Noise = Callable[[int], Tensor]
"""step number -> standard normal noise shaped like the state; 0 is where the loop starts from."""


@dataclass(frozen=True)
class Sampler:
    """A step rule, the grid it is used with unless another is asked for, and its evaluations per step but the last."""

    step: Step
    grid: str
    evaluations: int = 1


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, "trailing"),
    "ddpm-large": Sampler(partial(ddpm, variance="large"), "trailing"),
    "ddpm-learned": Sampler(partial(ddpm, variance="learned"), "trailing"),
    "ddim": Sampler(ddim, "trailing"),
    "euler": Sampler(ddim, "karras"),  # Euler in sigma / alpha is DDIM with eta = 0
    "heun": Sampler(heun, "karras", evaluations=2),
    "dpm++2m": Sampler(dpm_solver_pp, "log-snr"),
    "dpm++3m": Sampler(partial(dpm_solver_pp, order=3), "log-snr"),
    "unipc": Sampler(unipc, "log-snr"),
    "unipc3": Sampler(partial(unipc, order=3), "log-snr"),
}


def default_sampler(steps: int) -> str:
    """The best for a number of steps, as measured (docs/benchmarks.md): unipc below 8, from there on dpm++2m."""
    return "unipc" if steps < 8 else "dpm++2m"


def trajectory(
    denoise: Denoise, process: GaussianProcess, grid: Tensor, step: Step, noise: Noise, start: Tensor | None = None
) -> Iterator[State]:
    """Yields the state at every time of `grid` (float64), the start included.

    Args:
        grid: strictly decreasing; or, for the rules without noise, strictly increasing from a t > 0: the same ODE from
            data to noise (DDIM's inversion). At t = 0 there is no noise yet, and so no direction to follow.
        noise: asked for step 0 (the start, unless `start` is given) and for the steps 1 .. N that need noise.
        start: x at grid[0]; by default, for a grid from t = 1 down, a sample of the prior.

    Raises ValueError for any other grid, and for a start that is missing.
    """
    times = _checked(grid)
    if start is None and times[0] != 1:
        raise ValueError(f"the prior is x at t = 1: give the start of a grid from t = {times[0]:g}")
    return _walk(denoise, process, times, step, noise, start)


def _checked(grid: Tensor) -> list[float]:
    """`grid` as a list. Raises ValueError where no sampler can follow it."""
    if grid.ndim != 1 or not len(grid) or not ((grid >= 0) & (grid <= 1)).all():
        raise ValueError("a grid is a list of times in [0, 1]")
    moves = grid.diff()
    if not ((moves < 0).all() or (moves > 0).all()):
        k = int((moves * moves.sum().sign() <= 0).nonzero()[0])
        raise ValueError(
            "the times of a grid must decrease strictly, or increase strictly: "
            f"number {k} is {grid[k].item():g} and number {k + 1} is {grid[k + 1].item():g}"
        )
    if len(grid) > 1 and grid[0] == 0:
        raise ValueError("at t = 0 there is no noise to follow: begin an ascending grid later, as at schedule.t_min")
    return grid.tolist()


def _walk(
    denoise: Denoise, process: GaussianProcess, times: list[float], step: Step, noise: Noise, start: Tensor | None
) -> Iterator[State]:
    state = State(process.prior_scale() * noise(0) if start is None else start, times[0])
    yield state
    for number, s in enumerate(times[1:], 1):
        state = step(state, s, denoise, process, partial(noise, number))
        yield state


def sample_noise(seed: int, samples: Sequence[int], shape: Sequence[int], like: Tensor) -> Noise:
    """The noise of the samples numbered `samples`: a pure function of (seed, sample, step), on the device of `like`."""

    def noise(step: int) -> Tensor:
        return normal([(seed, Purpose.SAMPLE, sample, step) for sample in samples], shape).to(like)

    return noise
