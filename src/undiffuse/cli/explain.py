"""`undiffuse explain`."""

from pathlib import Path

import typer

from undiffuse.cli.console import say
from undiffuse.progress import bar


def explain(
    model: str = typer.Argument("fashion-mnist", help="A run folder, a model folder or a built-in name."),
    out: Path = typer.Option(None, "--out", "-o", help="The folder for the pictures [explain-MODEL]."),
    count: int = typer.Option(8, "-n", min=2, max=16, help="How many samples to follow."),
    seed: int = typer.Option(0, min=0, help="Of the samples."),
) -> None:
    """Draw a lecture's pictures from a real model: the two processes, DDIM against DDPM, early against late steps.

    \b
    Examples:
      undiffuse explain fashion-mnist
      undiffuse explain runs/emoji --out lecture
    """
    from undiffuse.explain import draw, work
    from undiffuse.model import load

    out = out or Path(f"explain-{Path(model).name}")
    loaded = load(model)
    with bar("drawing", work(loaded, count)) as tick:
        for path, caption in draw(loaded, out, count, seed, tick):
            say(f"{path}\n    {caption}")
