"""Finite scalar quantisation (Mentzer et al. 2024): each of a few numbers is rounded to one of a few levels."""

import math

import torch
from torch import Tensor, nn

from undiffuse.straight_through import straight_through

SLACK = 1e-3
"""Bounds stay this share inside the half levels, so that nothing is rounded beyond the last level."""


class Quantiser(nn.Module):
    """Vectors (..., D), of which number d takes one of levels[d] >= 3 values: prod(levels) codes and no weights.

    The values lie on a grid in [-1, 1] that includes 0; for an even count L they are -1 to 1 - 2 / L.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"each number of a code needs at least 3 levels, 0 and one on each side, unlike {levels}")
        self.codes, self.kinds = math.prod(levels), sum(levels)
        count = torch.tensor(levels)
        steps = torch.tensor([math.prod(levels[:d]) for d in range(len(levels))])
        for name, value in {"levels": count, "middle": count // 2, "steps": steps}.items():
            self.register_buffer(name, value, persistent=False)
        self.levels: Tensor
        self.middle: Tensor
        self.steps: Tensor

    def bounded(self, z: Tensor) -> Tensor:
        """The numbers between the outermost levels, which are whole numbers: tanh, moved so that 0 stays 0.

        As in the paper's appendix A.1, whose code has tan where the inverse of tanh is meant.
        """
        reach = (self.levels - 1) * ((1 - SLACK) / 2)
        offset = (self.levels % 2 == 0) * 0.5
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset

    def forward(self, z: Tensor) -> Tensor:
        """The values (..., D) in [-1, 1] nearest the bounded numbers; gradients pass the rounding unchanged."""
        bounded = self.bounded(z)
        return straight_through(bounded.round(), bounded) / self.middle

    def digits(self, numbers: Tensor) -> Tensor:
        """Codes int64 (...) in 0 .. codes - 1 -> the level of each number, int64 (..., D) in 0 .. levels - 1."""
        return numbers.unsqueeze(-1) // self.steps % self.levels

    def values(self, numbers: Tensor) -> Tensor:
        """Codes int64 (...) -> their values, float32 (..., D)."""
        return (self.digits(numbers) - self.middle) / self.middle

    def numbers(self, values: Tensor) -> Tensor:
        """Values (..., D) -> the codes int64 (...)."""
        return (((values * self.middle).round().long() + self.middle) * self.steps).sum(-1)
