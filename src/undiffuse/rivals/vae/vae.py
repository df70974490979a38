"""A small very deep VAE (Child 2021): an encoder down to one pixel, and a decoder back up with latents at every size.

p(x, z) = p(z_1) p(z_2 | z_1) ... p(x | z) and q(z | x) = q(z_1 | x) q(z_2 | z_1, x) ...: the loss is the bound on
-ln p(x), the sum of KL(q(z_l | z_<l, x) || p(z_l | z_<l)), each in closed form, less ln p(x | z). No norms; every block
is a bottleneck whose last layer starts small. Unlike the paper's, widths differ by resolution, softplus makes the
standard deviations (Hazami et al. 2022), and a class is added before every latent.
"""

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UsageError
from undiffuse.networks.unet import convolution_weights, fold, unfold
from undiffuse.randomness import Draw
from undiffuse.rivals.logistics import Logistics, size_of_component
from undiffuse.rivals.rival import Rival
from undiffuse.rivals.vae.layers import LatentLayer, Residual, Size, convolution, precise


def resolutions(height: int, width: int) -> list[Size]:
    """This one, halved and rounded up while a side is longer than 4, and then (1, 1)."""
    sizes = [(height, width)]
    while max(sizes[-1]) > 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes if sizes[-1] == (1, 1) else [*sizes, (1, 1)]


class VAE(Rival):
    """A rival that draws in one evaluation and bounds the likelihood.

    Args:
        shape: (C, H, W) of the pictures.
        classes: how many classes there are; 0: unconditional.
        patch: side of the patches that are folded into channels first. Of side 2, the first resolution is half the
            picture's, and a latent of 4 channels there stands for one number per pixel.
        widths: channels at each resolution, from the first down; the last holds for all below it too.
        blocks: blocks of the encoder at each resolution, likewise.
        layers: latent layers of the decoder at each resolution, likewise.
        latents: channels of a latent at each resolution, likewise.
        narrowing: how many times narrower than a resolution's width its bottlenecks are.
        components: logistics in the mixture of a pixel.
        temperature: of samples, multiplies the standard deviation of every latent: 1 is the model; less gives samples
            nearer to the common ones (Child 2021, section 4).
        centres: samples' pixels are the centres of their laws and are not drawn: not the model, but free of noise.

    Raises UsageError for pictures whose sides are no multiples of `patch`.
    """

    bounded = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        patch: int = 2,
        widths: tuple[int, ...] = (64, 128),
        blocks: tuple[int, ...] = (1,),
        layers: tuple[int, ...] = (2, 2, 2, 1),
        latents: tuple[int, ...] = (16,),
        narrowing: int = 2,
        components: int = 5,
        temperature: float = 1.0,
        centres: bool = False,
    ):
        super().__init__()
        self.temperature, self.centres = temperature, centres
        if shape[1] % patch or shape[2] % patch:
            raise UsageError(
                f"pictures of {shape[1]} x {shape[2]} do not divide into patches of side {patch}: use patch = 1"
            )
        self.shape, self.classes, self.patch = shape, classes, patch
        self.sizes = resolutions(shape[1] // patch, shape[2] // patch)
        width, block, latent_layer, latent = (_at_all(v, len(self.sizes)) for v in (widths, blocks, layers, latents))
        encoding, decoding = 1 / math.sqrt(max(sum(block), 1)), 1 / math.sqrt(sum(latent_layer))
        self.stem = convolution(shape[0] * patch**2, width[0], 1.0, 3)
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
            self.start.append(nn.Parameter(torch.zeros(1, w, *size)))
        self.out = convolution(width[0], size_of_component(shape[0]) * components * patch**2, 0.1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which CPUs too compute faster

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
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """Samples float32 (count, C, H, W) of the 256 values on [-1, 1]; number k depends on the draw's k-th key alone.

        Labels and errors as of `nats`.
        """
        like = self.out.weight.new_empty(count, 1 + self.shape[0], *self.shape[1:])
        h, _ = self.top_down(self._noise(like, draw), labels, None, self.temperature)
        pixels = self.pixels(h)
        return pixels.centre() if self.centres else pixels.at(draw.uniform(like))

    def matrices(self) -> list[Tensor]:
        """The weights that Muon takes: of all convolutions."""
        return convolution_weights(self)

    def encode(self, x0: Tensor) -> list[Tensor]:
        """GELU of the encoder's states, (B, width, height, width), from the first resolution down."""
        h, states = self.stem(fold(x0, self.patch).contiguous(memory_format=torch.channels_last)), []
        for depth, (blocks, size) in enumerate(zip(self.encoder, self.sizes, strict=True)):
            if depth:
                h = self.down[depth - 1](functional.adaptive_avg_pool2d(h, size))
            h = blocks(h)
            states.append(functional.gelu(h))
        return states

    def top_down(
        self, noise: Tensor, labels: Tensor | None, encoded: list[Tensor] | None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The decoder's last state, (B, width, H / patch, W / patch), and the sum of its latents' KLs, float32 (B,).

        Args:
            noise: standard normal (B, D), for the latents in order, from the lowest resolution up; channels last.
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
                h, kl = layer(h, next(parts).unflatten(1, layer.shape).movedim(3, 1), labels, seen, temperature)
                total = total + kl
        return h, total

    def pixels(self, h: Tensor) -> Logistics:
        """The law of the pixels for the decoder's last state."""
        return Logistics.of(unfold(precise(self.out, h), self.patch), self.shape[0])

    def _noise(self, like: Tensor, draw: Draw) -> Tensor:
        """Normal numbers for all latents, (B, D), drawn at once, as every call makes a stream for each sample."""
        return draw.normal(like.new_empty(len(like), sum(math.prod(layer.shape) for layer in self.latent_layers)))


def _at_all(values: tuple[int, ...], count: int) -> list[int]:
    """The first `count` values; the last is repeated."""
    return [values[min(i, len(values) - 1)] for i in range(count)]
