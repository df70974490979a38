"""A small convolutional autoencoder whose code is quantised: a picture as (H / 4) (W / 4) tokens."""

import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.networks.embedding import zero_
from undiffuse.networks.unet import norm
from undiffuse.rivals.coded.quantiser import Quantiser
from undiffuse.straight_through import within

FOLD = 4  # pixels of a picture's side for each token of it


class Residual(nn.Module):
    """Two convolutions of 3 x 3 beside the identity, which is all there is at the start: (B, C, H, W) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            norm(width),
            nn.SiLU(),
            zero_(nn.Conv2d(width, width, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Autoencoder(nn.Module):
    """Pictures float (B, C, H, W) in [-1, 1] <-> codes int64 (B, H / 4, W / 4).

    Args:
        shape: (C, H, W), H and W multiples of 4.
        levels: of the quantiser.
        widths: channels at half and at a quarter of the resolution.
        depths: residual blocks at each of them in the decoder; the encoder has one.

    Raises UsageError for sides that are no multiples of 4.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: tuple[int, ...],
        widths: tuple[int, int] = (64, 96),
        depths: tuple[int, int] = (2, 2),
    ):
        super().__init__()
        channels, height, width = shape
        if height % FOLD or width % FOLD:
            raise UsageError(
                f"the coded model makes one token of {FOLD} x {FOLD} pixels, so pictures' sides are multiples of "
                f"{FOLD}, and not {height} x {width}: use pictures of another size"
            )
        fine, coarse = widths
        self.quantiser = Quantiser(levels)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, fine, 3, padding=1),
            Residual(fine),
            nn.Conv2d(fine, coarse, 2, 2),
            Residual(coarse),
            norm(coarse),
            nn.SiLU(),
        )
        self.to_code = nn.Conv2d(coarse, len(levels), 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(len(levels), coarse, 3, padding=1),
            *(Residual(coarse) for _ in range(depths[1])),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(Residual(fine) for _ in range(depths[0])),
            norm(fine),
            nn.SiLU(),
        )
        self.to_picture = nn.Sequential(nn.Conv2d(fine, 4 * channels, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x0: Tensor) -> Tensor:
        """The reconstruction, float32 (B, C, H, W), `within` [-1, 1]."""
        return self.decode(self.encode(x0))

    def encode(self, x0: Tensor) -> Tensor:
        """Quantised values (B, H / 4, W / 4, D) float32, with gradients that pass the rounding."""
        h = self.encoder(x0.contiguous(memory_format=torch.channels_last))
        with torch.autocast(x0.device.type, enabled=False):
            values: Tensor = self.quantiser(self.to_code(h.to(self.to_code.weight.dtype)).movedim(1, -1))
        return values

    def decode(self, values: Tensor) -> Tensor:
        """Quantised values -> pictures float32 (B, C, H, W), `within` [-1, 1]."""
        h = self.decoder(values.movedim(-1, 1))
        with torch.autocast(values.device.type, enabled=False):
            return within(self.to_picture(h.to(values.dtype)))

    @torch.no_grad()
    def codes(self, x0: Tensor) -> Tensor:
        """int64 (B, H / 4, W / 4)."""
        return self.quantiser.numbers(self.encode(x0))

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of convolutions."""
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.Conv2d)]
