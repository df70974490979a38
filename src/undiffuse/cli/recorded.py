"""The recipe that a command's output carries, and its check when `undiffuse redo` runs the command again."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from undiffuse.cli.early import WORDS

if TYPE_CHECKING:
    from undiffuse.model import Model
    from undiffuse.provenance import Provenance

EXPECTED = "undiffuse.expected"
"""The key, in the context of a command that is run again, of the `Provenance` that it should have."""


def recorded(
    context: typer.Context, model: "Model", seed: int, sources: Iterable[str | os.PathLike[str]] = ()
) -> "Provenance":
    """The recipe of the command in `context`, with `model` and the files `sources`; to be called before the work.

    Raises UsageError for a missing source and, when the command is run again, for a model or source that has changed.
    """
    from undiffuse.provenance import provenance_of

    made = provenance_of(("undiffuse", *context.meta[WORDS]), model, seed, sources)
    expected: Provenance | None = context.meta.get(EXPECTED)
    if expected:
        expected.check(made)
    return made
