"""Shell completion of names; if none fits, the shell completes file names itself."""

from collections.abc import Callable, Iterable
from pathlib import Path

from undiffuse.registry import (
    DENSITIES,
    ENGINES,
    FEATURES,
    FORMATS,
    GRIDS,
    METRICS,
    SAMPLERS,
    SOUND_METRICS,
    TEXT,
    THRESHOLDS,
    built_in,
)

Completion = Callable[[str], list[str]]

SPLITS = ("test", "train", "all")
DATA = ("avatars", "emoji", "digits", "fashion-mnist", "mnist")  # a test compares them with those there are
SOUNDS = ("syllables", "digits-spoken", "prompts")  # and these


def _of(names: Iterable[str]) -> Completion:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """The built-in models, and the runs under runs/."""
    runs = (path.parent.as_posix() for path in Path().glob("runs/*/run.json"))
    return _of(built_in() + sorted(runs))(incomplete)


def samplers(incomplete: str) -> list[str]:
    """The samplers, including any that were added."""
    return _of(("auto", *SAMPLERS))(incomplete)


grids, thresholds = _of(GRIDS), _of(THRESHOLDS)
engines, features = _of(("auto", *ENGINES)), _of(("auto", *FEATURES))
metrics, splits, data, formats = (
    _of(dict.fromkeys(("all", *METRICS, *DENSITIES, TEXT, *SOUND_METRICS))),
    _of(SPLITS),
    _of((*DATA, *SOUNDS)),
    _of(FORMATS),
)
makeable = _of(DATA[:1])
