"""A corpus: the documents of a source, what counts as text, and where the held-out end begins."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from undiffuse.data.source import NOT_STATED
from undiffuse.errors import UndiffuseError

TEST = 0.05
"""The share of the characters that is held out: the end of the text."""
NEAR = 0.02
"""The cut lies at most this share of the text before or after that."""
LARGEST = 1 << 29  # bytes; a text is held in memory, a few times over while it is encoded
BOM = "\ufeff"
ENDS: dict[str, str] = {
    "paragraph": r"\n[^\S\n]*\n\s*",
    "sentence": r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”’）]*\s*",
    "line": r"\n",
    "word": r"\s+",
}
"""What the cut may follow, the best first."""


@dataclass(frozen=True)
class Corpus:
    """The documents in order; joined without anything between them they are the text.

    remarks are for the user, logged whenever the text is loaded.
    """

    documents: tuple[str, ...]
    licence: str = NOT_STATED
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextSource:
    """Where a text comes from. Equal identities (JSON values) promise equal text, so `open` runs once per cache."""

    identity: Any
    open: Callable[[], Corpus]


def decoded(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes: a byte-order mark at the beginning removed, CRLF and CR as LF, otherwise as it is.

    Unicode is not normalised: what is written with combining marks stays so. Raises UndiffuseError, which names `where`
    and the byte, for bytes that are not UTF-8 and for NUL, which no text has.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise UndiffuseError(
            f"{where} is not UTF-8 at byte {error.start} (0x{content[error.start]:02x})"
            + (": it is UTF-16; save it as UTF-8" if wide else ": save it as UTF-8")
        ) from None
    if (nul := content.find(b"\0")) >= 0:
        raise UndiffuseError(f"{where} is not a text: it has a NUL at byte {nul}")
    return text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def separated(documents: Sequence[str]) -> tuple[str, ...]:
    """Documents that end where the next begins: each with a newline at its end, or with a blank line if one of them has
    several lines. Those without text are left out, and the last one stays as it is."""
    documents = [document for document in documents if document.strip()]
    end = "\n\n" if any("\n" in document.strip() for document in documents) else "\n"
    return (*(document.rstrip("\n") + end for document in documents[:-1]), *documents[-1:])


def cut(documents: Sequence[str]) -> tuple[str, str, str]:
    """Divides a text by place: what to train on, the end that is held out, and what the cut lies between.

    The cut is at most `NEAR` away from where the last `TEST` of the characters begins: at the document's end that is
    nearest to it; else at a paragraph's end, a sentence's, a line's, a word's (`ENDS`); else ("character") just there.
    """
    text = "".join(documents)
    aim, reach = len(text) * (1 - TEST), len(text) * NEAR

    def nearest(places: Sequence[int]) -> int | None:
        inside = [place for place in places if abs(place - aim) <= reach and 0 < place < len(text)]
        return min(inside, key=lambda place: abs(place - aim), default=None)

    first, last = max(0, int(aim - reach) - 1), int(aim + reach) + 2
    ways = {"document": list(accumulate(map(len, documents)))}
    for kind, pattern in ENDS.items():
        ways[kind] = [first + found.end() for found in re.finditer(pattern, text[first:last])]
    for kind, places in ways.items():
        if (place := nearest(places)) is not None:
            return text[:place], text[place:], kind
    return text[: round(aim)], text[round(aim) :], "character"
