"""Ways to one evaluation, in equal CPU time: four ways to teach a student, and two without a teacher.

    OMP_NUM_THREADS=1 python benchmarks/students.py OUT [--teacher fashion-mnist] [--minutes 20] [--seeds 1]
    python benchmarks/students.py OUT --report students.json

"paths" and "flow-map" learn from the teacher for all of the time. "sharp" and "matched" spend half of it on paths, and
half on the critic, or on matching. "solution" and "ect" (the same loss with every jump to the data) begin without the
teacher, whose training is on top for the others. Drawing paths counts where they are not in the cache yet: to be fair,
name an empty one, UNDIFFUSE_CACHE=FOLDER. One thread each. Then n samples in one evaluation, measured as `undiffuse
evaluate` does, beside the teacher in 1, 5 and 20 steps. Writes OUT/WAY-SEED.json; what is there is kept.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import measure, missing, options_of, report

from undiffuse import load
from undiffuse.config import preset
from undiffuse.evaluation import evaluate
from undiffuse.generate import Recipe

WAYS = ("teacher", "paths", "flow-map", "sharp", "matched", "solution", "ect")
OF_FLOW_MAP = {"objective.loss": "flow-map", "objective.draw": "low-discrepancy"}
TEACHER = tuple(Recipe(steps=steps) for steps in (1, 5, 20))
METRICS = "frechet,manifold,classes,copying"
SHOWN = ("frechet", "precision", "recall", "coverage", "recognised", "copies")


def trained(way: str, seed: int, options: argparse.Namespace) -> Path:
    """The run of one way, trained now or before."""
    teacher, run = load(options.teacher), options.out / f"{way}-{seed}-run"
    assert teacher.learnt is not None
    for path, minutes, values in stages(way, run, options):
        shared = {"data.source": teacher.learnt.source, "training.seed": seed, **QUIET}
        finish(values | shared, path, minutes)
    return run


def stages(way: str, run: Path, options: argparse.Namespace) -> list[tuple[Path, float, dict[str, Any]]]:
    """The runs that a way takes, with their minutes and settings; what ways have in common, they share."""
    if way in ("solution", "ect"):
        return [(run, options.minutes, preset("one-step") | ({"objective.to_data": 1.0} if way == "ect" else {}))]
    taught = {"training.base": options.teacher, "objective.guidance": options.guidance, "network.inpaint": False}
    if way == "flow-map":
        return [(run, options.minutes, preset("distill") | taught | OF_FLOW_MAP)]
    if way == "paths":
        return [(run, options.minutes, preset("distill") | taught)]
    half = run.with_name(run.name.replace(way, "half"))
    second = {"training.base": str(half), "training.teacher": options.teacher}
    loss = {"objective.loss": "matching"} if way == "matched" else {}
    first = (half, options.minutes / 2, preset("distill") | taught)
    return [first, (run, options.minutes / 2, preset("adversarial") | taught | second | loss)]


def measured(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is measured of one way."""
    model = options.teacher if way == "teacher" else trained(way, seed, options)
    recipes, rows = TEACHER if way == "teacher" else (Recipe(steps=1),), {}
    for recipe, found in zip(recipes, evaluate(model, n=options.n, metrics=METRICS, recipes=recipes), strict=True):
        name = f"{way}, {recipe.steps} step{'s' * (recipe.steps > 1)}"
        rows[name] = {key: one.value for key, one in found.values.items()}
        shown = [f"{key} {rows[name][key]:.3f}" for key in SHOWN]
        print(f"{name:20} {seed} {', '.join(shown)}", flush=True)
    return {"training": load(model).training, "rows": rows}


def main() -> None:
    """Trains and measures what OUT has not."""
    options = options_of(__doc__, WAYS, minutes=20.0, n=2000, seeds=1, teacher="fashion-mnist", guidance=1.0)
    if options.report:
        report(options.out, options.report, SHOWN)
        return
    for way, seed, path in missing(options, WAYS):
        if way != "teacher" or not seed:
            measure(path, options, seed, partial(measured, way, seed, options))


if __name__ == "__main__":
    main()
