"""Two likelihoods picture by picture: the diffusion models' bound beside the autoregressive models' exact figure.

    python benchmarks/density_pairs.py fashion-mnist mnist --json docs/likelihood/pairs.json \
        --figure docs/figures/likelihood-pairs.png

Reads what `undiffuse evaluate --metrics bpd --json docs/likelihood/DATA.json` and `benchmarks/autoregressive.py DATA
--out docs/likelihood/autoregressive-DATA.json` have written for the same test images. Pictures differ far more from
each other than two models do on one picture, so the difference is known more precisely than either mean.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from undiffuse.data import load
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json, write_json
from undiffuse.plots import save_figure

FOLDER = Path(__file__).parents[1] / "docs" / "likelihood"
PARTS = 5


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Means of bits per dimension (N,), the mean difference with its standard error, how often ours is lower."""
    difference = ours - theirs
    return {
        "diffusion": ours.mean(),
        "autoregressive": theirs.mean(),
        "difference": difference.mean(),
        "standard_error": difference.std(ddof=1) / len(difference) ** 0.5,
        "share_lower": (difference < 0).mean(),
        "images": len(difference),
    }


def distinct_values(images: np.ndarray) -> np.ndarray:
    """How many different values each picture of (N, ...) has: (N,)."""
    return np.array([len(np.unique(image)) for image in images])


def by_distinct(images: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list[dict[str, float]]:
    """The same for fifths of the pictures (N, ...), those with the fewest different values first."""
    distinct = distinct_values(images)
    return [
        {"fewest": distinct[part].min(), "most": distinct[part].max(), **compared(ours[part], theirs[part])}
        for part in np.array_split(np.argsort(distinct, kind="stable"), PARTS)
    ]


def read(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, and the bits per dimension of each under both models."""
    ours, theirs = read_json(FOLDER / f"{name}.json"), read_json(FOLDER / f"autoregressive-{name}.json")
    if "per_image" not in ours or "per_image" not in theirs:
        raise UsageError(f"the files for {name} hold no bits of single images: measure again with the commands above")
    data = load(name, "test")
    if not data.fingerprint == ours["conditions"]["fingerprint"] == theirs["fingerprints"]["test"]:
        raise UsageError(f"the two files for {name} were not measured on the test images of this machine")
    both = np.array(ours["per_image"]), np.array(theirs["per_image"])
    count = min(map(len, both))
    return np.asarray(data.images[:count]), both[0][:count], both[1][:count]


def draw(found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Every picture as a point; below the diagonal, diffusion is better."""
    figure = Figure(figsize=(5.4 * len(found), 4.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, (images, ours, theirs)) in zip(panels, found.items(), strict=True):
        points = axes.scatter(theirs, ours, c=distinct_values(images), s=2, alpha=0.6, linewidths=0, rasterized=True)
        end = max(ours.max(), theirs.max()) * 1.02
        axes.plot([0, end], [0, end], color="black", linewidth=0.8)
        axes.set(xlim=(0, end), ylim=(0, end), xlabel="autoregressive, bits/dim", title=name)
        axes.set_ylabel("diffusion, bits/dim (a bound)")
        figure.colorbar(points, ax=axes, label="different values in the picture")
    save_figure(figure, path)


def main() -> None:
    """Compares, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="fashion-mnist, mnist")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    try:
        found = {name: read(name) for name in options.data}
        result: dict[str, Any] = {
            name: {"all": compared(*both), "by_distinct_values": by_distinct(images, *both)}
            for name, (images, *both) in found.items()
        }
        result = json.loads(json.dumps(result, default=lambda number: number.item()))
        if options.json:
            write_json(options.json, result)
        if options.figure:
            draw(found, options.figure)
    except UndiffuseError as error:
        parser.exit(error.exit_code, f"{error}\n")
    for name, one in result.items():
        print(name, json.dumps(one["all"]))
        for part in one["by_distinct_values"]:
            values = f"{part['fewest']} to {part['most']} values"
            print(f"  {values:20} {part['difference']:+.4f} ({part['standard_error']:.4f})")


if __name__ == "__main__":
    main()
