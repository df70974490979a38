"""An autoregressive model of grey images, the strongest kind of competitor in likelihood: exact bits per dimension.

    python benchmarks/autoregressive.py DATA --minutes 40 --out docs/likelihood/autoregressive-DATA.json

After PixelCNN++ (Salimans et al. 2017): log p(x) = sum_i log p(x_i | x_<i), pixels in raster order, from two streams of
causal convolutions, over three resolutions. Unlike theirs: a softmax of 256 values (van den Oord et al. 2016), which
suits pictures with many exact zeros, learned embeddings of values and positions, blocks with one wide convolution, and
Muon. No classes, no augmentation; on the CPU, in bf16 if it has that, like `undiffuse train`.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.data import load
from undiffuse.devices import conditions, cpu_has_bf16
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import write_json
from undiffuse.progress import bar
from undiffuse.training.muon import Muon

BATCH, RATE, WARMUP, SEED = 8, 1e-2, 0.02, 0
AVERAGE = 0.05  # weights are averaged over about this last share of the steps
HELD = 2000  # training images whose bits are reported too


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
    (2I, 2J).
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], size: int):
        super().__init__()
        width, *inner = widths
        blocks = 2 * depths[0] if inner else depths[0]
        self.position = nn.Parameter(torch.zeros(2, width, size, size))
        self.ups = nn.ModuleList(Block(width, False) for _ in range(blocks))
        self.lefts = nn.ModuleList(Block(width, True) for _ in range(blocks))
        self.inner = Level(widths[1:], depths[1:], size // 2) if inner else None
        if inner:
            self.coarsen = nn.ModuleList(Causal(width, inner[0], (2, 3 - left), bool(left), 2) for left in (0, 1))
            self.refine = nn.ModuleList(nn.Conv2d(inner[0], 4 * width, 1) for _ in range(2))

    def forward(self, up: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        up, left = up + self.position[0], left + self.position[1]
        for index, (up_block, left_block) in enumerate(zip(self.ups, self.lefts, strict=True)):
            if self.inner is not None and index == len(self.ups) // 2:
                coarse = self.inner(self.coarsen[0](up), self.coarsen[1](left))
                up, left = (
                    x + functional.pixel_shuffle(refine(functional.silu(y)), 2)
                    for x, refine, y in zip((up, left), self.refine, coarse, strict=True)
                )
            up = up_block(up)
            left = left_block(left, up)
        return up, left


class Autoregressive(nn.Module):
    """uint8 or int64 (B, 1, H, W) -> logits (B, 256, H, W) of each pixel's value, given the pixels before it."""

    def __init__(
        self,
        size: int,
        widths: tuple[int, ...] = (48, 64, 96),
        depths: tuple[int, ...] = (1, 1, 2),
        features: int = 16,
        head: int = 96,
    ):
        super().__init__()
        angles = torch.linspace(-1, 1, 256)[:, None] * math.pi / 2 * 2.0 ** torch.arange(features // 2)
        self.values = nn.Embedding.from_pretrained(torch.cat([angles.sin(), angles.cos()], 1), freeze=False)
        self.up = Causal(features, widths[0], (3, 5), False)
        self.left = Causal(features, widths[0], (1, 3), True)
        self.level = Level(widths, depths, size)
        self.hidden = nn.Conv2d(widths[0], head, 1)
        self.census = nn.Linear(256, head)
        self.recall = nn.Parameter(torch.zeros(2, size * size, 1))
        self.logits = nn.Conv2d(head, 256, 1)
        nn.init.zeros_(self.logits.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self.values(x[:, 0].long()).permute(0, 3, 1, 2), functional.one_hot(x.flatten(1).long(), 256))

    def given(self, features: Tensor, each: Tensor) -> Tensor:
        """Pixels, embedded (B, features, H, W) and one-hot (B, H W, 256) -> logits (B, 256, H, W)."""
        above = functional.pad(features, (0, 0, 1, -1))  # one row down, so that no pixel sees its own row
        before = functional.pad(features, (1, -1, 0, 0))
        _, left = self.level(self.up(above), self.left(before))
        with torch.autocast("cpu", enabled=False):
            seen = each.float().cumsum(1) - each  # how often each value came before
            told = self.census(seen.log1p()).mT.unflatten(2, left.shape[2:])
            logits = self.logits(functional.silu(self.hidden(functional.silu(left.float())) + told))
            power, floor = self.recall
            again = power * (seen + (floor - 3).exp()).log()
            return logits + again.mT.unflatten(2, left.shape[2:])


def nats(network: nn.Module, x: Tensor) -> Tensor:
    """-log p(x) of uint8 (B, 1, H, W), in nats: (B,)."""
    logits = network(x).permute(0, 2, 3, 1).reshape(-1, 256)
    return functional.cross_entropy(logits, x.flatten().long(), reduction="none").view(len(x), -1).sum(1)


def images_of(name: str, split: str) -> tuple[Tensor, str]:
    """The images of a split, uint8 (N, 1, H, W), and their fingerprint."""
    data = load(name, split)
    _, height, width, channels = data.images.shape
    if channels != 1 or height != width or height % 4:
        raise UsageError(
            f"{name} is {height} x {width} with {channels} channels: this model is for grey squares whose side is a "
            "multiple of 4. Try fashion-mnist or mnist."
        )
    return torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2).contiguous(), data.fingerprint


def batches(images: Tensor) -> Iterator[Tensor]:
    """Batches without end, in a new random order each epoch."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield from images[torch.randperm(len(images), generator=generator)].split(BATCH)


def make_optimizer(network: nn.Module) -> Muon:
    """Muon for the weights of convolutions, AdamW for embeddings, norms, biases and the census."""
    matrices = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    known = {id(weight) for weight in matrices}
    return Muon(matrices, [p for p in network.parameters() if id(p) not in known], lr=RATE)


def train(images: Tensor, seconds: float, tell: Callable[..., None]) -> tuple[Autoregressive, int]:
    """Trains for `seconds`, at a rate that falls linearly to 0: the network with averaged weights, and the steps."""
    torch.manual_seed(SEED)
    network = Autoregressive(images.shape[-1])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():  # starts from the frequency of each value
        network.logits.bias.copy_((images.flatten().bincount(minlength=256) + 1).log())  # type: ignore[union-attr]
    averaged = copy.deepcopy(network)
    optimizer = make_optimizer(network)
    dimensions = images[0].numel()
    start, reported = time.perf_counter(), 0
    for step, x in enumerate(batches(images)):
        share = (time.perf_counter() - start) / seconds
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(share / WARMUP, 1) * (1 - share)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            loss = nats(network, x).mean() / dimensions
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 / (1 + AVERAGE * step))
        tell(round(1000 * share), 1000)
        if share * seconds >= 60 * reported:
            print(f"{60 * reported} s, step {step}: {loss.item() / math.log(2):.3f} bits", flush=True)
            reported += 1
    return averaged, step


@torch.inference_mode()
def bits(network: nn.Module, images: Tensor) -> Tensor:
    """Bits per dimension of each of uint8 (N, 1, H, W): float64 (N,)."""
    return torch.cat([nats(network, x) for x in images.split(100)]).double() / math.log(2) / images[0].numel()


def mean(each: Tensor) -> dict[str, float]:
    """The mean of bits per image, with its standard error."""
    return {"value": each.mean().item(), "standard_error": (each.std() / len(each) ** 0.5).item(), "images": len(each)}


def measure(name: str, minutes: float) -> dict[str, Any]:
    """Trains a model and measures it on the whole test split."""
    (images, learned), (unseen, measured) = images_of(name, "train"), images_of(name, "test")
    with bar(f"training on {name}", 1000) as tell:
        network, steps = train(images, 60 * minutes, tell)
    each = bits(network, unseen)
    return {
        "data": name,
        "bits_per_dimension": {"test": mean(each), "train": mean(bits(network, images[:HELD]))},
        "per_image": [round(x, 4) for x in each.tolist()],
        "minutes": minutes,
        "steps": steps,
        "batch": BATCH,
        "epochs": steps * BATCH / len(images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "rate": RATE,
        "precision": "bf16" if cpu_has_bf16() else "fp32",
        "seed": SEED,
        **conditions(),
        "fingerprints": {"train": learned, "test": measured},
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="fashion-mnist, mnist or other grey images")
    parser.add_argument("--minutes", type=float, default=40, help="of training; measuring takes additional time")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.minutes <= 0 or not options.out.parent.is_dir():
        parser.error("--minutes must be above 0, and the folder of --out must exist")
    try:
        found = measure(options.data, options.minutes)
        write_json(options.out, found)
    except UndiffuseError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(json.dumps(found["bits_per_dimension"]), flush=True)


if __name__ == "__main__":
    main()
