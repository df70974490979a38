"""Time grids searched for one model, stored in its folder and used by default from then on."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe, states
from undiffuse.model import find, load, pictures_only
from undiffuse.progress import Bar, no_bar
from undiffuse.sampling import SAMPLERS, search_grid

FINE = Recipe("dpm++3m", 100)
TRIALS = 30  # at most, for each step
SEED = 2**32 - 1  # unlikely to be used for sampling: grids are not tuned to samples that are looked at


def tune(
    name: str | os.PathLike[str],
    sampler: str = Recipe.sampler,
    steps: Sequence[int] = (5, 8, 10),
    *,
    samples: int = 128,
    device: str | None = None,
    engine: str = "auto",
    bar: Bar = no_bar,
) -> dict[str, Any]:
    """Searches a grid for every number of steps and adds them to `grids.json` in the model's folder.

    Returns what it wrote: "sampler:steps" -> its log-SNRs and the differences before and after, of `samples` samples
    from those of a fine trajectory (`undiffuse.sampling.search.difference`). Raises UsageError for a random sampler or
    a folder that cannot be written to, such as that of a built-in model in a read-only install.
    """
    folder = find(name)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} is not writable, and the grids are stored there: copy it and tune the copy")
    recipes = [Recipe(sampler, count, seed=SEED) for count in steps]
    for recipe in recipes:
        if not SAMPLERS[recipe.sampler].searchable:
            raise UsageError(f"no grid is searched for {recipe.sampler}: choose ddim, euler, heun, dpm++ or unipc")
    model = load(name, device)
    pictures_only(model, "undiffuse tune")
    model = with_engine(model, engine, bar=bar)
    numbers = range(samples)
    condition = model.condition(numbers)
    with bar("a fine trajectory", samples * FINE.steps) as tick:
        trajectory = states(model, FINE, numbers, condition)
        start = target = next(trajectory).x
        for state in trajectory:
            target = state.x
            tick(samples)
    process = model.denoiser.process
    found: dict[str, Any] = {}
    for recipe in recipes:
        denoise = recipe.denoise(model, condition)
        grid = dataclasses.replace(recipe, grid=SAMPLERS[recipe.sampler].grid).times(model)
        trials = TRIALS * recipe.steps
        with bar(f"searching {recipe.sampler} in {recipe.steps} steps", trials) as tick:
            log_snr, differences = search_grid(denoise, process, recipe.step, grid, start, target, trials, tick)
        found[recipe.key] = {"log_snr": log_snr, "before": differences[0], "after": differences[-1], "samples": samples}
    path = folder / "grids.json"
    write_json(path, (read_json(path) if path.exists() else {}) | found)
    return found
