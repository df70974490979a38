"""The words of a data set's captions, numbered; the network learns what they mean."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MOST_WORDS = 8192
LEAST_USES = 2
"""The meaning of a word that occurs once cannot be separated from the one picture it describes."""
NOTHING, UNKNOWN, FIRST = 0, 1, 2
"""The numbers of no word, of any word outside the vocabulary, and of the first word in it."""


def words_of(sentence: str) -> list[str]:
    """The words of a sentence, without case and punctuation."""
    folded = unicodedata.normalize("NFC", sentence).casefold()
    return WORD.findall(unicodedata.normalize("NFC", folded))  # folding may have taken letters apart


@dataclass(frozen=True)
class Words:
    """A `Text` that numbers the words of `vocabulary`.

    Attributes:
        length: T, the most words of a sentence.
        vocabulary: the most frequent word first.
    """

    length: int
    vocabulary: tuple[str, ...]

    name: ClassVar[str] = "words"
    channels: ClassVar[int | None] = None

    @classmethod
    def learnt(cls, captions: Iterable[str], length: int) -> Self:
        """The words that occur at least LEAST_USES times in `captions`, at most MOST_WORDS of them."""
        uses = Counter(word for caption in captions for word in words_of(caption))
        ranked = sorted(uses, key=lambda word: (-uses[word], word))
        return cls(length, tuple(word for word in ranked[:MOST_WORDS] if uses[word] >= LEAST_USES))

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError, TypeError or ValueError for invalid ones."""
        length, vocabulary = facts["length"], facts["vocabulary"]
        if type(length) is not int or not 1 <= length <= 1024:
            raise ValueError("length is not a number of words from 1 to 1024")
        if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
            raise TypeError("vocabulary is not a list of words")
        if len(vocabulary) > MOST_WORDS or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"vocabulary has more than {MOST_WORDS} words, or one twice")
        return cls(length, tuple(vocabulary))

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"length": self.length, "vocabulary": list(self.vocabulary)}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.vocabulary, FIRST)}

    def size(self, sentence: str) -> int:
        """How many words a sentence has."""
        return len(words_of(sentence))

    def unknown(self, sentence: str) -> list[str]:
        """Its words that are not in the vocabulary."""
        return [word for word in words_of(sentence) if word not in self._number]

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The numbers of the words, int64 (N, T), NOTHING after the last; where there are words, bool (N, T).

        Only the first `length` words of a sentence are used.
        """
        numbers = torch.full((len(sentences), self.length), NOTHING)
        for row, sentence in zip(numbers, sentences, strict=True):
            found = [self._number.get(word, UNKNOWN) for word in words_of(sentence)[: self.length]]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        return numbers, numbers != NOTHING
