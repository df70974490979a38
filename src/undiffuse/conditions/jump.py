"""The noise level that one evaluation is to reach, passed to the network of a flow map with its condition.

A network with `network.jumps` that is given none takes the level to be that of its input, where it is a denoiser.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from undiffuse.conditions.condition import Condition, Rows
from undiffuse.devices import sent


@dataclass(frozen=True)
class Jump:
    """A condition, or None, with the log-SNR to reach, float32 (B,)."""

    condition: Condition | None
    log_snr: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.log_snr)

    def __getitem__(self, rows: Rows) -> "Jump":
        """The same for these rows."""
        return Jump(None if self.condition is None else self.condition[rows], self.log_snr[rows])

    def to(self, device: torch.device) -> "Jump":
        """The same on `device`, without waiting for the copy."""
        return Jump(None if self.condition is None else self.condition.to(device), sent(self.log_snr, device))


def jumping(condition: Condition | None, log_snr: Tensor) -> Condition:
    """`Jump`, typed as a condition: a denoiser only passes it on to the network."""
    return cast(Condition, Jump(condition, log_snr))


def without_jump(condition: Condition | None) -> tuple[Condition | None, Tensor | None]:
    """The condition itself, and the log-SNR to reach if it has one."""
    if isinstance(condition, Jump):
        return condition.condition, condition.log_snr
    return condition, None
