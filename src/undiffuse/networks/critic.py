"""A critic that looks through a denoiser's eyes: small heads on the features of a U-Net that stays as it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

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

    For each stage a layer to `width` channels and one to a score (after Sauer et al. 2024, "Fast High-Resolution Image
    Synthesis with Latent Adversarial Diffusion Distillation"). The features have seen what is around a place, and what
    they are conditioned on.
    """

    def __init__(self, channels: Sequence[int], dims: int = 2, width: int = 64):
        super().__init__()
        conv = CONVOLUTION[dims]
        self.heads = nn.ModuleList(
            nn.Sequential(conv(inputs, width, 1), norm(width), nn.SiLU(), conv(width, 1, 1)) for inputs in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [head(feature).flatten(1) for head, feature in zip(self.heads, features, strict=True)]
