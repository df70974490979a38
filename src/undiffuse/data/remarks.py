"""Warnings to users about their data, and how file names are shown."""

import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

SHOWN = 5

logger = logging.getLogger("undiffuse")


@functools.cache
def warn(message: str) -> None:
    """Logs a warning, once per process: a command may open the same data several times."""
    logger.warning("%s", message)


def readable(name: str) -> str:
    r"""A file name as text that any terminal, JSON file and command line can hold.

    Bytes that are not UTF-8 (Python's surrogate escapes) and control characters are written as escapes: caf\xe9, a\nb.
    """
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return "".join(
        _escaped(character) if unicodedata.category(character) in _UNSAFE else character for character in text
    )


_UNSAFE = ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def some(names: Iterable[object]) -> str:
    """The first few of many names, and how many more there are."""
    texts = [readable(str(name)) for name in names]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def kinds(files: Sequence[PurePosixPath]) -> str:
    """How many files there are of each kind, the most common first: 12 .heic, 1 .jxl."""
    counts = Counter(file.suffix.lower() for file in files)
    shown = [f"{count} {readable(kind) or 'without an extension'}" for kind, count in counts.most_common(SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(SHOWN))
    return ", ".join([*shown, *([f"{rest} of other kinds"] if rest else [])])
