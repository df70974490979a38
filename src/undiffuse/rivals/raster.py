"""The network of `causal.py`, pixel by pixel: what was computed for earlier pixels is kept and not computed again.

After Ramachandran et al. 2017 (Fast Generation for Convolutional Autoregressive Models). The stream `up` is computed a
row at a time and `left` a pixel at a time, each level's inner one only where a row and a column are even. Channels come
last here: x is (B, n, C), n places of one row.
"""

from torch import Tensor, nn
from torch.nn.functional import glu, linear, silu

from undiffuse.rivals.causal import Block, Causal, Level


class Window:
    """A causal convolution that is given its input in raster order, and keeps it."""

    def __init__(self, conv: Causal, batch: int, size: tuple[int, int]):
        left, right, self.top, _ = conv.margin
        self.left, self.stride = left, conv.stride[1]
        self.high, self.wide = conv.kernel_size
        self.weight, self.bias = conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias
        self.seen = self.weight.new_zeros(batch, size[0] + self.top, left + size[1] + right, conv.in_channels)

    def keep(self, row: int, column: int, x: Tensor) -> None:
        """Takes the input (B, n, C) of the places from (row, column) on."""
        self.seen[:, row + self.top, column + self.left : column + self.left + x.shape[1]] = x

    def at(self, row: int, column: int, x: Tensor) -> Tensor:
        """Takes their input, and gives the output there: (B, n / stride, C')."""
        self.keep(row, column, x)
        near = self.seen[:, row : row + self.high, column : column + x.shape[1] - 1 + self.wide]
        patches = near.unfold(2, self.wide, self.stride).permute(0, 2, 1, 4, 3).flatten(2)
        return linear(patches, self.weight, self.bias)


class Walk:
    """A `Level` and those inside it on a walk through B pictures: `row` once for each row, then `pixel` along it."""

    def __init__(self, level: Level, batch: int, labels: Tensor | None = None):
        size = (level.position.shape[2], level.position.shape[3])
        self.level, self.middle = level, len(level.ups) // 2
        self.starts = level.starts(labels).permute(0, 1, 3, 4, 2)
        self.ups = [Window(block.first, batch, size) for block in _blocks(level.ups)]
        self.lefts = [Window(block.first, batch, size) for block in _blocks(level.lefts)]
        self.above: list[Tensor] = []  # for each block of `left`, what it takes from `up` in this row
        self.inner: Walk | None = None
        if level.inner is not None:
            self.inner = Walk(level.inner, batch, labels)
            self.coarsen = [Window(conv, batch, size) for conv in level.coarsen]  # type: ignore[arg-type]
            width = level.position.shape[1]  # what the last even row has from inside, for each 2 x 2 pixels
            self.fine = level.position.new_zeros(2, batch, size[1] // 2, width, 2, 2)

    def row(self, row: int, up: Tensor) -> Tensor:
        """The output (B, W, C) of the stream `up` in a row, from its input there."""
        up = up + self.starts[0, :, row]
        self.above = []
        for index, (block, left) in enumerate(zip(_blocks(self.level.ups), _blocks(self.level.lefts), strict=True)):
            if self.inner is not None and index == self.middle:
                if row % 2:
                    self.coarsen[0].keep(row, 0, up)
                else:
                    self._refine(0, slice(None), self.inner.row(row // 2, self.coarsen[0].at(row, 0, up)))
                up = up + self.fine[0, :, :, :, row % 2].mT.flatten(1, 2)
            up = _through(block, self.ups[index], row, 0, up)
            assert left.above is not None
            self.above.append(_pointwise(left.above, silu(up)))
        return up

    def pixel(self, row: int, column: int, left: Tensor) -> Tensor:
        """The output (B, 1, C) of the stream `left` at a pixel, from its input there."""
        left = left + self.starts[1, :, row, column : column + 1]
        half = slice(column // 2, column // 2 + 1)
        for index, block in enumerate(_blocks(self.level.lefts)):
            if self.inner is not None and index == self.middle:
                if row % 2 or column % 2:
                    self.coarsen[1].keep(row, column, left)
                else:
                    coarse = self.coarsen[1].at(row, column, left)
                    self._refine(1, half, self.inner.pixel(row // 2, column // 2, coarse))
                left = left + self.fine[1, :, half, :, row % 2, column % 2]
            above = self.above[index][:, column : column + 1]
            left = _through(block, self.lefts[index], row, column, left, above)
        return left

    def _refine(self, stream: int, columns: slice, coarse: Tensor) -> None:
        """Keeps what the inner level gives to the pixels under some of its columns."""
        refine = self.level.refine[stream]
        assert isinstance(refine, nn.Conv2d)
        self.fine[stream, :, columns] = _pointwise(refine, silu(coarse)).unflatten(-1, (-1, 2, 2))


def _blocks(blocks: nn.ModuleList) -> list[Block]:
    return list(blocks)  # type: ignore[arg-type]


def _through(block: Block, window: Window, row: int, column: int, x: Tensor, above: Tensor | None = None) -> Tensor:
    """`Block.forward` at some places, `above` being what `Block.above` made of the stream above."""
    hidden = window.at(row, column, silu(block.norm(x)))
    if above is not None:
        hidden = hidden + above
    return x + glu(_pointwise(block.second, silu(hidden)), -1)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return linear(x, conv.weight.flatten(1), conv.bias)
