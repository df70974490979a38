"""Ways to one evaluation, in equal CPU time: four ways to teach a student, and two without a teacher.

    OMP_NUM_THREADS=1 python benchmarks/students.py OUT [--teacher fashion-mnist] [--minutes 20] [--seeds 1]
    python benchmarks/students.py OUT --report students.json

"paths" and "flow-map" learn from the teacher for all of the time. "sharp" and "matched" spend half of it on paths, and
half on the critic, or on matching. "solution" and "ect" (the same loss with every jump to the data) begin without the
teacher, whose training is on top for the others. Each draws its own paths, which counts; "sharp" and "matched" share
their first half. One thread each. Then n samples in one evaluation, measured as `undiffuse evaluate` does, beside the
teacher in 1, 5 and 20 steps. Writes OUT/WAY-SEED.json; what is there is kept.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import measure, missing, options_of, report

from undiffuse import load
from undiffuse.cache import cache_dir
from undiffuse.config import preset
from undiffuse.distilling import student_settings
from undiffuse.evaluation import evaluate
from undiffuse.generate import Recipe

WAYS = ("teacher", "paths", "flow-map", "sharp", "matched", "solution", "ect")
BOTH = ("sharp", "matched")
OF_FLOW_MAP = {"objective.loss": "flow-map", "objective.draw": "low-discrepancy"}
TEACHER = tuple(Recipe(steps=steps) for steps in (1, 5, 20))
METRICS = "frechet,manifold,classes,copying"
SHOWN = ("frechet", "precision", "recall", "coverage", "recognised", "copies")


def trained(way: str, seed: int, options: argparse.Namespace) -> Path:
    """The run of one way, trained now or before."""
    run, half = (options.out / f"{name}-{seed}-run" for name in (way, "half"))
    teacher = load(options.teacher)
    assert teacher.learnt is not None
    shared = {"data.source": teacher.learnt.source, "training.seed": seed, **QUIET}
    guided = {"objective.guidance": options.guidance}
    if way in BOTH:
        with own_paths(half):
            finish(student_settings(options.teacher) | guided | shared, half, options.minutes / 2)
            loss = {"objective.loss": "matching"} if way == "matched" else {}
            settings = student_settings(options.teacher, half, loss) | loss
            finish(settings | guided | shared, run, options.minutes / 2)
        return run
    settings = preset("one-step") | ({"objective.to_data": 1.0} if way == "ect" else {})
    if way in ("paths", "flow-map"):
        loss = OF_FLOW_MAP if way == "flow-map" else {}
        settings = student_settings(options.teacher, asked=loss) | loss | guided
    with own_paths(run):
        finish(settings | shared, run, options.minutes)
    return run


@contextmanager
def own_paths(run: Path) -> Iterator[None]:
    """The cache without the paths that others have drawn: a folder beside the run."""
    own, usual = run.with_name(f"{run.name}-cache"), cache_dir()
    for folder in (own, usual):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in usual.iterdir():
        if folder.name != "paths" and not (own / folder.name).exists():
            (own / folder.name).symlink_to(folder.resolve())
    with patch.dict(os.environ, UNDIFFUSE_CACHE=str(own)):
        yield


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
