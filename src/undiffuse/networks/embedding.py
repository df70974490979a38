"""Embeddings of the noise level and the condition."""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from undiffuse.conditions import Condition, Encoders, check_given, part_for, separated, without_jump

M = TypeVar("M", bound=nn.Module)


class Context(NamedTuple):
    """What a network attends to besides its own features: tokens (B, T, width), and which there are, bool (B, T)."""

    tokens: Tensor
    present: Tensor


class Conditioning(nn.Module):
    """The log-SNR (B,) float32 and the condition of B samples as one vector (B, width).

    Sinusoids of the log-SNR from one radian per unit down to one per 32 units, then two layers; the encoding of the
    condition by each of `encoders` is added; an encoder may give a `Context` as well. So is, with `augmentation`
    labels per sample, a linear function of the labels of `Augmented` samples, without a bias; and, with `jumps`, a
    function of the two log-SNRs of a `Jump`, which is 0 at first.
    """

    def __init__(
        self,
        width: int,
        encoders: Encoders | None = None,
        frequencies: int = 32,
        augmentation: int = 0,
        jumps: bool = False,
    ):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, -math.log10(32), frequencies), persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.encoders = tuple(encoders or ())  # their names, which are in those of the weights
        for name, encoder in (encoders or {}).items():
            self.add_module(name, encoder(width))
        # The width of the contexts, 0 if no encoder gives one.
        self.context = max((getattr(self.get_submodule(name), "context", 0) for name in self.encoders), default=0)
        self.augmentation = zero_(nn.Linear(augmentation, width, bias=False)) if augmentation else None
        self.jumps: nn.Module | None = None
        if jumps:
            first, last = nn.Linear(4 * frequencies, width), zero_(nn.Linear(width, width, bias=False))
            self.jumps = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, log_snr: Tensor, condition: Condition | None) -> Tensor:
        """The vector alone. Raises ValueError for a condition that is missing or unexpected."""
        return self.attended(log_snr, condition)[0]

    def attended(self, log_snr: Tensor, condition: Condition | None) -> tuple[Tensor, Context | None]:
        """The vector, and the context if an encoder gives one. Raises as `forward`."""
        condition, moved = separated(condition)
        condition, goal = without_jump(condition)
        check_given(condition, bool(self.encoders))
        here = self._sinusoids(log_snr)
        vector, context = self.layers(here), None
        for name in self.encoders:
            encoded = self.get_submodule(name)(part_for(condition, name))
            if isinstance(encoded, tuple):
                encoded, context = encoded
            vector = vector + encoded
        if self.augmentation is not None and moved is not None:
            vector = vector + self.augmentation(moved)
        if self.jumps is not None:
            there = here if goal is None else self._sinusoids(goal)
            vector = vector + self.jumps(torch.cat([here, there], 1))
        return nn.functional.silu(vector), context

    def _sinusoids(self, log_snr: Tensor) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)


def zero_(layer: M) -> M:
    """`layer` with all parameters 0, so that the block it ends is initially the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
