"""Early steps decide the subject of a picture, late ones its details: measured by sharing the first k steps.

    python benchmarks/lecture_shared.py fashion-mnist -n 256 --json docs/lecture/shared.json \
        --figure docs/figures/lecture/shared.png

Pairs of samples, drawn without a class by DDPM, share the noise of the first k steps and continue with noise of their
own (Ho et al. 2020, figure 7). High-level attribute: whether the data's classifier sees the same class in both.
Low-level attribute: the correlation of their fine structure, a picture minus its blurred version.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.build import make_data
from undiffuse.explain import with_switched_noise
from undiffuse.files import write_json
from undiffuse.generate import Recipe
from undiffuse.metrics.features import find_extractor
from undiffuse.metrics.intervals import mean
from undiffuse.model import load
from undiffuse.plots import curves
from undiffuse.progress import bar
from undiffuse.randomness import keyed_draws

SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)


def fine(images: np.ndarray) -> Tensor:
    """What a 3 x 3 mean removes from each picture, flattened, with norm 1."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    return functional.normalize((x - functional.avg_pool2d(x, 3, 1, 1)).flatten(1), dim=1)


def main() -> None:
    """Samples, measures, prints a table in Markdown and writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=256, help="pairs")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("shared.json"))
    parser.add_argument("--figure", type=Path, default=Path("shared.png"))
    options = parser.parse_args()

    model, recipe, n = load(options.model), Recipe("ddpm", options.steps), options.n
    train, test = (make_data(model.config.data, split) for split in ("train", "test"))
    extractor = find_extractor("classifier", train, test)
    first, second = (keyed_draws(0, range(start, start + n)) for start in (0, n))

    def draw(shared: int) -> np.ndarray:
        return with_switched_noise(model, recipe, first, second, shared, n, model.unconditional(n), lambda: tick(n))

    with bar("sampling", (len(SHARES) + 1) * n * options.steps) as tick:
        whole = draw(options.steps + 1)
        others = {share: draw(round(share * options.steps)) for share in SHARES}
    labels = {share: extractor.extract(torch.from_numpy(x)).logits.argmax(1).numpy() for share, x in others.items()}
    own = extractor.extract(torch.from_numpy(whole)).logits.argmax(1).numpy()
    rows = []
    print("| first steps shared | same class | fine structure, correlation |\n|---|---|---|")
    for share, images in others.items():
        high, low = mean(labels[share] == own), mean((fine(images) * fine(whole)).sum(1).numpy())
        rows.append({"share": share, **{name: vars(value) for name, value in (("class", high), ("fine", low))}})
        print(
            f"| {share:.0%} | {high.value:.2f} ({high.low:.2f} to {high.high:.2f}) "
            f"| {low.value:.2f} ({low.low:.2f} to {low.high:.2f}) |"
        )
    write_json(options.json, {"model": options.model, "pairs": n, "steps": options.steps, "rows": rows})
    x = np.array(SHARES)
    lines = {
        "same class (high level)": (x, np.array([row["class"]["value"] for row in rows])),
        "fine structure, correlation (low level)": (x, np.array([row["fine"]["value"] for row in rows])),
    }
    curves(
        [(f"Pairs that share their first steps ({options.steps} of DDPM)", "share of the steps", lines)], options.figure
    )


if __name__ == "__main__":
    main()
