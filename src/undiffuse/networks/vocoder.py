"""A network for waveforms that have a given spectrogram: a residual network over the frames of their MDCT.

It is of the kind of Vocos (Siuzdak 2024): frames at one resolution and no upsampling of samples. Here a frame holds the
coefficients of a noisy clip beside the spectrogram, and the noise level modulates each block, as in DiffWave (Kong et
al. 2021). All of it is products of matrices with few, long frames, which CPUs do fast, and nothing but the noise level
is shared between frames, so a clip can have any length.

The output is a number for each coefficient and a gain of the noisy coefficient itself. Where the spectrogram tells how
large a coefficient can be, the best linear estimate of it, a Wiener filter, is such a gain; and the noise, which most
targets hold, need not pass through a network that is no wider than a frame.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Condition, Spectra
from undiffuse.networks.embedding import Conditioning, zero_
from undiffuse.networks.unet import fold, unfold

DILATIONS = (1, 2, 4)
"""Frames to the neighbours that a block sees, from one block to the next, and again from the first."""


class FrameBlock(nn.Module):
    """Frames (B, T, C) -> the same: norm, modulated; a layer over a frame and two neighbours, SiLU, a layer; a skip."""

    def __init__(self, width: int, conditioning: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale_shift = nn.Linear(conditioning, 2 * width)
        self.inner, self.outer = nn.Linear(3 * width, 2 * width), zero_(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        scale, shift = self.scale_shift(conditioning)[:, None].chunk(2, dim=2)
        h = neighbours(self.norm(x) * (1 + scale) + shift, self.dilation)
        return x + self.outer(functional.silu(self.inner(h)))


class Vocoder(nn.Module):
    """x (B, 1, M, T), log-SNR (B,), `Spectra` with K frames -> (B, outputs, M, T), for any T and K of one duration.

    Args:
        bands: M.
        levels: the bands of the spectrogram.
        outputs: 1, or 2 with a learnt variance.
        patch: frames that are folded into one; T must be a multiple of it.
        width: of the folded frames in the network.
        blocks: how many; the frames that an output can see are 2 + 2 sum of their `DILATIONS` on both sides together.
    """

    def __init__(self, bands: int, levels: int, outputs: int, *, patch: int = 2, width: int = 128, blocks: int = 6):
        super().__init__()
        self.outputs, self.patch = outputs, patch
        self.conditioning = Conditioning(width)
        self.stem = nn.Linear(3 * (bands * patch + levels + 1), width)
        dilations = [DILATIONS[block % len(DILATIONS)] for block in range(blocks)]
        self.blocks = nn.ModuleList(FrameBlock(width, width, dilation) for dilation in dilations)
        self.norm = nn.LayerNorm(width)
        self.out = zero_(nn.Linear(width, 2 * outputs * bands * patch))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        if not isinstance(condition, Spectra):
            raise ValueError("the network takes the spectrograms of the clips: give undiffuse.conditions.Spectra")
        frames = fold(x.squeeze(1), self.patch)
        frames = torch.cat([frames, at_frames(condition, frames.shape[2]).to(x)], 1).mT
        conditioning = self.conditioning(log_snr, None)
        h = self.stem(neighbours(frames, 1))
        for block in self.blocks:
            h = block(h, conditioning)
        shift, gain = unfold(self.out(self.norm(h)).mT, self.patch).unflatten(1, (2, self.outputs, -1)).unbind(1)
        return shift + gain * x

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of the blocks, and of the first layer."""
        inside = [part.weight for name, part in self.blocks.named_modules() if name.endswith((".inner", ".outer"))]
        return [self.stem.weight, *cast(list[Tensor], inside)]


def at_frames(spectra: Spectra, count: int) -> Tensor:
    """The spectrograms (B, levels, K) with the flag of each below, at `count` frames: (B, levels + 1, count).

    Frame t of T and frame k of K are centred on the shares (t + 1/2) / T and (k + 1/2) / K of the clip, for the
    coefficients as for the spectrogram. Levels in between are interpolated linearly between the nearest two, and those
    beyond the first and the last centre are theirs.
    """
    levels = functional.interpolate(spectra.levels, size=count, mode="linear", align_corners=False)
    flag = spectra.present.to(levels)[:, None, None].expand(-1, 1, count)
    return torch.cat([levels, flag], 1)


def neighbours(x: Tensor, distance: int) -> Tensor:
    """Frames (B, T, C) -> (B, T, 3 C): the one `distance` before, itself, the one after; zeros beyond the ends."""
    padded = functional.pad(x, (0, 0, distance, distance))
    return torch.cat([padded[:, : x.shape[1]], x, padded[:, 2 * distance :]], 2)
