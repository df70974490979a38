"""What a condition is to training, to sampling and to a model's folder."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

Rows = slice | Tensor | np.ndarray
"""Of a batch: a slice, integers or booleans."""

Encoders = Mapping[str, Callable[[int], nn.Module]]
"""The encoder modules that a network has for a condition: the name that the weights have -> width -> module.

A module maps the condition of B rows to float (B, width), which is added to what the network knows of the noise level.
"""


class Condition(Protocol):
    """The condition of B samples, one per row. The tensors in it are never changed in place."""

    kind: ClassVar[str]
    """The name that `undiffuse.registry.CONDITIONS` has it under."""

    def __len__(self) -> int:
        """B."""

    def __getitem__(self, rows: Rows) -> Self:
        """The condition of these rows, in this order."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`, without waiting for it to arrive."""

    def dropped(self, where: Tensor | None = None) -> Self:
        """The same, with the rows unconditional where `where`, bool (B,), is true; None: all of them."""

    def facts(self) -> dict[str, Any]:
        """What a model that learnt these rows must know of them, as JSON: `data.condition.facts` of its model.json."""

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """What a network has for it. Raises KeyError, TypeError or ValueError for facts that cannot be."""

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> Self:
        """The condition of the samples numbered `numbers`, int64 (B,), where none is asked for: a pure function of the
        number, distributed as in the data."""


def check_given(condition: Condition | None, taken: bool) -> None:
    """Raises ValueError where a network that takes a condition is given none, or one that takes none is given one."""
    if taken and condition is None:
        raise ValueError(
            "the network takes a condition: give model.condition(numbers), or model.unconditional(count) for none"
        )
    if not taken and condition is not None:
        raise ValueError("the network takes no condition: give None")
