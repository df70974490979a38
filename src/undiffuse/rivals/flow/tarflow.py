"""TarFlow (Zhai et al. 2024, "Normalizing Flows are Capable Generative Models"), small."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.rivals.flow.flow import Flow
from undiffuse.rivals.flow.layers import Conditioner, Mixing, standardised


class TarFlow(Flow):
    """Blocks in which each patch is standardised by what a causal transformer predicts from the patches before it.

    Every other block reads the patches backwards. All patches are normalised at once, but generated one after the
    other, with keys and values remembered. Unlike the paper's, a block also mixes the numbers of a patch by a learnt
    matrix: those of one patch are otherwise related to each other only by way of other patches.

    Args:
        blocks, layers, width: the transformers: their number, and the depth and channels of each.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        patch: int = 4,
        noise: float = 0.05,
        blocks: int = 4,
        layers: int = 2,
        width: int = 128,
    ):
        super().__init__(shape, classes, patch, noise)
        self.blocks = nn.ModuleList(
            Block(self.tokens, self.numbers, width=width, layers=layers, classes=classes) for _ in range(blocks)
        )
        self.evaluations = self.tokens + (noise > 0)  # Tweedie's formula takes one

    def normalised(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for block in self.blocks:
            x, log_det = block(x, labels)
            x, total = x.flip(1), total + log_det
        return x, total

    def generated(self, z: Tensor, labels: Tensor | None) -> Tensor:
        for block in reversed(self.blocks):
            z = block.inverse(z.flip(1), labels)  # type: ignore[operator]
        return z


class Block(nn.Module):
    """z_i = W (x_i - mean(x_<i)) / scale(x_<i) of patches (B, N, D) (Zhai et al. 2024, eq. 4), and its inverse."""

    def __init__(self, tokens: int, numbers: int, *, width: int, layers: int, classes: int):
        super().__init__()
        self.conditioner = Conditioner(
            tokens, numbers, numbers, width=width, layers=layers, classes=classes, causal=True
        )
        self.mixing = Mixing(numbers)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D) -> z (B, N, D) and ln |det dz/dx| (B,)."""
        before = functional.pad(x[:, :-1], (0, 0, 1, 0))
        z, scaled = standardised(x, *self.conditioner(before, labels))
        z, mixed = self.mixing(z)
        return z, scaled + mixed

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """x_i = mean(x_<i) + scale(x_<i) W^-1 z_i, patch by patch."""
        memory = self.conditioner.memory(len(z))
        latest, patches = torch.zeros_like(z[:, :1]), []
        for number, token in enumerate(self.mixing.inverse(z).split(1, 1)):
            mean, log_scale = self.conditioner(latest, labels, memory, number)
            latest = mean + log_scale.exp() * token
            patches.append(latest)
        return torch.cat(patches, 1)
