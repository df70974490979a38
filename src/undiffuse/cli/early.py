"""What a command can refuse before it loads torch, which takes seconds: unknown models and names."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from undiffuse.names import one_of
from undiffuse.registry import ENGINES, FORMATS, GRIDS, SAMPLERS, THRESHOLDS, TOKEN_SAMPLERS

CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "sampler": lambda: ("auto", *SAMPLERS, *TOKEN_SAMPLERS),
    "grid": lambda: GRIDS,
    "threshold": lambda: THRESHOLDS,
    "engine": lambda: ("auto", *ENGINES),
    "format": lambda: FORMATS,
}
"""Option -> the names it takes, including any that are added after this is imported."""


WORDS = "undiffuse.words"
"""The key, in a command's context, of its words as typed: its name and arguments."""


class EarlyCommand(TyperCommand):
    """A command whose arguments are kept as typed, for recipes, and checked before it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments."""
        ctx.meta[WORDS] = (str(self.name), *args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Raises UsageError for an unknown model or name, UndiffuseError for a damaged model."""
        for option, names in CHOICES.items():
            if (name := ctx.params.get(option)) is not None:
                one_of(option, name, names())
        if (model := ctx.params.get("model")) is not None:
            _check_model(model)
        for subject in (ctx.params.get("subject"), *(ctx.params.get("subjects") or ())):
            if subject is not None:
                _check_subject(subject)
        return super().invoke(ctx)


def _check_model(model: str) -> None:
    from undiffuse.card import find, read_card, read_grids

    folder = find(model)
    read_card(folder)
    read_grids(folder)


def _check_subject(subject: str) -> None:
    """A model, MODEL@sampler:steps or a path with samples."""
    name, at, how = subject.rpartition("@")
    if not os.path.exists(subject) and (not at or "/" in how or not os.path.exists(name)):
        _check_model(name if at and "/" not in how else subject)


def check_source(source: str) -> None:
    """Raises UsageError if `source` is neither a data set nor a path, and cannot be a name on the hub."""
    from undiffuse.data.loading import HUB_NAME, OPENERS, load
    from undiffuse.data.sounds import is_sounds
    from undiffuse.data.textfiles import is_text

    if is_text(source) or is_sounds(source):
        return
    if not (source in OPENERS or HUB_NAME.fullmatch(source) or Path(source).expanduser().exists()):
        load(source)
