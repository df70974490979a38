"""The trilemma, measured: diffusion and its rivals after equal time; quality, diversity, speed, likelihood, copies.

    OMP_NUM_THREADS=1 python benchmarks/trilemma.py OUT [--data fashion-mnist] [--minutes 20] [--seeds 3]
    python benchmarks/trilemma.py OUT --report trilemma.json --figure trilemma.png

Every system trains by its own preset, with the classes of the data or, if it has none, without any condition, on one
thread in the same CPU time: a short trial tells how many steps fit in it.
"one-step" is diffusion for half of the time, a quarter for a student of its paths, drawing them included, and a quarter
for a critic to sharpen that; "from-data" is a flow map without a teacher. Then n samples of each, measured as
`undiffuse evaluate` does, with the classifier's features where the data has one; bits per dimension of 500 test images
for what has a likelihood; seconds for one sample at batch 1 and 64, the median of repeats. Each run is measured into
OUT/SYSTEM-SEED.json; what is there is kept. --report joins them: means over seeds, and the range.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import Rows, missing, options_of, report

from undiffuse import load
from undiffuse.config import preset, preset_for
from undiffuse.data import load as load_data
from undiffuse.devices import conditions
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.density import density
from undiffuse.files import write_json
from undiffuse.generate import Recipe, generate
from undiffuse.model import Model
from undiffuse.plots import save_figure
from undiffuse.registry import RIVALS

SYSTEMS = ("diffusion", "one-step", "from-data", *RIVALS)
PATHS_A_MINUTE = 700
BITS = ("vae", "flow", "flow-fast", "ar")
RECIPES = {"diffusion": (Recipe(), Recipe(steps=5)), "one-step": (Recipe(steps=1),), "from-data": (Recipe(steps=1),)}
SHOWN = (
    "frechet",
    "precision",
    "recall",
    "coverage",
    "recognised",
    "copies",
    "bits",
    "ms at 64",
    "ms at 1",
    "evaluations",
)
REAL = "real images"


def settings(system: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Of a training run, but for its steps."""
    name = system if system in RIVALS else "one-step" if system == "from-data" else preset_for(options.minutes)
    classes = bool(load_data(options.data, "train").classes)
    values = {"data.source": options.data, "training.seed": seed, "training.conditional": classes}
    return preset(name) | values | QUIET


def trained(system: str, seed: int, options: argparse.Namespace) -> Path:
    """The run of a system, trained now or before. Ends the program if it is stopped."""
    run, values = options.out / f"{system}-{seed}-run", settings(system, options, seed)
    minutes, plan = options.minutes, options.out / "steps.json"
    if system == "one-step":
        teacher, student = (options.out / f"{part}-{seed}-run" for part in ("teacher", "student"))
        minutes = minutes / 4
        finish(values, teacher, 2 * minutes, plan, "teacher")
        paths = round(PATHS_A_MINUTE * minutes)
        kept = ("data.source", "training.seed", "training.conditional", *QUIET)
        shared = {key: values[key] for key in kept} | {"objective.paths": paths}
        finish(preset("distill") | shared | {"training.base": str(teacher)}, student, minutes, plan, "student")
        taught = {"training.base": str(student), "training.teacher": str(teacher)}
        values = preset("adversarial") | shared | taught
    finish(values, run, minutes, plan, system)
    return run


def seconds(model: Model, recipe: Recipe, batch: int) -> float:
    """For one sample, in batches of `batch`: the median of three, after one to warm up."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        list(generate(model, recipe, range(batch), model.condition(range(batch)), batch_size=batch))
        taken.append((time.perf_counter() - began) / batch)
    return statistics.median(taken[1:])


def measured(system: str, run: Path, options: argparse.Namespace) -> Rows:
    """What is measured of a run, once for each way to sample it; and of as many real images."""
    model, found = load(run), {}
    recipes = RECIPES.get(system, (Recipe(),))
    bits = density(model, n=500).parts["bits_per_dim"].mean if system in BITS else None
    for recipe, evaluation in zip(recipes, evaluate(run, n=options.n, recipes=recipes), strict=True):
        how = recipe.for_model(model)
        name = system if len(recipes) == 1 else f"{system}, {how.steps} steps"
        found[name] = {key: one.value for key, one in evaluation.values.items()} | {
            "bits": bits,
            "ms at 64": 1000 * seconds(model, how, 64),
            "ms at 1": 1000 * seconds(model, how, 1),
            "evaluations": how.cost(model),
            "parameters": model.parameters,
        }
        found[REAL] = {key: one.value for key, one in evaluation.floor.items()}
    return found


def draw(systems: Rows, path: Path) -> None:
    """Quality against speed, with diversity as colour: the mean over seeds, and the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.4))
    axes = figure.subplots()
    real = systems[REAL]
    shown = {name: one for name, one in systems.items() if name != REAL}
    x, y, colours = ([one[key]["mean"] for one in shown.values()] for key in ("ms at 64", "frechet", "recall"))
    points = axes.scatter(x, y, c=colours, s=90, cmap="viridis", vmin=0, vmax=1, edgecolors="black", zorder=3)
    for (name, one), place in zip(shown.items(), zip(x, y, strict=True), strict=True):
        axes.plot([place[0]] * 2, [one["frechet"]["least"], one["frechet"]["most"]], color="gray", zorder=2)
        axes.annotate(name, place, xytext=(8, 4), textcoords="offset points", fontsize=8)
    axes.axhline(real["frechet"]["mean"], linestyle="--", color="gray", label="as many real images")
    axes.loglog()
    axes.margins(0.3)
    axes.set_xlabel("ms per sample, in batches of 64")
    axes.set_ylabel("Frechet distance")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.colorbar(points, label="recall (diversity)")
    save_figure(figure, path)


def main() -> None:
    """Trains and measures what OUT has not, or reports."""
    options = options_of(__doc__, SYSTEMS, minutes=20.0, n=2000, figure=True, data="fashion-mnist")
    if not options.report:
        for system, seed, path in missing(options, SYSTEMS):
            run = trained(system, seed, options)
            asked = {"data": options.data, "minutes": options.minutes, "n": options.n, "seed": seed}
            facts = {"training": load(run).training, **conditions()}
            write_json(path, {**asked, **facts, "rows": measured(system, run, options)})
        return
    systems = report(options.out, options.report, SHOWN)
    if options.figure:
        draw(systems, options.figure)


if __name__ == "__main__":
    main()
