"""The loop: a generator of states. Progress bars, previews, early stops and streaming are the caller's business."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
    """Yields the state at every time of `grid` (float64, decreasing), the start included.

    Args:
        noise: asked for step 0 (the start, unless `start` is given) and for the steps 1 .. N that need noise.
        start: x at grid[0]; by default a sample of the prior.
    """
    times = grid.tolist()
    x = process.prior_scale() * noise(0) if start is None else start
    state = State(x, times[0])
    yield state
    for number, s in enumerate(times[1:], 1):
        state = step(state, s, denoise, process, partial(noise, number))
        yield state


def sample_noise(seed: int, samples: Sequence[int], shape: Sequence[int], like: Tensor) -> Noise:
    """The noise of the samples numbered `samples`: a pure function of (seed, sample, step), on the device of `like`."""

    def noise(step: int) -> Tensor:
        return normal([(seed, Purpose.SAMPLE, sample, step) for sample in samples], shape).to(like)

    return noise
