"""The interface of what turns sentences into numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor


class Text(Protocol):
    """Turns sentences into at most `length` tokens each; a name in `undiffuse.registry.TEXTS`."""

    name: ClassVar[str]
    """Its name there."""
    channels: ClassVar[int | None]
    """The width of a token; None: tokens are numbers, of words."""

    @property
    def length(self) -> int:
        """T."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a model must know of it, as JSON; `length` is among them."""

    @classmethod
    def learnt(cls, captions: Iterable[str], length: int) -> Self:
        """For the captions of a data set."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError, TypeError or ValueError for invalid ones."""

    def size(self, sentence: str) -> int:
        """How many tokens a sentence has."""

    def unknown(self, sentence: str) -> list[str]:
        """Its words that have no meaning to the network."""

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens, int64 (N, T) or float (N, T, channels), and where there are any, bool (N, T)."""
