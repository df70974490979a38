"""The named data sets."""

from collections.abc import Callable
from dataclasses import dataclass

from undiffuse.data import avatars, builtin, known
from undiffuse.data.source import Source


@dataclass(frozen=True)
class Entry:
    """What `undiffuse data list` shows about a data set; shape is (H, W, C), count is train and test together."""

    name: str
    summary: str
    shape: tuple[int, int, int]
    count: int
    licence: str
    available: bool
    how_to_get: str


OPENERS: dict[str, Callable[[], Source]] = {
    "avatars": builtin.open_avatars,
    "emoji": builtin.open_emoji,
    "digits": builtin.open_digits,
    "fashion-mnist": lambda: known.open_known(known.FASHION_MNIST),
    "mnist": lambda: known.open_known(known.MNIST),
}


def catalogue() -> list[Entry]:
    """Every named data set, and whether it is on this machine; looks at files only, imports and downloads nothing."""
    fashion, mnist = known.FASHION_MNIST, known.MNIST
    return [
        Entry(
            "avatars",
            "drawn faces on white, with eight captions and all attributes of each",
            (32, 32, 3),
            12_000,
            avatars.LICENCE,
            available=True,
            how_to_get="part of undiffuse",
        ),
        Entry(
            "emoji",
            "Noto emoji on white, with names and the 9 Unicode groups",
            (32, 32, 3),
            1885,
            builtin.EMOJI_LICENCE,
            available=True,
            how_to_get="part of undiffuse",
        ),
        Entry(
            "digits",
            "handwritten digits from scikit-learn, 10 classes",
            (8, 8, 1),
            1797,
            builtin.DIGITS_LICENCE,
            available=builtin.has_digits(),
            how_to_get=builtin.DIGITS_COMMAND,
        ),
        Entry(
            fashion.name,
            "clothes from Zalando's shop, 10 classes",
            (28, 28, 1),
            70_000,
            fashion.licence,
            available=known.find(fashion) is not None,
            how_to_get=fashion.command,
        ),
        Entry(
            mnist.name,
            "handwritten digits, 10 classes",
            (28, 28, 1),
            70_000,
            mnist.licence,
            available=known.find(mnist) is not None,
            how_to_get=mnist.command,
        ),
    ]
