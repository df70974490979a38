"""One evaluation: samples and data in, every number with its interval, its floor and its conditions out."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from undiffuse.cache import cache_dir
from undiffuse.conditions import Labels
from undiffuse.config import DataConfig
from undiffuse.data import ImageSet, MixedSizes
from undiffuse.data import load as load_data
from undiffuse.devices import shares_a_cpu
from undiffuse.domains import domain_of
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.evaluation.bench import Bench, bench, floor_of
from undiffuse.evaluation.store import features_of, sample_into_cache
from undiffuse.generate import Recipe
from undiffuse.guide import with_guide
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.measure import FEWEST, METRICS, Reference, Subject, measure, parse_groups, title, too_few
from undiffuse.model import Model, find, load
from undiffuse.names import counted, format_shape
from undiffuse.progress import Bar, no_bar

DEFAULT_N = 2000


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and under which conditions.

    Attributes:
        name: of the model or file.
        n: how many samples.
        values: metric name (METRICS) -> Measure.
        floor: the same for `floor_n` real images of the other split: what a perfect model would get.
        conditions: data, split, fingerprints, features with their preprocessing, sampling: JSON.
        left_out: metric name -> what it would have needed.
        titles: metric name -> its printed title.
        subject, reference: the images and features themselves, for figures.
    """

    name: str
    n: int
    values: dict[str, Measure]
    floor: dict[str, Measure]
    floor_n: int
    conditions: dict[str, Any]
    left_out: dict[str, str]
    titles: dict[str, str]
    subject: Subject
    reference: Reference

    def to_json(self) -> dict[str, Any]:
        """Everything but the images, as JSON."""
        metrics = {
            key: {
                "title": self.titles[key],
                "better": METRICS[key].better,
                **_as_json(value),
                "floor": _as_json(self.floor[key]) if key in self.floor else None,
            }
            for key, value in self.values.items()
        }
        return {
            "name": self.name,
            "n": self.n,
            "floor_n": self.floor_n,
            "metrics": metrics,
            "left_out": self.left_out,
            "conditions": self.conditions,
        }


def _as_json(measure: Measure) -> dict[str, Any]:
    interval = None if measure.low is None else [measure.low, measure.high]
    return {"value": measure.value, "interval": interval}


def evaluate_images(
    bench: Bench,
    name: str,
    images: np.ndarray,
    requested: np.ndarray | None = None,
    conditions: dict[str, Any] | None = None,
) -> Evaluation:
    """Measures uint8 (N, H, W, C) images; `requested` (N,): the classes that were requested, if known."""
    if len(images) < FEWEST:
        raise UsageError(f"{name}: {len(images)} sample is too few to measure, at least {FEWEST} are needed")
    left_out = too_few(bench.groups, len(images), len(bench.reference.items))
    with bench.bar(f"features of {name}", len(images)) as tick:
        subject = Subject(features_of(images, bench.extractor, tick), bench.train, requested)
    with bench.bar(f"measuring {name}", len(bench.groups)) as tick:
        values = measure(subject, bench.reference, bench.extractor, bench.groups, tick)
    if not values:
        why = "they are too few" if left_out else f"{bench.extractor.name} features do not have these metrics"
        raise UsageError(
            f"none of the requested metrics can be computed from {len(images)} samples and "
            f"{len(bench.reference.items)} images of {bench.facts['data']} ({bench.facts['split']}): {why}"
        )
    floor, floor_n = floor_of(bench, len(images))
    return Evaluation(
        name,
        len(images),
        values,
        {key: value for key, value in floor.items() if key in values},
        floor_n,
        {**bench.facts, **(conditions or {})},
        left_out,
        {key: title(key, bench.extractor) for key in (*values, *left_out)},
        subject,
        bench.reference,
    )


def evaluate_model(bench: Bench, model: Model, recipe: Recipe, n: int) -> Evaluation | None:
    """Draws n samples (those that are not cached) and measures them; None in all processes but the first."""
    how = "" if model.rival else f", {recipe.sampler} in {counted(recipe.steps, 'step')}"
    with bench.bar(f"sampling {model.name}{how}", n * recipe.steps) as tick:
        samples = sample_into_cache(model, recipe, n, tick)
    if samples is None:
        return None
    condition, requested = model.condition(range(n)), None
    if isinstance(condition, Labels) and bench.extractor.classes == model.data.classes:
        requested = condition.index.cpu().numpy()
    conditions = {
        "model": {
            "parameters": model.parameters,
            "fingerprint": model.fingerprint,
            "training": model.training,
            "learnt_this_data": model.has_learnt(bench.facts["train_fingerprint"]),
        },
        "sampling": {
            **({"seed": recipe.seed} if model.rival else dataclasses.asdict(recipe)),
            "evaluations": recipe.cost(model),
            "engine": model.engine,
            "guide": None if model.guide is None else model.guide.name,
        },
    }
    return evaluate_images(bench, model.name, samples.gathered(), requested, conditions)


def open_subject(subject: str, device: str | None = None, size: int | None = None) -> Model | ImageSet:
    """A model, or samples: a folder of pictures, .npz or .npy. Samples keep their size, or are resized to squares of
    side `size`. Raises UsageError for anything else, and for samples of several sizes."""
    try:
        find(subject)
    except UsageError:
        if not Path(subject).exists():
            raise
        try:
            return load_data(str(Path(subject).absolute()), "all", size=size, keep_size=True)
        except MixedSizes as error:
            raise UsageError(f"{subject} holds {error}: choose one side for all with --size") from None
    return load(subject, device)


def bench_for(subjects: Sequence[Model | ImageSet], names: Sequence[str], data: str | None, **options: Any) -> Bench:
    """The bench for all subjects: against `data`, or the training data of the first trained model among them.

    Raises UsageError for subjects of different shapes, or if it is unknown what data to measure them against.
    """
    for subject in subjects:
        domain = subject.domain if isinstance(subject, Model) else domain_of(subject)
        if not domain.features:
            raise UsageError(
                f"there are no features for {domain.noun} here: undiffuse evaluate measures one such model"
            )
    shapes = [subject.data.shape if isinstance(subject, Model) else subject.shape for subject in subjects]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise UsageError(
                f"{names[0]} has images of {format_shape(shapes[0])} and {name} of {format_shape(shape)}: compare "
                "images of one shape (--size resizes samples in files)"
            )
    learnt = [subject.learnt for subject in subjects if isinstance(subject, Model) and subject.learnt]
    if data is None and not learnt:
        why = "was imported without data" if isinstance(subjects[0], Model) else "holds samples"
        raise UsageError(f"{names[0]} {why}: name the data to measure against with --data")
    if data is None:
        return bench(learnt[0], shapes[0], **options)
    return bench(DataConfig.model_validate({"source": data, "channels": shapes[0][2]}), shapes[0], **options)


def check_size(subjects: Sequence[Model | ImageSet], size: int | None) -> None:
    """Raises UsageError if a size was requested and there are no samples to resize."""
    if size is not None and all(isinstance(subject, Model) for subject in subjects):
        raise UsageError(f"--size {size} is for samples in files: a model's samples have the size of its training data")


def check(name: str, subject: Model | ImageSet, recipe: Recipe, n: int | None) -> Recipe:
    """Checks a request before the work; returns the recipe, decided for the subject. Raises UsageError for invalid
    steps, too few images or too small a disk."""
    if isinstance(subject, Model):
        recipe = recipe.for_model(subject)
        disk = next(one for one in (cache_dir(), *cache_dir().absolute().parents) if one.exists())
        if (n or DEFAULT_N) * math.prod(subject.data.shape) > shutil.disk_usage(disk).free:
            raise UsageError(f"-n {n or DEFAULT_N}: so many samples do not fit on the disk of the cache {cache_dir()}")
    elif n and n > len(subject):
        raise UsageError(f"{name} holds {len(subject)} images, fewer than -n {n}")
    return recipe


def evaluate_subject(
    bench: Bench, name: str, subject: Model | ImageSet, recipe: Recipe, n: int | None
) -> Evaluation | None:
    """Measures n samples of a model (2000, if None) or the first n of a set (all); None in processes that do not."""
    if isinstance(subject, Model):
        return evaluate_model(bench, subject, recipe, n or DEFAULT_N)
    if not PartialState(cpu=shares_a_cpu()).is_main_process:
        return None
    n = n or len(subject)
    requested = (
        subject.labels[:n] if subject.labels is not None and subject.classes == bench.extractor.classes else None
    )
    return evaluate_images(bench, name, subject.images[:n], requested)


def evaluate(
    subject: str | os.PathLike[str],
    data: str | None = None,
    *,
    split: str = "test",
    n: int | None = None,
    metrics: str = "all",
    features: str = "auto",
    recipes: Sequence[Recipe] = (Recipe(),),
    device: str | None = None,
    engine: str = "auto",
    size: int | None = None,
    guide: str | None = None,
    bar: Bar = no_bar,
) -> Iterator[Evaluation]:
    """Measures a model, once for every recipe, or samples; yields each evaluation as it is done.

    Args:
        subject: a model, a folder of pictures, .npz or .npy.
        data: what to measure against; None: the model's training data.
        split: test or train.
        n: how many samples; None: 2000 of a model, all of a file's.
        metrics: "all" or some of the groups of `undiffuse.metrics.measure`, separated by commas.
        features: see `undiffuse.metrics.features.CHOICES`.
        engine: see `undiffuse.engines.with_engine`.
        size: side of the square to which samples, and the data, are resized; None: the samples' own size.
        guide: a weaker model that guides the model (`undiffuse.guide.with_guide`).
        bar: makes progress bars: (description, total) -> context manager of a tick.
    """
    name, groups = str(subject), parse_groups(metrics)
    opened = open_subject(name, device, size)
    check_size([opened], size)
    if not isinstance(opened, Model):
        recipes = recipes[:1]
    recipes = [check(name, opened, recipe, n) for recipe in recipes]
    made = bench_for([opened], [name], data, split=split, features=features, groups=groups, bar=bar)
    if isinstance(opened, Model):
        opened = with_guide(opened, guide) if guide else opened
        opened = with_engine(opened, engine, (n or DEFAULT_N) * sum(recipe.evaluations for recipe in recipes), bar)
    for recipe in recipes:
        evaluation = evaluate_subject(made, name, opened, recipe, n)
        if evaluation is not None:
            yield evaluation
