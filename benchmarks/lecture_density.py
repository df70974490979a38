"""Bits per dimension by the number of steps: the discrete bound comes down to the continuous one, for any model.

    python benchmarks/lecture_density.py MODEL... --json docs/lecture/density.json --figure density.png

The same network each time; only the bound's T and the variance of p(x_s | x_t) differ. Test images, without classes.
"""

import argparse
from pathlib import Path

import numpy as np

from undiffuse.files import write_json
from undiffuse.likelihood import density
from undiffuse.model import load
from undiffuse.plots import curves
from undiffuse.progress import bar

STEPS = (10, 100, 1000)
VARIANCES = ("large", "small", "optimal")
DRAWS = 10


def main() -> None:
    """Measures, prints a table in Markdown and writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--json", type=Path, default=Path("density.json"))
    parser.add_argument("--figure", type=Path, default=Path("density.png"))
    options = parser.parse_args()
    measured, panels = [], []
    print(f"| | {' | '.join(map(str, STEPS))} |")
    print("|---" * (len(STEPS) + 1) + "|")
    for name in options.models:
        model, lines = load(name), {}
        for variance in VARIANCES:
            found = [
                density(model, n=options.n, bound=steps, variance=variance, draws=DRAWS, bar=bar) for steps in STEPS
            ]
            bits = [one.parts["bits_per_dim"] for one in found]
            cells = " | ".join(f"{part.mean:.3f} ({part.error:.3f})" for part in bits)
            print(f"| {name}, {variance} | {cells} |", flush=True)
            lines[variance] = np.array(STEPS), np.array([part.mean for part in bits])
            measured += [one.to_json() for one in found]
        if model.denoiser.process.schedule.steps is None:
            limit = density(model, n=options.n, bound="continuous", draws=DRAWS, bar=bar)
            part = limit.parts["bits_per_dim"]
            print(f"| {name}, continuous | | | {part.mean:.3f} ({part.error:.3f}) |", flush=True)
            lines["continuous"] = np.array([STEPS[0], STEPS[-1]]), np.array([part.mean, part.mean])
            measured.append(limit.to_json())
        panels.append((f"{name}: bits/dim", "steps of the bound", lines))
    write_json(options.json, measured)
    curves(panels, options.figure, log="xy")


if __name__ == "__main__":
    main()
