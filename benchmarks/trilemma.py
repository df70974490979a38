"""The trilemma, measured: diffusion and its rivals after equal time; quality, diversity, speed, likelihood, copies.

    OMP_NUM_THREADS=1 python benchmarks/trilemma.py OUT [--data fashion-mnist] [--minutes 20] [--seeds 3]
    python benchmarks/trilemma.py OUT --report trilemma.json --figure trilemma.png

Every system trains by its own preset, with the classes of the data or, if it has none, without any condition, on one
thread in the same CPU time. "one-step" is diffusion for half of the time, a quarter for a student of its paths, drawing
them included, and a quarter for a critic to sharpen that; "from-data" is a flow map without a teacher; "flow-exact" is
the flow without noise in its pictures, which costs samples and is the one to compare in bits. Then n samples of each,
measured as `undiffuse evaluate` does, with the classifier's features where the data has one; bits per dimension of n
test images for what has a likelihood; CPU time of one sample at batch 1 and 64, the median of repeats. Each run is
measured into OUT/SYSTEM-SEED.json; what is there is kept. --report joins them: means over seeds, and the range.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import Rows, measure, missing, options_of, report

from undiffuse import load
from undiffuse.config import preset, preset_for
from undiffuse.data import load as load_data
from undiffuse.distilling import student_settings
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.density import density
from undiffuse.files import atomic_folder
from undiffuse.generate import Recipe, generate
from undiffuse.model import Model, write_model
from undiffuse.plots import name_points, plain_logs, save_figure
from undiffuse.registry import RIVALS

SYSTEMS = ("diffusion", "one-step", "from-data", *RIVALS, "flow-exact")
BITS = ("diffusion", "vae", "flow-exact", "ar")
RECIPES = {"diffusion": (Recipe(), Recipe(steps=5)), "one-step": (Recipe(steps=1),), "from-data": (Recipe(steps=1),)}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "vae": {"temperature .8": {"temperature": 0.8}, "centres of pixels": {"centres": True}}
}
"""Other ways to draw from the same weights: a system -> a name -> options of its network."""
SHOWN = (
    "frechet",
    "frechet_limit",
    "precision",
    "recall",
    "coverage",
    "recognised",
    "copies",
    "bits",
    "ms at 64",
    "ms at 1",
    "evaluations",
    "parameters",
    "minutes",
)
REAL = "real images"


def settings(system: str, options: argparse.Namespace, seed: int, minutes: float) -> dict[str, Any]:
    """Of a training run of these minutes."""
    names = {"from-data": "one-step", "flow-exact": "flow"} | {name: name for name in RIVALS}
    of_system = {"network.options.noise": 0.0} if system == "flow-exact" else {}
    return preset(names.get(system, preset_for(minutes))) | shared(options, seed) | of_system


def shared(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Settings that all runs of a seed have: they are told the class and nothing more."""
    classes = bool(load_data(options.data, "train").classes)
    told = {"training.conditional": classes, "training.condition": "labels"}
    return {"data.source": options.data, "training.seed": seed, **told, **QUIET}


def trained(system: str, seed: int, options: argparse.Namespace) -> Path:
    """The run of a system, trained now or before. Ends the program if it is stopped."""
    run, minutes = options.out / f"{system}-{seed}-run", options.minutes
    if system != "one-step":
        finish(settings(system, options, seed, minutes), run, minutes)
        return run
    teacher, student = (options.out / f"{part}-{seed}-run" for part in ("teacher", "student"))
    finish(settings("diffusion", options, seed, minutes / 2), teacher, minutes / 2)
    of_all = shared(options, seed)
    finish(student_settings(teacher) | of_all, student, minutes / 4)
    finish(student_settings(teacher, student) | of_all, run, minutes / 4)
    return run


def ms(model: Model, recipe: Recipe, batch: int) -> float:
    """CPU time of one sample, in batches of `batch`: the median of three, after one to warm up."""
    taken = []
    for _ in range(4):
        began = time.process_time()
        list(generate(model, recipe, range(batch), model.condition(range(batch)), batch_size=batch))
        taken.append(1000 * (time.process_time() - began) / batch)
    return statistics.median(taken[1:])


def variants(system: str, run: Path) -> dict[str, Path]:
    """The model of a run, and those with its weights that draw in other ways, each in a folder of its own."""
    found, model = {system: run}, load(run)
    for name, changes in VARIANTS.get(system, {}).items():
        folder = run.with_name(f"{run.name}, {name}")
        if not folder.exists():
            network = model.config.network.model_copy(update={"options": model.config.network.options | changes})
            config = model.config.model_copy(update={"network": network})
            with atomic_folder(folder) as temporary:
                write_model(temporary, config, model.data, model.training, dict(model.network.state_dict()))
        found[f"{system}, {name}"] = folder
    return found


def measured(system: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is measured of a system, once for each way to sample it; and, beside diffusion, of as many real images."""
    run = trained(system, seed, options)
    rows: Rows = {}
    intervals: Rows = {}
    for name, folder in variants(system, run).items():
        model, recipes = load(folder), RECIPES.get(system, (Recipe(),))
        bits = density(model, n=options.n).parts["bits_per_dim"] if system in BITS and folder == run else None
        for recipe, found in zip(recipes, evaluate(folder, n=options.n, recipes=recipes), strict=True):
            how = recipe.for_model(model)
            row = name if len(recipes) == 1 else f"{name}, {how.steps} steps"
            rows[row] = {key: one.value for key, one in found.values.items()} | {
                "bits": bits.mean if bits else None,
                "ms at 64": ms(model, how, 64),
                "ms at 1": ms(model, how, 1),
                "evaluations": how.cost(model),
                "parameters": model.parameters,
                "minutes": options.minutes,
            }
            intervals[row] = {key: [one.low, one.high] for key, one in found.values.items() if one.low is not None}
            intervals[row] |= {"bits, standard error": bits.error} if bits else {}
            if system == "diffusion":
                rows[REAL] = {key: one.value for key, one in found.floor.items()}
    return {"training": load(run).training, "rows": rows, "intervals": intervals}


def draw(systems: Rows, path: Path) -> None:
    """Quality against speed, with diversity as colour: the mean over seeds, and the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.4))
    axes = figure.subplots()
    shown = {name: one for name, one in systems.items() if name != REAL}
    x, y, colours = ([one[key]["mean"] for one in shown.values()] for key in ("ms at 64", "frechet", "recall"))
    points = axes.scatter(x, y, c=colours, s=80, cmap="viridis", vmin=0, vmax=1, edgecolors="black", zorder=3)
    for place, one in zip(x, shown.values(), strict=True):
        axes.plot([place] * 2, [one["frechet"]["least"], one["frechet"]["most"]], color="gray", lw=4, alpha=0.5)
    axes.axhline(systems[REAL]["frechet"]["mean"], linestyle="--", color="gray", label="as many real images")
    plain_logs(axes)
    axes.margins(0.1)
    axes.set_xlabel("ms per sample, in batches of 64")
    axes.set_ylabel("Frechet distance")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.colorbar(points, label="recall (diversity)")
    name_points(axes, list(zip(x, y, strict=True)), list(shown))
    save_figure(figure, path)


def main() -> None:
    """Trains and measures what OUT has not, or reports."""
    options = options_of(__doc__, SYSTEMS, minutes=20.0, n=2000, figure=True, data="fashion-mnist")
    if not options.report:
        for system, seed, path in missing(options, SYSTEMS):
            measure(path, options, seed, partial(measured, system, seed, options))
        return
    systems = report(options.out, options.report, SHOWN)
    if options.figure:
        draw(systems, options.figure)


if __name__ == "__main__":
    main()
