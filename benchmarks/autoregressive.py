"""An autoregressive model of grey images, the strongest kind of competitor in likelihood: exact bits per dimension.

    python benchmarks/autoregressive.py DATA --minutes 40 --out docs/likelihood/autoregressive-DATA.json

The model is that of src/undiffuse/rivals/pixels.py, after PixelCNN++ (Salimans et al. 2017). No classes, no
augmentation; on the CPU, in bf16 if it has that, like `undiffuse train`.
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

from undiffuse.data import load
from undiffuse.devices import conditions, cpu_has_bf16
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import write_json
from undiffuse.progress import bar
from undiffuse.rivals.pixels import Pixels
from undiffuse.training.muon import Muon

BATCH, RATE, WARMUP, SEED = 8, 1e-2, 0.02, 0
AVERAGE = 0.05  # weights are averaged over about this last share of the steps
HELD = 2000  # training images whose bits are reported too


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


def scaled(x: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return x / 127.5 - 1


def batches(images: Tensor) -> Iterator[Tensor]:
    """Batches without end, in a new random order each epoch."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield from images[torch.randperm(len(images), generator=generator)].split(BATCH)


def make_optimizer(network: Pixels) -> Muon:
    """Muon for the weights of convolutions, AdamW for embeddings, norms, biases and the census."""
    matrices = network.matrices()
    known = {id(weight) for weight in matrices}
    return Muon(matrices, [p for p in network.parameters() if id(p) not in known], lr=RATE)


def train(images: Tensor, seconds: float, tell: Callable[..., None]) -> tuple[Pixels, int]:
    """Trains for `seconds`, at a rate that falls linearly to 0: the network with averaged weights, and the steps."""
    torch.manual_seed(SEED)
    network = Pixels((1, *images.shape[2:]))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.set_value_prior((images.flatten().bincount(minlength=256) + 1).log())
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
            loss = network.nats(scaled(x)).mean() / dimensions
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
def bits(network: Pixels, images: Tensor) -> Tensor:
    """Bits per dimension of each of uint8 (N, 1, H, W): float64 (N,)."""
    return torch.cat([network.nats(scaled(x)) for x in images.split(100)]).double() / math.log(2) / images[0].numel()


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
