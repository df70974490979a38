"""A small network for points: (B, D) in, (B, D') out."""

from torch import Tensor, nn

from undiffuse.conditions import Condition, Encoders
from undiffuse.networks.embedding import Conditioning, zero_


class MLP(nn.Module):
    """Residual layers, each conditioned on the noise level and the condition: (B, inputs) -> (B, outputs).

    The arguments of `forward` are those of `UNet`.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 128, blocks: int = 3, encoders: Encoders | None = None
    ):
        super().__init__()
        self.conditioning = Conditioning(width, encoders)
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), zero_(nn.Linear(2 * width, width))
            )
            for _ in range(blocks)
        )
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zero_(nn.Linear(width, outputs)))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        conditioning = self.conditioning(log_snr, condition)
        x = self.stem(x)
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            x = x + block(x + shift(conditioning))
        return self.out(x)

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of the residual layers."""
        return [layer.weight for layer in self.blocks.modules() if isinstance(layer, nn.Linear)]
