"""Classifiers of what is known of pictures: for each attribute, how probable each of its values is.

One small network with a head for each attribute, trained once on real pictures and cached under the data's fingerprint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.cache import folder_for, locked, writing
from undiffuse.data import ImageSet
from undiffuse.metrics.features.extractor import resized, to_floats
from undiffuse.randomness import Purpose, stream, torch_generator

FORMAT = 1
SIZE = 32
"""Side of the pictures that it sees."""
WIDTHS = (32, 64, 128)
STEPS, BATCH, LEARNING_RATE = 600, 128, 3e-3
HALVES = 2


class Network(nn.Module):
    """Three convolutions from patches of 2 x 2, with pooling between; faces are aligned, so places are kept."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, width in zip((4 * channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * (SIZE // 16) ** 2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) in [-1, 1] -> the logits of all heads, one after the other, (N, outputs)."""
        logits: Tensor = self.layers(x)
        return logits


@dataclass(frozen=True)
class Classifier:
    """The network, and attribute -> its values, in the order of the outputs."""

    network: Network
    values: Mapping[str, tuple[str, ...]]
    channels: int

    @torch.inference_mode()
    def log_probs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Attribute -> float32 (N, values), the logarithms of probabilities, for uint8 (N, H, W, C)."""
        batches = (np.array(images[first : first + 500]) for first in range(0, len(images), 500))
        logits = torch.cat([self.network(_input(torch.from_numpy(batch), self.channels)) for batch in batches])
        heads = logits.split([len(values) for values in self.values.values()], 1)
        return {name: head.log_softmax(1).numpy() for name, head in zip(self.values, heads, strict=True)}

    def indices(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Where each value is among the outputs of an attribute, int64 (N,)."""
        return np.array([self.values[name].index(value) for value in values])


def classifier(
    train: ImageSet,
    values: Mapping[str, tuple[str, ...]],
    half: int,
    tick: Callable[[int, int], None] | None = None,
) -> Classifier:
    """The classifier of `values` trained on the rows half, half + 2, ... of `train`; half is 0 or 1, and its seed.

    `tick` gets (steps done, steps in all).
    """
    channels = train.shape[2]
    network = Network(channels, sum(map(len, values.values())))
    truth = {name: list(train.attributes[name]) for name in values}
    folder = folder_for("attributes", [FORMAT, STEPS, BATCH, train.fingerprint, list(values.items()), truth, half])
    with locked(folder):
        if not folder.exists():
            trained = _train(train, values, half, tick)
            with writing(folder) as temporary:
                save_file(trained.state_dict(), temporary / "weights.safetensors")
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return Classifier(network.eval().requires_grad_(False), values, channels)


def _input(images: Tensor, channels: int) -> Tensor:
    return resized(to_floats(images, channels), SIZE) / 127.5 - 1


def _train(
    train: ImageSet,
    values: Mapping[str, tuple[str, ...]],
    half: int,
    tick: Callable[[int, int], None] | None,
) -> Network:
    rows = np.arange(half, len(train), HALVES)
    truth = {
        name: torch.tensor([known.index(value) for value in train.attributes[name]]) for name, known in values.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(half, Purpose.CHOICE).initial_seed())
        network = Network(train.shape[2], sum(map(len, values.values())))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        batch = stream(half, Purpose.ORDER, step).choice(rows, min(BATCH, len(rows)), replace=False)
        logits = network(_input(torch.from_numpy(train.images[batch]), train.shape[2]))
        heads = logits.split([len(known) for known in values.values()], 1)
        losses = [functional.cross_entropy(head, truth[name][batch]) for name, head in zip(values, heads, strict=True)]
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if tick:
            tick(step + 1, STEPS)
    return network
