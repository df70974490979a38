"""DDIM gives the outline after 10 steps where DDPM needs hundreds: the paper's table 1, measured on a model here.

    python benchmarks/lecture_ddim.py MODEL -n 512 --json docs/lecture/ddim.json --figure docs/figures/lecture/ddim.png

Frechet distance for eta in {0, 0.2, 0.5, 1} and for DDPM with the larger variance, by number of steps, beside what Song
et al. (2021, table 1) found on CIFAR-10. Samples are kept in the cache: interrupted, it goes on.
"""

import argparse
from pathlib import Path

import numpy as np

from undiffuse.evaluation.bench import bench
from undiffuse.evaluation.evaluate import evaluate_model
from undiffuse.files import write_json
from undiffuse.generate import Recipe
from undiffuse.model import load
from undiffuse.plots import curves
from undiffuse.progress import bar

STEPS = (5, 10, 20, 50, 100, 250, 1000)
ROWS = {
    **{f"eta = {eta:g}": lambda steps, eta=eta: Recipe("ddim", steps, eta=eta) for eta in (0.0, 0.2, 0.5, 1.0)},
    "larger variance": lambda steps: Recipe("ddpm-large", steps),
}
CIFAR_STEPS = (10, 20, 50, 100, 1000)
CIFAR = {
    "eta = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "larger variance": (367.43, 133.37, 32.72, 9.99, 3.17),
}


def main() -> None:
    """Samples, measures, prints a table in Markdown and writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=512)
    parser.add_argument("--json", type=Path, default=Path("ddim.json"))
    parser.add_argument("--figure", type=Path, default=Path("ddim.png"))
    options = parser.parse_args()

    model = load(options.model)
    measured_by = bench(model.config.data, model.data.shape, groups=("frechet",), bar=bar)
    table: dict[str, list[dict]] = {row: [] for row in ROWS}
    for steps in STEPS:
        for row, recipe in ROWS.items():
            evaluation = evaluate_model(measured_by, model, recipe(steps), options.n)
            if evaluation is None:  # the first process of a torchrun writes it down
                continue
            value, floor = evaluation.values["frechet"], evaluation.floor["frechet"]
            table[row].append({"steps": steps, **vars(value)})
            print(f"{row:16} {steps:5} steps: {value.value:8.3f} ({value.low:.3f} to {value.high:.3f})", flush=True)
    if evaluation is None:
        return
    conditions = {key: fact for key, fact in evaluation.conditions.items() if key != "sampling"}
    write_json(options.json, {"n": options.n, "floor": vars(floor), "rows": table, "conditions": conditions})
    print(f"\nreal against real at {options.n}: {floor.value:.3f}\n\n| | {' | '.join(map(str, STEPS))} |")
    print("|---" * (len(STEPS) + 1) + "|")
    distances = {row: [cell["value"] for cell in cells] for row, cells in table.items()}
    for row, values in distances.items():
        print(f"| {row} | {' | '.join(f'{value:.2f}' for value in values)} |")

    def panel(title: str, steps: tuple[int, ...], rows: dict) -> tuple:
        return title, "steps", {row: (np.array(steps), np.array(values)) for row, values in rows.items()}

    ours = panel(f"{model.data.name}: Frechet distance", STEPS, distances)
    curves([ours, panel("CIFAR-10: FID, Song et al. 2021", CIFAR_STEPS, CIFAR)], options.figure, log="xy")


if __name__ == "__main__":
    main()
