"""A transformer over tokens (B, L), which attends in both directions, or only back for what is written in order.

Pre-norm (Xiong et al. 2020) with LayerNorm (a fused kernel on a CPU, as RMSNorm is not), rotary positions (Su et al.
2021), and the shifts of adaLN (Peebles & Xie 2023) where there is something to condition on. Absorbing noise shows in
x_t itself, so there the network needs no time.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Condition, Encoders
from undiffuse.networks.embedding import Conditioning, zero_

HEAD = 64
"""Channels of an attention head: of 32, attention on a CPU takes a third longer for the same product."""
LONGEST_PLAIN = 512
"""Tokens up to which a plain product of attention is the faster one to train on a CPU."""
FIRST_NEAR, NEAR = 5, 3
"""How many neighbours are looked at together, itself among them: of an embedding, and by each MLP."""


class Transformer(nn.Module):
    """Tokens x (B, L) int64 in 0 .. categories - 1 -> logits (B, L, outputs), of the dtype of the weights.

    Args:
        categories: of x, the mask among them.
        width: channels, a multiple of HEAD.
        blocks: layers.
        times: look at the log-SNR.
        span: N > 0: a position attends to its span of N positions and what is before it, which is block diffusion
            (Arriola et al. 2025), and an autoregressive model if N = 1; 0: to all.
    """

    def __init__(
        self,
        categories: int,
        outputs: int,
        *,
        width: int = 192,
        blocks: int = 5,
        times: bool = False,
        span: int = 0,
        encoders: Encoders | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % HEAD:
            raise ValueError(f"the width of a transformer is a multiple of {HEAD}, and {width} is not")
        self.span = span
        self.embedding = nn.Embedding(categories, width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.mix = nn.Linear(FIRST_NEAR * width, width, bias=False)
        self.conditioning = Conditioning(width, encoders) if times or encoders else None
        self.times = times
        modulated = self.conditioning is not None
        self.blocks = nn.ModuleList(Layer(width, span, modulated, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = zero_(nn.Linear(width, outputs))

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        condition: Condition | None = None,
        clean: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """The logits.

        Args:
            log_snr: (B,) float32.
            clean: x_0 (B, L). Then each span of x sees what is before it in `clean` and not in x: all spans of a text
                are trained at once.
            at: bool (B, L), N of them true: the logits of these places alone, (N, outputs).
        """
        length = x.shape[1]
        vector = None
        if self.conditioning is not None:
            vector = self.conditioning(log_snr if self.times else torch.zeros_like(log_snr), condition)
        h = self.embedding(x if clean is None else torch.cat([x, clean], 1))
        h = h + self.mix(neighbours(h, FIRST_NEAR, self.span, clean is not None))
        mask = _mask(length, self.span, clean is not None, x.device)
        turns = _turns(length, x.device)
        if clean is not None:
            turns = (torch.cat([turns[0]] * 2), torch.cat([turns[1]] * 2))
        for block in self.blocks:
            h = block(h, turns, mask, clean is not None, vector)
        h = h[:, :length]
        logits: Tensor = self.out(self.norm(h if at is None else h[at]))
        return logits

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of the layers, except of what conditions them."""
        return [
            layer.weight
            for part in (self.mix, *self.blocks)
            for name, layer in part.named_modules()
            if isinstance(layer, nn.Linear) and name != "modulation"
        ]


def neighbours(x: Tensor, count: int, span: int, with_clean: bool) -> Tensor:
    """(B, L, C) -> (B, L, count C): each place beside those around it, or before it for spans of 1.

    A place sees what it may attend to and no more, and 0 elsewhere. With the clean text in the second half of x, a span
    sees that for what is before it.
    """
    if with_clean:
        x, clean = x.chunk(2, 1)
        return torch.cat([_near(x, count, span, clean), _near(clean, count, span)], 1)
    return _near(x, count, span)


def _near(x: Tensor, count: int, span: int, clean: Tensor | None = None) -> Tensor:
    number = torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]
    number = 1 + (number - 1) // (span or x.shape[1])  # 0 is beyond the ends
    first = 1 - count if span == 1 else -(count // 2)
    near = []
    for offset in range(first, first + count):
        here = _moved(x, offset)
        if span and offset > 0:
            here = here * (_moved(number, offset) == number)
        elif clean is not None and offset < 0:
            here = torch.where(_moved(number, offset) == number, here, _moved(clean, offset))
        near.append(here)
    return torch.cat(near, -1)


def _moved(x: Tensor, offset: int) -> Tensor:
    """At each place what is `offset` places on, 0 beyond the ends: (B, L, C)."""
    length = x.shape[1]
    return functional.pad(x, (0, 0, max(-offset, 0), max(offset, 0)))[:, max(offset, 0) :][:, :length]


class Layer(nn.Module):
    """Attention and an MLP over (B, L, width), modulated by a vector (B, width) if `modulated`.

    The MLP sees the neighbours too: attention takes long to learn which is which (docs/text-diffusion.md).
    """

    def __init__(self, width: int, span: int, modulated: bool, dropout: float):
        super().__init__()
        self.span = span
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(NEAR * width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        zero_(self.o), zero_(self.down)
        self.dropout = nn.Dropout(dropout)
        self.modulation = zero_(nn.Linear(width, 4 * width)) if modulated else None

    def forward(
        self,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        mask: Tensor | None,
        with_clean: bool = False,
        vector: Tensor | None = None,
    ) -> Tensor:
        scale1 = shift1 = scale2 = shift2 = None
        if self.modulation is not None and vector is not None:
            scale1, shift1, scale2, shift2 = self.modulation(vector)[:, None].chunk(4, -1)
        h = _modulated(self.norm1(x), scale1, shift1)
        q, k, v = (layer(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = attention(_turned(q, turns), _turned(k, turns), v, mask)
        x = x + self.dropout(self.o(h.transpose(1, 2).flatten(2)))
        h = neighbours(_modulated(self.norm2(x), scale2, shift2), NEAR, self.span, with_clean)
        return x + self.dropout(self.down(functional.gelu(self.up(h))))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(C)) v of q, k and v (B, heads, L, C), over the columns where the mask (L, L) is true.

    To train in bf16 on a CPU, PyTorch's fused kernel takes 1.6 to 2.6 times the time of the plain product, because of
    its backward pass (L = 256 and 128).
    """
    trained = torch.is_grad_enabled() and q.requires_grad
    if not trained or q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[-2] > LONGEST_PLAIN:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def _modulated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of channels turned by the angle of their position: (B, heads, L, HEAD)."""
    cos, sin = (turn.to(x.dtype) for turn in turns)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


@lru_cache(8)
def _turns(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, HEAD / 2) of the positions' angles (Su et al. 2021, eq. 15)."""
    frequencies = 10_000 ** (-torch.arange(HEAD // 2, dtype=torch.float64) / (HEAD // 2))
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)


@lru_cache(8)
def _mask(length: int, span: int, with_clean: bool, device: torch.device) -> Tensor | None:
    """Who (row) may attend to whom (column), bool (L, L), or (2 L, 2 L) for x and the clean text; None: all to all."""
    if not span and not with_clean:
        return None
    number = torch.arange(length, device=device) // (span or length)
    before, same = number[:, None] > number, number[:, None] == number
    if not with_clean:
        return before | same
    noisy = torch.cat([same, before], 1)
    return torch.cat([noisy, torch.cat([torch.zeros_like(same), before | same], 1)])
