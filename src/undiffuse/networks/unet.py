"""A U-Net of the ADM family (Dhariwal & Nichol 2021), designed for few operations at full resolution.

Residual blocks with scale-shift conditioning that also do the up- and downsampling, optional attention, the last layer
of every block initialised to zero. A stem that folds patches into channels trades resolution for channels before the
first convolution, so the widest feature maps are a quarter of the image; the output is unfolded.

Everything works for both sequences (B, C, L) and pictures (B, C, H, W).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Condition, Encoders
from undiffuse.networks.embedding import Conditioning, Context, zero_

Resample = Literal["down", "up"] | None
FEW_TOKENS = 256
"""Up to so many, attention as two matrix products takes half the time of the fused kernel on CPUs."""


def parts(channels: int, width: int) -> int:
    """The number of equal parts, of `width` channels or somewhat more, that the channels divide into."""
    return next(count for count in range(max(1, channels // width), 0, -1) if channels % count == 0)


CONVOLUTION: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
POOL: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d}


def fold(x: Tensor, patch: int) -> Tensor:
    """Folds patches of side `patch` into channels: (B, C, L) -> (B, C patch, L / patch), likewise in 2-D."""
    if x.ndim == 4:
        return functional.pixel_unshuffle(x, patch)
    return x.unflatten(2, (-1, patch)).mT.flatten(1, 2)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    if x.ndim == 4:
        return functional.pixel_shuffle(x, patch)
    return x.unflatten(1, (-1, patch)).mT.flatten(2)


def convolution_weights(module: nn.Module) -> list[Tensor]:
    """The weights of all convolutions of `module`."""
    return [layer.weight for layer in module.modules() if isinstance(layer, (nn.Conv1d, nn.Conv2d))]


def attending_weights(module: nn.Module) -> list[Tensor]:
    """The weights of all linear layers of `module` that belong to attention over tokens."""
    attending = [part for part in module.modules() if getattr(part, "attends_to_tokens", False)]
    return [layer.weight for part in attending for layer in part.modules() if isinstance(layer, nn.Linear)]


def norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels or somewhat more."""
    return nn.GroupNorm(parts(channels, 16), channels)


class ResidualBlock(nn.Module):
    """(B, C_in, ...) -> (B, C_out, ...): norm, SiLU, conv, conditioned norm, SiLU, conv; plus a skip.

    Downsampling precedes and upsampling follows the first convolution, so that it works at the lower resolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        conditioning: int,
        dropout: float = 0.0,
        resample: Resample = None,
        dims: int = 2,
    ):
        super().__init__()
        conv, self.resample, self.pool = CONVOLUTION[dims], resample, POOL[dims]
        self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs, 3, padding=1)
        self.scale_shift = nn.Linear(conditioning, 2 * outputs)
        self.norm2, self.dropout = norm(outputs), nn.Dropout(dropout)
        self.conv2 = zero_(conv(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor, conditioning: Tensor, size: torch.Size | None = None) -> Tensor:
        """`size`: the output size, (H, W) or (L,), of an upsampling block (not necessarily twice the input)."""
        h = functional.silu(self.norm1(x))
        if self.resample == "down":
            h, x = (self.pool(z, 2, ceil_mode=True) for z in (h, x))
        h, x = self.conv1(h), self.skip(x)
        if self.resample == "up":
            h, x = (functional.interpolate(z, size=size, mode="nearest") for z in (h, x))
        scale, shift = self.scale_shift(conditioning)[(..., *[None] * (x.ndim - 2))].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(self.dropout(functional.silu(h)))


class Attention(nn.Module):
    """Multi-head self-attention over the positions of (B, C, ...), with a residual."""

    def __init__(self, channels: int, head_width: int = 64, dims: int = 2):
        super().__init__()
        self.heads, conv = parts(channels, head_width), CONVOLUTION[dims]
        self.norm, self.qkv = norm(channels), conv(channels, 3 * channels, 1)
        self.out = zero_(conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        places = math.prod(x.shape[2:])
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, places).unbind(1)
        if places <= FEW_TOKENS:
            h = v @ ((q * q.shape[2] ** -0.5).mT @ k).softmax(3).mT
        else:
            h = functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return x + self.out(h.reshape(x.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of the positions of (B, C, ...) to the tokens of a `Context`, with a residual."""

    attends_to_tokens = True

    def __init__(self, channels: int, context: int, head_width: int = 64, dims: int = 2):
        super().__init__()
        self.heads, conv = parts(channels, head_width), CONVOLUTION[dims]
        self.norm, self.q = norm(channels), conv(channels, channels, 1)
        self.kv = nn.Linear(context, 2 * channels)
        self.out = zero_(conv(channels, channels, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q = self.q(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1))
        k, v = self.kv(context.tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (k * q.shape[2] ** -0.5) @ q  # (B, heads, T, positions)
        weights = scores.masked_fill(~context.present[:, None, :, None], -torch.inf).softmax(2)
        return x + self.out((v.mT @ weights).reshape(x.shape))


class Stage(nn.Module):
    """A residual block, optionally followed by attention, and by attention to a context."""

    def __init__(self, block: ResidualBlock, attention: Attention | None, cross: CrossAttention | None = None):
        super().__init__()
        self.block, self.attention, self.cross = block, attention, cross

    def forward(self, x: Tensor, conditioning: Tensor, context: Context | None = None) -> Tensor:
        x = self.block(x, conditioning)
        x = x if self.attention is None else self.attention(x)
        return x if self.cross is None or context is None else self.cross(x, context)


class UNet(nn.Module):
    """x (B, inputs, H, W) or (B, inputs, L), log-SNR (B,), condition or None -> (B, outputs, ...).

    Args:
        inputs, outputs: channels of the data and of the output.
        dims: 2 for pictures, 1 for sequences.
        patch: side of the patches that the stem folds into channels; every side must be a multiple of it.
        channels: the width at each resolution, which halves from one to the next.
        blocks: residual blocks per resolution, on the way down and on the way up.
        attention: the resolutions with attention after each block (0 is the first), to the tokens of the condition,
            if it has any, as well.
        encoders: for its condition; None: it takes none.
        augmentation: how many augmentation labels a training picture has; 0 for none.
        jumps: take the noise level to reach too, a `Jump`.
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
        attention: tuple[int, ...] = (1,),
        encoders: Encoders | None = None,
        augmentation: int = 0,
        dropout: float = 0.0,
        jumps: bool = False,
    ):
        super().__init__()
        self.patch, conv = patch, CONVOLUTION[dims]
        width = 4 * channels[0]
        self.conditioning = Conditioning(width, encoders, augmentation=augmentation, jumps=jumps)
        self.stem = conv(inputs * patch**dims, channels[0], 3, padding=1)

        def stage(index: int, before: int, resample: Resample = None) -> Stage:
            here = channels[index]
            block = ResidualBlock(before, here, width, dropout, resample, dims)
            if index not in attention:
                return Stage(block, None)
            context = self.conditioning.context
            cross = CrossAttention(here, context, dims=dims) if context else None
            return Stage(block, Attention(here, dims=dims), cross)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, last = channels[0], len(channels) - 1
        for index, here in enumerate(channels):
            self.down.append(stage(index, now, "down" if index else None))
            self.down.extend(stage(index, here) for _ in range(blocks - 1))
            now = here
        self.middle = stage(last, now)
        for index, here in reversed(list(enumerate(channels))):
            if index < last:
                self.up.append(ResidualBlock(now, here, width, dropout, "up", dims))
            self.up.extend(stage(index, 2 * here) for _ in range(blocks))
            now = here
        self.norm = norm(now)
        self.out = zero_(conv(now, outputs * patch**dims, 3, padding=1))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        return self.body(x, *self.conditioning.attended(log_snr, condition))

    def body(self, x: Tensor, conditioning: Tensor, context: Context | None = None) -> Tensor:
        """The U itself, for a conditioning vector (B, width) and tokens to attend to."""
        h = self.stem(fold(x, self.patch))
        skips = []
        for down in self.down:
            h = down(h, conditioning, context)
            skips.append(h)
        h = self.middle(h, conditioning, context)
        for up in self.up:
            if isinstance(up, ResidualBlock):
                h = up(h, conditioning, skips[-1].shape[2:])
            else:
                h = up(torch.cat([h, skips.pop()], 1), conditioning, context)
        return unfold(self.out(functional.silu(self.norm(h))), self.patch)

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of all convolutions, and what turns sentences into keys and values."""
        return [*convolution_weights(self), *attending_weights(self)]
