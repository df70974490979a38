"""A small very deep VAE (Child 2021): an encoder down to one pixel, and a decoder back up with latents at every size.

p(x, z) = p(z_1) p(z_2 | z_1) ... p(x | z) and q(z | x) = q(z_1 | x) q(z_2 | z_1, x) ...: the loss is the bound on
-ln p(x), the sum of KL(q(z_l | z_<l, x) || p(z_l | z_<l)), each in closed form, less ln p(x | z). No norms; every block
is a bottleneck whose last layer starts small. Unlike the paper's, widths differ by resolution, softplus makes the
standard deviations (Hazami et al. 2022), and a class is added before every latent.
"""

import math
from itertools import pairwise
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import zero_
from undiffuse.networks.unet import convolution_weights
from undiffuse.process import Normal
from undiffuse.randomness import Draw
from undiffuse.rivals.logistics import Logistics, size_of_component

Size = tuple[int, int]


def resolutions(height: int, width: int) -> list[Size]:
    """The picture's, halved and rounded up while a side is longer than 4, and then (1, 1)."""
    sizes = [(height, width)]
    while max(sizes[-1]) > 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes if sizes[-1] == (1, 1) else [*sizes, (1, 1)]


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
    """(B, inputs, H, W) -> (B, middle, H, W): a block but for its last layer. On a single pixel kernels are 1 x 1."""

    def __init__(self, inputs: int, middle: int, size: Size):
        side, gain = 1 if size == (1, 1) else 3, 1.53  # the mean square of GELU(z) is 1.53^-2 for a standard normal z
        first, *rest = convolution(inputs, middle, gain), *(convolution(middle, middle, gain, side) for _ in range(2))
        super().__init__(nn.GELU(), first, *(part for layer in rest for part in (nn.GELU(), layer)), nn.GELU())


class Residual(nn.Module):
    """(B, width, H, W) plus a bottleneck of it; `scale` is that of the last layer, 1 / sqrt(number of such blocks)."""

    def __init__(self, width: int, middle: int, size: Size, scale: float):
        super().__init__()
        self.body, self.last = Bottleneck(width, middle, size), convolution(middle, width, scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.body(x))


class LatentLayer(nn.Module):
    """A latent z_l of `latents` channels: its laws given the decoder's state (B, width, H, W), to which it is added."""

    def __init__(self, width: int, middle: int, latents: int, size: Size, scale: float, classes: int):
        super().__init__()
        self.shape = (latents, *size)
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
            encoded: the encoder's state, (B, width, H, W); None: z is drawn from the prior, and the KL is 0.
            temperature: multiplies the prior's standard deviation.
        """
        if self.label is not None:
            x = x + self.label(labels)[:, :, None, None].to(x)
        h = self.prior(x)
        prior = law(precise(self.prior_law, h))
        if encoded is None:
            z, kl = Normal(prior.mean, temperature**2 * prior.variance).at(noise), noise.new_zeros(len(noise))
        else:
            posterior = law(precise(self.posterior_law, self.posterior(torch.cat([x, encoded], 1))))
            z, kl = posterior.at(noise), posterior.kl(prior).flatten(1).sum(1)
        return self.residual(x + self.of_prior(h) + self.of_latent(z)), kl


class VAE(nn.Module):
    """A rival that draws in one evaluation and bounds the likelihood.

    Args:
        shape: (C, H, W) of the pictures.
        classes: how many classes there are; 0: unconditional.
        widths: channels at each resolution, from the picture's down; the last holds for all below it too.
        blocks: blocks of the encoder at each resolution, likewise.
        layers: latent layers of the decoder at each resolution, likewise.
        latents: channels of a latent at each resolution, likewise.
        narrowing: how many times narrower than a resolution's width its bottlenecks are.
        components: logistics in the mixture of a pixel.
    """

    phases: ClassVar[tuple[str, ...]] = ("vae",)
    evaluations = 1

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        widths: tuple[int, ...] = (32, 64, 128),
        blocks: tuple[int, ...] = (1,),
        layers: tuple[int, ...] = (1, 1, 2, 2, 1),
        latents: tuple[int, ...] = (4, 8, 16),
        narrowing: int = 2,
        components: int = 5,
    ):
        super().__init__()
        self.shape, self.classes, self.sizes = shape, classes, resolutions(*shape[1:])
        width, block, latent_layer, latent = (_at_all(v, len(self.sizes)) for v in (widths, blocks, layers, latents))
        encoding, decoding = 1 / math.sqrt(max(sum(block), 1)), 1 / math.sqrt(sum(latent_layer))
        self.stem = convolution(shape[0], width[0], 1.0, 3)
        self.down = nn.ModuleList(convolution(a, b, 1.0) for a, b in pairwise(width))
        self.up = nn.ModuleList(convolution(b, a, 1.0) for a, b in pairwise(width))
        self.encoder, self.decoder, self.start = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self.latent_layers: list[LatentLayer] = []  # in order, from the lowest resolution up
        for size, w, b, n, d in zip(self.sizes, width, block, latent_layer, latent, strict=True):
            middle = w // narrowing
            self.encoder.append(nn.Sequential(*(Residual(w, middle, size, encoding) for _ in range(b))))
            here = [LatentLayer(w, middle, d, size, decoding, classes) for _ in range(n)]
            self.decoder.append(nn.ModuleList(here))
            self.latent_layers = here + self.latent_layers
            self.start.append(nn.Parameter(torch.zeros(w, *size)))
        self.out = convolution(width[0], size_of_component(shape[0]) * components, 0.1)

    def part(self, phase: str) -> nn.Module:
        """All of it."""
        return self

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """The bound on -ln p per number of the picture, in nats: float32 (B,). Arguments and errors as of `nats`."""
        return self.nats(x0, labels, draw) / math.prod(self.shape)

    def nats(self, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """An unbiased estimate of an upper bound on -ln p(x0 | label), in nats per picture: float32 (B,).

        Args:
            x0: float32 (B, C, H, W), of the 256 values on [-1, 1].
            labels: int64 (B,); None for a model without classes.
            draw: one call of normal.

        Raises ValueError for labels where there are no classes, and for none where there are.
        """
        h, kl = self.top_down(self._noise(x0, draw), labels, self.encode(x0))
        return kl - self.pixels(h).log_prob(x0).flatten(1).sum(1)

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int, temperature: float = 1.0) -> Tensor:
        """Samples float32 (count, C, H, W) of the 256 values on [-1, 1]; number k depends on the draw's k-th key alone.

        `temperature` multiplies the standard deviation of every latent: 1 is the model; less gives samples nearer to
        the common ones (Child 2021, section 4). Labels and errors as of `nats`.
        """
        like = self.out.weight.new_empty(count, 1 + self.shape[0], *self.shape[1:])
        h, _ = self.top_down(self._noise(like, draw), labels, None, temperature)
        return self.pixels(h).at(draw.uniform(like))

    def matrices(self) -> list[Tensor]:
        """The weights that Muon takes: of all convolutions."""
        return convolution_weights(self)

    def encode(self, x0: Tensor) -> list[Tensor]:
        """The encoder's states (B, width, height, width), from the picture's resolution down."""
        h, states = self.stem(x0), []
        for depth, (blocks, size) in enumerate(zip(self.encoder, self.sizes, strict=True)):
            if depth:
                h = self.down[depth - 1](functional.adaptive_avg_pool2d(h, size))
            h = blocks(h)
            states.append(h)
        return states

    def top_down(
        self, noise: Tensor, labels: Tensor | None, encoded: list[Tensor] | None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The decoder's last state, (B, width, H, W), and the sum of the KLs of its latents, float32 (B,).

        Args:
            noise: standard normal (B, D), for the latents in order, from the lowest resolution up.
            encoded: what `encode` gives; None: all latents are drawn from the prior, at the `temperature`.
        """
        if (labels is None) != (self.classes == 0):
            raise ValueError("a VAE with classes takes labels, and one without takes none")
        parts = iter(noise.split([math.prod(layer.shape) for layer in self.latent_layers], 1))
        h, total = self.start[-1].expand(len(noise), -1, -1, -1), noise.new_zeros(len(noise))
        for depth in reversed(range(len(self.sizes))):
            if depth < len(self.up):
                h = functional.interpolate(self.up[depth](h), size=self.sizes[depth], mode="nearest")
                h = h + self.start[depth].to(h)
            seen = None if encoded is None else encoded[depth]
            for layer in cast(nn.ModuleList, self.decoder[depth]):
                h, kl = layer(h, next(parts).unflatten(1, layer.shape), labels, seen, temperature)
                total = total + kl
        return h, total

    def pixels(self, h: Tensor) -> Logistics:
        """The law of the pixels for the decoder's last state."""
        return Logistics.of(precise(self.out, h), self.shape[0])

    def _noise(self, like: Tensor, draw: Draw) -> Tensor:
        """Normal numbers for all latents, (B, D), drawn at once, as every call makes a stream for each sample."""
        return draw.normal(like.new_empty(len(like), sum(math.prod(layer.shape) for layer in self.latent_layers)))


def _at_all(values: tuple[int, ...], count: int) -> list[int]:
    """The first `count` values; the last is repeated."""
    return [values[min(i, len(values) - 1)] for i in range(count)]
