"""Class labels: each sample is of one class, or of any class (unconditional)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from undiffuse.conditions.condition import Condition, Encoders, Rows
from undiffuse.devices import sent
from undiffuse.streams import evenly


@dataclass(frozen=True)
class Labels:
    """The class of each of B samples; a `Condition`.

    Attributes:
        index: int64 (B,), from 0; `classes`, one past the last, for a sample of any class.
        classes: how many classes there are.

    Raises ValueError for another shape or dtype and, on the CPU, for an index out of range.
    """

    index: Tensor
    classes: int

    kind: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or self.index.dtype != torch.int64:
            raise ValueError(f"labels are int64 (B,), not {self.index.dtype} {tuple(self.index.shape)}")
        # Elsewhere the values are not checked: that would synchronise with a GPU, and a traced tensor has none.
        if self.index.device.type == "cpu" and not torch.compiler.is_compiling() and len(self.index):
            low, high = self.index.aminmax()
            if low < 0 or high > self.classes:
                raise ValueError(
                    f"labels of {self.classes} classes lie in 0 .. {self.classes} (the last: any class), "
                    f"not in {low} .. {high}"
                )

    def __len__(self) -> int:
        """B."""
        return len(self.index)

    def __getitem__(self, rows: Rows) -> "Labels":
        """The labels of these rows, in this order."""
        return Labels(self.index[rows], self.classes)

    def joined(self, *others: "Labels") -> "Labels":
        """These labels, then those of each of `others`. Raises ValueError for labels of other classes."""
        if any(other.classes != self.classes for other in others):
            raise ValueError(f"labels of {self.classes} classes cannot be joined with labels of others")
        return Labels(torch.cat([self.index, *(other.index for other in others)]), self.classes)

    def to(self, device: torch.device | str) -> "Labels":
        """The same on `device`, copied asynchronously."""
        return Labels(sent(self.index, device), self.classes)

    def dropped(self, where: Tensor | None = None) -> "Labels":
        """The same, with the rows of any class where `where`, bool (B,), is true; None: all of them."""
        if where is None:
            return Labels(torch.full_like(self.index, self.classes), self.classes)
        return Labels(self.index.masked_fill(where.to(self.index.device), self.classes), self.classes)

    def facts(self) -> dict[str, Any]:
        """`share`: the frequency of each class."""
        counts = np.bincount(self.index.cpu().numpy(), minlength=self.classes)[: self.classes]
        return {"share": (counts / counts.sum()).tolist()}

    @classmethod
    def encoders(cls, facts: dict[str, Any]) -> Encoders:
        """An embedding, `label`."""
        return label_encoder(len(facts["share"]))

    @classmethod
    def for_samples(cls, facts: dict[str, Any], numbers: np.ndarray) -> "Labels":
        """In the data's proportions, from multiples of the golden ratio: evenly spread, however many there are."""
        share: Sequence[float] = facts["share"]
        index = np.searchsorted(np.cumsum(share), evenly(numbers), side="right")
        last = np.flatnonzero(share)[-1]  # if the shares sum to slightly less than 1
        return cls(torch.from_numpy(np.minimum(index, last)), len(share))


class LabelEncoder(nn.Embedding):
    """An embedding of each class, and one of "any class": `Labels` of B samples -> (B, width)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)
        self.classes = classes

    def forward(self, condition: Condition) -> Tensor:  # type: ignore[override]
        """Raises ValueError for another kind of condition, or labels of other classes."""
        return super().forward(index_of(condition, self.classes))

    @torch.no_grad()
    def start_at(self, vector: Tensor) -> None:
        """Encodes all labels as `vector`, (width,): the start of a fine-tuning with other classes."""
        self.weight.copy_(vector.expand_as(self.weight))


def index_of(condition: Condition, classes: int) -> Tensor:
    """`Labels.index`. Raises ValueError for another kind of condition, or labels of other classes."""
    if not isinstance(condition, Labels):
        raise ValueError(f"the network takes labels of {classes} classes, not a {type(condition).__name__}")
    if condition.classes != classes:
        raise ValueError(f"the network takes labels of {classes} classes, not of {condition.classes}")
    return condition.index


def label_encoder(classes: int) -> Encoders:
    """The encoder of a network for `classes` classes; none for 0."""
    return {"label": partial(LabelEncoder, classes)} if classes else {}
