"""Quality against evaluations of the network for every sampler: the basis for choosing the defaults.

    python benchmarks/samplers.py MODEL OUT.json [--evaluations 5,8,10,20,50] [-n 512] [--only dpm++2m,ddim]
    python benchmarks/samplers.py MODEL OUT.json --paper [--figure FIGURE.png]

Frechet distance (not FID) to the test images in the features of `undiffuse evaluate`, at equal numbers of evaluations:
Heun's method takes two per step. With --paper, the rows and steps of table 1 of Song et al. 2021: DDIM for eta 0 to 1
and DDPM with the larger variance, beside their results on CIFAR-10. Results already in OUT.json are not measured again.
Prints a table in Markdown, writes OUT.json and a figure.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.devices import conditions
from undiffuse.evaluation import evaluate
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe
from undiffuse.plots import Panel, curves
from undiffuse.progress import bar

CONTENDERS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "ddim eta=1": {"sampler": "ddim", "eta": 1.0},
    "euler": {"sampler": "euler"},
    "heun": {"sampler": "heun"},
    "dpm++2m": {"sampler": "dpm++2m"},
    "dpm++2m log-snr": {"sampler": "dpm++2m", "grid": "log-snr"},
    "dpm++2m trailing": {"sampler": "dpm++2m", "grid": "trailing"},
    "dpm++3m": {"sampler": "dpm++3m"},
    "unipc": {"sampler": "unipc"},
    "unipc log-snr": {"sampler": "unipc", "grid": "log-snr"},
    "unipc3": {"sampler": "unipc3"},
}
EVALUATIONS = "5,8,10,20,50"
PAPER: dict[str, dict[str, Any]] = {
    **{f"eta = {eta:g}": {"sampler": "ddim", "eta": eta} for eta in (0.0, 0.2, 0.5, 1.0)},
    "larger variance": {"sampler": "ddpm-large"},
}
PAPER_EVALUATIONS = "5,10,20,50,100,250,1000"
CIFAR_STEPS = (10, 20, 50, 100, 1000)
CIFAR = {
    "eta = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "larger variance": (367.43, 133.37, 32.72, 9.99, 3.17),
}


def recipe_of(options: dict[str, Any], evaluations: int) -> Recipe:
    """The recipe with this number of evaluations, or with one fewer if the sampler cannot have exactly that many."""
    steps = (evaluations + 1) // 2 if options["sampler"] == "heun" else evaluations
    return Recipe(steps=steps, **options)


def markdown(frechet: dict[str, dict[str, Any]]) -> str:
    """A row for each sampler, a column for each number of evaluations."""
    counts = sorted({count for row in frechet.values() for count in row}, key=int)
    lines = ["| | " + " | ".join(counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for name, row in frechet.items():
        cells = (f"{row[count]['value']:.2f}" if count in row else "-" for count in counts)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def panels(found: dict[str, Any], paper: bool) -> list[Panel]:
    """The results, and beside them those of the paper."""
    lines = {
        name: (np.array([int(count) for count in row]), np.array([entry["value"] for entry in row.values()]))
        for name, row in found["frechet"].items()
    }
    ours = (f"Frechet distance, {found['model']}, {found['n']} samples", "evaluations of the network", lines)
    theirs = {name: (np.array(CIFAR_STEPS), np.array(values)) for name, values in CIFAR.items()}
    return [ours, ("CIFAR-10: FID, Song et al. 2021", "steps", theirs)] if paper else [ours]


def main() -> None:
    """Measures what is missing in OUT.json, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--evaluations", help=f"[{EVALUATIONS}; of --paper {PAPER_EVALUATIONS}]")
    parser.add_argument("-n", type=int, default=512)
    parser.add_argument("--only", help="some of the rows, with commas")
    parser.add_argument("--figure", type=Path, help="[OUT.png]")
    options = parser.parse_args()
    rows = PAPER if options.paper else CONTENDERS
    counts = (options.evaluations or (PAPER_EVALUATIONS if options.paper else EVALUATIONS)).split(",")
    found = read_json(options.out) if options.out.exists() else {"model": options.model, "n": options.n, "frechet": {}}
    if (found["model"], found["n"]) != (options.model, options.n):
        parser.error(f"{options.out} is for {found['n']} samples of {found['model']}: choose another OUT.json")
    for name in options.only.split(",") if options.only else rows:
        known = found["frechet"].setdefault(name, {})
        missing = [count for count in counts if count not in known]
        recipes = [recipe_of(rows[name], int(count)) for count in missing]
        done = evaluate(options.model, n=options.n, metrics="frechet", recipes=recipes, bar=bar) if recipes else ()
        for count, evaluation in zip(missing, done, strict=False):
            measure = evaluation.values["frechet"]
            known[count] = {"value": measure.value, "interval": [measure.low, measure.high]}
            found["real"] = evaluation.floor["frechet"].value
            facts = {key: fact for key, fact in evaluation.conditions.items() if key != "sampling"}
            found["conditions"] = {**facts, **conditions()}
            print(f"{name:20} {count:>4} evaluations: {measure.value:.3f}", flush=True)
            write_json(options.out, found)
    print(f"\nreal against real at {found['n']}: {found['real']:.3f}\n\n{markdown(found['frechet'])}")
    curves(panels(found, options.paper), options.figure or options.out.with_suffix(".png"), log="xy")


if __name__ == "__main__":
    main()
