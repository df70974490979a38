"""The interface of conditions that training, sampling and model folders use."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

Rows = slice | Tensor | np.ndarray
"""Rows of a batch: a slice, integers or booleans."""

Encoders = Mapping[str, Callable[[int], nn.Module]]
"""The encoder modules of a network for a condition: name in the state dict -> function from width to module.

A module maps the condition of B rows to float (B, width), which is added to the embedding of the noise level.
"""


class Condition(Protocol):
    """The condition of B samples, one per row. The tensors in it are never changed in place."""

    kind: ClassVar[str]
    """Its name in `undiffuse.registry.CONDITIONS`."""

    def __len__(self) -> int:
        """B."""

    def __getitem__(self, rows: Rows) -> Self:
        """The condition of these rows, in this order."""

    def joined(self, *others: Self) -> Self:
        """These rows, then those of each of `others`, which are conditions of the same model."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`, copied asynchronously."""

    def dropped(self, where: Tensor | None = None) -> Self:
        """The same, with the rows unconditional where `where`, bool (B,), is true; None: all of them."""

    def facts(self) -> dict[str, Any]:
        """What a model trained on these rows must know of them, as JSON: `data.condition.facts` of its model.json."""

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """The encoders for it. Raises KeyError, TypeError or ValueError for invalid facts."""

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> Self:
        """The condition of the samples numbered `numbers`, int64 (B,), by default: a pure function of the number,
        distributed as in the data."""


def check_given(condition: Condition | None, taken: bool) -> None:
    """Raises ValueError if a network that takes a condition is given none, or one that takes none is given one."""
    if taken and condition is None:
        raise ValueError("the network takes a condition: give model.condition(numbers), or model.unconditional(count)")
    if not taken and condition is not None:
        raise ValueError("the network takes no condition: give None")
