"""Bits per dimension of a model on a data set: the bound of every image, the mean with its error, terms over time."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from undiffuse.build import DISTILLING, make_data_of
from undiffuse.config import DataConfig
from undiffuse.data import ImageSet
from undiffuse.devices import shares_a_cpu
from undiffuse.domains import domain_of
from undiffuse.errors import UsageError
from undiffuse.likelihood.bound import (
    Bound,
    Formula,
    all_steps,
    estimate_bound,
    optimal_variance,
    squared_errors,
    stratified,
)
from undiffuse.model import Model
from undiffuse.names import one_of
from undiffuse.objectives import step_times
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose, keyed_draws
from undiffuse.rivals.rival import RivalDenoiser

BITS = math.log2(math.e)  # per nat
T = TypeVar("T")
BATCH = 100 * 28 * 28  # elements that go through the network at once
MOST_STEPS = 100_000
RAW = 8.0  # bits per element, uncompressed
VARIANCES = ("auto", "small", "large", "learned", "optimal")
DEFAULT_N = 1000
DEFAULT_DRAWS = 20
TUNED_ON = 500
"""Training images that the optimal variances are measured on."""
TUNED_DRAWS = 40


@dataclass(frozen=True)
class Part:
    """A mean over images in bits per dimension, and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Density:
    """A model's bound on a data set. All figures are bits per dimension; a dimension is a channel of a pixel.

    Attributes:
        per_image: the bound of each image, float64 (N,).
        parts: for the bound "prior", "diffusion" and "reconstruction", and their sum "bits_per_dim".
        curve: (log-SNR or step, bits per unit of it, standard error), the terms over time; None for an ODE or one step.
        conditions: model, data, bound (and `steps`, None for a continuous one or an ODE), draws: JSON.
        images: the images themselves, uint8 (N, H, W, C), for figures.
    """

    name: str
    per_image: np.ndarray
    parts: dict[str, Part]
    curve: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    conditions: dict[str, Any]
    images: np.ndarray

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.per_image)

    @property
    def bytes_per_image(self) -> tuple[float, float]:
        """Net bytes of an ideal coder by this bound (bits back, Townsend et al. 2019); and uncompressed bytes."""
        elements = self.conditions["dimensions"]
        return self.parts["bits_per_dim"].mean * elements / 8, RAW * elements / 8

    def to_json(self) -> dict[str, Any]:
        """Everything but the images, as JSON."""
        coded, raw = self.bytes_per_image
        return {
            "name": self.name,
            "n": self.n,
            "bits_per_dim": {name: dataclasses.asdict(part) for name, part in self.parts.items()},
            "net_bytes_per_image": {"ideal_coder": coded, "as_they_are": raw},
            "curve": self.curve and {k: v.tolist() for k, v in zip(("at", "bits", "error"), self.curve, strict=True)},
            "conditions": self.conditions,
            "per_image": self.per_image.round(4).tolist(),
        }


def density(
    model: Model,
    data: str | None = None,
    *,
    split: str = "test",
    n: int | None = None,
    bound: str | int = "auto",
    variance: str = "auto",
    draws: int = DEFAULT_DRAWS,
    seed: int = 0,
    bar: Bar = no_bar,
) -> Density:
    """The bound of the first n images (1000, or all there are) of a split, without classes.

    The processes of a torchrun share the images, and each gets the same whole result; all must call it.

    Args:
        data: None: the model's training data; other data is resized to the model's size.
        bound: T, a number of steps, or "continuous"; "auto": the schedule's own steps, or continuous if it has none.
        variance: "small", "large", "learned" or "optimal" (measured on training images) for the discrete bound; "auto":
            learned if the model learned it, else small.
        draws: evaluations per image for the terms of the steps; with enough for all steps, each is evaluated once.

    Raises UsageError for inconsistent arguments or for data that cannot be resized to the model's shape.
    """
    if model.rival is not None:
        return _of_rival(model, model.rival, data, split, n, bound, variance, seed, bar)
    if isinstance(bound, str) and bound not in ("auto", "continuous"):
        raise UsageError(f"bound = {bound!r}: it must be a number of steps, or continuous")
    if not isinstance(bound, str) and not 1 <= bound <= MOST_STEPS:
        raise UsageError(f"bound = {bound}: a bound has 1 to {MOST_STEPS:,} steps; for more, use continuous")
    if draws < 1:
        raise UsageError(f"draws = {draws}: at least one is needed")
    native = model.denoiser.process.schedule.steps
    steps = (native if bound == "auto" else None) if isinstance(bound, str) else int(bound)
    variance = _checked(model, steps, variance)
    images = images_of(model, data, split, bar)
    count = count_of(images, n, DEFAULT_N)
    facts = conditions_of(model, images, split, data)
    formula = Formula(steps, variance)
    if variance == "optimal":
        assert steps is not None
        others, numbers = unmeasured(model, data, split, count, "the optimal variances", bar)
        formula = Formula(steps, _tuned(model, others, numbers[-TUNED_ON:], steps, seed, bar))
    draws = draws if steps is None else min(draws, steps - 1)

    def measure(numbers: np.ndarray) -> Bound:
        x0 = pixels(images, numbers).to(model.device)
        every = steps is not None and draws == steps - 1
        u = all_steps(len(x0), draws + 1) if every else stratified(torch.from_numpy(numbers), draws)
        draws_of = keyed_draws(seed, numbers, Purpose.BOUND)
        return estimate_bound(model.denoiser, x0, formula, draws_of, u, model.unconditional(len(x0)))

    parts = shared(measure, np.arange(count), BATCH, model, f"bits per dimension of {model.name}", bar)
    conditions = facts | {
        "bound": "continuous" if steps is None else "discrete",
        "steps": steps,
        "variance": None if steps is None else variance,
        "draws": draws,
        "seed": seed,
    }
    return summarise(model, parts, conditions, np.asarray(images.images[:count]))


def _of_rival(
    model: Model,
    rival: RivalDenoiser,
    data: str | None,
    split: str,
    n: int | None,
    bound: str | int,
    variance: str,
    seed: int,
    bar: Bar,
) -> Density:
    """As `density`, of a rival: its own likelihood or bound, of an image of any class."""
    if bound != "auto" or variance != "auto":
        raise UsageError(f"--bound and --variance are for diffusion, and {model.name} is a {model.config.network.kind}")
    images = images_of(model, data, split, bar)
    count, share = count_of(images, n, DEFAULT_N), model.data.class_share
    facts = conditions_of(model, images, split, data) | {
        "bound": "own",
        "steps": 1,
        "variance": None,
        "draws": 1,
        "seed": seed,
    }

    def measure(numbers: np.ndarray) -> Tensor:
        x0 = pixels(images, numbers).to(model.device)
        draw = keyed_draws(seed, numbers, Purpose.BOUND)(0)
        return rival.nats(x0, share, draw).cpu() * BITS / x0[0].numel()

    with torch.no_grad():
        parts = shared(measure, np.arange(count), BATCH // 10, model, f"bits per dimension of {model.name}", bar)
    each = torch.cat(parts)
    return Density(
        model.name, each.numpy(), {"bits_per_dim": part_of(each)}, None, facts, np.asarray(images.images[:count])
    )


def count_of(images: ImageSet, n: int | None, default: int) -> int:
    """How many images to use: n or the default, at most all there are. Raises UsageError for fewer than two."""
    if n is not None and n < 2:
        raise UsageError(f"n = {n}: a standard error needs at least two images")
    if len(images) < 2:
        raise UsageError(f"{images.name} has one image in its {images.split} split, and a standard error needs two")
    return min(n or default, len(images))


def conditions_of(model: Model, images: ImageSet, split: str, data: str | None) -> dict[str, Any]:
    """What every density was measured on, as JSON. Raises UsageError for a model never trained without classes."""
    if (
        model.rival is None
        and model.data.takes
        and ("imported" in model.training or not model.config.training.label_dropout)
    ):
        raise UsageError(
            f"{model.name} was always trained with classes, so it has no density of images without them: train with "
            "training.label_dropout above 0"
        )
    return {
        "data": images.name,
        "split": split,
        "fingerprint": images.fingerprint,
        "learnt_this_data": model.has_learnt(images_of(model, data, "train", no_bar).fingerprint),
        "dimensions": int(np.prod(images.shape)),
        "values": 256,
        "classes": "not given" if model.rival is None else "summed over",
        "processes": PartialState(cpu=shares_a_cpu()).num_processes,
        "model": {"parameters": model.parameters, "fingerprint": model.fingerprint, "training": model.training},
    }


def part_of(values: Tensor) -> Part:
    """The mean of (N,) values, and its standard error."""
    return Part(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def summarise(model: Model, parts: list[Bound], conditions: dict[str, Any], images: np.ndarray) -> Density:
    """Summarises the bounds of batches as means with errors and a curve."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts]) * BITS
        for name in ("prior", "diffusion", "reconstruction", "total")
    }
    columns["bits_per_dim"] = columns.pop("total")
    means = {name: part_of(values) for name, values in columns.items()}
    times, draws = (torch.cat([getattr(part, name) for part in parts]).flatten() for name in ("times", "draws"))
    schedule = model.denoiser.process.schedule
    steps = conditions["steps"]
    if steps is None:  # bits per unit of log-SNR: the area under the curve is the diffusion term
        at, terms = schedule.log_snr(times), draws * BITS / (-schedule.log_snr_derivative(times) * (1 - schedule.t_min))
        edges = np.linspace(float(at.min()), float(at.max()) + 1e-9, 41)
    else:
        at = torch.searchsorted(step_times(schedule, steps), times).double() - 1
        terms = draws * BITS / max(steps - 1, 1)
        edges = np.unique(np.geomspace(1, steps, 41).round())
    curve = _binned(at.numpy(), terms.numpy(), edges) if len(terms) else None
    return Density(model.name, columns["bits_per_dim"].numpy(), means, curve, conditions, images)


def _binned(at: np.ndarray, values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of `values` between the edges, with standard errors: (place, mean, error), empty intervals left out."""
    which = np.digitize(at, edges)
    rows = []
    for k in np.unique(which):
        here = values[which == k]
        rows.append((at[which == k].mean(), here.mean(), here.std() / math.sqrt(len(here))))
    place, mean, error = np.array(rows).T
    return place, mean, error


def pixels(images: ImageSet, numbers: np.ndarray) -> Tensor:
    """The images numbered `numbers` as a model takes them: float32 (B, C, H, W) in [-1, 1]."""
    return domain_of(images).encode(np.asarray(images.images[numbers]))


def images_of(model: Model, data: str | None, split: str, bar: Bar) -> ImageSet:
    """A split of the model's training data, or of `data`. UsageError if it cannot be resized to the model's shape, and
    for a model without likelihood."""
    config = model.learnt
    if model.config.objective.loss in DISTILLING:
        raise UsageError(f"{model.name} is a student, which draws and has no likelihood: measure its teacher")
    if model.domain.values != 256:
        raise UsageError(f"{model.name}: bits per dimension need data of 256 values, which {model.domain.noun} are not")
    if data is not None:
        config = DataConfig.model_validate({"source": data, "channels": model.data.shape[2]})
    if config is None:
        raise UsageError(f"{model.name} was imported without data: name the images to measure with --data")
    return make_data_of(model.data.shape, config, split, bar)


def unmeasured(
    model: Model, data: str | None, split: str, count: int, purpose: str, bar: Bar
) -> tuple[ImageSet, np.ndarray]:
    """The training images, and the numbers of those that are not among the first `count` of `split`, for `purpose`.

    Raises UsageError if there are none.
    """
    if split == "all":
        raise UsageError(
            f"{purpose} must come from training images that are not measured, and --split all measures them all"
        )
    images = images_of(model, data, "train", bar)
    numbers = np.arange(count if split == "train" else 0, len(images))
    if not len(numbers):
        raise UsageError(f"no training image is left for {purpose}: give -n below {len(images)}")
    return images, numbers


def _checked(model: Model, steps: int | None, variance: str) -> str:
    learned = model.denoiser.learned_variance
    one_of("variance", variance, VARIANCES)
    if variance == "learned" and not learned:
        raise UsageError(f"the model {model.name} has not learnt its variance: choose small, large or optimal")
    if steps is None and variance != "auto":
        raise UsageError("the continuous bound has no variance to choose: give a number of steps too")
    return variance if variance != "auto" else "learned" if learned else "small"


def shared(
    work: Callable[[np.ndarray], T], numbers: np.ndarray, elements: int, model: Model, description: str, bar: Bar
) -> list[T]:
    """The results of `work` for the images numbered `numbers`, in batches of about `elements` elements, in order.

    The processes of a torchrun share the batches, and all of them get all results.
    """
    state = PartialState(cpu=shares_a_cpu())
    size = max(1, elements // int(np.prod(model.data.shape)))
    batches = np.split(numbers, range(size, len(numbers), size))
    mine = range(state.process_index, len(batches), state.num_processes)
    found = []
    with bar(description, sum(len(batches[k]) for k in mine)) as tick:
        for k in mine:
            found.append((k, work(batches[k])))
            tick(len(batches[k]))
    if state.num_processes > 1:
        found = gather_object(found)
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _tuned(model: Model, images: ImageSet, numbers: np.ndarray, steps: int, seed: int, bar: Bar) -> Tensor:
    """The optimal variances, from the images numbered `numbers`."""

    def measure(here: np.ndarray) -> Tensor:
        x0 = pixels(images, here).to(model.device)
        u = stratified(torch.from_numpy(here), min(TUNED_DRAWS, steps))
        draws = keyed_draws(seed, here, Purpose.VARIANCE)
        return squared_errors(model.denoiser, x0, steps, draws, u, model.unconditional(len(x0)))

    found = shared(measure, numbers, BATCH, model, "measuring the optimal variances", bar)
    return optimal_variance(model.denoiser.process, torch.stack(found).sum(0))
