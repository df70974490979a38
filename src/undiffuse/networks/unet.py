"""A U-Net of the ADM family (Dhariwal & Nichol 2021), shaped for few operations at full resolution.

Residual blocks with scale-shift conditioning that also do the up- and downsampling, attention where asked, the last
layer of every block initialised to zero. A pixel-unshuffled stem trades resolution for channels before the first
convolution, so the widest feature maps are a quarter of the image; pixel-shuffle undoes it at the end.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import Conditioning, zero_
from undiffuse.networks.values import Values

Resample = Literal["down", "up"] | None
FEW_TOKENS = 256
"""Up to so many, attention as two products takes half the time that CPUs need for the fused kernel."""


def parts(channels: int, width: int) -> int:
    """Into how many equal parts, of `width` channels or somewhat more, the channels divide."""
    return next(count for count in range(max(1, channels // width), 0, -1) if channels % count == 0)


def norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels or somewhat more."""
    return nn.GroupNorm(parts(channels, 16), channels)


class ResidualBlock(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, H', W'): norm, SiLU, conv, conditioned norm, SiLU, conv; plus a skip.

    Resampling happens down before and up after the first convolution, which so always works at the lower resolution.
    """

    def __init__(self, inputs: int, outputs: int, conditioning: int, dropout: float = 0.0, resample: Resample = None):
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.scale_shift = nn.Linear(conditioning, 2 * outputs)
        self.norm2, self.dropout = norm(outputs), nn.Dropout(dropout)
        self.conv2 = zero_(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, conditioning: Tensor, size: torch.Size | None = None) -> Tensor:
        """`size`: the (H, W) to come out at, for an upsampling block (it need not be twice the input)."""
        h = functional.silu(self.norm1(x))
        if self.resample == "down":
            h, x = (functional.avg_pool2d(z, 2, ceil_mode=True) for z in (h, x))
        h, x = self.conv1(h), self.skip(x)
        if self.resample == "up":
            h, x = (functional.interpolate(z, size=size, mode="nearest") for z in (h, x))
        scale, shift = self.scale_shift(conditioning)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(self.dropout(functional.silu(h)))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of (B, C, H, W), with a residual."""

    def __init__(self, channels: int, head_width: int = 64):
        super().__init__()
        self.heads = parts(channels, head_width)
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width).unbind(1)
        if height * width <= FEW_TOKENS:
            h = v @ ((q * q.shape[2] ** -0.5).mT @ k).softmax(3).mT
        else:
            h = functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return x + self.out(h.reshape(b, c, height, width))


class Stage(nn.Module):
    """A residual block, and attention after it where asked."""

    def __init__(self, block: ResidualBlock, attention: Attention | None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        x = self.block(x, conditioning)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """(B, inputs, H, W), log-SNR (B,), labels (B,) int64 or None -> (B, outputs, H, W).

    Args:
        inputs, outputs: channels of the image and of the output.
        patch: pixels to a side that the stem folds into channels; H and W must be multiples of it.
        channels: the width at each level, each half the resolution of the one before.
        blocks: residual blocks per level, on the way down and on the way up.
        attention: the levels with attention after each block (0 is the first).
        classes: how many classes there are; 0 for none.
        head: channels at full resolution, per pixel, of a layer before the output; 0 for none.
        fourier: angular frequencies of the sines and cosines of every input that the stem sees beside it, so that
            small differences of a pixel show (Kingma et al. 2021, appendix C).
        kernel: side of a filter of the input, odd, that the network makes for each pixel and channel; what it gives is
            added to the first `inputs` outputs (as for renderings, Bako et al. 2017); 0 for none. Norms leave a network
            no exact brightness; a filter has it.
        values: how many values an element of the data takes, for a network whose last `inputs * values` outputs are
            their logits and that is to see which values a picture has (`Values`); 0 for none.
        sigma_data: the root mean square of the data, for `values`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        patch: int = 2,
        channels: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        classes: int = 0,
        dropout: float = 0.0,
        head: int = 0,
        fourier: tuple[float, ...] = (),
        kernel: int = 0,
        values: int = 0,
        sigma_data: float = 1.0,
    ):
        super().__init__()
        self.inputs, self.outputs, self.patch, self.fourier, self.kernel = inputs, outputs, patch, fourier, kernel
        width = 4 * channels[0]
        self.conditioning = Conditioning(width, classes)
        self.values = Values(inputs, values, width, sigma_data) if values else None
        seen = inputs * (1 + 2 * len(fourier)) + (self.values.features if self.values else 0)
        self.stem = nn.Conv2d(seen * patch**2, channels[0], 3, padding=1)

        def stage(level: int, before: int, resample: Resample = None) -> Stage:
            here = channels[level]
            block = ResidualBlock(before, here, width, dropout, resample)
            return Stage(block, Attention(here) if level in attention else None)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        now, last = channels[0], len(channels) - 1
        for level, here in enumerate(channels):
            self.down.append(stage(level, now, "down" if level else None))
            self.down.extend(stage(level, here) for _ in range(blocks - 1))
            now = here
        self.middle = stage(last, now)
        for level, here in reversed(list(enumerate(channels))):
            if level < last:
                self.up.append(ResidualBlock(now, here, width, dropout, "up"))
            self.up.extend(stage(level, 2 * here) for _ in range(blocks))
            now = here
        self.norm = norm(now)
        says = outputs + inputs * kernel**2
        self.out = nn.Conv2d(now, (head or says) * patch**2, 3, padding=1)
        self.head: nn.Module = nn.Identity()
        if head:
            self.head = nn.Sequential(norm(head), nn.SiLU(), zero_(nn.Conv2d(head, says, 1)))
        else:
            zero_(self.out)

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        conditioning = self.conditioning(log_snr, labels)
        seen = [x, *(wave(frequency * x) for frequency in self.fourier for wave in (torch.sin, torch.cos))]
        if self.values:
            with torch.autocast(x.device.type, enabled=False):
                p = self.values.read(x, log_snr)
                seen.append(self.values.embedded(p))
                counted = self.values.counted(p)
            conditioning = conditioning + self.values.told(counted)
        h = self.stem(functional.pixel_unshuffle(torch.cat(seen, 1), self.patch))
        skips = []
        for down in self.down:
            h = down(h, conditioning)
            skips.append(h)
        h = self.middle(h, conditioning)
        for up in self.up:
            if isinstance(up, ResidualBlock):
                h = up(h, conditioning, skips[-1].shape[2:])
            else:
                h = up(torch.cat([h, skips.pop()], 1), conditioning)
        h = functional.pixel_shuffle(self.out(functional.silu(self.norm(h))), self.patch)
        if not isinstance(self.head, nn.Identity):
            with torch.autocast(h.device.type, enabled=False):  # probabilities of 256 values need more than 8 bits
                h = h if h.dtype == torch.float64 else h.float()
                h = self.head(h.contiguous(memory_format=torch.channels_last))  # the values of an element side by side
        if not self.kernel and not self.values:
            return h
        logits = self.inputs * self.values.count if self.values else 0
        first, rest, last, weights = h.split(
            [self.inputs, self.outputs - self.inputs - logits, logits, h.shape[1] - self.outputs], 1
        )
        if self.kernel:
            near = functional.unfold(x, self.kernel, padding=self.kernel // 2).view(weights.shape)
            first = first + (weights * near).unflatten(1, (self.inputs, -1)).sum(2)
        if self.values:
            with torch.autocast(h.device.type, enabled=False):
                last = last + self.values.odds(p, counted, conditioning.to(p))
        return torch.cat([first, rest, last], 1)

    @torch.no_grad()
    def expect(self, log_odds: Tensor) -> None:
        """Sets the log-odds (values,) of every element's values that the logits, the last outputs, begin with, and
        that `values` reads by for good."""
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.out
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        folded = self.patch**2 if last is self.out else 1
        start = log_odds.to(last.bias).repeat(self.inputs).repeat_interleave(folded)
        end = self.outputs * folded
        last.bias[end - len(start) : end] = start
        if self.values:
            self.values.log_odds.copy_(log_odds)
