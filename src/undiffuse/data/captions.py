"""Captions as people store them: which columns hold them, and the one form in which they are kept."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Names of caption columns; the first line with a match wins. A number may follow: caption_0, caption_1.
CAPTION_WORDS = (
    ("caption", "captions"),
    ("text", "texts", "sentence", "sentences"),
    ("description", "descriptions", "prompt", "prompts"),
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufeff]")  # and the byte-order marks that joining files leaves within
BROKEN = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: valid in JSON, not in text


def clean(text: str) -> str:
    """A caption on one line: NFC, runs of whitespace and control characters as one space, none at the ends."""
    text = unicodedata.normalize("NFC", BROKEN.sub("\ufffd", text))
    return " ".join(_CONTROL.sub(" ", text).split())


def captions_of(value: object) -> tuple[str, ...]:
    """The captions in one cell of a table: a string, a JSON list of strings as text, a list of strings, or None.

    Empty ones are left out, and so is each after its first occurrence. Raises ValueError for anything else.
    """
    if isinstance(value, str):
        value = _json_list(value) or [value]
    if value is None:
        return ()
    if not isinstance(value, list) or not all(one is None or isinstance(one, str) for one in value):
        raise ValueError("it is neither a string nor a list of strings")
    return distinct(clean(one) for one in value if one)


def distinct(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions that are not empty, in order, each once."""
    return tuple(dict.fromkeys(caption for caption in captions if caption))


def _json_list(text: str) -> list[object] | None:
    """The list that `text` is as JSON, as in '["a cat", "a tabby"]'; None for ordinary text."""
    if not re.match(r'\s*\[\s*"', text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if all(isinstance(one, str) for one in found) else None


def caption_columns(columns: Iterable[str]) -> list[list[str]]:
    """Groups of columns that could be the captions, going by their names: certain only if there is exactly one.

    A group holds columns that differ by a number at the end (caption_0, caption_1): each row has all their captions.
    """
    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(caption_word(column), []).append(column)
    ways = ([groups[word] for word in words if word in groups] for words in CAPTION_WORDS)
    return next((way for way in ways if way), [])


def caption_word(column: str) -> str:
    """The name of a column in lower case without a number at its end."""
    return re.sub(r"[-_ ]?\d+$", "", column.strip().lower())


def is_caption_name(column: str) -> bool:
    """Whether a column is called as captions are."""
    return any(caption_word(column) in words for words in CAPTION_WORDS)


def coverage(captions: Sequence[tuple[str, ...]], noun: str = "image") -> tuple[str, ...]:
    """A remark on how many of the images or sounds have captions, unless all or none have."""
    without = sum(not one for one in captions)
    if without in (0, len(captions)):
        return ()
    have = len(captions) - without
    return (f"{have:,} of {len(captions):,} {noun}s have captions, {without:,} have none",)
