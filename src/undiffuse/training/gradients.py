"""Gradients of several processes where no wrapper of the network joins them."""

from collections.abc import Sequence
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from undiffuse.devices import shares_a_cpu


def join(parameters: Sequence[Tensor], how: Literal["sum", "mean"]) -> None:
    """Gives the parameters the sum or the mean of their gradients in all processes; one that has none counts as 0."""
    if PartialState(cpu=shares_a_cpu()).num_processes > 1:
        mine = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        for parameter, gradient in zip(parameters, reduce(mine, how), strict=True):
            parameter.grad = gradient
