"""The same scribbles through a GAN and through SDEdit: how real the results are, and how true to the scribbles.

    undiffuse train fashion-mnist --model gan --minutes 20 --out runs/gan
    python benchmarks/scribbles.py fashion-mnist runs/gan OUT.json --figure OUT.png

Strokes of test pictures as in benchmarks/editing.py. A GAN is projected onto them in two ways: its latent is optimised
until the block means of the picture are those of the strokes, at several weights of ||z||^2, which keeps z where the
GAN draws from (Meng et al. 2022 compare with such projections, section 5.1); and by an encoder, trained for some
minutes on strokes of the GAN's own samples. SDEdit runs at its strengths. All are told the class.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from editing import BLOCK, STRENGTHS, block_means, rmse, strokes
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.build import make_data
from undiffuse.conditions import Labels
from undiffuse.data import ImageSet
from undiffuse.editing.rows import edit
from undiffuse.files import write_json
from undiffuse.generate import Recipe
from undiffuse.metrics.features import find_extractor
from undiffuse.metrics.frechet import frechet_distance, moments
from undiffuse.model import Model, load
from undiffuse.plots import save_figure, strips
from undiffuse.progress import bar
from undiffuse.rivals.gan import R3GAN

PRIORS = (0.0, 1e-3, 1e-2, 1e-1)
SEARCH, STARTS, RATE, BATCH = 200, 4, 0.05, 64


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


def measured(
    ways: dict[str, Callable[[], np.ndarray]], test: ImageSet, data: ImageSet, n: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Realism and faithfulness of each way, and its pictures."""
    extractor = find_extractor("classifier", data, test)
    rows, painted = test.images[:n], strokes(test.images[:n])
    reference = moments(extractor.extract(torch.from_numpy(test.images[n : 2 * n])).pooled)
    figures, pictures = [], {}
    for name, draw in ways.items():
        began = time.perf_counter()
        pictures[name] = draw()
        seconds = (time.perf_counter() - began) / n
        seen = extractor.extract(torch.from_numpy(pictures[name]))
        figures.append(
            {
                "way": name,
                "frechet": frechet_distance(moments(seen.pooled), reference),
                "from_strokes": rmse(block_means(pictures[name]), block_means(painted)),
                "from_picture": rmse(*(torch.from_numpy(x).float() / 127.5 - 1 for x in (pictures[name], rows))),
                "class_seen": (seen.logits.argmax(1).numpy() == test.labels[:n]).mean().item(),
                "seconds": seconds,
            }
        )
        print(
            "| " + " | ".join(f"{x:.3f}" if isinstance(x, float) else x for x in figures[-1].values()) + " |",
            flush=True,
        )
    return figures, pictures


def draw_curve(figures: list[dict[str, Any]], path: Path) -> None:
    """Realism over faithfulness: a line for SDEdit, one for the optimised GAN, a point for its encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4))
    axes = figure.subplots()
    for start, marker in (("SDEdit", "o-"), ("GAN, optimised", "s-"), ("GAN, encoder", "^"), ("the pictures", "*")):
        some = [row for row in figures if row["way"].startswith(start)]
        axes.plot([row["from_strokes"] for row in some], [row["frechet"] for row in some], marker, label=start)
    axes.set_xlabel("root mean square distance from the strokes (faithful: left)")
    axes.set_ylabel("Frechet distance (real: down)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    """Edits, measures, prints a table in Markdown, writes the JSON and two figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("gan")
    parser.add_argument("json", type=Path)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=2, help="of the encoder's training")
    parser.add_argument("--figure", type=Path, default=Path("scribbles.png"))
    options = parser.parse_args()
    model, of_gan = load(options.model), load(options.gan)
    gan, n = generator_of(of_gan), options.n
    data, test = (make_data(model.config.data, split) for split in ("train", "test"))
    assert test.labels is not None
    painted, labels = strokes(test.images[:n]), torch.from_numpy(test.labels[:n].astype(np.int64))
    wanted, condition = block_means(painted), Labels(labels, len(test.classes))
    assert gan.classes == len(test.classes), "a GAN with the classes of the data"

    def decoded(x: Tensor) -> np.ndarray:
        return of_gan.domain.decode(x.clamp(-1, 1))

    def by_search(prior: float) -> np.ndarray:
        parts = zip(wanted.split(BATCH), labels.split(BATCH), strict=True)
        return decoded(torch.cat([optimised(gan, *part, prior) for part in parts]))

    ways: dict[str, Callable[[], np.ndarray]] = {"the strokes": lambda: painted}
    ways |= {
        f"SDEdit, strength {strength}": lambda strength=strength: edit(
            model, painted, Recipe(), condition, strength=strength, tick=lambda done: None
        )
        for strength in STRENGTHS
    }
    ways |= {f"GAN, optimised, prior {prior}": lambda prior=prior: by_search(prior) for prior in PRIORS}
    encoder = encoder_of(gan, wanted[0].numel(), options.minutes)
    ways["GAN, encoder"] = lambda: decoded(gan.generator(encoder(wanted, labels), labels))
    ways["the pictures themselves"] = lambda: test.images[:n]
    with bar("editing", 0):
        figures, pictures = measured(ways, test, data, n)
    shown = ("the strokes", "SDEdit, strength 0.5", "SDEdit, strength 0.7", *list(ways)[-6:])
    picked = np.linspace(0, n - 1, 12).round().astype(int)
    strips([(name, pictures[name][picked]) for name in shown], [""] * 12, "Scribbles become pictures", options.figure)
    draw_curve(figures, options.figure.with_stem(f"{options.figure.stem}-curve"))
    medians = {"seconds of SDEdit": statistics.median(f["seconds"] for f in figures if f["way"].startswith("SDEdit"))}
    facts = {"model": model.fingerprint, "gan": of_gan.fingerprint, "trained": of_gan.training, "n": n, **medians}
    write_json(options.json, {**facts, "rows": figures})


if __name__ == "__main__":
    main()
