"""Byte-pair encoding, by the library `tokenizers`; what it learns is kept as a list of merges."""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, Self

import numpy as np

from undiffuse.data.tokens import MOST, Tokenizer, checked, encoded, pieces
from undiffuse.errors import UsageError
from undiffuse.names import shown

LONGEST = 64  # bytes in a token


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

        Raises UsageError for another size.
        """
        if not 256 < size <= MOST:
            raise UsageError(f"vocabulary must be 257 to {MOST:,} for tokens=bpe (256 bytes and merges), not {size}")
        encoded(text, "utf-8")
        from tokenizers import models, pre_tokenizers, trainers

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            initial_alphabet=letters,
            max_token_length=LONGEST,
            show_progress=False,
        )
        made = _assembled(models.BPE())
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
        from tokenizers import models

        return _assembled(models.BPE(self._vocabulary, list(self.merges)))

    @cached_property
    def spelt(self) -> list[bytes]:
        """The bytes of each token."""
        return [bytes(map(_letters().__getitem__, token)) for token in self._vocabulary]

    def encode(self, text: str) -> np.ndarray:
        """The numbers of its tokens, uint16 (n,)."""
        encoded(text, "utf-8")
        return np.array(self._tokenizer.encode(text).ids, np.uint16)

    def decode(self, ids: np.ndarray) -> str:
        """The text of these tokens; U+FFFD where their bytes are not UTF-8."""
        numbers = checked(ids, self.size).tolist()
        return b"".join(map(self.spelt.__getitem__, numbers)).decode("utf-8", "replace")


def begun(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The tokens of a text that goes on, int64 (n,), and which of all may come next, bool (K,); None: any.

    A token of byte pairs holds the space before its word. So a last space is left to the next token, which then begins
    with one.
    """
    spaced = None
    if isinstance(tokenizer, BPE) and text.endswith(" "):
        spaced = np.array([token.startswith(b" ") for token in tokenizer.spelt])
        text = text[:-1]
    return tokenizer.encode(text).astype(np.int64), spaced


@cache
def _letters() -> dict[str, int]:
    """GPT-2's letter for each byte -> the byte, in the order of the letters: printable Latin-1 stands for itself, the
    other bytes for the code points from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _assembled(model: Any) -> Any:
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _merges(tokenizer: Any) -> list[list[str]]:
    """The merges that the library has learnt; it shows them only in its JSON."""
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges
