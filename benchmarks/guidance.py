"""What guidance does to quality and diversity: precision, recall and the share recognised as the class asked for.

    python benchmarks/guidance.py fashion-mnist OUT.json --classifier FOLDER [--scales 0,1,2,4,6] [-n 500] [--seeds 0,1]

The samples' classes come in the data's proportions and are the same for every row. "recognised" is what the classifier
of `undiffuse evaluate` says, which has never seen noise: not the one that guides. What OUT.json holds already is not
measured again. Prints a table in Markdown, writes OUT.json and a figure.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.classifier import Classifier, load_classifier
from undiffuse.conditions import Labels
from undiffuse.devices import conditions
from undiffuse.evaluation.bench import Bench, bench
from undiffuse.evaluation.evaluate import evaluate_images
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe
from undiffuse.guidance import class_log_prob, classifier_guidance
from undiffuse.model import Model, load
from undiffuse.plots import Panel, curves, strips
from undiffuse.process import Denoise
from undiffuse.progress import bar
from undiffuse.randomness import keyed_draws
from undiffuse.registry import THRESHOLDS
from undiffuse.sampling import trajectory

METRICS = {"precision": "precision", "recall": "recall", "recognised": "recognised", "frechet": "Frechet distance"}
GROUPS = ("frechet", "manifold", "classes")
BATCH = 100


@dataclass(frozen=True)
class Contender:
    """A way to guide, at one scale: a line of the figure and a point on it.

    `denoise`: (model, labels of a batch) -> the guided denoiser, before the threshold.
    """

    name: str
    scale: float
    denoise: Callable[[Model, Labels], Denoise]


def adm_g(classifier: Classifier, scales: Iterable[float], conditional: bool = True) -> list[Contender]:
    """Classifier guidance of a model that is told the class, as ADM-G, or of one that is not."""

    def guided(scale: float) -> Callable[[Model, Labels], Denoise]:
        def denoise(model: Model, labels: Labels) -> Denoise:
            process = model.denoiser.process
            plain = model.denoiser.bind(labels if conditional else labels.dropped())
            if not scale:
                return plain
            return classifier_guidance(plain, process, class_log_prob(classifier, process, labels), scale)

        return denoise

    name = "ADM-G" if conditional else "classifier alone"
    return [Contender(name, scale, guided(scale)) for scale in scales]


@torch.no_grad()
def draw(model: Model, contender: Contender, recipe: Recipe, n: int) -> np.ndarray:
    """n samples, uint8 (n, H, W, C): those of the recipe's seed, guided."""
    process, parts = model.denoiser.process, []
    for first in range(0, n, BATCH):
        numbers = range(first, min(n, first + BATCH))
        labels, draws = model.condition(numbers), keyed_draws(recipe.seed, numbers)
        assert isinstance(labels, Labels)
        denoise = THRESHOLDS[recipe.threshold](contender.denoise(model, labels), process)
        start = process.prior(torch.empty(len(numbers), *model.domain.shape)).sample(draws(0))
        *_, last = trajectory(denoise, process, recipe.times(model), recipe.step, start, draws)
        parts.append(model.domain.decode(last.x))
    return np.concatenate(parts)


def measured(made: Bench, model: Model, contender: Contender, recipe: Recipe, n: int) -> dict[str, Any]:
    """The metrics of n samples, each with its interval."""
    images, labels = draw(model, contender, recipe, n), model.condition(range(n))
    assert isinstance(labels, Labels)
    found = evaluate_images(made, contender.name, images, labels.index.numpy()).values
    return {key: {"value": found[key].value, "interval": [found[key].low, found[key].high]} for key in METRICS}


def measure_all(
    found: dict[str, Any], contenders: Iterable[Contender], model: Model, recipe: Recipe, n: int, seeds: list[int]
) -> Iterator[None]:
    """Puts what is missing into `found["rows"]`, by name, scale and seed; yields after each."""
    made = bench(model.config.data, model.data.shape, groups=GROUPS, bar=bar)
    for contender in contenders:
        of_seeds = found["rows"].setdefault(contender.name, {}).setdefault(f"{contender.scale:g}", {})
        for seed in seeds:
            if str(seed) not in of_seeds:
                of_seeds[str(seed)] = measured(made, model, contender, replace(recipe, seed=seed), n)
                yield


def means(row: dict[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and the metric's mean over the seeds at each."""
    scales = sorted(row, key=float)
    values = [np.mean([one[metric]["value"] for one in row[scale].values()]) for scale in scales]
    return np.array([float(scale) for scale in scales]), np.array(values)


def markdown(rows: dict[str, Any]) -> str:
    """A row for each way and scale: means over the seeds."""
    lines = ["| | scale | " + " | ".join(METRICS.values()) + " |", "|---" * (2 + len(METRICS)) + "|"]
    for name, row in rows.items():
        columns = [means(row, metric) for metric in METRICS]
        for number, scale in enumerate(columns[0][0]):
            cells = (f"{values[number]:.3f}" for _, values in columns)
            lines.append(f"| {name} | {scale:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def panels(rows: dict[str, Any]) -> list[Panel]:
    """Each metric over the scale, and recall over precision."""
    over_scale = [
        (title, "scale", {name: means(row, key) for name, row in rows.items()}) for key, title in METRICS.items()
    ]
    trade = {name: (means(row, "precision")[1], means(row, "recall")[1]) for name, row in rows.items()}
    return [*over_scale, ("recall", "precision", trade)]


def show(model: Model, contenders: Iterable[Contender], recipe: Recipe, path: Path, count: int = 10) -> None:
    """A row of pictures for each contender, the same noise and classes in each."""
    labels = model.condition(range(count))
    assert isinstance(labels, Labels)
    rows = [(f"{one.name}, {one.scale:g}", draw(model, one, recipe, count)) for one in contenders]
    headings = [model.data.classes[label].replace("/", "\n").replace(" ", "\n") for label in labels.index]
    strips(rows, headings, f"{model.name}: guidance and its scale", path)


def main() -> None:
    """Measures what is missing, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classifier", required=True, help="a folder of undiffuse train-classifier")
    parser.add_argument("--scales", default="0,1,2,4,6")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--figure", type=Path, help="[OUT.png]")
    parser.add_argument("--pictures", type=Path, help="draw ten samples of each row there, too")
    options = parser.parse_args()
    model, classifier, recipe = (
        load(options.model, "cpu"),
        load_classifier(options.classifier, "cpu"),
        Recipe(steps=options.steps),
    )
    classifier.check(model.data, model.name)
    about = {"model": options.model, "n": options.n, "sampler": recipe.key, "classifier": classifier.training}
    found = read_json(options.out) if options.out.exists() else {**about, "rows": {}, "conditions": conditions()}
    if any(found[key] != value for key, value in about.items()):
        parser.error(f"{options.out} is of another model, classifier, sampler or number of samples: choose another")
    scales, seeds = [float(s) for s in options.scales.split(",")], [int(s) for s in options.seeds.split(",")]
    contenders = [*adm_g(classifier, scales), *adm_g(classifier, scales, conditional=False)]
    for _ in measure_all(found, contenders, model, recipe, options.n, seeds):
        write_json(options.out, found)
    print(markdown(found["rows"]))
    curves(panels(found["rows"]), options.figure or options.out.with_suffix(".png"))
    if options.pictures:
        show(model, contenders, recipe, options.pictures)


if __name__ == "__main__":
    main()
