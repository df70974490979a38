"""A small classifier of a labelled data set, trained here: its features fit the data better than ImageNet's.

Trained once per data set and cached under the data's fingerprint; the one for Fashion-MNIST comes with the package, so
its numbers are the same on every machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.cache import folder_for, locked, writing
from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.files import read_json, write_json
from undiffuse.metrics.features.extractor import Extractor, Features, resized, to_floats
from undiffuse.randomness import Purpose, stream, torch_generator
from undiffuse.weights import sha256_of_weights

FORMAT = 1
SHIPPED = Path(__file__).parent / "classifiers"
LARGEST = 64
WIDTHS = (32, 64, 128)
SPATIAL = 16
BATCH = 128
LEAST_STEPS, EPOCHS = 1000, 5
LEARNING_RATE = 3e-3


class Classifier(nn.Module):
    """Three convolutions with pooling between, global average pooling, a linear layer: (N, C, H, W) in [-1, 1]."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        widths = (channels, *WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in zip(widths, WIDTHS, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS)
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Features:
        """128 pooled features; the first 16 channels of the last maps; logits."""
        for stage, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if stage:
                x = functional.max_pool2d(x, 2)
            x = functional.relu(norm(convolution(x)))
        pooled = x.mean((2, 3))
        return Features(pooled, x[:, :SPATIAL].flatten(1), self.head(pooled))


def classifier(train: ImageSet, test: ImageSet | None, tick: Callable[[int, int], None] | None = None) -> Extractor:
    """The classifier of a labelled data set, trained on `train` if there is none yet, with its accuracy on `test`.

    `tick` gets (steps done, steps in all). Without `test` there is no accuracy. Raises UsageError for data with fewer
    than two classes.
    """
    if train.labels is None or len(np.unique(train.labels)) < 2:
        raise UsageError(f"{train.name} has fewer than two classes, too few for a classifier: choose other features")
    cached = folder_for("classifiers", [FORMAT, train.fingerprint])
    folder = SHIPPED / cached.name
    if not folder.exists():
        folder = cached
        with locked(folder):
            if not (folder / "card.json").exists():
                _make(folder, train, test, tick)
    network, card = kept(folder, train.shape[2], len(train.classes))
    size = _size(train.shape)

    @torch.inference_mode()
    def extract(images: Tensor) -> Features:
        return network(_input(images, train.shape[2], size))

    facts = {
        "network": f"three 3x3 convolutions ({', '.join(map(str, WIDTHS))}), trained on the classes of the data",
        "trained_on": {"name": train.name, "split": "train", "images": len(train), "fingerprint": train.fingerprint},
        "accuracy": card["accuracy"],
        "weights_sha256": sha256_of_weights(network),
        "preprocessing": (f"bilinear to {size}x{size}; " if size else "") + "x / 127.5 - 1",
        "pooled": f"mean of the last {WIDTHS[-1]} maps",
        "spatial": f"the first {SPATIAL} of them",
    }
    name = f"classifier of {train.name}"
    return Extractor(name, extract, facts, train.classes, batch_size=250)


def _size(shape: tuple[int, ...]) -> int | None:
    return LARGEST if max(shape[:2]) > LARGEST else None


def _input(images: Tensor, channels: int, size: int | None) -> Tensor:
    x = to_floats(images, channels)
    return (resized(x, size) if size else x) / 127.5 - 1


def _make(folder: Path, train: ImageSet, test: ImageSet | None, tick: Callable[[int, int], None] | None) -> None:
    """Trains without augmentation and writes weights and card."""
    assert train.labels is not None
    channels, size = train.shape[2], _size(train.shape)

    def inputs(rows: np.ndarray, epoch: int) -> Tensor:
        return _input(torch.from_numpy(train.images[rows]), channels, size)

    network, steps = fitted(channels, len(train.classes), inputs, np.array(train.labels), EPOCHS, tick, LEAST_STEPS)
    accuracy = None if test is None else _accuracy(network, test, channels, size)
    keep(folder, network, {"data": train.name, "accuracy": accuracy, "steps": steps, "batch": BATCH})


def fitted(
    channels: int,
    classes: int,
    inputs: Callable[[np.ndarray, int], Tensor],
    labels: np.ndarray,
    epochs: int,
    tick: Callable[[int, int], None] | None,
    least: int,
) -> tuple[Classifier, int]:
    """A network trained by AdamW and one cosine, and after how many steps: `least` or `epochs`, if that is more.

    `inputs` gives those of rows (B,) in an epoch, float32 (B, channels, H, W), and `labels` are int64 (N,).
    """
    batches = -(-len(labels) // BATCH)
    epochs = max(epochs, -(-least * BATCH // len(labels)))
    steps, done = epochs * batches, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(0, Purpose.CHOICE).initial_seed())
        network = Classifier(channels, classes)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        order = stream(0, Purpose.ORDER, epoch).permutation(len(labels))
        for rows in np.array_split(order, batches):
            truth = torch.from_numpy(labels[rows])
            functional.cross_entropy(network(inputs(rows, epoch)).logits, truth).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if tick:
                tick(done, steps)
    return network.eval(), steps


def keep(folder: Path, network: Classifier, card: dict[str, Any]) -> None:
    """Writes weights and card."""
    with writing(folder) as temporary:
        save_file(network.state_dict(), temporary / "weights.safetensors")
        write_json(temporary / "card.json", card)


def kept(folder: Path, channels: int, classes: int) -> tuple[Classifier, dict[str, Any]]:
    """What `keep` wrote: the network, ready to use, and the card."""
    network = Classifier(channels, classes)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network.eval().requires_grad_(False), read_json(folder / "card.json")


@torch.inference_mode()
def _accuracy(network: Classifier, test: ImageSet, channels: int, size: int | None) -> float:
    seen = [
        network(_input(torch.from_numpy(np.array(test.images[first : first + 500])), channels, size)).logits
        for first in range(0, len(test), 500)
    ]
    return float((torch.cat(seen).argmax(1).numpy() == test.labels).mean())
