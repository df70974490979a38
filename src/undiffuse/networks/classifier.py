"""The downward half of a U-Net with a linear layer at its end: ADM's classifier (Dhariwal & Nichol 2021, section 4)."""

from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import Conditioning, zero_
from undiffuse.networks.unet import CONVOLUTION, Attention, ResidualBlock, Stage, convolution_weights, fold, norm


class HalfUNet(nn.Module):
    """x (B, inputs, H, W) or (B, inputs, L), log-SNR (B,) -> (B, outputs).

    Residual blocks, conditioned on the log-SNR, the mean over places, and a linear layer.

    Args:
        inputs, outputs: channels of the data, numbers that come out.
        dims, patch, channels, blocks, attention, dropout: as of `UNet`; the blocks are those on the way down.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dims: int = 2,
        patch: int = 2,
        channels: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch, conv, now, width = patch, CONVOLUTION[dims], channels[0], 4 * channels[0]
        self.conditioning = Conditioning(width)
        self.stem = conv(inputs * patch**dims, now, 3, padding=1)
        self.down = nn.ModuleList()
        for stage, here in enumerate(channels):
            for number in range(blocks):
                block = ResidualBlock(now, here, width, dropout, "down" if stage and not number else None, dims)
                self.down.append(Stage(block, Attention(here, dims=dims) if stage in attention else None))
                now = here
        self.norm, self.out = norm(now), zero_(nn.Linear(now, outputs))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        conditioning = self.conditioning(log_snr, None)
        h = self.stem(fold(x, self.patch))
        for down in self.down:
            h = down(h, conditioning)
        return self.out(functional.silu(self.norm(h)).flatten(2).mean(2))

    def matrices(self) -> list[Tensor]:
        """The weights that Muon takes: of all convolutions."""
        return convolution_weights(self)
