"""The same scribbles through a GAN and through SDEdit: how real the results are, and how true to the scribbles.

    OMP_NUM_THREADS=1 python benchmarks/trilemma.py RUNS --only diffusion      # and gan: trained for equal time
    OMP_NUM_THREADS=1 python benchmarks/scribbles.py OUT --runs RUNS [--seeds 3] --figure OUT.png
    python benchmarks/scribbles.py OUT --report scribbles.json --figure scribbles.png

Strokes of test pictures as in benchmarks/editing.py. A GAN is projected onto them in two ways: its latent is optimised
until the block means of the picture are those of the strokes, at several weights of ||z||^2, which keeps z where the
GAN draws from (Meng et al. 2022 compare with such projections, section 5.1); and by an encoder, trained for some
minutes (--minutes) on strokes of the GAN's own samples. SDEdit runs at its strengths. All are told the class. Writes
OUT/scribbles-SEED.json; what is there is kept. --figure shows the pictures; with --report, realism over faithfulness.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from editing import BLOCK, STRENGTHS, block_means, rmse, strokes
from seeds import Rows, measure, missing, options_of, report

from undiffuse.build import make_data
from undiffuse.conditions import Labels
from undiffuse.data import ImageSet
from undiffuse.editing.rows import edit
from undiffuse.generate import Recipe
from undiffuse.metrics.features import find_extractor
from undiffuse.metrics.features.extractor import Extractor
from undiffuse.metrics.frechet import frechet_distance, moments
from undiffuse.model import Model, load
from undiffuse.plots import save_figure, strips
from undiffuse.rivals.gan import R3GAN

PRIORS = (0.0, 1e-2, 1e-1)
SEARCH, STARTS, RATE, BATCH = 200, 2, 0.05, 64

Way = Callable[[], np.ndarray]


def generator_of(model: Model) -> R3GAN:
    """The GAN of a model, without gradients in its weights."""
    network = model.network
    if not isinstance(network, R3GAN):
        raise SystemExit(f"{model.name} is no GAN")
    return network.requires_grad_(False)


def distances(pictures: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared difference of block means, (B,)."""
    return (functional.avg_pool2d(pictures, BLOCK) - wanted).square().flatten(1).mean(1)


def optimised(gan: R3GAN, wanted: Tensor, labels: Tensor, prior: float) -> Tensor:
    """Pictures whose block means come near to `wanted`: Adam on z from several starts, the best of them."""
    count = len(wanted)
    z = torch.randn(STARTS * count, gan.latent, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wants, classes = wanted.repeat(STARTS, 1, 1, 1), labels.repeat(STARTS)
    optimizer = torch.optim.Adam([z], lr=RATE)

    def losses() -> Tensor:
        return distances(gan.generator(z, classes), wants) + prior * z.square().mean(1)

    for step in range(SEARCH):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / SEARCH)
        losses().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        best = losses().view(STARTS, count).argmin(0)
        chosen = z.view(STARTS, count, -1)[best, torch.arange(count)]
        return gan.generator(chosen, labels)


class Encoder(nn.Module):
    """Block means (B, C, h, w) and classes -> z (B, latent)."""

    def __init__(self, numbers: int, classes: int, latent: int, width: int = 512):
        super().__init__()
        self.embedding = nn.Embedding(classes, 64)
        self.layers = nn.Sequential(
            nn.Linear(numbers + 64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, latent)
        )

    def forward(self, means: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([means.flatten(1), self.embedding(labels)], 1))


def encoder_of(gan: R3GAN, numbers: int, minutes: float) -> Encoder:
    """Trained until the block means of samples, and z itself, come back."""
    torch.manual_seed(0)
    encoder = Encoder(numbers, gan.classes, gan.latent)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    began = time.process_time()
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        z, classes = torch.randn(BATCH, gan.latent), torch.randint(gan.classes, (BATCH,))
        with torch.no_grad():
            means = functional.avg_pool2d(gan.generator(z, classes), BLOCK)
        found = encoder(means, classes)
        loss = distances(gan.generator(found, classes), means).mean() + 0.1 * (found - z).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - share)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder.requires_grad_(False)


def figures(pictures: np.ndarray, painted: np.ndarray, test: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """Realism and faithfulness of what was made of the first n test pictures' strokes."""
    n = len(pictures)
    reference = moments(extractor.extract(torch.from_numpy(test.images[n : 2 * n])).pooled)
    seen = extractor.extract(torch.from_numpy(pictures))
    assert seen.logits is not None and test.labels is not None
    return {
        "frechet": frechet_distance(moments(seen.pooled), reference),
        "from strokes": rmse(block_means(pictures), block_means(painted)),
        "from picture": rmse(*(torch.from_numpy(x).float() / 127.5 - 1 for x in (pictures, test.images[:n]))),
        "class seen": (seen.logits.argmax(1).numpy() == test.labels[:n]).mean().item(),
    }


def ways(model: Model, of_gan: Model, painted: np.ndarray, labels: Tensor, minutes: float) -> dict[str, Way]:
    """A name -> how strokes become pictures."""
    gan, wanted = generator_of(of_gan), block_means(painted)
    condition = Labels(labels, gan.classes)

    def by_search(prior: float) -> np.ndarray:
        parts = zip(wanted.split(BATCH), labels.split(BATCH), strict=True)
        return of_gan.domain.decode(torch.cat([optimised(gan, *part, prior) for part in parts]))

    def by_encoder() -> np.ndarray:
        return of_gan.domain.decode(gan.generator(encoder(wanted, labels), labels))

    def by_sdedit(strength: float) -> np.ndarray:
        return edit(model, painted, Recipe(), condition, strength=strength)

    encoder = encoder_of(gan, wanted[0].numel(), minutes)
    found: dict[str, Way] = {"the strokes": lambda: painted}
    found |= {f"SDEdit, strength {strength}": partial(by_sdedit, strength) for strength in STRENGTHS}
    found |= {f"GAN, optimised, prior {prior}": partial(by_search, prior) for prior in PRIORS}
    return found | {"GAN, encoder": by_encoder}


def measured(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about the two models of a seed."""
    models = [load(options.runs / f"{name}-{seed}-run") for name in ("diffusion", "gan")]
    data, test = (make_data(models[0].config.data, split) for split in ("train", "test"))
    assert test.labels is not None
    painted, labels = strokes(test.images[: options.n]), torch.from_numpy(test.labels[: options.n].astype(np.int64))
    extractor, rows, made = find_extractor("classifier", data, test), {}, {}
    for name, draw in ways(*models, painted, labels, options.minutes).items():
        began = time.process_time()
        made[name] = draw()
        seconds = (time.process_time() - began) / options.n
        rows[name] = figures(made[name], painted, test, extractor) | {"seconds": seconds}
        print(name, rows[name], flush=True)
    made["the pictures themselves"] = np.array(test.images[: options.n])
    rows["the pictures themselves"] = figures(made["the pictures themselves"], painted, test, extractor)
    if options.figure and not seed:
        picked = np.linspace(0, options.n - 1, 12).round().astype(int)
        shown = ("the strokes", "SDEdit, strength 0.5", "SDEdit, strength 0.7", *list(made)[-6:])
        strips([(name, made[name][picked]) for name in shown], [""] * 12, "Scribbles become pictures", options.figure)
    return {"trained": {model.name: model.training for model in models}, "rows": rows}


def draw_curve(rows: Rows, path: Path) -> None:
    """Realism over faithfulness: a line for SDEdit, one for the optimised GAN, a point for its encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4))
    axes = figure.subplots()
    for start, marker in (("SDEdit", "o-"), ("GAN, optimised", "s-"), ("GAN, encoder", "^"), ("the pictures", "*")):
        some = [row for name, row in rows.items() if name.startswith(start)]
        x, y = ([row[key]["mean"] for row in some] for key in ("from strokes", "frechet"))
        axes.plot(x, y, marker, label=start)
    axes.set_xlabel("root mean square distance from the strokes (faithful: left)")
    axes.set_ylabel("Frechet distance (real: down)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    """Edits and measures what OUT has not, or reports."""
    options = options_of(__doc__, ("scribbles",), minutes=2.0, n=500, figure=True, runs=Path("trilemma"))
    if options.report:
        rows = report(options.out, options.report, ("frechet", "from strokes", "from picture", "class seen", "seconds"))
        if options.figure:
            draw_curve(rows, options.figure)
        return
    for _, seed, path in missing(options, ("scribbles",)):
        measure(path, options, seed, partial(measured, seed, options))


if __name__ == "__main__":
    main()
