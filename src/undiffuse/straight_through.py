"""Values whose gradient is that of something else (the straight-through estimator of Bengio et al. 2013)."""

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value`, exactly, with the gradient of x."""
    return value.detach() + (x - x.detach())


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.masked_fill((x.abs() > 1) & (gradient * x < 0), 0.0)


def within(x: Tensor) -> Tensor:
    """x cut off at [-1, 1], as pictures are when they are shown: black need not be met exactly.

    What lies outside has the gradient of x where a step against it leads back inside, and none where it leads further
    out, as in projected descent.
    """
    found: Tensor = _Within.apply(x)
    return found
