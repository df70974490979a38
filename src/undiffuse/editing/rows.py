"""Edits of stored rows, such as uint8 pictures (N, H, W, C): what `undiffuse edit` does, one function per technique.

The edit of picture i is a pure function of the model, the recipe, the settings and its number, whatever the batch.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions import Condition, Request, known_of_each
from undiffuse.editing.interpolation import mean_path, mixed, slerp
from undiffuse.editing.inversion import Inverted, invert, noise_maps, replaying
from undiffuse.editing.sdedit import sdedit
from undiffuse.editing.strength import times_below
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Overshoot
from undiffuse.model import Model
from undiffuse.process import Denoise
from undiffuse.randomness import Draw, Given, keyed_draws
from undiffuse.sampling import Step, ddim, trajectory
from undiffuse.vocoder import rows_of

Tick = Callable[[int], None]
Join = Callable[[Tensor, np.ndarray, np.ndarray], np.ndarray]
"""What was made of some rows, x_0 (B, ...), the rows and where x_0 was repainted, bool (B, ...) -> the edited rows."""
INEXACT = 1e-4
"""The error of an inversion from which it is worth a warning."""


def edit(
    model: Model,
    rows: np.ndarray,
    recipe: Recipe,
    condition: Request | None = None,
    *,
    strength: float,
    repaint: np.ndarray | None = None,
    passes: int = 1,
    resampling: int = 1,
    numbers: Sequence[int] | None = None,
    batch_size: int = 64,
    tick: Tick | None = None,
    overshoot: Overshoot | None = None,
    join: Join | None = None,
) -> np.ndarray:
    """`sdedit` of rows: strength 0 returns them, strength 1 the samples numbered so.

    A model with `network.inpaint` is shown what is known beside a mask; with others it is replaced at every step.

    Args:
        rows: (N, *stored), as many as `numbers`.
        repaint: bool (H, W) or (N, H, W), the axes of x_0 after its channels: what may change. All other values come
            back as they are.
        numbers: of the edits, for their noise; 0 .. N - 1 where None.
        join: with `repaint`, how the result becomes rows. None is for pictures: pixels are decoded where they may
            change. Of sounds it is what `undiffuse.editing.sounds` says.
    """
    numbers = list(range(len(rows)) if numbers is None else numbers)
    if resampling > 1 and model.config.network.inpaint:
        raise UsageError(f"resampling has no effect on {model.name}, which is shown what is known (network.inpaint)")
    condition = model.taken(condition, len(rows))
    if strength == 0:
        return rows.copy()
    where = None if repaint is None else np.broadcast_to(repaint, (len(rows), *model.domain.shape[1:]))
    edited = []
    for first in range(0, len(rows), batch_size):
        here = slice(first, first + batch_size)
        x0 = model.domain.encode(rows[here]).to(model.device)
        part = None if condition is None else condition[here]
        mask = None if where is None else torch.from_numpy(where[here].copy()).unsqueeze(1).to(model.device)
        if mask is not None and model.config.network.inpaint:
            part, mask = known_of_each(part, x0, mask), None
        x0 = sdedit(
            model,
            recipe,
            x0,
            numbers[here],
            part,
            strength=strength,
            repaint=mask,
            passes=passes,
            resampling=resampling,
            tick=tick,
            overshoot=overshoot,
        )
        if where is None:
            edited.append(_decoded(model, x0, recipe))
        elif join is None:
            edited.append(np.where(where[here][..., None], _decoded(model, x0, recipe), rows[here]))
        else:
            edited.append(join(_finite(x0, recipe), rows[here], where[here]))
    return np.concatenate(edited)


def regenerate(
    model: Model,
    rows: np.ndarray,
    recipe: Recipe,
    source: Condition | None,
    target: Request | None,
    *,
    method: str = "exact",
    strength: float = 1.0,
    tick: Tick | None = None,
) -> np.ndarray:
    """Rows inverted under the condition `source` and made again under `target`; the same condition gives the same rows.

    Args:
        method: "exact", DDIM solved backwards, or "friendly", the edit-friendly noise of DDPM.
        strength: the noise level that the inversion goes up to.
    """
    if strength == 0:
        return rows.copy()
    recipe = _unclipped(recipe)
    x0, grid = model.domain.encode(rows).to(model.device), times_below(model, recipe, strength)
    if method == "exact":
        found = invert(_plain(model, source), model.denoiser.process, x0, grid)
        _check(found)
        end = _follow(model, recipe.denoise(model, target), grid, ddim, found.x, _none, tick)
        return _decoded(model, end + found.remainder, recipe)
    if method != "friendly":
        raise UsageError(f"no inversion is called {method!r}: choose exact or friendly")
    draws = keyed_draws(recipe.seed, range(len(rows)))
    maps = noise_maps(_plain(model, source), model.denoiser.process, x0, grid, [draws(k) for k in range(len(grid) - 1)])
    step, replayed = replaying(maps)
    end = _follow(model, recipe.denoise(model, target), grid, step, maps.x, lambda k: replayed[k - 1], tick)
    return _decoded(model, end, recipe)


def interpolate(
    model: Model,
    first: np.ndarray,
    last: np.ndarray,
    recipe: Recipe,
    condition: Condition | None,
    frames: int,
    *,
    method: str = "slerp",
    strength: float = 0.5,
    tick: Tick | None = None,
) -> np.ndarray:
    """`frames` rows from the row `first` to the row `last`, both included as they are.

    Args:
        condition: of one sample: what both are.
        method: "slerp" between their inverted noise, or "mean", the noised means of both, denoised (`mean_path`).
        strength: of "mean".
    """
    if frames < 2:
        raise UsageError(f"frames = {frames}: an interpolation has 2 at least, its ends")
    recipe, process = _unclipped(recipe), model.denoiser.process
    shares = [k / (frames - 1) for k in range(frames)]
    a, b = (model.domain.encode(row[None]).to(model.device) for row in (first, last))
    all_frames = None if condition is None else condition[torch.zeros(frames).long()]
    if method == "mean":
        grid = times_below(model, recipe, strength)
        noise = keyed_draws(recipe.seed, [0])(0).normal(a)
        start = mean_path(process, a, b, grid[0].item(), shares, noise)
        end = _follow(model, _plain(model, all_frames), grid, ddim, start, _none, tick)
    elif method == "slerp":
        grid = times_below(model, recipe, 1.0)
        ends = [invert(_plain(model, condition), process, x0, grid) for x0 in (a, b)]
        for found in ends:
            _check(found)
        start = torch.cat([slerp(ends[0].x, ends[1].x, share) for share in shares])
        rest = torch.cat([(1 - share) * ends[0].remainder + share * ends[1].remainder for share in shares])
        end = _follow(model, _plain(model, all_frames), grid, ddim, start, _none, tick) + rest
    else:
        raise UsageError(f"no interpolation is called {method!r}: choose slerp or mean")
    between = _decoded(model, end, recipe)
    return np.stack([first, *between[1:-1], last])


def mix(
    model: Model,
    coarse: np.ndarray,
    fine: np.ndarray,
    recipe: Recipe,
    condition: Condition | None,
    *,
    switch: float,
    tick: Tick | None = None,
) -> np.ndarray:
    """The layout of `coarse` with the texture of `fine`, rows (N, *stored) each: style mixing by noise maps.

    `switch`: the strength at which the noise of the one gives way to that of the other; 0 is `coarse`, 1 is `fine`.
    """
    if not 0 <= switch <= 1:
        raise UsageError(f"switch = {switch:g} must lie between 0, all of the first picture, and 1, all of the second")
    recipe = _unclipped(recipe)
    grid, process = times_below(model, recipe, 1.0), model.denoiser.process
    draws = keyed_draws(recipe.seed, range(len(coarse)))
    noise = [draws(k) for k in range(len(grid) - 1)]
    first, second = (
        noise_maps(_plain(model, condition), process, model.domain.encode(rows).to(model.device), grid, noise)
        for rows in (coarse, fine)
    )
    level = process.noise_level(grid[:-1])
    kept = int((level.sigma > switch * (level.alpha + level.sigma)).sum())
    if kept == 0:
        return fine.copy()
    step, replayed = replaying(mixed(first, second, kept))
    end = _follow(model, _plain(model, condition), grid, step, first.x, lambda k: replayed[k - 1], tick)
    return _decoded(model, end, recipe)


def placed(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Pictures made smaller by `share` of their sides, in the middle of grey canvases of their size, and what is around
    them, bool (H, W): what outpainting repaints."""
    from PIL import Image

    if not 0 < share < 1:
        raise UsageError(f"outpaint = {share:g} must lie between 0 and 1: the share of each side that is added")
    height, width = rows.shape[1:3]
    inner = max(1, round(height * (1 - share))), max(1, round(width * (1 - share)))
    if inner == (height, width):
        raise UsageError(f"outpaint = {share:g} adds no pixel to {height}x{width}: use more")
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    inside = np.s_[top : top + inner[0], left : left + inner[1]]
    canvases, around = np.full_like(rows, 127), np.ones((height, width), dtype=bool)
    around[inside] = False
    for canvas, row in zip(canvases, rows, strict=True):
        picture = Image.fromarray(row.squeeze(-1) if row.shape[-1] == 1 else row)
        small = np.asarray(picture.resize((inner[1], inner[0]), Image.Resampling.LANCZOS))
        canvas[inside] = small.reshape(*inner, -1)
    return canvases, around


def _follow(
    model: Model,
    denoise: Denoise,
    grid: Tensor,
    step: Step,
    start: Tensor,
    draws: Callable[[int], Draw],
    tick: Tick | None,
) -> Tensor:
    with torch.no_grad():
        for state in trajectory(denoise, model.denoiser.process, grid, step, start, draws):
            last = state
            if tick and state.x0 is not None:
                tick(len(start))
    return last.x


def _plain(model: Model, condition: Condition | None) -> Denoise:
    """The model's denoiser as inversion needs it: without guidance, and smooth."""
    return model.denoiser.bind(None if condition is None else condition.to(model.device))


def _unclipped(recipe: Recipe) -> Recipe:
    """`recipe` as DDIM without a threshold, which would have no inverse."""
    return dataclasses.replace(recipe, sampler="ddim", threshold="none", eta=0.0)


def _check(found: Inverted) -> None:
    """Warns of an inversion that has not converged."""
    if (error := found.error.max().item()) > INEXACT:
        warnings.warn(
            f"the inversion did not converge: its steps miss by up to {error:.1e}; take more steps, or friendly noise",
            stacklevel=3,
        )


def _decoded(model: Model, x0: Tensor, recipe: Recipe) -> np.ndarray:
    return rows_of(model, _finite(x0, recipe))


def _finite(x0: Tensor, recipe: Recipe) -> Tensor:
    if not x0.isfinite().all():
        raise UsageError(f"the edit is not finite with {recipe}: take more steps, or threshold=clip")
    return x0


def _none(step: int) -> Draw:
    return Given(torch.empty(0))
