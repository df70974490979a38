"""The loop: a generator of states. Progress bars, previews, early stops and streaming are up to the caller."""

from collections.abc import Callable, Iterator

from torch import Tensor

from undiffuse.process import Denoise, Process
from undiffuse.randomness import Draw
from undiffuse.sampling.steps import State, Step


def default_sampler(steps: int) -> str:
    """The best sampler for a number of steps, as measured (docs/benchmarks.md): unipc below 8, else dpm++2m."""
    return "unipc" if steps < 8 else "dpm++2m"


def trajectory(
    denoise: Denoise, process: Process, grid: Tensor, step: Step, start: Tensor, draws: Callable[[int], Draw]
) -> Iterator[State]:
    """Yields the state at every time of `grid` (float64), the start included.

    Args:
        grid: strictly decreasing; or, for deterministic rules, strictly increasing from a t > 0: the same ODE from data
            to noise (DDIM inversion). At t = 0 there is no noise, and so the direction of the ODE is undefined.
        start: x at grid[0], (B, ...): at t = 1 a sample of the prior, `process.prior(like).sample(draws(0))`.
        draws: step number, 1 .. N -> its random numbers.

    Raises ValueError for any other grid.
    """
    return _walk(denoise, process, _checked(grid), step, start, draws)


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
        raise ValueError("at t = 0 there is no noise to follow: begin an ascending grid later, say at schedule.t_min")
    return grid.tolist()


def _walk(
    denoise: Denoise, process: Process, times: list[float], step: Step, start: Tensor, draws: Callable[[int], Draw]
) -> Iterator[State]:
    state = State(start, times[0])
    yield state
    for number, s in enumerate(times[1:], 1):
        state = step(state, s, denoise, process, draws(number))
        yield state
