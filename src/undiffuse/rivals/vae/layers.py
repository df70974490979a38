"""The layers of the VAE: bottlenecks, and latents between a prior and a posterior."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import zero_
from undiffuse.process import Normal

Size = tuple[int, int]


def law(parameters: Tensor) -> Normal:
    """The normal law of (B, 2 D, H, W): D means, and D numbers whose softplus of base 2 is the deviation (of 0: 1)."""
    mean, raw = parameters.chunk(2, 1)
    return Normal(mean, (functional.softplus(math.log(2) * raw) / math.log(2)).square())


def convolution(inputs: int, outputs: int, gain: float, side: int = 1) -> nn.Conv2d:
    """A layer whose outputs are initially `gain` times as large as its inputs, without a bias at first."""
    layer = zero_(nn.Conv2d(inputs, outputs, side, padding=side // 2))
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs * side**2))
    return layer


def precise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer in the precision of its weights, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


class Bottleneck(nn.Sequential):
    """GELU of a state, (B, inputs, H, W) -> (B, middle, H, W): a block but for that first GELU, which others share, and
    its last layer. On a single pixel kernels are 1 x 1."""

    def __init__(self, inputs: int, middle: int, size: Size):
        side, gain = 1 if size == (1, 1) else 3, 1.53  # the mean square of GELU(z) is 1.53^-2 for a standard normal z
        layers = [convolution(inputs, middle, gain), *(convolution(middle, middle, gain, side) for _ in range(2))]
        super().__init__(*(part for layer in layers for part in (layer, nn.GELU())))


class Residual(nn.Module):
    """(B, width, H, W) plus a bottleneck of it; `scale` is that of the last layer, 1 / sqrt(number of such blocks)."""

    def __init__(self, width: int, middle: int, size: Size, scale: float):
        super().__init__()
        self.body, self.last = Bottleneck(width, middle, size), convolution(middle, width, scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.body(functional.gelu(x)))


class LatentLayer(nn.Module):
    """A latent z_l of `latents` channels: its laws given the decoder's state (B, width, H, W), to which it is added."""

    def __init__(self, width: int, middle: int, latents: int, size: Size, scale: float, classes: int):
        super().__init__()
        self.shape = (*size, latents)  # of the noise, channels last
        self.label = zero_(nn.Embedding(classes, width)) if classes else None
        self.prior, self.posterior = Bottleneck(width, middle, size), Bottleneck(2 * width, middle, size)
        self.prior_law = convolution(middle, 2 * latents, 0.0)
        self.posterior_law = convolution(middle, 2 * latents, 1.0)
        self.of_prior, self.of_latent = convolution(middle, width, 0.0), convolution(latents, width, scale)
        self.residual = Residual(width, middle, size, scale)

    def forward(
        self, x: Tensor, noise: Tensor, labels: Tensor | None, encoded: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The next state, and KL(posterior || prior), float32 (B,).

        Args:
            noise: standard normal, (B, latents, H, W).
            encoded: GELU of the encoder's state, (B, width, H, W); None: z is drawn from the prior, and the KL is 0.
            temperature: multiplies the prior's standard deviation.
        """
        if self.label is not None:
            x = x + self.label(labels)[:, :, None, None].to(x)
        seen = functional.gelu(x)
        h = self.prior(seen)
        prior = law(precise(self.prior_law, h))
        if encoded is None:
            z, kl = Normal(prior.mean, temperature**2 * prior.variance).at(noise), noise.new_zeros(len(noise))
        else:
            posterior = law(precise(self.posterior_law, self.posterior(torch.cat([seen, encoded], 1))))
            z, kl = posterior.at(noise), posterior.kl(prior).flatten(1).sum(1)
        return self.residual(x + self.of_prior(h) + self.of_latent(z)), kl
