"""How a training picture was moved (`undiffuse.domains.augmentation`), handed to the network with its condition.

Only training makes these. A network without them takes all labels to be 0, which is how samples are drawn.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from undiffuse.conditions.condition import Condition
from undiffuse.devices import sent


@dataclass(frozen=True)
class Augmented:
    """A condition, or None, with augmentation labels, float32 (B, LABELS)."""

    condition: Condition | None
    labels: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.labels)

    def to(self, device: torch.device) -> "Augmented":
        """The same on `device`, without waiting for the copy."""
        condition = None if self.condition is None else self.condition.to(device)
        return Augmented(condition, sent(self.labels, device))


def augmented(condition: Condition | None, labels: Tensor) -> Condition:
    """`Augmented`, typed as a condition: objectives and denoisers only pass it on to the network."""
    return cast(Condition, Augmented(condition, labels))


def separated(condition: Condition | None) -> tuple[Condition | None, Tensor | None]:
    """The condition itself, and the augmentation labels if it has any."""
    if isinstance(condition, Augmented):
        return condition.condition, condition.labels
    return condition, None
