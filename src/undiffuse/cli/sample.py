"""`undiffuse sample`."""

import math
import os
from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import ENGINE_HELP, FORCE, say
from undiffuse.progress import bar


def sample(
    model: str = typer.Argument(
        ..., help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    n: int = typer.Option(64, "-n", min=1, help="How many."),
    sampler: str = typer.Option(
        "auto",
        help="auto (by the steps), ddpm, ddpm-large, ddpm-learned, ddim, euler, heun, dpm++2m, dpm++3m, unipc, unipc3.",
        autocompletion=complete.samplers,
    ),
    steps: int = typer.Option(20, min=1, help="Steps, from noise to data."),
    eta: float = typer.Option(0.0, help="Of ddim: 0 is deterministic, 1 is DDPM."),
    grid: str = typer.Option(
        None,
        help="trailing, leading, linspace, quadratic, karras, log-snr [the sampler's own].",
        autocompletion=complete.grids,
    ),
    threshold: str = typer.Option(
        "clip", help="Of predicted images: clip, dynamic or none.", autocompletion=complete.thresholds
    ),
    class_name: str = typer.Option(None, "--class", help="All of one class (a name or a number)."),
    seed: int = typer.Option(0, help="Sample k of a seed is always the same picture."),
    out: Path = typer.Option(
        None, "--out", "-o", help="A grid .png, a folder of .png, .npz or .npy [MODEL-samples.png]."
    ),
    batch_size: int = typer.Option(64, min=1, help="Samples at once; changes the memory, not the samples."),
    device: str = typer.Option(None, help="cpu, cuda, mps ... [a GPU where there is one]."),
    engine: str = typer.Option("auto", help=ENGINE_HELP, autocompletion=complete.engines),
    force: bool = FORCE,
) -> None:
    """Draw samples from MODEL.

    A second MODEL-samples.png is MODEL-samples-2.png. In a folder, --force replaces all samples that were there.

    \b
    Examples:
      undiffuse sample fashion-mnist
      undiffuse sample runs/emoji -n 64 --sampler ddim --steps 20 --eta 0 --seed 0 --out grid.png
      undiffuse sample fashion-mnist --class Sneaker -n 16 --out sneakers/
      undiffuse sample fashion-mnist -n 2000 --out samples.npz
      torchrun --nproc-per-node 2 -m undiffuse sample fashion-mnist -n 2000 --out samples.npz
    """
    from undiffuse import output
    from undiffuse.generate import Recipe

    recipe = Recipe(sampler, steps, eta, grid, threshold, seed)
    out = out or output.fresh(Path(f"{output.name_of(model)}-samples.png"))
    output.check(out, n, force)

    import torch

    from undiffuse.engines import with_engine
    from undiffuse.generate import generate_shared
    from undiffuse.model import load

    loaded = load(model, device)
    output.check_memory(n, loaded.data.shape)
    loaded = with_engine(loaded, engine, n * recipe.evaluations, bar)
    labels = None if class_name is None else torch.full((n,), loaded.label(class_name))
    mine = math.ceil(n / int(os.environ.get("WORLD_SIZE", "1")))  # what this process of a torchrun draws
    with bar("sampling", mine * steps) as tick:
        images, all_labels = generate_shared(loaded, recipe, n, labels=labels, batch_size=batch_size, tick=tick)
    if images is not None:
        written = output.write(out, loaded.domain, images, all_labels, loaded.data.classes, force)
        say(f"{written} ({recipe.evaluations} evaluations of the network each, by {loaded.engine})")
