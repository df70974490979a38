"""SDEdit and inpainting measured on clothes that the model never saw, and the picture of every kind of edit.

    python benchmarks/editing.py fashion-mnist docs/benchmarks/editing.json --figure docs/figures/editing.png

SDEdit (Meng et al. 2022): each test picture is degraded to strokes (blocks of four pixels, five greys) and edited with
its class at several strengths. Realism is the Frechet distance of the edits to the test pictures in the features of the
data's classifier, with the strokes' own and that of samples beside it; faithfulness is the root mean square difference
of the edits' block means from the strokes, and of the edits from the picture that the strokes were made of.

Inpainting: the lower half is hidden. The energy distance (pixels) of the joint of a picture's class and its filled half
to real ones of the class, zero for the right conditional law and unaffected by copying, and the spread of eight fills.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.build import make_data
from undiffuse.conditions import Condition, Labels
from undiffuse.data import ImageSet
from undiffuse.editing.rows import edit, interpolate, mix, placed, regenerate
from undiffuse.files import write_json
from undiffuse.generate import Recipe
from undiffuse.metrics.features import find_extractor
from undiffuse.metrics.frechet import frechet_distance, moments
from undiffuse.model import Model, load
from undiffuse.plots import strips
from undiffuse.progress import bar

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BLOCK, GREYS = 4, 5


def strokes(rows: np.ndarray) -> np.ndarray:
    """Blocks of BLOCK pixels in GREYS greys, uint8 like `rows`."""
    x = torch.tensor(rows).permute(0, 3, 1, 2).float()
    flat = functional.avg_pool2d(x, BLOCK)
    flat = (flat / 255 * (GREYS - 1)).round() / (GREYS - 1) * 255
    found: np.ndarray = (
        functional.interpolate(flat, scale_factor=BLOCK).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    )
    return found


def block_means(rows: np.ndarray) -> Tensor:
    return functional.avg_pool2d(torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1, BLOCK)


def rmse(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'| over different samples, rows of (N, D) (Szekely & Rizzo 2013)."""
    within = [torch.pdist(x).mean().item() for x in (a, b)]
    return 2 * torch.cdist(a, b).mean().item() - sum(within)


def of_strengths(model: Model, test: ImageSet, n: int, steps: int, tick: Callable[[int], None]) -> list[dict[str, Any]]:
    """Realism and faithfulness of SDEdit at each strength, the strokes themselves first."""
    extractor = find_extractor("classifier", make_data(model.config.data, "train"), test)
    real, rows = test.images[n : 2 * n], test.images[:n]
    assert test.labels is not None
    condition = Labels(torch.from_numpy(test.labels[:n].astype(np.int64)), len(test.classes))
    painted = strokes(rows)

    def features(images: np.ndarray) -> Any:
        return extractor.extract(torch.from_numpy(images))

    reference = moments(features(real).pooled)
    found = []
    for strength in (0.0, *STRENGTHS):
        edited = edit(model, painted, Recipe(steps=steps), condition, strength=strength, tick=tick)
        seen = features(edited)
        found.append(
            {
                "strength": strength,
                "frechet": frechet_distance(moments(seen.pooled), reference),
                "from_strokes": rmse(block_means(edited), block_means(painted)),
                "from_picture": rmse(*(torch.from_numpy(x).float() / 127.5 - 1 for x in (edited, rows))),
                "class_seen": (seen.logits.argmax(1).numpy() == test.labels[:n]).mean().item(),
            }
        )
    floor = features(rows)
    found.append(
        {
            "strength": "the pictures themselves",
            "frechet": frechet_distance(moments(floor.pooled), reference),
            "from_strokes": rmse(block_means(rows), block_means(painted)),
            "from_picture": 0.0,
            "class_seen": (floor.logits.argmax(1).numpy() == test.labels[:n]).mean().item(),
        }
    )
    return found


def of_fills(model: Model, test: ImageSet, n: int, steps: int, tick: Callable[[int], None]) -> list[dict[str, Any]]:
    """Inpainting of the lower half by replacement, with several numbers of resamplings; eight fills of each picture."""
    assert test.labels is not None
    rows, labels = test.images[:n], test.labels[:n].astype(np.int64)
    below = np.zeros(rows.shape[1:3], dtype=bool)
    below[rows.shape[1] // 2 :] = True
    repeated = np.repeat(rows, 8, axis=0)
    condition = Labels(torch.from_numpy(np.repeat(labels, 8)), len(test.classes))
    others = test.images[n:], test.labels[n:]

    def judged(fills: np.ndarray) -> dict[str, float]:
        """Energy distance over whole pictures of each class, and the spread of eight fills."""
        x = torch.from_numpy(fills).flatten(1).double() / 255
        distances, spreads = [], x.view(n, 8, -1)
        for label in range(len(test.classes)):
            real = torch.from_numpy(others[0][others[1] == label]).flatten(1).double() / 255
            distances.append(energy_distance(spreads[labels == label, 0], real))
        spread = float(np.mean([torch.pdist(eight).mean().item() for eight in spreads]))
        return {"energy_distance": float(np.mean(distances)), "spread": spread}

    found: list[dict[str, Any]] = [{"method": "the pictures themselves", **judged(repeated)}]
    for resampling in (1, 3, 10):
        recipe = Recipe("ddpm", steps)
        fills = edit(model, repeated, recipe, condition, strength=1, repaint=below, resampling=resampling, tick=tick)
        found.append({"method": f"replacement, resampled {resampling}", **judged(fills)})
    anew = edit(model, repeated, Recipe(steps=steps), condition, strength=1, tick=tick)
    found.append({"method": "the lower half of a sample", **judged(np.where(below[..., None], anew, repeated))})
    return found


def picture(model: Model, test: ImageSet, path: Path) -> None:
    """Every kind of edit of one bag and one coat, a row each, named on the left."""
    assert test.labels is not None
    bag, coat = (test.images[test.labels == test.classes.index(name)][k] for name, k in (("Bag", 3), ("Coat", 0)))

    def of(name: str, count: int) -> Condition:
        return model.of_class(name, count)

    eight, recipe = np.repeat(bag[None], 8, axis=0), Recipe(steps=40)
    right = np.zeros(bag.shape[:2], dtype=bool)
    right[:, bag.shape[1] // 2 :] = True
    painted = np.repeat(strokes(bag[None]), 8, axis=0)
    small, around = placed(eight, 0.4)
    swept = [
        edit(model, painted[:1], recipe, of("Bag", 1), strength=strength)[0]
        for strength in (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.85, 1.0)
    ]
    variations = edit(model, eight, recipe, of("Bag", 8), strength=0.5)
    filled = edit(model, eight, Recipe("ddpm", 40), of("Bag", 8), strength=1, repaint=right, resampling=5)
    larger = edit(model, small, Recipe("ddpm", 40), of("Bag", 8), strength=1, repaint=around, resampling=5)
    another = [
        regenerate(model, coat[None], Recipe(steps=40), of("Coat", 1), of(name, 1), method="friendly", strength=0.8)[0]
        for name in ("Coat", "Pullover", "Dress", "Shirt", "T-shirt/top", "Trouser", "Bag", "Ankle boot")
    ]
    between = interpolate(model, bag, coat, Recipe(steps=40), model.unconditional(1), 8)
    mixes = [
        mix(model, coat[None], bag[None], Recipe(steps=40), model.unconditional(1), switch=switch)[0]
        for switch in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    ]
    hidden, canvas = eight[:1].copy(), small[:1].copy()
    hidden[:, right] = 127
    rows = [
        ("strokes, edited ever more strongly", np.stack(swept)),
        ("variations of a bag", np.concatenate([eight[:1], variations[1:]])),
        ("its right half painted", np.concatenate([hidden, filled[1:]])),
        ("what is around it painted", np.concatenate([canvas, larger[1:]])),
        ("a coat as other classes", np.stack(another)),
        ("from the bag to the coat", between),
        ("the coat's layout, the bag's texture", np.stack(mixes)),
    ]
    strips(rows, [""] * 8, f"Edits by {model.name}", path)


def main() -> None:
    """Edits, measures, prints tables in Markdown, writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("json", type=Path)
    parser.add_argument("-n", type=int, default=1000, help="pictures for SDEdit; a quarter for inpainting")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--figure", type=Path, default=Path("editing.png"))
    options = parser.parse_args()
    model = load(options.model)
    test = make_data(model.config.data, "test")
    picture(model, test, options.figure)
    fills = options.n // 4
    total = len(STRENGTHS) * options.n * options.steps + fills * 8 * options.steps * (1 + 3 + 10 + 1)
    with bar("editing", total) as tick:
        swept = of_strengths(model, test, options.n, options.steps, tick)
        filled = of_fills(model, test, fills, options.steps, tick)
    for rows in (swept, filled):
        print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
        for row in rows:
            print("| " + " | ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
    write_json(
        options.json,
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "steps": options.steps,
            "sdedit": {"n": options.n, "rows": swept},
            "inpainting": {"n": fills, "fills": 8, "rows": filled},
        },
    )


if __name__ == "__main__":
    main()
