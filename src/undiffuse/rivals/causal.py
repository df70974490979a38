"""Causal convolutions in two streams over several resolutions, after PixelCNN++ (Salimans et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Causal(nn.Conv2d):
    """A causal convolution of kernel (a, b), (B, C, H, W) -> (B, C', H / stride, W / stride): it sees a rows up to its
    own, and b columns around or, with `left`, up to its own (Salimans et al. 2017, section 2.4).
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], left: bool, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride)
        high, wide = kernel
        self.margin = (wide - 1, 0, high - 1, 0) if left else (wide // 2, wide // 2, high - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.margin))


class Block(nn.Module):
    """A gated residual block, (B, C, H, W) -> the same; with `left`, it also takes the state of the stream above."""

    def __init__(self, width: int, left: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = Causal(width, width, (2, 2) if left else (2, 3), left)
        self.above = nn.Conv2d(width, width, 1) if left else None
        self.second = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor, above: Tensor | None = None) -> Tensor:
        normal = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        hidden = self.first(functional.silu(normal))
        if self.above is not None and above is not None:
            hidden = hidden + self.above(functional.silu(above))
        return x + functional.glu(self.second(functional.silu(hidden)), 1)


class Level(nn.Module):
    """Blocks of one resolution around those of half the resolution.

    At a pixel, the stream `up`, (B, C, H, W), has seen the rows above it, `left` also the pixels left of it. Halved,
    with kernels and strides of 2 that end on the even rows and columns, they have seen no more at (I, J) than at
    (2I, 2J). Each pixel's position and the class are added to both.
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], size: tuple[int, int], classes: int = 0):
        super().__init__()
        width, *inner = widths
        blocks = 2 * depths[0] if inner else depths[0]
        half = (size[0] // 2, size[1] // 2)
        self.position = nn.Parameter(torch.zeros(2, width, *size))
        self.ups = nn.ModuleList(Block(width, False) for _ in range(blocks))
        self.lefts = nn.ModuleList(Block(width, True) for _ in range(blocks))
        self.inner = Level(widths[1:], depths[1:], half, classes) if inner else None
        if inner:
            self.coarsen = nn.ModuleList(Causal(width, inner[0], (2, 3 - left), bool(left), 2) for left in (0, 1))
            self.refine = nn.ModuleList(nn.Conv2d(inner[0], 4 * width, 1) for _ in range(2))
        self.named = nn.Parameter(torch.zeros(2, classes, width)) if classes else None

    def starts(self, labels: Tensor | None) -> Tensor:
        """What is added to `up` and to `left`: (2, B or 1, C, H, W)."""
        start = self.position.unsqueeze(1)
        return start if self.named is None else start + self.named[:, labels, :, None, None]

    def forward(self, up: Tensor, left: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        starts = self.starts(labels)
        up, left = up + starts[0], left + starts[1]
        for index, (up_block, left_block) in enumerate(zip(self.ups, self.lefts, strict=True)):
            if self.inner is not None and index == len(self.ups) // 2:
                coarse = self.inner(self.coarsen[0](up), self.coarsen[1](left), labels)
                up, left = (
                    x + functional.pixel_shuffle(refine(functional.silu(y)), 2)
                    for x, refine, y in zip((up, left), self.refine, coarse, strict=True)
                )
            up = up_block(up)
            left = left_block(left, up)
        return up, left
