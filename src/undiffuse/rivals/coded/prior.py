"""A causal transformer over the codes of a picture, in raster order, which starts from its class."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.networks.embedding import zero_
from undiffuse.networks.transformer import attention
from undiffuse.process import Categorical, float64_device
from undiffuse.randomness import Draw
from undiffuse.rivals.coded.quantiser import Quantiser

HEAD = 32  # channels of an attention head


class Kept:
    """The keys and values of the places so far, for one layer: (2, B, heads, T, HEAD), of which `count` are known."""

    def __init__(self, like: Tensor, batch: int, heads: int, length: int):
        self.both, self.count = like.new_empty(2, batch, heads, length, HEAD), 0

    def more(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of the next places, (B, heads, n, HEAD), and gives all."""
        start, self.count = self.count, self.count + k.shape[2]
        self.both[0, :, :, start : self.count], self.both[1, :, :, start : self.count] = k, v
        return self.both[0, :, :, : self.count], self.both[1, :, :, : self.count]


class Layer(nn.Module):
    """Pre-norm attention to what is before, and an MLP: (B, T, width) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = zero_(nn.Linear(width, width, bias=False))
        self.up, self.down = nn.Linear(width, 4 * width), zero_(nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None, kept: Kept | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        if kept is not None:
            k, v = kept.more(k, v)
        x = x + self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Prior(nn.Module):
    """p(codes | class) of int64 (B, T), the product of p(code_i | code_<i, class).

    A code is embedded as the sum of embeddings of its digits, since codes that share some are alike.

    Args:
        quantiser: says how many codes there are, and their digits.
        length: T.
        classes: 0 for none.
        width: channels, a multiple of HEAD.
        layers: how many.
    """

    def __init__(self, quantiser: Quantiser, length: int, classes: int = 0, width: int = 128, layers: int = 4):
        super().__init__()
        if width % HEAD:
            raise ValueError(f"the width of a prior is a multiple of {HEAD}, and {width} is not")
        self.quantiser, self.length, self.classes = quantiser, length, classes
        levels = quantiser.levels
        self.register_buffer("first", levels.cumsum(0) - levels, persistent=False)  # where a digit's embeddings begin
        self.first: Tensor
        self.digits = nn.Embedding(quantiser.kinds, width)
        self.start = nn.Embedding(max(classes, 1), width)
        self.position = nn.Parameter(torch.randn(length, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.logits = zero_(nn.Linear(width, quantiser.codes))

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T, codes) of each code, given those before it. Raises ValueError as `started`."""
        return self.given(self.started(labels, len(codes)), self.embedded(codes))

    def given(self, start: Tensor, embedded: Tensor) -> Tensor:
        """As `forward`, from what stands before the first code (B, 1, width) and from embedded codes (B, T, width)."""
        h = torch.cat([start, embedded[:, :-1]], 1) + self.position
        mask = torch.ones(self.length, self.length, dtype=torch.bool, device=h.device).tril()
        for layer in self.layers:
            h = layer(h, mask)
        return self.last(h)

    def started(self, labels: Tensor | None, count: int) -> Tensor:
        """What stands before the first code, (B, 1, width). Raises ValueError if labels are missing or unexpected."""
        if (labels is None) != (self.classes == 0):
            raise ValueError("the coded model takes labels exactly if it was made with classes")
        if labels is None:
            labels = torch.zeros(count, dtype=torch.long, device=self.position.device)
        return self.start(labels).unsqueeze(1)

    def embedded(self, codes: Tensor) -> Tensor:
        """Codes (B, n) -> (B, n, width)."""
        return self.digits(self.quantiser.digits(codes) + self.first).sum(-2)

    def last(self, h: Tensor) -> Tensor:
        """The logits (..., codes), float32 even under autocast."""
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.logits(self.norm(h.to(self.logits.weight.dtype)))
        return logits

    def nats(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """-ln p(codes | class): (B,)."""
        logits = self(codes, labels).flatten(0, 1)
        return functional.cross_entropy(logits, codes.flatten(), reduction="none").view(len(codes), -1).sum(1)

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """Codes int64 (count, T), each by inverting its CDF at a float64 uniform number; keys and values are kept."""
        weight = self.position
        codes = torch.zeros(count, self.length, dtype=torch.long, device=weight.device)
        u = draw.uniform(float64_device(codes))
        kept = [Kept(weight, count, weight.shape[1] // HEAD, self.length) for _ in self.layers]
        before = self.started(labels, count)
        for place in range(self.length):
            h = before + self.position[place]
            for layer, memory in zip(self.layers, kept, strict=True):
                h = layer(h, kept=memory)
            codes[:, place] = Categorical(self.last(h[:, 0]).log_softmax(-1)).at(u[:, place])
            before = self.embedded(codes[:, place : place + 1])
        return codes

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of the layers."""
        return [linear.weight for linear in self.layers.modules() if isinstance(linear, nn.Linear)]
