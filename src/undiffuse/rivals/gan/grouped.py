"""A convolution in groups that is cheap to differentiate twice, as penalties on gradients need."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Mix(torch.autograd.Function):
    """A 3 x 3 convolution in groups with a bias: x (B, C, H, W), weight (C, C / groups, 3, 3), bias (C,).

    torch's own second derivative of it goes group by group, at several times the cost. The gradient that enters a
    penalty is only asked for in the input: while autograd builds a graph of it, that in the weights is left out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return functional.conv2d(x, weight, bias, padding=1, groups=groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (y,), (x, weight) = gradients, ctx.saved_tensors
        by_x = Unmix.apply(y, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        if torch.is_grad_enabled() or not ctx.needs_input_grad[1]:
            return by_x, None, None, None
        return by_x, by_weight(x, y, weight, ctx.groups), y.sum((0, 2, 3)), None


class Unmix(torch.autograd.Function):
    """The transpose of `Mix`: <y, Mix(x)> = <Unmix(y), x> without the bias."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.groups = groups
        return functional.conv_transpose2d(y, weight, padding=1, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (y, weight) = gradients, ctx.saved_tensors
        return functional.conv2d(x, weight, padding=1, groups=ctx.groups), by_weight(x, y, weight, ctx.groups), None


def by_weight(x: Tensor, y: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The gradient of <y, Mix(x)> in the weight."""
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], groups)  # stride, padding, dilation, transposed and its padding
    return torch.ops.aten.convolution_backward(y, x, weight, None, *options, [False, True, False])[1]
