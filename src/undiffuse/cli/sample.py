"""`undiffuse sample`."""

import math
import os
from dataclasses import replace
from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import (
    APG,
    DEVICE,
    ENGINE,
    ETA,
    FORCE,
    GRID,
    GUIDANCE,
    GUIDE,
    INTERVAL,
    NEGATIVE,
    PROMPT,
    RESCALE,
    SAMPLER,
    THRESHOLD,
    VOCODER,
    check_effect,
    guidance_of,
    say,
)
from undiffuse.cli.recorded import recorded
from undiffuse.errors import UsageError
from undiffuse.progress import bar


def sample(
    context: typer.Context,
    model: str = typer.Argument(
        ..., help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    n: int = typer.Option(None, "-n", min=1, help="Number of samples [64; 1 of a text, and in a .wav]."),
    sampler: str = SAMPLER,
    steps: int = typer.Option(
        None, min=1, help="Number of steps from noise to data [20; of a student, its own; of a text, one per token]."
    ),
    eta: float = ETA,
    grid: str = GRID,
    threshold: str = THRESHOLD,
    class_name: list[str] = typer.Option(
        [], "--class", help="Sample one class (a name or a number); given twice, guidance composes both."
    ),
    prompt: list[str] = PROMPT,
    negative: str = NEGATIVE,
    guidance: float = GUIDANCE,
    guidance_interval: str = INTERVAL,
    guide: str = GUIDE,
    rescale: float = RESCALE,
    apg: str = APG,
    length: int = typer.Option(
        None, min=1, help="For a model of texts: how many tokens, the --prompt among them [its window]."
    ),
    seed: int = typer.Option(0, help="Sample k of a seed is always the same picture."),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        help="A grid .png, a folder of .png, .npz or .npy [MODEL-samples.png]; sounds: .wav, or .html with "
        "players; texts: .txt or .json.",
    ),
    batch_size: int = typer.Option(64, min=1, help="Samples at once; affects memory, not the samples."),
    device: str = DEVICE,
    engine: str = ENGINE,
    vocoder: str = VOCODER,
    force: bool = FORCE,
) -> None:
    """Draw samples from MODEL.

    If MODEL-samples.png exists, MODEL-samples-2.png is written. In a folder, --force replaces all existing samples.
    Files carry this command: `undiffuse show FILE` prints it, `undiffuse redo FILE` runs it again.

    \b
    Examples:
      undiffuse sample fashion-mnist
      undiffuse sample runs/emoji -n 64 --sampler ddim --steps 20 --eta 0 --seed 0 --out grid.png
      undiffuse sample fashion-mnist --class Sneaker -n 16 --out sneakers/
      undiffuse sample fashion-mnist --class Bag --guidance 2 --guidance-interval .19,1.61
      undiffuse sample avatars --prompt "a woman with blue hair and glasses" -n 16
      undiffuse sample shakespeare --prompt "To be, or not to be" --length 200
      undiffuse sample runs/digits-spoken --class seven -n 16 --out seven.html
      undiffuse sample fashion-mnist -n 2000 --out samples.npz
      torchrun --nproc-per-node 2 -m undiffuse sample fashion-mnist -n 2000 --out samples.npz
    """
    from undiffuse import output
    from undiffuse.card import find, read_card
    from undiffuse.cli import texts
    from undiffuse.domains import domain_of
    from undiffuse.generate import Recipe
    from undiffuse.names import counted
    from undiffuse.text import prompted_scale

    if texts.is_text(model):
        texts.sample(context, model, prompt, length, out, force)
        return
    if length is not None:
        raise UsageError("--length is for models of texts")
    name = output.name_of(model)
    settings = guidance_of(guidance, guidance_interval, rescale, apg)
    recipe = Recipe(sampler, steps or Recipe.steps, eta, grid, threshold, seed, settings)
    if not (guide or negative or len(class_name) + len(prompt) > 1):
        model = str(recipe.drawn_by(model))
    card = read_card(find(model))
    if prompt:
        usual = prompted_scale(card.config)
        recipe = replace(recipe, guidance=guidance_of(guidance, guidance_interval, rescale, apg, usual))
    check_effect(context, recipe.guidance)
    kind = domain_of(card.data).suffix
    out = out or output.fresh(Path(f"{name}-samples{kind}"))
    n = n or (1 if out.suffix.lower() == ".wav" else 64)
    output.check(out, n, force, kind)

    from undiffuse.conditions import Labels, part_for, parts_of
    from undiffuse.engines import with_engine
    from undiffuse.generate import generate_shared
    from undiffuse.guidance import Overshoot
    from undiffuse.guide import request, with_guide
    from undiffuse.model import load
    from undiffuse.vocoder import no_vocoder, with_vocoder

    loaded = load(model, device)
    no_vocoder(model, loaded.data)
    recipe = recipe.for_model(loaded)
    if guide:
        loaded = with_guide(loaded, guide)
    loaded = with_vocoder(loaded, vocoder)
    output.check_memory(n, loaded.data.shape)
    loaded = with_engine(loaded, engine, n * recipe.evaluations, bar)
    condition, overshoot = request(loaded, n, loaded.condition(range(n)), class_name, negative, prompt), Overshoot()
    origin = recorded(context, loaded, seed)
    mine = math.ceil(n / int(os.environ.get("WORLD_SIZE", "1")))  # what this process of a torchrun draws
    with bar("sampling", mine * recipe.steps) as tick:
        images = generate_shared(loaded, recipe, n, condition, batch_size=batch_size, tick=tick, overshoot=overshoot)
    if images is not None:
        first, *others = parts_of(condition)
        asked = None if others else part_for(first, "label")  # beside a sentence, perhaps
        known = isinstance(asked, Labels) and bool((asked.index < asked.classes).all())
        labels = asked.index.cpu().numpy() if known else None
        words = " + ".join([*class_name, *prompt])
        called = [words] * n if words else loaded.asked(range(n))
        written = output.write(out, loaded.domain, images, labels, loaded.data.classes, force, origin, called)
        cost = recipe.cost(loaded, condition)
        by = f"{model}, " if model != context.params["model"] else ""
        say(f"{written} ({counted(cost, 'evaluation')} of the network each, by {by}{loaded.engine})")
        if recipe.guidance.scale != 1:
            say(f"{overshoot.share:.1%} of the predicted values were out of range (--threshold {threshold})")
