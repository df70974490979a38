"""The encoder of sentences: tokens to attend to, and one vector of all of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions.condition import Condition
from undiffuse.conditions.sentences import Sentences
from undiffuse.networks.embedding import Context, zero_
from undiffuse.text.text import Text
from undiffuse.text.words import FIRST, Words

WIDTH, HEADS, LAYERS = 128, 4, 2


class Layer(nn.Module):
    """A transformer layer over tokens (B, T, width), of which only those in `present`, bool (B, T), are attended to."""

    attends_to_tokens = True

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = zero_(nn.Linear(width, width))
        self.norm2, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.down = zero_(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None])
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class SentenceEncoder(nn.Module):
    """`Sentences` of B samples -> a vector (B, width), and a `Context` of T + 1 tokens.

    The first token stands for no sentence; it is always there, so an unconditional sample attends to it alone.
    Initially the vector is 0.
    """

    context = WIDTH
    """The width of its tokens."""

    def __init__(self, text: Text, width: int):
        super().__init__()
        self.text = text
        self.embedding: nn.Module
        if isinstance(text, Words):
            self.embedding = nn.Embedding(FIRST + len(text.vocabulary), WIDTH)
        else:
            assert text.channels
            self.embedding = nn.Linear(text.channels, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(text.length, WIDTH))
        self.layers = nn.ModuleList(Layer(WIDTH, HEADS) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.nothing = nn.Parameter(torch.randn(WIDTH))
        self.out = zero_(nn.Linear(WIDTH, width))

    def forward(self, condition: Condition) -> tuple[Tensor, Context]:
        """Raises ValueError for another kind of condition, or tokens of another text."""
        if not isinstance(condition, Sentences):
            raise ValueError(f"the network takes sentences, not a {type(condition).__name__}")
        tokens, present = condition.tokens, condition.present
        if tokens.shape[1] != len(self.positions) or tokens.is_floating_point() == isinstance(self.text, Words):
            raise ValueError(f"the network takes {len(self.positions)} tokens of {self.text.name}")
        x = self.embedding(tokens if isinstance(self.text, Words) else tokens.to(self.positions.dtype)) + self.positions
        first, anything = torch.ones_like(present[:, :1]), present | ~present.any(1, keepdim=True)
        for layer in self.layers:
            x = layer(x, anything)  # a softmax over nothing is NaN
        x = self.norm(x)
        tokens = torch.cat([self.nothing.to(x).expand(x.shape[0], 1, -1), x], 1)
        present = torch.cat([first, present], 1)
        weight = present.to(x)[..., None]
        return self.out((tokens * weight).sum(1) / weight.sum(1)), Context(tokens, present)

    @torch.no_grad()
    def start_at(self, vector: Tensor) -> None:
        """Encodes all sentences as `vector`, (width,): the start of a fine-tuning with other sentences."""
        self.out.weight.zero_()
        self.out.bias.copy_(vector)
