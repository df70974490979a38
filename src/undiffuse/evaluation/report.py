"""The results of an evaluation as text, tables and an HTML page."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.evaluation.evaluate import Evaluation
from undiffuse.evaluation.page import Page, write_page
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.measure import METRICS
from undiffuse.names import counted, format_shape
from undiffuse.plots import Panel, curves, grid_of, save_image, strips

SHOWN = 64
CLOSEST = 12
OTHER_DATA = {False: "was trained on other data than this", None: "was imported, and its training data is not known"}
"""A note on a model, by whether it was trained on the data (`Model.has_learnt`)."""


def number(value: float) -> str:
    """Four significant digits, without an exponent if possible."""
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def interval(measure: Measure) -> str:
    """ "low to high", or nothing."""
    return "" if measure.low is None or measure.high is None else f"{number(measure.low)} to {number(measure.high)}"


def rows(evaluation: Evaluation) -> list[tuple[str, str, str, str, str]]:
    """For every metric: title, value, interval, real against real, what it measures."""
    better = {"lower": "lower is better", "higher": "higher is better", None: ""}
    return [
        (
            evaluation.titles[key],
            number(value.value),
            interval(value),
            number(evaluation.floor[key].value) if key in evaluation.floor else "",
            ", ".join(part for part in (METRICS[key].what, better[METRICS[key].better]) if part),
        )
        for key, value in evaluation.values.items()
    ]


def headings(evaluation: Evaluation) -> tuple[str, str, str, str, str]:
    """The headings of `rows`."""
    floor = f"{evaluation.floor_n:,} real" if evaluation.floor else "no floor"
    return "metric", f"{evaluation.n:,} samples", "95% interval", floor, "measures"


def notes(evaluation: Evaluation) -> list[str]:
    """Notes on the numbers beside their conditions: which metrics are left out, and the limits of the floor."""
    data = evaluation.conditions["data"]
    lines = []
    if evaluation.left_out:
        needs = (f"{evaluation.titles[key]} ({needs})" for key, needs in evaluation.left_out.items())
        lines.append("left out: " + ", ".join(needs))
        if evaluation.conditions["split"] == "test" and len(evaluation.reference.items) < len(evaluation.subject.train):
            lines[-1] += f"; --split train measures against {len(evaluation.subject.train):,} images"
    could_have = any(METRICS[key].group != "copying" for key in evaluation.values)
    if could_have and not evaluation.floor:
        lines.append(f"no floor: {data} has too few images beside those measured against")
    elif evaluation.floor and evaluation.floor_n < evaluation.n:
        lines.append(
            f"the floor is of {evaluation.floor_n:,} real images, all there are: fewer images give larger distances"
        )
    return lines


def write_report(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Writes the page: numbers, samples beside data, nearest neighbours, curves (if several evaluations), conditions.

    The evaluations are of one subject at several numbers of steps, the last shown in full.
    """
    last = evaluations[-1]
    with tempfile.TemporaryDirectory() as folder:
        page = Page(
            title=f"{last.name}: evaluation",
            heading=f"{last.name} against {last.conditions['data']}",
            summary=[conditions_line(last)],
            headings=headings(last),
            rows=rows(last),
            notes=notes(last),
            figures=_figures(evaluations, Path(folder)),
            conditions=[one.to_json() for one in evaluations],
        )
        write_page(page, path)


def conditions_line(evaluation: Evaluation, sampling: bool = True) -> str:
    """How the numbers were measured, in a sentence; with or without how the samples were drawn."""
    facts = evaluation.conditions
    parts = [f"features: {facts['features']['name']}"]
    if facts["features"].get("accuracy") is not None:
        parts[0] += f" (accuracy {facts['features']['accuracy']:.1%})"
    images = f"{facts['images']:,} image{'s' * (facts['images'] != 1)}"
    parts.append(f"reference: {images} of {facts['data']} ({facts['split']}){_brought(facts)}")
    parts.append(f"measured at {format_shape(facts['shape'])}")
    if sampling:
        parts += how_drawn(facts)
    return "; ".join([*parts, *unlearnt(evaluation.name, facts.get("model", {}).get("learnt_this_data", True))])


def how_drawn(facts: Mapping[str, Any]) -> Iterator[str]:
    """The sampler, its steps and their cost, if there were any: of samples in a file they are not known."""
    if how := facts.get("sampling"):
        cost = counted(how["evaluations"], "network evaluation")
        yield f"{how['sampler']} in {counted(how['steps'], 'step')} ({cost})" if "steps" in how else cost


def unlearnt(name: str, learnt: bool | None) -> Iterator[str]:
    """What to know of a model that has not learnt this data."""
    if learnt in OTHER_DATA:
        yield f"NOTE: {name} {OTHER_DATA[learnt]}"


def _brought(facts: dict[str, Any]) -> str:
    """The sizes from which the reference was resized to that of the samples, if it was."""
    sizes = facts["stored_sizes"]
    if not sizes:
        return ""
    return f", resized from {format_shape(sizes[0])}" + (f" to {format_shape(sizes[-1])}" if len(sizes) > 1 else "")


def _figures(evaluations: Sequence[Evaluation], folder: Path) -> list[tuple[Path, str]]:
    last = evaluations[-1]
    subject, reference = last.subject, last.reference
    figures = []
    for name, images in (("samples", subject.items.images[:SHOWN]), ("data", pick(reference.items.images, SHOWN))):
        scale = max(1, round(40 / images.shape[1]))
        save_image(grid_of(np.array(images)), folder / f"{name}.png", scale)
        figures.append((folder / f"{name}.png", name))
    distances, index = subject.nearest
    closest = np.argsort(distances)[:CLOSEST]
    pairs = [("sample", subject.items.images[closest]), ("nearest in training", subject.train[index[closest]])]
    columns = [f"{distance:.3f}" for distance in distances[closest]]
    strips(
        pairs, columns, "The samples nearest to a training image, and how near (root mean square)", folder / "near.png"
    )
    figures.append((folder / "near.png", "What copying would look like: these are the nearest of all samples."))
    if len(evaluations) > 1:
        curves(by_steps(evaluations), folder / "steps.png", log="x")
        figures.append((folder / "steps.png", "By number of steps; dashed: real images."))
    return figures


def by_steps(evaluations: Sequence[Evaluation]) -> list[Panel]:
    """Panels for `curves`: metrics against the number of steps, with the floor."""
    last = evaluations[-1]
    steps = np.array([evaluation.conditions["sampling"]["steps"] for evaluation in evaluations])
    values, floors = [one.values for one in evaluations], [one.floor for one in evaluations]

    def line(keys: Sequence[str]) -> dict[str, tuple[np.ndarray, ...]]:
        return {
            last.titles[key]: (
                steps,
                *(np.array([each[key].value for each in column]) for column in (values, floors) if key in column[0]),
            )
            for key in keys
            if key in last.values
        }

    panels = [("distance", line(["frechet"])), ("quality and diversity", line(["precision", "recall", "coverage"]))]
    return [(title, "steps", lines) for title, lines in panels if lines]
