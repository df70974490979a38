"""A critic of patches, which tells a picture from its reconstruction: what an error of pixels leaves blurred.

It is trained with the autoencoder and from nothing. The loss is relativistic, a picture against its own reconstruction,
with both zero-centred gradient penalties (Huang et al. 2024, R3GAN, eq. 2 and section 2.2), of patches (Isola et al.
2017). There are no norms, under which such penalties mean little.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from undiffuse.networks.frozen import frozen

PENALTY = 0.1  # of the squared gradient of a patch's number


class Critic(nn.Module):
    """Pictures float (B, C, H, W), H and W multiples of 4 -> a number for each patch, (B, H W / 16): higher is real."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 2, 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            patches: Tensor = self.layers(x.float()).flatten(1)
        return patches

    def losses(self, real: Tensor, made: Tensor) -> Tensor:
        """What the critic learns: the mean over patches of softplus(D(made) - D(real)), and the penalties: (B,)."""
        real, made = real.detach().float().requires_grad_(), made.detach().float().requires_grad_()
        of_real, of_made = self(real), self(made)
        gradients = torch.autograd.grad(of_real.sum() + of_made.sum(), (real, made), create_graph=True)
        steepness = sum(gradient.square().flatten(1).sum(1) for gradient in gradients)
        return softplus(of_made - of_real).mean(1) + PENALTY / 2 * steepness / of_real.shape[1]

    def doubts(self, real: Tensor, made: Tensor) -> Tensor:
        """What reconstructions learn: the mean over patches of softplus(D(real) - D(made)), (B,), the critic fixed."""
        with frozen(self):
            of_real, of_made = self(real), self(made)
        return softplus(of_real - of_made).mean(1)
