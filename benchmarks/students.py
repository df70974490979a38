"""Ways to one evaluation, in equal CPU time: four ways to teach a student, and two without a teacher.

    OMP_NUM_THREADS=1 python benchmarks/students.py OUT [--teacher fashion-mnist] [--minutes 20] [--seeds 1]
    python benchmarks/students.py OUT --report students.json

"paths" and "flow-map" learn from the teacher for all of the time. "sharp" and "matched" spend half of it on paths, and
half on the critic, or on matching. "solution" and "ect" (the same loss with every jump to the data) begin without the
teacher, whose training is on top for the others. Drawing paths counts. One thread each. Then n samples in one
evaluation, measured as `undiffuse evaluate` does, beside the teacher in 1, 5 and 20 steps. Writes OUT/WAY-SEED.json;
what is there is kept.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import missing, options_of, report

from undiffuse import load
from undiffuse.config import preset
from undiffuse.devices import conditions
from undiffuse.evaluation import evaluate
from undiffuse.files import write_json
from undiffuse.generate import Recipe

WAYS = ("teacher", "paths", "flow-map", "sharp", "matched", "solution", "ect")
PATHS_A_MINUTE = 700
OF_FLOW_MAP = {"objective.loss": "flow-map", "objective.draw": "low-discrepancy"}
TEACHER = tuple(Recipe(steps=steps) for steps in (1, 5, 20))
METRICS = "frechet,manifold,classes,copying"
SHOWN = ("frechet", "precision", "recall", "coverage", "recognised", "copies")


def trained(way: str, seed: int, options: argparse.Namespace) -> Path:
    """The run of one way, trained now or before."""
    teacher = load(options.teacher)
    assert teacher.learnt is not None
    shared = {"data.source": teacher.learnt.source, "training.seed": seed, **QUIET}
    run, plan = options.out / f"{way}-{seed}-run", options.out / "steps.json"
    if way in ("solution", "ect"):
        import_module("undiffuse.objectives.solution").TO_DATA = 1.0 if way == "ect" else 0.5  # type: ignore[attr-defined]
        finish(preset("one-step") | shared, run, options.minutes, plan, way)
        return run
    taught = {**shared, "training.base": options.teacher, "objective.guidance": options.guidance}
    taught["network.inpaint"] = False
    if way == "flow-map":
        finish(preset("distill") | taught | OF_FLOW_MAP, run, options.minutes, plan, way)
        return run
    minutes = options.minutes if way == "paths" else options.minutes / 2
    taught["objective.paths"] = round(PATHS_A_MINUTE * minutes)
    student = run if way == "paths" else options.out / f"half-{seed}-run"
    finish(preset("distill") | taught, student, minutes, plan, student.name.removesuffix(f"-{seed}-run"))
    if way != "paths":
        of_way = {"training.base": str(student), "training.teacher": options.teacher}
        loss = {"objective.loss": "matching"} if way == "matched" else {}
        finish(preset("adversarial") | taught | of_way | loss, run, minutes, plan, way)
    return run


def main() -> None:
    """Trains and measures what OUT has not."""
    options = options_of(__doc__, WAYS, minutes=20.0, n=2000, seeds=1, teacher="fashion-mnist", guidance=1.0)
    if options.report:
        report(options.out, options.report, SHOWN)
        return
    for way, seed, path in missing(options, WAYS):
        if way == "teacher" and seed:
            continue
        model = options.teacher if way == "teacher" else trained(way, seed, options)
        recipes = TEACHER if way == "teacher" else (Recipe(steps=1),)
        rows: dict[str, Any] = {}
        for recipe, found in zip(recipes, evaluate(model, n=options.n, metrics=METRICS, recipes=recipes), strict=True):
            name = f"{way}, {recipe.steps} step{'s' * (recipe.steps > 1)}"
            rows[name] = {key: one.value for key, one in found.values.items()}
            shown = [f"{key} {rows[name][key]:.3f}" for key in SHOWN]
            print(f"{name:20} {seed} {', '.join(shown)}", flush=True)
        facts = {"teacher": options.teacher, "minutes": options.minutes, "n": options.n, "seed": seed}
        write_json(path, {**facts, "training": load(model).training, "rows": rows, **conditions()})


if __name__ == "__main__":
    main()
