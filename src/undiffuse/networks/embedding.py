"""How networks are told the noise level and the class."""

import math

import torch
from torch import Tensor, nn


class Conditioning(nn.Module):
    """The log-SNR (B,) float32 and labels (B,) int64 as one vector (B, width).

    Sinusoids of the log-SNR from one radian per unit down to one per 32 units, then two layers; the class adds an
    embedding. Label `classes` (one past the last) means no class, as does `labels=None`.
    """

    def __init__(self, width: int, classes: int = 0, frequencies: int = 32):
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", torch.logspace(0, -math.log10(32), frequencies), persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, log_snr: Tensor, labels: Tensor | None) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        vector = self.layers(torch.cat([angles.cos(), angles.sin()], 1))
        if self.label is not None:
            if labels is None:
                labels = torch.full((len(log_snr),), self.classes, device=log_snr.device)
            vector = vector + self.label(labels)
        return nn.functional.silu(vector)


def zero_(layer: nn.Module) -> nn.Module:
    """`layer` with all parameters 0, so that the block it ends begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
