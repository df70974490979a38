"""What the commands share: how they speak."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer


def say(message: str) -> None:
    """A line for the person, on standard output."""
    typer.echo(message)


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message on standard error."""
    typer.echo(f"undiffuse: {message}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error; yields a function that is told how much more is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn(description), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    hidden = os.environ.get("RANK", "0") != "0"  # one bar is enough for all processes of a torchrun
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)
