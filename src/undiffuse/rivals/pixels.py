"""An autoregressive model of pictures, pixel by pixel: the strongest rival in likelihood, which it has exactly.

After PixelCNN++ (Salimans et al. 2017): log p(x) = sum_i log p(x_i | x_<i), pixels in raster order and the channels of
a pixel in theirs, from two streams of causal convolutions, over several resolutions. Unlike theirs: a softmax of all
values (van den Oord et al. 2016), which suits pictures with many exact zeros, learned embeddings of values and
positions, blocks with one wide convolution, a histogram of the values before, and Muon.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.discretised import VALUES, grid
from undiffuse.errors import UsageError
from undiffuse.process import Categorical, float64_device
from undiffuse.randomness import Draw
from undiffuse.rivals.causal import Causal, Level
from undiffuse.rivals.raster import Walk, Window
from undiffuse.rivals.rival import Rival


class Pixels(Rival):
    """p(x) of pictures (C, H, W) whose elements take values evenly spaced on [-1, 1]; of a class if it has classes.

    The channels of a pixel share everything but the last layers, and those of a channel are also told the values of
    the pixel's earlier channels.

    Args:
        shape: (C, H, W); H and W are multiples of 2^(len(widths) - 1).
        classes: 0 for none.
        widths, depths: of the levels, each of half the resolution: channels, and blocks before and after the next one.
        features: of a value's embedding.
        head: channels of the last hidden layer.
        values: how many there are, 256 for 8 bits.

    Raises UsageError for sides that cannot be halved.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        widths: tuple[int, ...] = (48, 64, 96),
        depths: tuple[int, ...] = (1, 1, 2),
        features: int = 16,
        head: int = 96,
        values: int = VALUES,
    ):
        super().__init__()
        channels, height, width = shape
        halved = 2 ** (len(widths) - 1)
        if height % halved or width % halved:
            raise UsageError(
                f"the pixel model halves pictures {len(widths) - 1} times, so their sides are multiples of {halved}, "
                f"and not {height} x {width}: use pictures of another size"
            )
        self.shape, self.classes, self.count = shape, classes, values
        self.evaluations = height * width
        angles = torch.linspace(-1, 1, values)[:, None] * math.pi / 2 * 2.0 ** torch.arange(features // 2)
        self.values = nn.Embedding.from_pretrained(torch.cat([angles.sin(), angles.cos()], 1), freeze=False)
        self.up = Causal(channels * features, widths[0], (3, 5), False)
        self.left = Causal(channels * features, widths[0], (1, 3), True)
        self.level = Level(widths, depths, (height, width), classes)
        self.hidden = nn.Conv2d(widths[0], channels * head, 1)
        self.census = nn.Linear(channels * values, head)
        self.recall = nn.Parameter(torch.zeros(2, channels, height * width, 1))
        self.logits = nn.Conv2d(channels * head, channels * values, 1, groups=channels)
        nn.init.zeros_(self.logits.weight)
        self.earlier = nn.ModuleList(nn.Conv2d(c * features, head, 1) for c in range(1, channels))

    def matrices(self) -> list[Tensor]:
        """The weights for Muon: those of convolutions."""
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.Conv2d)]

    @torch.no_grad()
    def set_value_prior(self, log_prior: Tensor) -> None:
        """Starts from ln p(v) of the data's values, (values,)."""
        assert self.logits.bias is not None
        self.logits.bias.copy_(log_prior.repeat(self.shape[0]))

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """-ln p(x_0) per element, in nats: (B,). Nothing is drawn."""
        return self.nats(x0, labels, draw) / x0[0].numel()

    def nats(self, x0: Tensor, labels: Tensor | None = None, draw: Draw | None = None) -> Tensor:
        """-ln p(x_0) of float (B, C, H, W) in [-1, 1], each taken as the nearest value: (B,). Nothing is drawn."""
        x = ((x0 + 1) * ((self.count - 1) / 2)).round().long()
        logits = self(x, labels).reshape(-1, self.count)
        return functional.cross_entropy(logits, x.flatten(), reduction="none").view(len(x), -1).sum(1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Values int64 (B, C, H, W), and classes (B,) -> logits (B, C, H, W, values) of each, given those before it.

        Raises ValueError if labels are missing or unexpected.
        """
        self._check(labels)
        features = self.values(x).permute(0, 1, 4, 2, 3).flatten(1, 2)
        return self.given(features, functional.one_hot(x.flatten(2), self.count), labels)

    def given(self, features: Tensor, each: Tensor, labels: Tensor | None = None) -> Tensor:
        """As `forward`, from embedded (B, C features, H, W) and one-hot values (B, C, H W, values)."""
        above = functional.pad(features, (0, 0, 1, -1))  # one row down, so that no pixel sees its own row
        before = functional.pad(features, (1, -1, 0, 0))
        _, left = self.level(self.up(above), self.left(before), labels)
        seen = each.float().cumsum(2) - each  # how often each value came before
        return self.last(left, seen, features, self.recall)

    def last(self, left: Tensor, seen: Tensor, features: Tensor, recall: Tensor) -> Tensor:
        """The last layers at some pixels (H, W), from the stream `left` and how often each value came before there.

        Only the features of earlier channels are used.
        """
        channels, size = self.shape[0], left.shape[2:]
        with torch.autocast(left.device.type, enabled=False):
            told = self.census(seen.log1p().transpose(1, 2).flatten(2)).mT.unflatten(2, size)
            hidden = self.hidden(functional.silu(left.float())).chunk(channels, 1)
            width = features.shape[1] // channels
            parts = [hidden[0] + told]
            for c, earlier in enumerate(self.earlier, 1):
                parts.append(hidden[c] + told + earlier(features[:, : c * width]))
            logits = self.logits(functional.silu(torch.cat(parts, 1))).unflatten(1, (channels, -1)).movedim(2, -1)
            power, floor = recall
            again = power * (seen + (floor - 3).exp()).log()
            return logits + again.unflatten(2, size)

    @torch.no_grad()
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """Pictures float32 (count, C, H, W) in [-1, 1], each value by inverting its CDF at a float64 uniform number.

        `evaluations` is one for each pixel, of which all layers but the last ones compute only what is new.
        Raises ValueError if labels are missing or unexpected.
        """
        self._check(labels)
        (channels, height, width), weight = self.shape, self.values.weight
        x = torch.zeros(count, *self.shape, dtype=torch.long, device=weight.device)
        u = draw.uniform(float64_device(x))
        with torch.autocast(weight.device.type, enabled=False):
            up, left = (Window(conv, count, (height, width)) for conv in (self.up, self.left))
            walk = Walk(self.level, count, labels)
            seen = weight.new_zeros(count, channels, 1, self.count)
            line = weight.new_zeros(count, width, channels * weight.shape[1])  # embeddings of the row above
            for row in range(height):
                walk.row(row, up.at(row, 0, line))
                line, before = torch.zeros_like(line), torch.zeros_like(line[:, :1])
                for column in range(width):
                    state = walk.pixel(row, column, left.at(row, column, before)).mT.unsqueeze(-1)
                    place = row * width + column
                    recall = self.recall[:, :, place : place + 1]
                    features = torch.zeros_like(line[:, 0, :, None, None])
                    for c in range(channels):
                        logits = self.last(state, seen, features, recall)[:, c, 0, 0]
                        value = Categorical(logits.log_softmax(-1)).at(u[:, c, row, column])
                        x[:, c, row, column] = value
                        features.unflatten(1, (channels, -1))[:, c, :, 0, 0] = self.values(value)
                    seen += functional.one_hot(x[:, :, row, column], self.count).unsqueeze(2)
                    line[:, column] = features[:, :, 0, 0]
                    before = line[:, column : column + 1]
        return grid(self.count, weight)[x]

    def _check(self, labels: Tensor | None) -> None:
        if (labels is None) != (self.classes == 0):
            raise ValueError("the pixel model takes labels exactly if it was made with classes")
