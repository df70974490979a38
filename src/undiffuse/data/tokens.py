"""Tokenizers: a text as token numbers 0 .. size - 1, and back. What one has learnt is kept as JSON, its facts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from undiffuse.data.remarks import some
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import shown

MOST = 1 << 16
"""Token numbers are uint16."""
UNKNOWN = "\ufffd"
"""What any other character becomes, in an alphabet that has this one: Unicode's replacement character."""
INSTALL = 'pip install "undiffuse[tokens]"'
PIECE = 1 << 20
LONGEST = 64  # bytes in a token of `BPE`


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
        """For a text to train on; `size` is the K that is wished for, where that can be chosen (`BPE`)."""

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
        return self._points[_checked(ids, self.size)].tobytes().decode("utf-32-le")


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
        return np.frombuffer(_encoded(text, "utf-8"), np.uint8).astype(np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """The text of these bytes."""
        return _checked(ids, self.size).astype(np.uint8).tobytes().decode("utf-8", "replace")


@dataclass(frozen=True)
class BPE:
    """Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019), by the library `tokenizers`.

    The tokens are the 256 bytes, in the order of the letters that GPT-2 writes them with, then what each merge makes.
    Text is first cut into words with the space before them, as for GPT-2; no merge crosses a cut. Any text can be
    encoded and comes back exactly.

    Attributes:
        merges: pairs of tokens, in the order in which they are merged, in GPT-2's letters.
    """

    merges: tuple[tuple[str, str], ...]

    name: ClassVar[str] = "bpe"

    @classmethod
    def learnt(cls, text: str, size: int) -> Self:
        """`size` tokens, 257 to 65,536; fewer where no pair is left that occurs twice.

        Raises UsageError for another size, UndiffuseError if the extra `tokens` is not installed.
        """
        if not 256 < size <= MOST:
            raise UsageError(f"vocabulary must be 257 to {MOST:,} for tokens=bpe (256 bytes and merges), not {size}")
        _encoded(text, "utf-8")
        library = _library()
        letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            initial_alphabet=letters,
            max_token_length=LONGEST,
            show_progress=False,
        )
        made = _assembled(library.models.BPE())
        made.train_from_iterator(pieces(text), trainer)
        return cls(tuple((first, second) for first, second in _merges(made)))

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError, TypeError or ValueError for invalid ones."""
        merges = facts["merges"]
        if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
            raise TypeError("merges is not a list of strings")
        if len(merges) > MOST:
            raise ValueError(f"{len(merges):,} merges are too many")
        pairs = []
        known = set(_letters())
        for merge in merges:
            first, _, second = merge.partition(" ")
            if first not in known or second not in known:
                raise ValueError(f"the merge {shown(merge)} is not of two tokens before it")
            if len(first + second) > LONGEST:
                raise ValueError(f"the merge {shown(merge)} makes more than {LONGEST} bytes")
            known.add(first + second)
            pairs.append((first, second))
        if len(set(pairs)) < len(pairs) or len(known) > MOST:
            raise ValueError("a merge occurs twice, or there are too many")
        return cls(tuple(pairs))

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON: the merges, each with a space between its two tokens, which have none."""
        return {"merges": [f"{first} {second}" for first, second in self.merges]}

    @property
    def size(self) -> int:
        """256, and what the merges make (two may make the same)."""
        return len(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        tokens = dict.fromkeys([*_letters(), *(first + second for first, second in self.merges)])
        return {token: number for number, token in enumerate(tokens)}

    @cached_property
    def _tokenizer(self) -> Any:
        return _assembled(_library().models.BPE(self._vocabulary, list(self.merges)))

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [bytes(map(_letters().__getitem__, token)) for token in self._vocabulary]

    def encode(self, text: str) -> np.ndarray:
        """The numbers of its tokens, uint16 (n,). Raises UndiffuseError if the extra `tokens` is not installed."""
        _encoded(text, "utf-8")
        return np.array(self._tokenizer.encode(text).ids, np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """The text of these tokens; U+FFFD where their bytes are not UTF-8. Needs no library."""
        numbers = _checked(ids, self.size).tolist()
        return b"".join(map(self._bytes.__getitem__, numbers)).decode("utf-8", "replace")


def _encoded(text: str, form: str) -> bytes:
    try:
        return text.encode(form)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has half of a surrogate pair, {text[error.start]!a}, at character {error.start}: it is not "
            "valid Unicode"
        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(_encoded(text, "utf-32-le"), "<u4")


def _checked(ids: np.ndarray, size: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= size):
        raise ValueError(f"token numbers are integers 0 to {size - 1}")
    return ids.astype(np.int64)


def _letters() -> dict[str, int]:
    """GPT-2's letter for each byte -> the byte, in the order of the letters: printable Latin-1 stands for itself, the
    other bytes for the code points from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UndiffuseError(f"tokens=bpe needs the package tokenizers, which is not installed: {INSTALL}") from None
    return tokenizers


def _assembled(model: Any) -> Any:
    library = _library()
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _merges(tokenizer: Any) -> list[list[str]]:
    """The merges that the library has learnt; it shows them only in its JSON."""
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def pieces(text: str) -> Iterator[str]:
    """The text in parts of at most PIECE characters, which end with a line where there are lines."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end
