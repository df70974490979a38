"""The networks of R3GAN: ResNeXt blocks without norms. Features are (B, H, W, channels), as linear layers take them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import zero_
from undiffuse.networks.unet import parts
from undiffuse.rivals.gan.grouped import Mix
from undiffuse.straight_through import within

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""A leaky ReLU of this slope divides the root mean square of symmetric numbers by it."""

L = TypeVar("L", nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Sizes:
    """What both networks are built from; for the rest see `R3GAN`. `channels` are those of a picture."""

    channels: int
    sides: tuple[int, int]
    classes: int
    widths: tuple[int, ...]
    blocks: int
    group: int
    latent: int

    @property
    def places(self) -> list[tuple[int, int]]:
        """(rows, columns) of the features of each width: halves, rounded up."""
        h, w = self.sides
        return [(-(-h // 2**level), -(-w // 2**level)) for level in range(len(self.widths))]

    def stack(self, level: int) -> Iterable["Block"]:
        """The blocks of one resolution."""
        return (Block(self.widths[level], self.group, self.blocks * len(self.widths)) for _ in range(self.blocks))


def scaled(layer: L, gain: float = 1.0) -> L:
    """`layer`, initialised to multiply the root mean square of its input by `gain`, and without a bias."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + f(x) for (B, H, W, width): a convolution in groups between two linear layers, at twice the width.

    Fix-up initialisation (Zhang et al. 2019) for one of `depth` blocks: the last layer is 0, the others are multiplied
    by depth^(-1/4), so that an update changes the output of a network of any depth as much as that of one block.
    """

    def __init__(self, width: int, group: int, depth: int):
        super().__init__()
        gain, inner, self.groups = GAIN * depth**-0.25, 2 * width, parts(2 * width, group)
        self.widen = scaled(nn.Linear(width, inner), gain)
        self.mix = scaled(nn.Conv2d(inner, inner, 3, padding=1, groups=self.groups), gain)
        self.narrow = zero_(nn.Linear(inner, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.leaky_relu(self.widen(x), SLOPE)
        assert self.mix.bias is not None
        weight, bias = self.mix.weight.to(h.dtype), self.mix.bias.to(h.dtype)  # autocast does not reach into Mix
        h = Mix.apply(h.permute(0, 3, 1, 2), weight, bias, self.groups).permute(0, 2, 3, 1)
        return x + self.narrow(functional.leaky_relu(h, SLOPE))


class Resample(nn.Module):
    """(B, *places, C) -> (B, *to, C), bilinearly and without aliasing, by one matrix for each direction.

    Two small products take half the time of torch's own kernel on CPUs, and can be differentiated twice.
    """

    def __init__(self, places: tuple[int, int], to: tuple[int, int]):
        super().__init__()
        for name, n, m in zip(("rows", "columns"), places, to, strict=True):
            identity = torch.eye(n)[None, None]
            matrix = functional.interpolate(identity, (n, m), mode="bilinear", antialias=True)[0, 0].T.contiguous()
            self.register_buffer(name, matrix, persistent=False)
        self.rows: Tensor
        self.columns: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = (self.rows.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        return self.columns.to(x.dtype) @ x


class Generator(nn.Module):
    """z (B, latent), labels (B,) -> pictures (B, C, H, W) `within` [-1, 1].

    A learnt constant times a linear function of z and the class, then blocks from the lowest resolution up.
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        widths, places = sizes.widths, sizes.places
        self.embedding = nn.Embedding(sizes.classes, sizes.latent) if sizes.classes else None
        self.basis = nn.Parameter(torch.randn(*places[-1], widths[-1]))
        self.linear = scaled(nn.Linear(sizes.latent * (2 if sizes.classes else 1), widths[-1], bias=False))
        self.layers = nn.Sequential(*sizes.stack(len(widths) - 1))
        for level in reversed(range(len(widths) - 1)):
            self.layers.append(scaled(nn.Linear(widths[level + 1], widths[level], bias=False)))
            self.layers.append(Resample(places[level + 1], places[level]))
            self.layers.extend(sizes.stack(level))
        self.out = scaled(nn.Linear(widths[0], sizes.channels, bias=False))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            if self.embedding is not None:
                z = torch.cat([z, self.embedding(labels)], 1)
            h = self.basis * self.linear(z)[:, None, None]
        h = self.layers(h)
        with torch.autocast(z.device.type, enabled=False):
            return within(self.out(h.to(z.dtype)).permute(0, 3, 1, 2).contiguous())


class Critic(nn.Module):
    """x (B, C, H, W), labels (B,) -> scores (B,).

    Blocks from the highest resolution down, a learnt mean over places, and a linear layer; the score is its product
    with the embedding of the class (Miyato & Koyama 2018).
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        widths, places = sizes.widths, sizes.places
        self.layers = nn.Sequential(scaled(nn.Linear(sizes.channels, widths[0], bias=False)))
        self.layers.extend(sizes.stack(0))
        for level in range(1, len(widths)):
            self.layers.append(Resample(places[level - 1], places[level]))
            self.layers.append(scaled(nn.Linear(widths[level - 1], widths[level], bias=False)))
            self.layers.extend(sizes.stack(level))
        self.basis = nn.Parameter(torch.randn(*places[-1], widths[-1]) / math.sqrt(math.prod(places[-1])))
        self.linear = scaled(nn.Linear(widths[-1], widths[-1] if sizes.classes else 1, bias=False))
        self.embedding = nn.Embedding(sizes.classes, widths[-1]) if sizes.classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.layers(x.permute(0, 2, 3, 1))
        with torch.autocast(x.device.type, enabled=False):
            h = self.linear((h.to(x.dtype) * self.basis).sum((1, 2)))
            if self.embedding is None:
                return h[:, 0]
            return (h * self.embedding(labels)).sum(1) / math.sqrt(h.shape[1])
