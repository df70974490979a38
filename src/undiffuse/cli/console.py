"""What the commands share: how they speak."""

import os
import sys
from typing import NoReturn

import typer


def say(message: str) -> None:
    """A line for the person, on standard output."""
    typer.echo(message)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message on standard error."""
    if os.environ.get("RANK", "0") == "0" or code == 1:  # what the user did wrong, every process of a torchrun finds
        typer.echo(f"undiffuse: {message}", err=True)
    sys.exit(code)
