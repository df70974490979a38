"""One table: quality against evaluations of the network for every sampler, from which the defaults are chosen.

    python benchmarks/samplers.py MODEL OUT.json [--evaluations 5,8,10,20,50] [--n 512] [--only dpm++2m,ddim]

Frechet distance (not FID) to the test images in the features of `undiffuse evaluate`, at equal numbers of evaluations:
Heun's method takes two for a step. What OUT.json holds already is not measured again. Writes OUT.json and OUT.png.
"""

import argparse
from pathlib import Path
from typing import Any

from undiffuse.evaluation import evaluate
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe
from undiffuse.plots import curves

CONTENDERS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "ddim eta=1": {"sampler": "ddim", "eta": 1.0},
    "euler": {"sampler": "euler"},
    "heun": {"sampler": "heun"},
    "dpm++2m": {"sampler": "dpm++2m"},
    "dpm++2m karras": {"sampler": "dpm++2m", "grid": "karras"},
    "dpm++2m trailing": {"sampler": "dpm++2m", "grid": "trailing"},
    "dpm++3m": {"sampler": "dpm++3m"},
    "unipc": {"sampler": "unipc"},
    "unipc3": {"sampler": "unipc3"},
}


def recipe_of(options: dict[str, Any], evaluations: int) -> Recipe:
    """Of so many evaluations, or of one fewer where the sampler cannot have just so many."""
    steps = (evaluations + 1) // 2 if options["sampler"] == "heun" else evaluations
    return Recipe(steps=steps, **options)


def main() -> None:
    """Measures what is missing, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--evaluations", default="5,8,10,20,50")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    options = parser.parse_args()
    counts = [int(count) for count in options.evaluations.split(",")]
    found = read_json(options.out) if options.out.exists() else {"model": options.model, "n": options.n, "frechet": {}}
    for name in options.only.split(","):
        known = found["frechet"].setdefault(name, {})
        missing = [count for count in counts if str(count) not in known]
        recipes = [recipe_of(CONTENDERS[name], count) for count in missing]
        done = evaluate(options.model, n=options.n, metrics="frechet", recipes=recipes) if recipes else ()
        for count, evaluation in zip(missing, done, strict=False):
            measure = evaluation.values["frechet"]
            known[str(count)] = {"value": measure.value, "interval": [measure.low, measure.high]}
            found["real"] = evaluation.floor["frechet"].value
            print(f"{name:20} {count:4} evaluations: {measure.value:.3f}", flush=True)
            write_json(options.out, found)
    lines = {
        name: ([int(count) for count in values], [entry["value"] for entry in values.values()])
        for name, values in found["frechet"].items()
    }
    panel = (f"Frechet distance, {options.model}, {found['n']} samples", "evaluations of the network", lines)
    curves([panel], options.out.with_suffix(".png"), log="xy")


if __name__ == "__main__":
    main()
