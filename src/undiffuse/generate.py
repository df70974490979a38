"""Sampling: rows of a model's domain, each a pure function of (model, recipe, its number), whatever the batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from undiffuse.build import DISTILLING
from undiffuse.card import student_of
from undiffuse.classifier import Classifier
from undiffuse.conditions import Composition, Request, parts_of
from undiffuse.denoiser import Denoise
from undiffuse.devices import shares_a_cpu
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.guidance import Guidance, Overshoot, inside_interval
from undiffuse.guide import guided_denoiser, with_guide
from undiffuse.model import Model, load, pictures_only
from undiffuse.names import counted
from undiffuse.process import Prediction, Time
from undiffuse.randomness import Draw, keyed_draws
from undiffuse.registry import GRIDS, SAMPLERS, THRESHOLDS
from undiffuse.rivals.rival import RivalDenoiser, labels_of
from undiffuse.sampling import (
    PURE_NOISE,
    State,
    Step,
    at_log_snrs,
    ddim,
    default_sampler,
    make_grid,
    trajectory,
)
from undiffuse.vocoder import rows_of, with_vocoder

LEARNT_GUIDANCE = "a flow map has learnt its guidance: leave --guidance out, and give one class or prompt"


class _Open(str):
    """The name of a sampler that nobody asked for, so that `Recipe.for_model` may take another."""


class _OpenSteps(int):
    """The same of a number of steps."""


@dataclass(frozen=True)
class Recipe:
    """How to sample.

    Attributes:
        sampler: a name in SAMPLERS; "auto": ddim if eta > 0, else `default_sampler(steps)`, or as `for_model` decides.
        steps: N; see `evaluations` for their cost. Left out, `for_model` may decide them too.
        eta: DDIM's, from 0 (deterministic) to 1 (DDPM); only for sampler="ddim".
        grid: a name in GRIDS; None: the one made for the model (`undiffuse tune`), else the sampler's default.
        threshold: "clip" keeps predicted data in its range, if it has one (`Domain.bounded`), "dynamic" scales by a
            quantile, "none" leaves it.
        seed: of the noise.
        guidance: how strongly the condition, or the model's guide, guides (`undiffuse.guide`).
    """

    sampler: str = "auto"
    steps: int = _OpenSteps(20)
    eta: float = 0.0
    grid: str | None = None
    threshold: str = "clip"
    seed: int = 0
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self) -> None:
        if self.sampler == "auto" or self._open:  # once more, as `replace` may have changed the rest
            object.__setattr__(self, "sampler", "ddim" if self.eta else _Open(default_sampler(self.steps)))
        for name, registry in (
            (self.sampler, SAMPLERS),
            (self.grid or "trailing", GRIDS),
            (self.threshold, THRESHOLDS),
        ):
            registry.check(name)
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta = {self.eta:g} must lie between 0 (DDIM) and 1 (DDPM)")
        if self.eta and self.sampler != "ddim":
            raise UsageError(f"eta is for the sampler ddim, not for {self.sampler}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed = {self.seed} must lie in 0 .. 2^32 - 1")

    @property
    def _open(self) -> bool:
        return isinstance(self.sampler, _Open)

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample; the last step takes one."""
        return SAMPLERS[self.sampler].evaluations * (self.steps - 1) + 1

    @property
    def random(self) -> bool:
        """Whether its steps draw noise."""
        return SAMPLERS[self.sampler].random or self.eta > 0

    @property
    def key(self) -> str:
        """The key of a grid made for a model (`Model.grids`)."""
        return f"{self.sampler}:{self.steps}"

    @property
    def step(self) -> Step:
        """The step rule with eta bound."""
        return partial(ddim, eta=self.eta) if self.sampler == "ddim" else SAMPLERS[self.sampler].step

    def cost(self, model: Model, condition: Request | None = None) -> int:
        """Evaluations of networks for one sample of `condition`, guidance included; classifiers are not counted."""
        if model.rival is not None:
            return model.rival.network.evaluations
        visited, noise_level = self.times(model)[:-1], model.denoiser.process.noise_level
        if SAMPLERS[self.sampler].evaluations == 2:  # Heun's trapezoids, from where it takes them
            level = noise_level(visited[:-1])
            visited = torch.cat([visited, visited[1:][level.sigma <= PURE_NOISE * level.alpha]])
        parts = len(parts_of(condition))
        here = int(inside_interval(noise_level(visited), self.guidance.interval).sum())
        if parts > 1:
            return len(visited) * (parts + 1)
        alone = self.guidance.scale == 1 or (self.guidance.scale == 0 and model.guide is None)
        return len(visited) + (0 if alone or isinstance(model.guide, Classifier) else here)

    def times(self, model: Model) -> Tensor:
        """The times it visits. Raises UsageError if the grid cannot have so many steps, or if a grid made for the model
        on another process has log-SNRs that this one does not reach."""
        schedule = model.denoiser.process.schedule
        if self.grid is None and (made := model.grids.get(self.key)) is not None:
            try:
                return at_log_snrs(schedule, made)
            except ValueError as error:
                raise UsageError(
                    f"the grid that undiffuse tune made for {model.name}, {self.key}, does not fit the process "
                    f"in use: {error}. Name another grid, such as --grid {SAMPLERS[self.sampler].grid}"
                ) from None
        try:
            return make_grid(self.grid or SAMPLERS[self.sampler].grid, schedule, self.steps)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def drawn_by(self, name: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """The model that draws for the model `name`: the student of so many evaluations that comes with it
        (`undiffuse.card.student_of`), if sampler, grid and guidance are left open; else itself.

        Raises UsageError for an unknown name.
        """
        plain = self._open and self.grid is None and self.guidance == Guidance()
        return (student_of(name, self.steps) if plain else None) or name

    def for_model(self, model: Model) -> "Recipe":
        """This recipe, with what was left open decided for the model: a flow map jumps, as often as it has learnt.

        Raises UsageError as `times`, and for a rival, which has one way to draw, if there is more than a seed.
        """
        if model.rival is not None:
            asked = not self._open or not isinstance(self.steps, _OpenSteps)
            if asked or replace(self, seed=0) != Recipe():
                name = model.config.network.kind
                raise UsageError(f"{model.name} is a {name}, which draws in one way: give only a seed")
            return self
        recipe = self
        if self._open and model.config.network.jumps:
            steps = model.config.objective.jumps if isinstance(self.steps, _OpenSteps) else self.steps
            recipe = replace(self, sampler="jump", steps=steps)
        recipe.times(model)
        return recipe

    def check(self, model: Model) -> None:
        """Raises UsageError for a sampler or guidance that the model cannot have, and for a model of texts."""
        pictures_only(model, "this way of sampling")
        if self.sampler == "ddpm-learned" and not model.denoiser.learned_variance:
            raise UsageError(f"the model {model.name} has not learnt its variance: use ddpm or ddpm-large")
        if SAMPLERS[self.sampler].jumps and not model.config.network.jumps:
            raise UsageError(f"the sampler {self.sampler} is for flow maps, which undiffuse distill makes of a model")
        if SAMPLERS[self.sampler].jumps and self.guidance.scale != 1:
            raise UsageError(LEARNT_GUIDANCE)
        if model.config.objective.loss in DISTILLING:
            jumps = model.config.objective.jumps
            divides = model.config.objective.loss == "flow-map" and jumps % self.steps == 0
            if not SAMPLERS[self.sampler].jumps or self.grid or not (divides or self.steps == jumps):
                raise UsageError(
                    f"{model.name} is a flow map of {counted(jumps, 'jump')}, and nothing else: leave the "
                    "sampler, the steps and the grid out, or use its teacher"
                )

    def denoise(self, model: Model, condition: Request | None, overshoot: Overshoot | None = None) -> Denoise:
        """The model's denoiser for `condition`, guided and thresholded; for one trajectory, over the recipe's times if
        the sampler jumps."""
        self.check(model)
        if SAMPLERS[self.sampler].jumps:
            return self.thresholded(model, self._jumps(model, condition))
        if SAMPLERS[self.sampler].guides and self.guidance.scale == 1:
            raise UsageError(f"the sampler {self.sampler} is a way to guide: give a --guidance below 1, such as 0.6")
        denoise = guided_denoiser(model, condition, self.guidance)
        if overshoot is not None:
            denoise = overshoot.watch(denoise)
        return self.thresholded(model, denoise)

    def _jumps(self, model: Model, condition: Request | None) -> Denoise:
        times = self.times(model).tolist()
        ends = dict(pairwise(times))
        if isinstance(condition, Composition):
            raise UsageError(LEARNT_GUIDANCE)

        def jump(x_t: Tensor, t: Time) -> Prediction:
            if (s := ends.get(float(t))) is None:
                raise UsageError("the sampler jump goes from noise to data, and not from the noise of an edit")
            return model.denoiser.jump(x_t, t, s, condition)

        return jump

    def thresholded(self, model: Model, denoise: Denoise) -> Denoise:
        """`denoise` with its predictions of x_0 kept in the range of the model's data, if that has one."""
        if not model.domain.bounded:
            return denoise
        wrapped: Denoise = THRESHOLDS[self.threshold](denoise, model.denoiser.process)
        return wrapped


@torch.no_grad()
def states(
    model: Model,
    recipe: Recipe,
    numbers: Sequence[int],
    condition: Request | None = None,
    grid: Tensor | None = None,
    draws: Callable[[int], Draw] | None = None,
    overshoot: Overshoot | None = None,
) -> Iterator[State]:
    """The trajectory of the samples numbered `numbers` as one batch: N + 1 states, float32 (B, *shape of x_0).

    Args:
        condition: for the B samples, such as `model.condition(numbers)` or `model.unconditional(B)`; None for a model
            that takes none.
        grid: the times to visit, instead of the recipe's own.
        draws: step number -> its random numbers, 0 for the start, instead of those from the recipe's seed.
        overshoot: watches the predictions before the threshold.

    Raises UsageError for a condition that is missing, unexpected, or for another number of samples.
    """
    condition = model.taken(condition, len(numbers))
    process = model.denoiser.process
    draws = draws or keyed_draws(recipe.seed, numbers)
    start = process.prior(torch.empty(len(numbers), *model.domain.shape, device=model.device)).sample(draws(0))
    grid = recipe.times(model) if grid is None else grid
    yield from trajectory(recipe.denoise(model, condition, overshoot), process, grid, recipe.step, start, draws)


def generate(
    model: Model,
    recipe: Recipe,
    numbers: Sequence[int],
    condition: Request | None = None,
    *,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
    overshoot: Overshoot | None = None,
) -> Iterator[np.ndarray]:
    """The samples `numbers`, in order, as batches of rows: uint8 (B, H, W, C) for pictures; `condition` as in `states`.

    `tick` is called after every step with the number of samples that took it.
    """
    condition = model.taken(condition, len(numbers))
    recipe = recipe.for_model(model)
    if model.rival is not None:
        yield from _of_rival(model, model.rival, recipe, numbers, condition, batch_size, tick)
        return
    for first in range(0, len(numbers), batch_size):
        here = slice(first, first + batch_size)
        part = None if condition is None else condition[here]
        for state in states(model, recipe, numbers[here], part, overshoot=overshoot):
            last = state
            if tick and state.x0 is not None:
                tick(len(last.x))
        if not last.x.isfinite().all():
            raise UsageError(f"the samples are not finite with {recipe}: take more steps, or threshold=clip")
        if overshoot is not None:
            overshoot.keep()
        yield rows_of(model, last.x)


def _of_rival(
    model: Model,
    rival: RivalDenoiser,
    recipe: Recipe,
    numbers: Sequence[int],
    condition: Request | None,
    batch_size: int,
    tick: Callable[[int], None] | None,
) -> Iterator[np.ndarray]:
    """As `generate`: of the recipe, a rival takes the seed."""
    for first in range(0, len(numbers), batch_size):
        part = numbers[first : first + batch_size]
        labels = None if condition is None else labels_of(condition[first : first + batch_size])
        x = rival.network.generate(labels, keyed_draws(recipe.seed, part)(0), len(part))
        if tick:
            tick(len(part) * recipe.steps)
        yield rows_of(model, x)


def generate_shared(
    model: Model,
    recipe: Recipe,
    n: int,
    condition: Request | None = None,
    *,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
    overshoot: Overshoot | None = None,
) -> np.ndarray | None:
    """n images, generated jointly by the processes of a torchrun; `condition` as in `states`.

    The first process gets all of them, the others None.
    """
    state = PartialState(cpu=shares_a_cpu())
    numbers = np.array_split(np.arange(n), state.num_processes)[state.process_index]
    condition = model.taken(condition, n)
    mine = None if condition is None else condition[numbers]
    batches = generate(model, recipe, numbers.tolist(), mine, batch_size=batch_size, tick=tick, overshoot=overshoot)
    parts = list(batches)
    if state.num_processes > 1:
        parts = gather_object(parts)
        if overshoot is not None:
            overshoot.kept = gather_object(overshoot.kept)
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
    guidance: float | Guidance = 1.0,
    guide: Model | str | None = None,
    vocoder: Model | str | None = None,
    batch_size: int = 64,
    engine: str = "auto",
) -> np.ndarray:
    """n images as uint8 (n, H, W, C), from a model or the name of one, or from its student (`Recipe.drawn_by`).

    `class_name`: all of one class; by default the classes come in the data's proportions. `guidance` is a scale or
    all settings; `guide` as in `undiffuse.guide.with_guide`, `vocoder` as in `undiffuse.vocoder.with_vocoder`; `engine`
    as in `undiffuse.engines.with_engine`. The rest as in `Recipe`.
    """
    if n < 1:
        raise UsageError(f"n = {n}: draw at least one sample")
    settings = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    recipe = Recipe(sampler, steps, eta, grid, threshold, seed, settings)
    if not isinstance(model, Model):
        model = load(model if guide else recipe.drawn_by(model))
    model = with_vocoder(model if guide is None else with_guide(model, guide), vocoder)
    model = with_engine(model, engine, n * recipe.evaluations)
    condition = model.condition(range(n)) if class_name is None else model.of_class(class_name, n)
    return np.concatenate(list(generate(model, recipe, range(n), condition, batch_size=batch_size)))
