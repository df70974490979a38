"""What guidance does to quality and diversity: precision, recall and the share recognised as the class asked for.

    python benchmarks/guidance.py fashion-mnist OUT.json --classifier FOLDER --weaker MODEL [-n 500] [--seeds 0,1,2]

Scale 1 is the model with its class and no guidance, 0 the model without. The samples' classes come in the data's
proportions and are the same for every row. "recognised" is what the classifier of `undiffuse evaluate` says, which has
never seen noise and is not the one that guides. What OUT.json holds already is not
measured again. Prints a table in Markdown, writes OUT.json and a figure. A machine with a GPU may draw (`--draw
SAMPLES.npz`) what another measures (`--samples SAMPLES.npz`).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.classifier import Classifier, load_classifier
from undiffuse.conditions import Labels
from undiffuse.devices import conditions
from undiffuse.evaluation.bench import Bench, bench
from undiffuse.evaluation.evaluate import evaluate_images
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.guide import with_guide
from undiffuse.model import Model, load
from undiffuse.plots import Panel, curves, strips
from undiffuse.progress import bar

METRICS = {"precision": "precision", "recall": "recall", "recognised": "recognised", "frechet": "Frechet distance"}
GROUPS = ("frechet", "manifold", "classes")
BATCH = 500


@dataclass(frozen=True)
class Contender:
    """A way to guide, at one scale: a line of the figure and a point on it."""

    name: str
    scale: float
    model: Model
    interval: tuple[float, float] | None = None


def contenders(
    model: Model,
    classifier: Classifier | None,
    weaker: Model | None,
    scales: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> list[Contender]:
    """Classifier-free guidance at all noise levels and in intervals, the classifier, the weaker model."""
    found = [Contender("classifier-free", scale, model) for scale in scales]
    for low, high in intervals:
        name = f"classifier-free in ({low:g}, {high:g}]"
        found += [Contender(name, scale, model, (low, high)) for scale in scales if scale > 1]
    if classifier:
        by_classifier = with_guide(model, classifier)
        found += [Contender("classifier (ADM-G)", scale, by_classifier) for scale in scales if scale > 1]
    if weaker:
        by_weaker = with_guide(model, weaker)
        found += [Contender("autoguidance", scale, by_weaker) for scale in scales if scale > 1]
    return found


def draw(contender: Contender, recipe: Recipe, n: int) -> np.ndarray:
    """n samples, uint8 (n, H, W, C): those of the recipe's seed, guided."""
    model, recipe = contender.model, replace(recipe, guidance=Guidance(contender.scale, contender.interval))
    return np.concatenate(list(generate(model, recipe, range(n), model.condition(range(n)), batch_size=BATCH)))


def key(contender: Contender, seed: int) -> str:
    """The name of samples in a file."""
    return f"{contender.name}, {contender.scale:g}, {seed}"


def measured(made: Bench, contender: Contender, images: np.ndarray) -> dict[str, Any]:
    """The metrics of samples, each with its interval."""
    labels = contender.model.condition(range(len(images)))
    assert isinstance(labels, Labels)
    found = evaluate_images(made, contender.name, images, labels.index.numpy()).values
    return {key: {"value": found[key].value, "interval": [found[key].low, found[key].high]} for key in METRICS}


def measure_all(
    found: dict[str, Any],
    asked: Sequence[Contender],
    recipe: Recipe,
    n: int,
    seeds: list[int],
    drawn: Mapping[str, np.ndarray],
) -> Iterator[None]:
    """Puts what is missing into `found["rows"]`, by name, scale and seed; yields after each."""
    model = asked[0].model
    made = bench(model.config.data, model.data.shape, groups=GROUPS, bar=bar)
    for contender in asked:
        of_seeds = found["rows"].setdefault(contender.name, {}).setdefault(f"{contender.scale:g}", {})
        for seed in seeds:
            if str(seed) not in of_seeds:
                images = drawn.get(key(contender, seed))
                images = draw(contender, replace(recipe, seed=seed), n) if images is None else images[:n]
                of_seeds[str(seed)] = measured(made, contender, images)
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


def show(asked: Sequence[Contender], recipe: Recipe, path: Path, count: int = 10) -> None:
    """A row of pictures for each way at its scales, the same noise and classes in each."""
    rows = [(f"{one.name}, {one.scale:g}", draw(one, recipe, count)) for one in asked]
    strips(rows, [""] * count, f"{recipe.steps} steps", path)


def main() -> None:
    """Measures what is missing, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classifier", help="a folder of undiffuse train-classifier")
    parser.add_argument("--weaker", help="a weaker model, for autoguidance")
    parser.add_argument("--intervals", default=".19-1.61,.5-5", help="of sigma/alpha; the first is EDM2's best")
    parser.add_argument("--scales", default="0,1,1.5,2,3,4,6")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--figure", type=Path, help="[OUT.png]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draw", type=Path, help="only draw the samples, into this .npz")
    parser.add_argument("--samples", type=Path, help="measure the samples in this .npz; draw what it lacks")
    parser.add_argument("--pictures", type=Path, help="draw ten samples of each row there, too")
    options = parser.parse_args()
    model, recipe = load(options.model, options.device), Recipe(steps=options.steps)
    classifier = load_classifier(options.classifier, options.device) if options.classifier else None
    weaker = load(options.weaker, options.device) if options.weaker else None
    scales, seeds = [float(s) for s in options.scales.split(",")], [int(s) for s in options.seeds.split(",")]
    intervals = [(float(low), float(high)) for low, high in (x.split("-") for x in options.intervals.split(",") if x)]
    asked = contenders(model, classifier, weaker, scales, intervals)
    if options.draw:
        wanted = [(one, seed) for one in asked for seed in seeds]
        made = {key(one, seed): draw(one, replace(recipe, seed=seed), options.n) for one, seed in wanted}
        np.savez_compressed(options.draw, **made)  # type: ignore[arg-type]
        return
    about = {
        "model": options.model,
        "n": options.n,
        "sampler": recipe.key,
        "classifier": classifier and classifier.training,
        "weaker": weaker and weaker.training,
    }
    found = read_json(options.out) if options.out.exists() else {**about, "rows": {}, "conditions": conditions()}
    if any(found[key] != value for key, value in about.items()):
        parser.error(f"{options.out} is of another model, guide, sampler or number of samples: choose another")
    drawn = dict(np.load(options.samples)) if options.samples else {}
    for _ in measure_all(found, asked, recipe, options.n, seeds, drawn):
        write_json(options.out, found)
    print(markdown(found["rows"]))
    curves(panels(found["rows"]), options.figure or options.out.with_suffix(".png"))
    if options.pictures:
        show(asked, recipe, options.pictures)


if __name__ == "__main__":
    main()
