"""`undiffuse merge`."""

import re
from pathlib import Path

import typer

from undiffuse.cli.console import FORCE, say
from undiffuse.names import command

PARTS = re.compile(r"model\.json|weights\.safetensors")


def merge(
    model: str = typer.Argument(..., help="The base that the adapter was trained on."),
    adapter: Path = typer.Argument(..., help="The adapter.safetensors of a run with --lora."),
    out: Path = typer.Option(..., "--out", "-o", help="The model folder to write."),
    force: bool = FORCE,
) -> None:
    """Make a model folder of a base MODEL and an ADAPTER that was trained on it with --lora.

    \b
    Examples:
      undiffuse merge fashion-mnist adapter.safetensors --out models/mine
      undiffuse sample models/mine
    """
    from undiffuse import output
    from undiffuse.adapters import with_adapter
    from undiffuse.model import load, write_model

    output.claim_folder("--out", out, force)
    mine = with_adapter(load(model, "cpu"), adapter)

    def write(folder: Path) -> None:
        folder.mkdir()
        write_model(folder, mine.config, mine.data, mine.training, mine.network.state_dict())

    written = output.put_folder(out, write, PARTS, force)
    say(f"{written}: {model} with {adapter} merged into its weights")
    say(f"next: {command('sample', written)}")
