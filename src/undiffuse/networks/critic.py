"""A critic that looks through a denoiser's eyes: small heads on the features of a U-Net that stays as it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.unet import CONVOLUTION, UNet, norm


@contextmanager
def watched(unet: UNet) -> Iterator[list[Tensor]]:
    """What each of its stages gives meanwhile, (B, C, ...), in their order."""
    seen: list[Tensor] = []
    stages = [*unet.down, unet.middle, *unet.up]
    handles = [stage.register_forward_hook(lambda _, given, found: seen.append(found)) for stage in stages]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Critic(nn.Module):
    """Features (B, C, ...) of each stage -> a score for every place of each: tensors (B, places).

    For each stage a layer to `width` channels, a convolution with a residual, and a layer to one (Sauer et al. 2024,
    "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation"). What the features are
    conditioned on, the critic knows from them.
    """

    def __init__(self, channels: Sequence[int], dims: int = 2, width: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(Head(inputs, dims, width) for inputs in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]


class Head(nn.Module):
    """(B, inputs, ...) -> (B, places)."""

    def __init__(self, inputs: int, dims: int, width: int):
        super().__init__()
        conv = CONVOLUTION[dims]
        self.first, self.norm1 = conv(inputs, width, 1), norm(width)
        self.mix, self.norm2 = conv(width, width, 3, padding=1), norm(width)
        self.score = conv(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.norm1(self.first(x)))
        h = functional.silu(self.norm2(h + self.mix(h)))
        return self.score(h).flatten(1)
