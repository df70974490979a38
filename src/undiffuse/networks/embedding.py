"""Embeddings of the noise level and the condition."""

import math

import torch
from torch import Tensor, nn

from undiffuse.conditions import Condition, Encoders, check_given, separated


class Conditioning(nn.Module):
    """The log-SNR (B,) float32 and the condition of B samples as one vector (B, width).

    Sinusoids of the log-SNR from one radian per unit down to one per 32 units, then two layers; the encoding of the
    condition by each of `encoders` is added. So is, with `augmentation` labels per sample, a linear function of the
    labels of `Augmented` samples, without a bias.
    """

    def __init__(self, width: int, encoders: Encoders | None = None, frequencies: int = 32, augmentation: int = 0):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -math.log10(32), frequencies), persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.encoders = tuple(encoders or ())  # their names, which are in those of the weights
        for name, encoder in (encoders or {}).items():
            self.add_module(name, encoder(width))
        self.augmentation = zero_(nn.Linear(augmentation, width, bias=False)) if augmentation else None

    def forward(self, log_snr: Tensor, condition: Condition | None) -> Tensor:
        """Raises ValueError for a condition that is missing or unexpected."""
        condition, moved = separated(condition)
        check_given(condition, bool(self.encoders))
        angles = log_snr[:, None] * self.frequencies
        vector = self.layers(torch.cat([angles.cos(), angles.sin()], 1))
        for name in self.encoders:
            vector = vector + self.get_submodule(name)(condition)
        if self.augmentation is not None and moved is not None:
            vector = vector + self.augmentation(moved)
        return nn.functional.silu(vector)


def zero_(layer: nn.Module) -> nn.Module:
    """`layer` with all parameters 0, so that the block it ends is initially the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
