"""Samples from a model: uint8 images, each a pure function of (model, recipe, its number), however they are batched."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from undiffuse.denoiser import Denoise
from undiffuse.devices import shares_a_cpu
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.guidance import clip, dynamic_threshold
from undiffuse.model import Model, load
from undiffuse.randomness import keyed_draws
from undiffuse.sampling import (
    GRIDS,
    SAMPLERS,
    State,
    Step,
    at_log_snrs,
    ddim,
    default_sampler,
    make_grid,
    trajectory,
)

THRESHOLDS = {"clip": clip, "dynamic": dynamic_threshold, "none": None}


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
        for what, name, known in (
            ("sampler", self.sampler, SAMPLERS),
            ("grid", self.grid or "trailing", GRIDS),
            ("threshold", self.threshold, THRESHOLDS),
        ):
            if name not in known:
                raise UsageError(f"no {what} {name!r}: choose from {', '.join(known)}")
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

    def denoise(self, model: Model, labels: Tensor | None) -> Denoise:
        """The model's denoiser for `labels`, thresholded."""
        if self.sampler == "ddpm-learned" and not model.denoiser.learned_variance:
            raise UsageError(f"the model {model.name} has not learnt its variance: use ddpm or ddpm-large")
        denoise, threshold = model.denoiser.bind(labels), THRESHOLDS[self.threshold]
        return denoise if threshold is None else threshold(denoise, model.denoiser.process)


@torch.no_grad()
def states(
    model: Model, recipe: Recipe, numbers: Sequence[int], labels: Tensor | None = None, grid: Tensor | None = None
) -> Iterator[State]:
    """The trajectory of the samples numbered `numbers` as one batch: N + 1 states, float32 (B, C, H, W).

    Args:
        labels: int64 (B,); None: those that belong to the numbers. One past the last class means no class.
        grid: the times to visit, instead of the recipe's own.
    """
    if labels is None:
        labels = model.labels(np.asarray(numbers))
    if labels is not None:
        labels = labels.to(model.device)
    height, width, channels = model.data.shape
    process, device = model.denoiser.process, model.device
    draws = keyed_draws(recipe.seed, numbers)
    start = process.prior(torch.empty(len(numbers), channels, height, width, device=device)).sample(draws(0))
    grid = recipe.times(model) if grid is None else grid
    yield from trajectory(recipe.denoise(model, labels), process, grid, recipe.step, start, draws)


def to_uint8(x: Tensor) -> np.ndarray:
    """float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C), rounded to the nearest level."""
    scaled = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def generate(
    model: Model,
    recipe: Recipe,
    numbers: Sequence[int],
    *,
    labels: Tensor | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Batches of uint8 (B, H, W, C) images: the samples numbered `numbers`, in order; `labels` as in `states`.

    `tick` is told, after every step, how many samples took it.
    """
    for first in range(0, len(numbers), batch_size):
        here = numbers[first : first + batch_size]
        chosen = None if labels is None else labels[first : first + batch_size]
        for state in states(model, recipe, here, chosen):
            last = state
            if tick and state.x0 is not None:
                tick(len(here))
        if not last.x.isfinite().all():
            raise UsageError(f"the samples are not finite with {recipe}: take more steps, or threshold=clip")
        yield to_uint8(last.x)


def generate_shared(
    model: Model,
    recipe: Recipe,
    n: int,
    *,
    labels: Tensor | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """n images and their labels (None without classes), the work shared between the processes of a torchrun.

    All of it comes back in the first process; the others get (None, None).
    """
    state = PartialState(cpu=shares_a_cpu())
    numbers = np.array_split(np.arange(n), state.num_processes)[state.process_index]
    if labels is None:
        labels = model.labels(np.arange(n))
    mine = None if labels is None else labels[torch.from_numpy(numbers)]
    parts = list(generate(model, recipe, numbers.tolist(), labels=mine, batch_size=batch_size, tick=tick))
    if state.num_processes > 1:
        parts = gather_object(parts)
    if not state.is_main_process:
        return None, None
    return np.concatenate(parts), None if labels is None else labels.numpy()


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
    labels = None if class_name is None else torch.full((n,), model.label(class_name))
    return np.concatenate(list(generate(model, recipe, range(n), labels=labels, batch_size=batch_size)))
