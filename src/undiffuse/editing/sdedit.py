"""SDEdit: noise up to a level, then denoise (Meng et al. 2022, algorithms 1 to 3), and inpainting, its masked form."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from undiffuse.conditions import Request
from undiffuse.editing.known import keeping, resampled
from undiffuse.editing.strength import times_below
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Overshoot
from undiffuse.model import Model
from undiffuse.randomness import Draw, keyed_draws
from undiffuse.sampling import trajectory


def _shifted(draws: Callable[[int], Draw], offset: int, step: int) -> Draw:
    return draws(offset + step)


@torch.no_grad()
def sdedit(
    model: Model,
    recipe: Recipe,
    x0: Tensor,
    numbers: Sequence[int],
    condition: Request | None = None,
    *,
    strength: float,
    repaint: Tensor | None = None,
    passes: int = 1,
    resampling: int = 1,
    tick: Callable[[int], None] | None = None,
    overshoot: Overshoot | None = None,
) -> Tensor:
    """x_0 (B, ...), noised to `strength` and denoised: realistic where strong, faithful where weak.

    At strength 0 it is x_0; at 1, where nothing is kept outside a mask, the samples numbered `numbers` to the bit. Each
    pass takes `recipe.evaluations` whatever the strength (`resampling` times as many).

    Args:
        repaint: bool, broadcast against x_0: what may change; the rest is returned as it is. None: everything.
        passes: how many times over (K of the paper's algorithms).
        resampling: of each step, to join the parts (RePaint); for a mask alone.
        tick: called after every step with the number of samples.
        overshoot: watches the predictions of the last pass before the threshold.

    Raises UsageError for strengths outside of [0, 1].
    """
    condition = model.taken(condition, len(numbers))
    grid = times_below(model, recipe, strength) if strength else torch.zeros(1, dtype=torch.float64)
    if passes < 1 or resampling < 1:
        raise UsageError(f"passes = {passes} and resampling = {resampling} must be 1 or more")
    if strength == 0:
        return x0
    process, top, draws = model.denoiser.process, grid[0].item(), keyed_draws(recipe.seed, numbers)
    known = x0 = x0.to(model.device)
    for number in range(passes):
        offset = number * (recipe.steps + 1)
        first = draws(offset)
        start = (process.prior(x0) if top == 1 else process.marginal(x0, top)).sample(first)
        step = recipe.step
        if repaint is not None:
            start = torch.where(repaint, start, process.corrupt(known, top, first))
            step = resampled(keeping(step, known, repaint, None if recipe.random else first), resampling)
        denoise, later = recipe.denoise(model, condition, overshoot), partial(_shifted, draws, offset)
        for state in trajectory(denoise, process, grid, step, start, later):
            last = state
            if tick and state.x0 is not None:
                tick(len(x0))
        x0 = last.x
    if overshoot is not None:
        overshoot.keep()
    return x0
