"""`undiffuse explain`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import FORCE, say
from undiffuse.cli.recorded import recorded
from undiffuse.progress import bar

if TYPE_CHECKING:
    from undiffuse.provenance import Provenance


def explain(
    context: typer.Context,
    model: str = typer.Argument(
        "fashion-mnist", help="A run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    out: Path = typer.Option(None, "--out", "-o", help="The folder for the pictures [explain-MODEL]."),
    count: int = typer.Option(8, "-n", min=2, max=16, help="Number of samples to follow."),
    seed: int = typer.Option(0, min=0, help="Seed of the samples."),
    force: bool = FORCE,
) -> None:
    """Draw pictures for a lecture from a real model: the two processes, DDIM against DDPM, early against late steps.

    \b
    Examples:
      undiffuse explain fashion-mnist
      undiffuse explain runs/emoji --out lecture
    """
    from undiffuse import output
    from undiffuse.cli import texts
    from undiffuse.explain import draw, work
    from undiffuse.model import load, pictures_only

    out = out or output.fresh(Path(f"explain-{output.name_of(model)}"))
    output.claim_folder("--out", out, force)
    if texts.is_text(model):
        texts.explain(context, model, out, seed, force)
        return
    loaded = load(model)
    pictures_only(loaded, "undiffuse explain")
    origin = recorded(context, loaded, seed)
    with bar("drawing", work(loaded, count)) as tick:
        put_pictures(out, lambda folder: draw(loaded, folder, count, seed, tick), origin, force)


def put_pictures(
    out: Path, draw: "Callable[[Path], Iterable[tuple[Path, str]]]", origin: "Provenance", force: bool
) -> None:
    """Writes the pictures that `draw` makes in a folder, with their recipe, to `out`, and says what they show."""
    from undiffuse import output
    from undiffuse.explain import PICTURES
    from undiffuse.provenance import inscribe

    pictures: list[tuple[Path, str]] = []

    def write(folder: Path) -> None:
        for path, caption in draw(folder):
            inscribe(path, origin.text())
            pictures.append((path, caption))

    place = output.put_folder(out, write, PICTURES, force)
    for path, caption in pictures:
        say(f"{place / path.name}\n    {caption}")
