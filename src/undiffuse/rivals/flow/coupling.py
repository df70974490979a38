"""Affine couplings by transformers: a flow that generates in one pass.

Couplings are those of RealNVP (Dinh et al. 2017), mixed as in Glow (Kingma & Dhariwal 2018), with a transformer over
patches in each and no multi-scale structure, as Jet has it (Kolesnikov et al. 2024).
"""

import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.rivals.flow.flow import Flow
from undiffuse.rivals.flow.layers import Conditioner, Mixing, standardised


class Coupling(Flow):
    """Steps that each keep half the numbers of every patch and standardise the others by what a transformer predicts.

    Args:
        steps, layers, width: the transformers: their number, and the depth and channels of each.

    Raises:
        UsageError: a patch is a single number, which has no halves.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        patch: int = 4,
        noise: float = 0.05,
        steps: int = 14,
        layers: int = 1,
        width: int = 96,
    ):
        super().__init__(shape, classes, patch, noise)
        if self.numbers < 2:
            raise UsageError("couplings need patches of at least two numbers: choose a larger patch")
        self.steps = nn.ModuleList(
            Step(self.tokens, self.numbers, width=width, layers=layers, classes=classes) for _ in range(steps)
        )
        self.evaluations = 1 + (noise > 0)

    def normalised(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, log_det = step(x, labels)
            total = total + log_det
        return x, total

    def generated(self, z: Tensor, labels: Tensor | None) -> Tensor:
        for step in reversed(self.steps):
            z = step.inverse(z, labels)  # type: ignore[operator]
        return z


class Step(nn.Module):
    """Mixes the numbers of every patch (B, N, D) and standardises half of them, given the other half; the inverse."""

    def __init__(self, tokens: int, numbers: int, *, width: int, layers: int, classes: int):
        super().__init__()
        self.kept = numbers // 2
        self.mixing = Mixing(numbers, turn=self.kept)
        self.conditioner = Conditioner(
            tokens, self.kept, numbers - self.kept, width=width, layers=layers, classes=classes
        )

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D) -> z (B, N, D) and ln |det dz/dx| (B,)."""
        x, mixed = self.mixing(x)
        kept, others = x.tensor_split([self.kept], -1)
        others, scaled = standardised(others, *self.conditioner(kept, labels))
        return torch.cat([kept, others], -1), mixed + scaled

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The x that `forward` takes to z."""
        kept, others = z.tensor_split([self.kept], -1)
        mean, log_scale = self.conditioner(kept, labels)
        return self.mixing.inverse(torch.cat([kept, mean + log_scale.exp() * others], -1))
