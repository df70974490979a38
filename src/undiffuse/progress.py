"""Progress bars on standard error, with the time left; the algorithms do not depend on them."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""(description, total or 0) -> a context manager that yields a function to report progress to."""


def no_bar(description: str, total: int = 0) -> AbstractContextManager[Callable[..., None]]:
    """A progress bar that shows nothing."""
    return nullcontext(lambda *done: None)


@contextlib.contextmanager
def bar(description: str, total: int = 0) -> Iterator[Callable[..., None]]:
    """Draws a bar; yields a function to call with the additional amount done, or with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn(description), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    both = sys.stdout.isatty()  # lines printed meanwhile go above the bar, unless they go to a file
    # One bar for all processes of a torchrun, and none if standard error is a file.
    hidden = os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=hidden, redirect_stdout=both
    ) as progress:
        task = progress.add_task(description, total=total or None)

        def tell(amount: int, of: int | None = None) -> None:
            if of is None:
                progress.advance(task, amount)
            else:
                progress.update(task, completed=amount, total=of)

        yield tell
