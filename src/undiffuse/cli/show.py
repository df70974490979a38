"""`undiffuse show`."""

from pathlib import Path

import typer

from undiffuse.cli.console import say


def show(
    file: Path = typer.Argument(
        ..., help="A file that undiffuse has written (.png, .npz, .wav, .html, .json), or a folder of samples."
    ),
    as_json: bool = typer.Option(False, "--json", help="As the file holds it."),
) -> None:
    """Print the recipe that FILE carries: the command, the model, the images and the machine that made it.

    \b
    Examples:
      undiffuse show fashion-mnist-samples.png
      undiffuse show samples.npz --json
    """
    from undiffuse.provenance import read_provenance

    found = read_provenance(file)
    say(found.text(found.sample) if as_json else "\n".join(found.lines()))
