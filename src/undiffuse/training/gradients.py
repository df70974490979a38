"""Sums over several processes, where no wrapper of a network takes them."""

from collections.abc import Sequence
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from undiffuse.devices import shares_a_cpu


def total(count: int, device: torch.device) -> int:
    """The sum of the counts of all processes."""
    if PartialState(cpu=shares_a_cpu()).num_processes == 1:
        return count
    return int(reduce(torch.tensor(count, device=device), "sum"))


def join(parameters: Sequence[Tensor], how: Literal["sum", "mean"]) -> None:
    """Gives parameters the sum or the mean of their gradients in all processes; one that has none counts as 0."""
    if not parameters or PartialState(cpu=shares_a_cpu()).num_processes == 1:
        return
    mine = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = gradient
        mine.append(gradient)
    joined = reduce(torch.cat([gradient.flatten() for gradient in mine]), how)
    for gradient, part in zip(mine, joined.split([gradient.numel() for gradient in mine]), strict=True):
        gradient.copy_(part.view_as(gradient))
