"""The same measurements for several models or sets of samples: quality, diversity, speed and cost."""

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.evaluation.density import Part, density
from undiffuse.evaluation.evaluate import (
    DEFAULT_N,
    Evaluation,
    bench_for,
    check,
    check_size,
    evaluate_subject,
    open_subject,
)
from undiffuse.evaluation.report import number
from undiffuse.generate import Recipe, generate
from undiffuse.model import Model
from undiffuse.plots import name_points, plain_logs, save_figure
from undiffuse.progress import Bar, no_bar

BATCH, REPEATS = 64, 3

logger = logging.getLogger("undiffuse")


@dataclass(frozen=True)
class Contender:
    """What is compared: its evaluation, and for a model the cost of samples and training.

    seconds: per sample, in batches of 64 on this machine, the median of repeats that alternate with the others'.
    alone: the same of single samples.
    bits: per dimension of test images, where they were asked for and the model has a likelihood or a bound.
    """

    label: str
    evaluation: Evaluation
    seconds: float | None = None
    alone: float | None = None
    bits: Part | None = None
    evaluations: int | None = None
    parameters: int | None = None
    training: dict[str, Any] | None = None


def parse_contender(text: str, base: Recipe) -> tuple[str, Recipe]:
    """ "MODEL", "MODEL@ddim" or "MODEL@ddim:10" -> MODEL and how to sample it. Raises UsageError if it is neither."""
    name, at, how = text.rpartition("@")
    if not at or "/" in how:
        return text, base
    sampler, _, steps = how.partition(":")
    if steps and not (steps.isdigit() and int(steps) > 0):
        raise UsageError(f"{text}: write MODEL@sampler:steps, for example fashion-mnist@ddim:10")
    return name, dataclasses.replace(base, sampler=sampler, steps=int(steps) if steps else base.steps, eta=0.0)


def seconds_per_sample(
    runs: Sequence[tuple[Model, Recipe]], batch: int = BATCH, tick: Callable[[int], None] | None = None
) -> list[float]:
    """Medians over repeats, with the models taking turns so that all see the same load of the machine."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for spent, (model, recipe) in zip(times, runs, strict=True):
            began = time.perf_counter()
            list(generate(model, recipe, range(batch), model.condition(range(batch)), batch_size=batch, tick=tick))
            spent.append((time.perf_counter() - began) / batch)
    return [statistics.median(spent) for spent in times]


def compare(
    subjects: Sequence[str],
    data: str | None = None,
    *,
    split: str = "test",
    n: int | None = None,
    features: str = "auto",
    recipe: Recipe | None = None,
    device: str | None = None,
    engine: str = "auto",
    size: int | None = None,
    bits: int | None = None,
    bar: Bar = no_bar,
) -> list[Contender]:
    """Measures each subject (a model, MODEL@sampler:steps, or samples) in the same way; [] in other processes.

    The arguments are those of `undiffuse.evaluation.evaluate`; `recipe` is for models without @sampler. `n` None: 2000
    of each, or as many as the smallest file holds. `bits`: measure those of so many test images too.
    """
    requested = [parse_contender(text, recipe or Recipe()) for text in subjects]
    opened = [open_subject(name, device, size) for name, _ in requested]
    check_size(opened, size)
    n = n or min([DEFAULT_N, *(len(subject) for subject in opened if not isinstance(subject, Model))])
    requested = [(name, check(name, subject, how, n)) for subject, (name, how) in zip(opened, requested, strict=True)]
    shared = bench_for(opened, [name for name, _ in requested], data, split=split, features=features, bar=bar)
    opened = [
        with_engine(subject, engine, n * how.evaluations, bar) if isinstance(subject, Model) else subject
        for subject, (_, how) in zip(opened, requested, strict=True)
    ]
    evaluations = []
    for subject, (name, how) in zip(opened, requested, strict=True):
        evaluation = evaluate_subject(shared, name, subject, how, n)
        if evaluation is not None:
            evaluations.append(evaluation)
    # All processes share this, and each once for every model.
    of_models = {one.fingerprint: one for one in opened if isinstance(one, Model)} if bits else {}
    densities = {key: _bits(model, data, bits or 0, bar) for key, model in of_models.items()}
    if not evaluations:
        return []
    models = [(subject, how) for subject, (_, how) in zip(opened, requested, strict=True) if isinstance(subject, Model)]
    with bar("timing", REPEATS * (BATCH + 1) * sum(how.steps for _, how in models)) as tick:
        times, alone = (iter(seconds_per_sample(models, batch, tick)) for batch in (BATCH, 1))
    return [
        Contender(
            text,
            evaluation,
            next(times),
            next(alone),
            densities.get(subject.fingerprint),
            how.cost(subject),
            subject.parameters,
            subject.training,
        )
        if isinstance(subject, Model)
        else Contender(text, evaluation)
        for text, subject, (_, how), evaluation in zip(subjects, opened, requested, evaluations, strict=True)
    ]


def _bits(model: Model, data: str | None, n: int, bar: Bar) -> Part | None:
    """Bits per dimension of n test images; None for a model without any."""
    try:
        return density(model, data, n=n, bar=bar).parts["bits_per_dim"]
    except UsageError as error:
        logger.warning("no bits of %s: %s", model.name, error)
        return None


COLUMNS = ("frechet", "precision", "recall", "coverage", "recognised", "copies")


def rows(contenders: Sequence[Contender]) -> list[list[str]]:
    """Headings and a row for each; the first column is the name. The floor, if any, is the last row."""
    first = contenders[0].evaluation
    keys = [key for key in COLUMNS if any(key in one.evaluation.values for one in contenders)]
    titles = {key: value for one in contenders for key, value in one.evaluation.titles.items()}
    lines = [["", *(titles[key] for key in keys), "ms a sample", "alone", "evaluations", "parameters", "trained on"]]
    if any(one.bits for one in contenders):
        lines[0].insert(len(keys) + 1, "bits per dimension")
    for one in contenders:
        values = one.evaluation.values
        bits = [f"{one.bits.mean:.3f} ({one.bits.error:.3f})" if one.bits else "-"]
        lines.append(
            [
                one.label,
                *(number(values[key].value) if key in values else "-" for key in keys),
                *(bits if any(other.bits for other in contenders) else []),
                "-" if one.seconds is None else f"{1000 * one.seconds:.3g}",
                "-" if one.alone is None else f"{1000 * one.alone:.3g}",
                "-" if one.evaluations is None else str(one.evaluations),
                "-" if one.parameters is None else f"{one.parameters / 1e6:.2f}M",
                "-" if not one.training else _cost(one.training),
            ]
        )
    if not first.floor:
        return lines
    floor = [number(first.floor[key].value) if key in first.floor else "-" for key in keys]
    return [*lines, [f"{first.floor_n:,} real images", *floor, *[""] * (len(lines[0]) - 1 - len(floor))]]


def _cost(training: dict[str, Any]) -> str:
    images, seconds = training.get("images"), training.get("seconds")
    if not images or not seconds:
        return "-"
    device, threads = training.get("device", ""), training.get("threads")
    machine = f"{threads} core{'s' if threads != 1 else ''}" if device == "cpu" and threads else device
    return f"{images:,} images, {seconds / 60:.0f} min, {machine}"


def to_json(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Everything measured."""
    return [
        {
            "label": one.label,
            "seconds_per_sample": one.seconds,
            "seconds_alone": one.alone,
            "bits_per_dim": None if one.bits is None else dataclasses.asdict(one.bits),
            "evaluations": one.evaluations,
            "parameters": one.parameters,
            "training": one.training,
            **one.evaluation.to_json(),
        }
        for one in contenders
    ]


def draw_trilemma(contenders: Sequence[Contender], path: Path) -> None:
    """Quality against speed, diversity as colour: nearer to the lower left and brighter is better.

    Samples without a model have no speed and are at the right edge. Raises UsageError without Frechet distances.
    """
    if any("frechet" not in one.evaluation.values for one in contenders):
        raise UsageError("there is nothing to draw: there are too few images for a Frechet distance")
    with_speed = [one.seconds for one in contenders if one.seconds is not None]
    edge = max(with_speed, default=1e-3) * 3
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    x = [edge if one.seconds is None else one.seconds for one in contenders]
    y = [one.evaluation.values["frechet"].value for one in contenders]
    recalls = [one.evaluation.values.get("recall") for one in contenders]  # none for very few samples
    colours = [math.nan if recall is None else recall.value for recall in recalls]
    points = axes.scatter(
        x, y, c=colours, s=90, cmap="viridis", vmin=0, vmax=1, edgecolors="black", zorder=3, plotnonfinite=True
    )
    for place_x, place_y, one in zip(x, y, contenders, strict=True):
        measure = one.evaluation.values["frechet"]
        if measure.low is not None and measure.high is not None:
            axes.plot([place_x] * 2, [max(measure.low, place_y / 4), measure.high], color="gray", zorder=2)
    floor = contenders[0].evaluation.floor.get("frechet")
    if floor is not None and floor.value > 0:
        axes.axhline(floor.value, linestyle="--", color="gray", label="as many real images")
        axes.legend(fontsize=8)
    plain_logs(axes)
    axes.set_xlabel("seconds per sample")
    axes.set_ylabel(contenders[0].evaluation.titles["frechet"])
    axes.margins(0.35)
    axes.grid(alpha=0.3, which="both")
    figure.colorbar(points, label="recall (diversity)")
    labels = [one.label + (" (speed unknown)" if one.seconds is None else "") for one in contenders]
    name_points(axes, list(zip(x, y, strict=True)), labels)
    save_figure(figure, path)
