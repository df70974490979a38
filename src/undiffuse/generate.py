"""Samples from a model: rows of its domain, each a pure function of (model, recipe, its number), whatever the batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoise
from undiffuse.devices import shares_a_cpu
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.model import Model, load
from undiffuse.randomness import Draw, keyed_draws
from undiffuse.registry import GRIDS, SAMPLERS, THRESHOLDS
from undiffuse.sampling import (
    State,
    Step,
    at_log_snrs,
    ddim,
    default_sampler,
    make_grid,
    trajectory,
)


@dataclass(frozen=True)
class Recipe:
    """How to sample.

    Attributes:
        sampler: a name in SAMPLERS; "auto": `default_sampler` of the steps, or ddim where there is an eta.
        steps: N; see `evaluations` for what they cost.
        eta: DDIM's, from 0 (deterministic) to 1 (DDPM); for sampler="ddim" alone.
        grid: a name in GRIDS; None: the one made for the model (`undiffuse tune`), else the one that belongs to the
            sampler.
        threshold: "clip" keeps predicted images in range, "dynamic" scales by a quantile, "none" leaves them.
        seed: of the noise.
    """

    sampler: str = "auto"
    steps: int = 20
    eta: float = 0.0
    grid: str | None = None
    threshold: str = "clip"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler == "auto":
            object.__setattr__(self, "sampler", "ddim" if self.eta else default_sampler(self.steps))
        for name, registry in (
            (self.sampler, SAMPLERS),
            (self.grid or "trailing", GRIDS),
            (self.threshold, THRESHOLDS),
        ):
            registry.check(name)
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta = {self.eta:g} must lie between 0 (DDIM) and 1 (DDPM)")
        if self.eta and self.sampler != "ddim":
            raise UsageError(f"eta belongs to the sampler ddim, not to {self.sampler}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed = {self.seed} must lie in 0 .. 2^32 - 1")

    @property
    def evaluations(self) -> int:
        """How often the network is asked for one sample; the step onto the data takes one."""
        return SAMPLERS[self.sampler].evaluations * (self.steps - 1) + 1

    @property
    def key(self) -> str:
        """What a grid made for a model is filed under (`Model.grids`)."""
        return f"{self.sampler}:{self.steps}"

    @property
    def step(self) -> Step:
        """The step rule, eta bound."""
        return partial(ddim, eta=self.eta) if self.sampler == "ddim" else SAMPLERS[self.sampler].step

    def times(self, model: Model) -> Tensor:
        """The times it visits. Raises UsageError for a number of steps that the grid cannot have, and for a grid made
        for the model on a process which reaches noise that this one does not."""
        schedule = model.denoiser.process.schedule
        if self.grid is None and (made := model.grids.get(self.key)) is not None:
            try:
                return at_log_snrs(schedule, made)
            except ValueError as error:
                raise UsageError(
                    f"the grid that undiffuse tune made for {model.name}, {self.key}, does not fit the process it is "
                    f"on now: {error}. Name another grid, such as --grid {SAMPLERS[self.sampler].grid}"
                ) from None
        try:
            return make_grid(self.grid or SAMPLERS[self.sampler].grid, schedule, self.steps)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def denoise(self, model: Model, condition: Condition | None) -> Denoise:
        """The model's denoiser for `condition`, thresholded."""
        if self.sampler == "ddpm-learned" and not model.denoiser.learned_variance:
            raise UsageError(f"the model {model.name} has not learnt its variance: use ddpm or ddpm-large")
        wrapped: Denoise = THRESHOLDS[self.threshold](model.denoiser.bind(condition), model.denoiser.process)
        return wrapped


@torch.no_grad()
def states(
    model: Model,
    recipe: Recipe,
    numbers: Sequence[int],
    condition: Condition | None = None,
    grid: Tensor | None = None,
    draws: Callable[[int], Draw] | None = None,
) -> Iterator[State]:
    """The trajectory of the samples numbered `numbers` as one batch: N + 1 states, float32 (B, *shape of x_0).

    Args:
        condition: of the B samples, such as `model.condition(numbers)` or `model.unconditional(B)`; None for a model
            that takes none.
        grid: the times to visit, instead of the recipe's own.
        draws: number of the step -> its random numbers, 0 for the start, instead of those of the recipe's seed.

    Raises UsageError for a condition that is missing, not taken, or of another number of samples.
    """
    condition = model.taken(condition, len(numbers))
    process = model.denoiser.process
    draws = draws or keyed_draws(recipe.seed, numbers)
    start = process.prior(torch.empty(len(numbers), *model.domain.shape, device=model.device)).sample(draws(0))
    grid = recipe.times(model) if grid is None else grid
    yield from trajectory(recipe.denoise(model, condition), process, grid, recipe.step, start, draws)


def generate(
    model: Model,
    recipe: Recipe,
    numbers: Sequence[int],
    condition: Condition | None = None,
    *,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Batches of rows, uint8 (B, H, W, C) of pictures: the samples numbered so, in order; `condition` as in `states`.

    `tick` is told, after every step, how many samples took it.
    """
    condition = model.taken(condition, len(numbers))
    for first in range(0, len(numbers), batch_size):
        here = slice(first, first + batch_size)
        for state in states(model, recipe, numbers[here], None if condition is None else condition[here]):
            last = state
            if tick and state.x0 is not None:
                tick(len(last.x))
        if not last.x.isfinite().all():
            raise UsageError(f"the samples are not finite with {recipe}: take more steps, or threshold=clip")
        yield model.domain.decode(last.x)


def generate_shared(
    model: Model,
    recipe: Recipe,
    n: int,
    condition: Condition | None = None,
    *,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> np.ndarray | None:
    """n images, the work shared between the processes of a torchrun; `condition` as in `states`.

    All of them come back in the first process; the others get None.
    """
    state = PartialState(cpu=shares_a_cpu())
    numbers = np.array_split(np.arange(n), state.num_processes)[state.process_index]
    condition = model.taken(condition, n)
    mine = None if condition is None else condition[numbers]
    parts = list(generate(model, recipe, numbers.tolist(), mine, batch_size=batch_size, tick=tick))
    if state.num_processes > 1:
        parts = gather_object(parts)
    if not state.is_main_process:
        return None
    return np.concatenate(parts)


def sample(
    model: Model | str | os.PathLike[str],
    n: int = 64,
    *,
    sampler: str = Recipe.sampler,
    steps: int = Recipe.steps,
    eta: float = 0.0,
    grid: str | None = None,
    threshold: str = "clip",
    seed: int = 0,
    class_name: str | int | None = None,
    batch_size: int = 64,
    engine: str = "auto",
) -> np.ndarray:
    """n images as uint8 (n, H, W, C), from a model or the name of one.

    `class_name`: all of one class; by default the classes come in the data's proportions. `engine` as in
    `undiffuse.engines.with_engine`. The rest as in `Recipe`.
    """
    if n < 1:
        raise UsageError(f"n = {n}: draw at least one sample")
    model = model if isinstance(model, Model) else load(model)
    recipe = Recipe(sampler, steps, eta, grid, threshold, seed)
    model = with_engine(model, engine, n * recipe.evaluations)
    condition = model.condition(range(n)) if class_name is None else model.of_class(class_name, n)
    return np.concatenate(list(generate(model, recipe, range(n), condition, batch_size=batch_size)))
