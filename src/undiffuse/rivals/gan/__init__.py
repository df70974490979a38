"""R3GAN (Huang et al. 2024): a relativistic loss, penalties on both gradients, and networks without norms.

With both penalties training converges locally (their section 2), without the tricks of earlier GANs. The widths are for
laptops: a few channels at full resolution, where a critic that saw folded pixels would teach a checkerboard.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UsageError
from undiffuse.networks.frozen import frozen
from undiffuse.randomness import Draw
from undiffuse.rivals.gan.networks import Critic, Generator, Sizes
from undiffuse.rivals.rival import Rival


def relativistic(ours: Tensor, theirs: Tensor) -> Tensor:
    """softplus(theirs - ours), (B,): the loss that wants the scores `ours` above `theirs` (Huang et al., section 2)."""
    return functional.softplus(theirs - ours)


def penalty(scores: Tensor, x: Tensor) -> Tensor:
    """||dD/dx||^2, (B,), of the scores D(x) (B,) at x (B, ...), differentiable in the weights of D.

    R1 where x is data, R2 where it is generated (Mescheder et al. 2018, equation 9).
    """
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


class R3GAN(Rival):
    """A generator of pictures (C, H, W) and a critic, updated in turn; pictures of any size.

    Args:
        shape: of a picture, (C, H, W).
        classes: how many classes there are; 0 for a model without labels.
        widths: channels from the highest resolution to the lowest; each resolution is half of the one before.
        blocks: residual blocks per resolution.
        group: channels per group of the 3 x 3 convolutions, or somewhat more where it does not divide them.
        latent: how many normal numbers a picture is generated from.
        gamma, last_gamma: weight of the penalties, at the beginning and at the end of training.
    """

    phases = ("critic", "generator")

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        widths: tuple[int, ...] = (16, 64, 128, 256),
        blocks: int = 1,
        group: int = 16,
        latent: int = 64,
        gamma: float = 1.0,
        last_gamma: float = 0.1,
    ):
        super().__init__()
        channels, height, width = shape
        self.classes, self.latent, self.gamma = classes, latent, (gamma, last_gamma)
        sizes = Sizes(channels, (height, width), classes, widths, blocks, group, latent)
        self.generator, self.critic = Generator(sizes), Critic(sizes)

    def part(self, phase: str) -> nn.Module:
        """The network that `phase` updates."""
        return {"critic": self.critic, "generator": self.generator}[phase]

    def penalty_weight(self) -> float:
        """gamma, annealed by half a cosine over the `progress` of training."""
        start, end = self.gamma
        return end + (start - end) * (1 + math.cos(math.pi * self.progress)) / 2

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """The loss of each pair of a picture and a generated one of its class: float32 (B,).

        Critic: softplus(D(G(z)) - D(x)) + gamma / 2 (R1 + R2). Generator: softplus(D(x) - D(G(z))). Each has a gradient
        in its own network only.

        Args:
            x0: float32 (B, C, H, W) in [-1, 1].
            labels: int64 (B,), or None if there are no classes.
            draw: of the latents; the two phases take different ones.

        Raises UsageError for labels that are missing or unexpected.
        """
        labels = self._checked(labels)
        both = None if labels is None else labels.repeat(2)
        z = draw.fold(1 + self.phases.index(phase)).normal(x0.new_empty(len(x0), self.latent))
        if phase == "generator":
            with frozen(self.critic):
                real, fake = self.critic(torch.cat([x0, self.generator(z, labels)]), both).chunk(2)
            return relativistic(fake, real)
        with torch.no_grad():
            made = self.generator(z, labels)
        x = torch.cat([x0, made]).requires_grad_()
        scores = self.critic(x, both)
        real, fake = scores.chunk(2)
        r1, r2 = penalty(scores, x).chunk(2)
        return relativistic(real, fake) + self.penalty_weight() / 2 * (r1 + r2)

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """float32 (count, C, H, W) in [-1, 1], in one pass. Sample k depends on the k-th key of `draw` and its label.

        Raises UsageError for labels that are missing or unexpected.
        """
        z = draw.normal(next(self.parameters()).new_empty(count, self.latent))
        made: Tensor = self.generator(z, self._checked(labels))
        return made

    def _checked(self, labels: Tensor | None) -> Tensor | None:
        if (labels is None) == bool(self.classes):
            raise UsageError("this GAN needs labels" if self.classes else "this GAN was made without classes")
        return labels
