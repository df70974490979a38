"""The parts of a flow: a transformer that predicts an affine map, the map, and a matrix that mixes a patch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UsageError
from undiffuse.networks.embedding import zero_
from undiffuse.networks.transformer import attention

HEAD = 32
"""Channels of an attention head."""
BOUND = 3.0
"""Of the logarithm of a scale: what one map can stretch. Far from the data the inverse would explode without one."""


def standardised(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """z = (x - mean) / scale, and ln |det dz/dx| (B,): (B, N, D) each."""
    return (x - mean) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)


class Layer(nn.Module):
    """Attention and an MLP over (B, N, width), pre-norm, with keys and values that can be remembered."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, start: int = 0) -> Tensor:
        """x (B, n, width) -> the same.

        Args:
            mask: who (row) attends to whom, bool (n, n); None: all to all.
            memory: keys and values (2, B, heads, N, HEAD) of the tokens before `start`; those of x are added to it.
        """
        h = self.norm1(x)
        q, k, v = (linear(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        if memory is not None:
            end = start + x.shape[1]
            memory[0, :, :, start:end], memory[1, :, :, start:end] = k, v
            k, v = memory[:, :, :, :end]
        x = x + self.o(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Conditioner(nn.Module):
    """A transformer: tokens (B, N, inputs) -> mean and log scale (B, N, outputs) each, which are 0 at first.

    Args:
        causal: token i sees tokens up to i alone.
    """

    def __init__(
        self, tokens: int, inputs: int, outputs: int, *, width: int, layers: int, classes: int, causal: bool = False
    ):
        super().__init__()
        if width % HEAD:
            raise UsageError(f"the width of a flow is a multiple of {HEAD}, which {width} is not")
        self.embedding = nn.Linear(inputs, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.classes = nn.Embedding(classes, width) if classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = zero_(nn.Linear(width, 2 * outputs))
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() if causal else None
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor | None

    def forward(
        self, x: Tensor, labels: Tensor | None, memory: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean and log scale (B, N, outputs) each, never in half precision.

        With `memory` x is one token (B, 1, inputs), number `start`, and those before it are remembered.
        """
        h = self.embedding(x) + self.position[start : start + x.shape[1]]
        if self.classes is not None:
            h = h + self.classes(labels)[:, None]
        for number, layer in enumerate(self.layers):
            h = layer(h, self.mask, None, 0) if memory is None else layer(h, None, memory[number], start)
        with torch.autocast(x.device.type, enabled=False):
            mean, log_scale = self.out(self.norm(h.to(self.out.weight.dtype))).chunk(2, -1)
            return mean, BOUND * torch.tanh(log_scale / BOUND)

    def memory(self, count: int) -> Tensor:
        """Room for the keys and values of `count` samples: (layers, 2, count, heads, N, HEAD)."""
        tokens, width = self.position.shape
        return self.position.new_empty(len(self.layers), 2, count, width // HEAD, tokens, HEAD)


class Mixing(nn.Module):
    """An invertible matrix W = L U P applied to the numbers of each patch (Kingma & Dhariwal 2018, section 3.2).

    L is lower triangular with ones on its diagonal, U upper triangular with a positive one. At first they are the
    identity; P, which is fixed, turns the numbers by `turn` places.
    """

    def __init__(self, numbers: int, turn: int = 0):
        super().__init__()
        self.turn = turn
        self.lower = nn.Parameter(torch.zeros(numbers, numbers))
        self.upper = nn.Parameter(torch.zeros(numbers, numbers))
        self.log_diagonal = nn.Parameter(torch.zeros(numbers))

    def matrix(self) -> Tensor:
        """W (D, D)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return (lower @ (self.upper.triu(1) + self.log_diagonal.exp().diag())).roll(self.turn, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D) -> W x of every patch, and ln |det| (B,)."""
        with torch.autocast(x.device.type, enabled=False):
            return x @ self.matrix().mT, (x.shape[1] * self.log_diagonal.sum()).expand(len(x))

    def inverse(self, x: Tensor) -> Tensor:
        """W^-1 x of every patch."""
        return x @ torch.linalg.inv(self.matrix()).mT
