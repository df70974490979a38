"""Inversion: the noise from which a sampler makes a given picture, so that it can be made again, changed.

Three kinds. DDIM's steps backwards are exact where each is solved for its start (fixed point); with x_0 and eps taken
from its end they are DDIM's own inversion, of order 1. The edit-friendly noise of DDPM (Huberman-Spiegelglas et al.
2024) reconstructs exactly by construction, and its states hold more of the picture.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess, float64_device, per_sample
from undiffuse.randomness import Draw, Given
from undiffuse.sampling import State, Step, ancestral

MEMORY = 4
"""Past iterates that Anderson's acceleration combines."""
PATIENCE = 8
"""Iterations without the error halving after which a step is left as it is."""


@dataclass(frozen=True)
class Inverted:
    """The start of a trajectory that ends at given data.

    Attributes:
        x: x at the first time of the grid, (B, ...).
        error: per sample, float64 (B,): the largest root mean square by which a step, the last excepted, misses its
            end, over that of x.
        remainder: x_0 less the end of the trajectory from x, (B, ...).
    """

    x: Tensor
    error: Tensor
    remainder: Tensor


@torch.no_grad()
def invert(
    denoise: Denoise,
    process: GaussianProcess,
    x0: Tensor,
    grid: Tensor,
    tolerance: float | None = None,
    most: int = 100,
) -> Inverted:
    """The x at grid[0] from which DDIM on `grid` ends at x_0 less the remainder; an iteration is one evaluation.

    Each step t -> s, x_s = alpha_s D(x_t) + sigma_s eps(x_t), is solved for x_t by fixed-point iteration, accelerated
    (Anderson 1965), from the solution with the prediction at s. The step onto the data, x_0 = D(x_t), may have no
    solution, since pictures with saturated pixels lie at the edge of what a network predicts: it is left as near as it
    comes, and the remainder is what to add at the end.

    Args:
        grid: decreasing to 0.
        tolerance: of `Inverted.error`; None: 1e-6 in float32, 1e-13 in float64.
        most: iterations a step; what has not converged by then shows in the error.
    """
    tolerance = tolerance or (1e-13 if x0.dtype == torch.float64 else 1e-6)
    times = grid.flip(0).tolist()
    x, _ = _solved(denoise, process, x0, 0.0, times[1], tolerance, most)
    error = torch.zeros(len(x0), dtype=torch.float64)
    remainder = x0 - denoise(x, times[1]).x0
    for s, t in itertools.pairwise(times[1:]):
        x, missed = _solved(denoise, process, x, s, t, tolerance, most)
        error = torch.maximum(error, missed)
    return Inverted(x, error, remainder)


@torch.no_grad()
def invert_order_1(denoise: Denoise, process: GaussianProcess, x0: Tensor, grid: Tensor) -> Tensor:
    """The same by DDIM's own steps upwards, with the prediction at s for that at t (Song et al. 2021, section 5.4).

    The first step has no prediction at s = 0: as in `invert`, x_0 itself is taken with the noise that t shows in it.
    """
    times, x = grid.flip(0).tolist(), x0
    for s, t in itertools.pairwise(times):
        at = _towards(denoise, process, x, s, t)
        x = at(x * (process.noise_level(t).alpha if s == 0 else 1), t if s == 0 else s)
    return x


def _solved(
    denoise: Denoise, process: GaussianProcess, x_s: Tensor, s: float, t: float, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """x_t with which DDIM steps onto x_s, and by how much it misses."""
    update = _towards(denoise, process, x_s, s, t)
    x = update(x_s * (process.noise_level(t).alpha if s == 0 else 1), t if s == 0 else s)
    xs: list[Tensor] = []
    steps: list[Tensor] = []
    progress: list[float] = []
    best, least = x, torch.full((len(x),), torch.inf, dtype=torch.float64)
    for _ in range(most):
        step = update(x, t) - x
        missed = (_size(step) / _size(x).clamp(min=1e-30)).cpu()
        best, least = torch.where(per_sample(missed < least, x), x, best), torch.minimum(least, missed)
        progress = [*progress, least.max().item()][-PATIENCE:]
        if progress[-1] <= tolerance or (len(progress) == PATIENCE and progress[-1] > 0.5 * progress[0]):
            break
        xs, steps = [*xs, x][-MEMORY:], [*steps, step][-MEMORY:]
        x = _accelerated(xs, steps)
    return best, least


def _towards(
    denoise: Denoise, process: GaussianProcess, x_s: Tensor, s: float, t: float
) -> Callable[[Tensor, float], Tensor]:
    """(x, time) -> the x_t that leads to x_s if the prediction at x is right: its fixed point at t is the solution.

    By eps where the signal is the stronger at t, by x_0 where the noise is: that form contracts there.
    """
    at_s, at_t = process.noise_level(s), process.noise_level(t)
    by_noise = bool(at_t.alpha >= at_t.sigma) or s == 0

    def update(x: Tensor, time: float) -> Tensor:
        prediction = denoise(x, time)
        if by_noise:
            ratio = at_t.alpha / at_s.alpha
            return ratio * x_s + (at_t.sigma - ratio * at_s.sigma) * prediction.eps
        ratio = at_t.sigma / at_s.sigma
        return ratio * x_s + (at_t.alpha - ratio * at_s.alpha) * prediction.x0

    return update


def _accelerated(xs: list[Tensor], steps: list[Tensor]) -> Tensor:
    """Anderson's next iterate: the combination of the past ones whose combined step is least, and that step taken."""
    x, step = xs[-1], steps[-1]
    if len(xs) == 1:
        return x + step
    moves = _exact(torch.stack([(step - old).flatten(1) for old in steps[:-1]], 2))  # (B, D, m)
    gram = moves.mT @ moves
    ridge = (1e-12 * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp(min=1e-100)
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram, moves.mT @ _exact(step.flatten(1)).unsqueeze(2))  # (B, m, 1)
    changes = torch.stack([(x + step - old - was).flatten(1) for old, was in zip(xs[:-1], steps[:-1], strict=True)], 2)
    return x + step - (_exact(changes) @ weights).view_as(x).to(x)


def _size(x: Tensor) -> Tensor:
    """The root mean square of each sample, float64 (B,)."""
    return _exact(x.flatten(1)).square().mean(1).sqrt()


def _exact(x: Tensor) -> Tensor:
    return float64_device(x).double()


@dataclass(frozen=True)
class NoiseMaps:
    """What an edit-friendly inversion keeps.

    Attributes:
        x: x at the first time of the grid, (B, ...).
        noise: for each step but the last, the standardised noise that it adds, (B, ...).
        remainder: what the last step, which adds none, leaves to x_0.
    """

    x: Tensor
    noise: tuple[Tensor, ...]
    remainder: Tensor


@torch.no_grad()
def noise_maps(
    denoise: Denoise, process: GaussianProcess, x0: Tensor, grid: Tensor, draws: Sequence[Draw]
) -> NoiseMaps:
    """The edit-friendly noise of DDPM's steps (Huberman-Spiegelglas et al. 2024, algorithm 1).

    Every x_t is drawn from q(x_t | x_0) by itself, by `draws` (one for each time of the grid but 0), and the noise of
    each step follows from its two ends.
    """
    times = grid.tolist()
    states = [process.corrupt(x0, t, draw) for t, draw in zip(times[:-1], draws, strict=True)]
    noise, x = [], states[0]
    for k, (t, s) in enumerate(itertools.pairwise(times[:-1])):
        law = process.reverse(denoise(x, t), x, s, t)
        noise.append((states[k + 1] - law.mean) / law.variance.sqrt())
        x = law.at(noise[-1])  # as it will be computed again: equal to states[k + 1] but for rounding
    return NoiseMaps(states[0], tuple(noise), x0 - denoise(x, times[-2]).x0)


def replaying(maps: NoiseMaps) -> tuple[Step, list[Draw]]:
    """The step rule, and its draws, that follow noise maps: with the denoiser of the inversion, back to x_0."""

    def step(state: State, s: float, denoise: Denoise, process: GaussianProcess, draw: Draw) -> State:
        after = ancestral(state, s, denoise, process, draw)
        return after if s > 0 else State(after.x + maps.remainder, s, after.x0)

    return step, [Given(noise) for noise in (*maps.noise, maps.remainder)]
