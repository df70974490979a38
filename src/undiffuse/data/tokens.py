"""Tokenizers: a text as token numbers 0 .. size - 1, and back. What one has learnt is kept as JSON, its facts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from undiffuse.data.remarks import some
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut
from undiffuse.registry import TOKENIZERS

MOST = 1 << 16
"""Token numbers are uint16."""
UNKNOWN = "\ufffd"
"""What any other character becomes, in an alphabet that has this one: Unicode's replacement character."""
PIECE = 1 << 20


class Tokenizer(Protocol):
    """A way to spell a text; a name in `undiffuse.registry.TOKENIZERS`."""

    name: ClassVar[str]
    """Its name there."""

    @property
    def size(self) -> int:
        """K, at most 65,536."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a model must know of it, as JSON."""

    @classmethod
    def learnt(cls, text: str, size: int) -> Self:
        """For a text to train on; `size` is the K to reach, where that can be chosen (`undiffuse.data.bpe`)."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError, TypeError or ValueError for invalid ones."""

    def encode(self, text: str) -> np.ndarray:
        """Token numbers, uint16 (n,). Raises UsageError for half of a surrogate pair, which is no text."""

    def decode(self, ids: np.ndarray) -> str:
        """The text that integers (n,) spell: of encode(text), the text. Raises ValueError for one that is no token."""


@dataclass(frozen=True)
class Characters:
    """One token for each Unicode character (code point) of `alphabet`, in the order of their code points.

    With U+FFFD in it, every other character is encoded as that; without, `encode` raises UsageError and names it.
    """

    alphabet: str

    name: ClassVar[str] = "characters"

    @classmethod
    def learnt(cls, text: str, size: int) -> Self:
        """All characters of the text (`size` is ignored). Raises UsageError for more than 65,536 of them."""
        return cls._of(set(text))

    def reaching(self, text: str) -> Self:
        """This one if it spells `text`; otherwise the same with U+FFFD, which then stands for all that it lacks."""
        return self._of({*self.alphabet, UNKNOWN}) if self.lacks(text) else self

    @classmethod
    def _of(cls, characters: set[str]) -> Self:
        if len(characters) > MOST:
            raise UsageError(f"{len(characters):,} different characters, more than {MOST:,}: use tokens=bytes or bpe")
        return cls("".join(sorted(characters)))

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError, TypeError or ValueError for invalid ones."""
        alphabet = facts["alphabet"]
        if not isinstance(alphabet, str):
            raise TypeError("alphabet is not a string")
        alphabet.encode()  # UnicodeEncodeError, a ValueError, for surrogates
        if not 1 <= len(alphabet) <= MOST or list(alphabet) != sorted(set(alphabet)):
            raise ValueError(f"alphabet is not 1 to {MOST:,} different characters in the order of their code points")
        return cls(alphabet)

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"alphabet": self.alphabet}

    @property
    def size(self) -> int:
        """How many characters there are, U+FFFD included."""
        return len(self.alphabet)

    @cached_property
    def _points(self) -> np.ndarray:
        return _code_points(self.alphabet)

    def lacks(self, text: str) -> list[str]:
        """The different characters of `text` that are not in the alphabet, sorted."""
        return sorted(set(text) - set(self.alphabet))

    def encode(self, text: str) -> np.ndarray:
        """The number of each character, uint16 (n,)."""
        points = _code_points(text)
        numbers = np.searchsorted(self._points, points).clip(max=self.size - 1)
        others = self._points[numbers] != points
        if others.any():
            if UNKNOWN not in self.alphabet:
                raise UsageError(f"{some(map(repr, self.lacks(text)))}: no such character in the text it learnt from")
            numbers[others] = self.alphabet.index(UNKNOWN)
        return numbers.astype(np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """The characters of these numbers."""
        return self._points[checked(ids, self.size)].tobytes().decode("utf-32-le")


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8. Decoding puts U+FFFD where bytes are not UTF-8, as where a window cuts a character."""

    name: ClassVar[str] = "bytes"
    size: ClassVar[int] = 256

    @classmethod
    def learnt(cls, text: str, size: int) -> Self:
        """There is nothing to learn."""
        return cls()

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`, which are empty."""
        return cls()

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON: nothing."""
        return {}

    def encode(self, text: str) -> np.ndarray:
        """Its bytes, uint16 (n,)."""
        return np.frombuffer(encoded(text, "utf-8"), np.uint8).astype(np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """The text of these bytes."""
        return checked(ids, self.size).astype(np.uint8).tobytes().decode("utf-8", "replace")


def encoded(text: str, form: str) -> bytes:
    """The bytes of a text; raises UsageError for half of a surrogate pair."""
    try:
        return text.encode(form)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has half of a surrogate pair, {text[error.start]!a}, at character {error.start}: it is not "
            "valid Unicode"
        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(encoded(text, "utf-32-le"), "<u4")


def checked(ids: np.ndarray, size: int) -> np.ndarray:
    """Token numbers as int64 (n,); raises ValueError for others than 0 .. size - 1."""
    ids = np.asarray(ids)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= size):
        raise ValueError(f"token numbers are integers 0 to {size - 1}")
    return ids.astype(np.int64)


def pieces(text: str) -> Iterator[str]:
    """The text in parts of at most PIECE characters, which end with a line where there are lines."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end


def tokenizer_of(facts: Any) -> Tokenizer:
    """The tokenizer of a model card: {"kind": its name, "facts": its facts}. Raises UndiffuseError for invalid ones."""
    try:
        kind: type[Tokenizer] = TOKENIZERS.find(facts["kind"])
        return kind.from_facts(facts["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UndiffuseError(f"the tokenizer: {type(error).__name__}: {cut(str(error), 200)}") from None
