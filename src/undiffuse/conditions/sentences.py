"""Sentences that describe a picture: each sample has one, or none (unconditional)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions.condition import Condition, Encoders, Rows
from undiffuse.devices import sent
from undiffuse.registry import TEXTS
from undiffuse.streams import evenly
from undiffuse.text.text import Text

EXAMPLES = 256
"""Captions that a model keeps, for samples that nobody has described."""


@dataclass(frozen=True)
class Sentences:
    """The sentences of B samples; a `Condition`.

    Attributes:
        tokens: int64 (B, T), or float (B, T, channels), as `text` makes them.
        present: bool (B, T), where there is a token; nowhere for a sample without a sentence.
        text: what made the tokens.
        examples: some captions of the data; only needed by `facts`.
    """

    tokens: Tensor
    present: Tensor
    text: Text
    examples: tuple[str, ...] = ()

    kind: ClassVar[str] = "sentences"

    @classmethod
    def of(cls, sentences: Sequence[str], text: Text) -> "Sentences":
        """The condition of as many samples; an empty sentence is none."""
        return cls(*text.encode(sentences), text)

    def __len__(self) -> int:
        """B."""
        return len(self.present)

    def __getitem__(self, rows: Rows) -> "Sentences":
        """The sentences of these rows, in this order."""
        return Sentences(self.tokens[rows], self.present[rows], self.text, self.examples)

    def joined(self, *others: "Sentences") -> "Sentences":
        """These sentences, then those of each of `others`."""
        tokens = torch.cat([self.tokens, *(other.tokens for other in others)])
        return Sentences(tokens, torch.cat([self.present, *(other.present for other in others)]), self.text)

    def to(self, device: torch.device | str) -> "Sentences":
        """The same on `device`, copied asynchronously."""
        return Sentences(sent(self.tokens, device), sent(self.present, device), self.text, self.examples)

    def dropped(self, where: Tensor | None = None) -> "Sentences":
        """The same, with the rows without a sentence where `where`, bool (B,), is true; None: all of them."""
        gone = torch.ones_like(self.present[:, 0]) if where is None else where.to(self.present.device)
        return Sentences(self.tokens, self.present & ~gone[:, None], self.text, self.examples)

    def facts(self) -> dict[str, Any]:
        """`text` (a name), `settings` of it, and `examples` of captions."""
        return {"text": self.text.name, "settings": self.text.facts, "examples": list(self.examples)}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """A `SentenceEncoder`, `sentence`."""
        from undiffuse.networks.sentence import SentenceEncoder

        return {"sentence": partial(SentenceEncoder, text_of(facts))}

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Sentences":
        """The examples, from multiples of the golden ratio: evenly spread, however many there are."""
        examples = facts["examples"]
        chosen = (evenly(numbers) * len(examples)).astype(np.int64)
        return cls.of([examples[index] for index in chosen], text_of(facts))


@dataclass(frozen=True)
class Captions:
    """The captions of a data set, of which a picture may have several, as `Condition` of its N pictures.

    Attributes:
        sentences: of all pictures, one after the other, and at the end an empty one.
        starts: int64 (N + 1,), where those of each picture start.
    """

    sentences: Sentences
    starts: np.ndarray

    kind: ClassVar[str] = Sentences.kind

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]], text: Text) -> "Captions":
        """`captions`: those of each picture, which may be none."""
        flat = [caption for of_one in captions for caption in of_one]
        made = Sentences.of([*flat, ""], text)
        some = flat[:: max(1, -(-len(flat) // EXAMPLES))]
        sentences = Sentences(made.tokens, made.present, text, tuple(some))
        return cls(sentences, np.cumsum([0, *map(len, captions)]))

    def __len__(self) -> int:
        """N."""
        return len(self.starts) - 1

    def __getitem__(self, rows: Rows) -> Sentences:
        """The first caption of each."""
        return self.drawn(np.arange(len(self))[rows], np.zeros(1))

    def drawn(self, rows: np.ndarray, u: np.ndarray) -> Sentences:
        """One caption of each of `rows`, chosen by u in [0, 1), (len(rows),)."""
        count = self.starts[rows + 1] - self.starts[rows]
        chosen = self.starts[rows] + (u * count).astype(np.int64)
        return self.sentences[torch.from_numpy(np.where(count > 0, chosen, len(self.sentences) - 1))]

    def facts(self) -> dict[str, Any]:
        """Those of `Sentences`."""
        return self.sentences.facts()


def text_of(facts: dict[str, Any]) -> Text:
    """The `Text` of a model, from the facts of its `Sentences`. Raises KeyError, TypeError or ValueError for invalid
    ones."""
    examples = facts["examples"]
    if not isinstance(examples, list) or not examples or not all(isinstance(one, str) for one in examples):
        raise TypeError("examples is not a list of sentences, at least one")
    made: Text = TEXTS.find(facts["text"]).from_facts(facts["settings"])
    return made


def drawn(condition: "Condition | Captions", rows: np.ndarray, u: np.ndarray) -> Condition:
    """The condition of `rows` in a step of training: of several captions, the one that u in [0, 1), (B,), selects."""
    choose = getattr(condition, "drawn", None)
    found: Condition = condition[rows] if choose is None else choose(rows, u)
    return found
