"""What the commands share: how they speak."""

import sys
from typing import NoReturn

import typer


def say(message: str) -> None:
    """A line for the person, on standard output."""
    typer.echo(message)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message on standard error."""
    typer.echo(f"undiffuse: {message}", err=True)
    sys.exit(code)
