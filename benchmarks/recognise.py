"""Does a classifier see in samples what they were asked to be?

    python benchmarks/recognise.py fashion-mnist samples.npz

Trains a small convolutional network on the data set's training split (4 epochs, about two minutes on 2 cores), then
says, for its test split and for the samples (`images` and `labels`, as `undiffuse sample --out samples.npz` writes
them), how many it gives the label they have, by class. The figure for the test split is the ceiling that samples can
be held to.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from undiffuse.data import load
from undiffuse.domains.pictures import Pictures


def classifier(channels: int, classes: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(7),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def images_of(array: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> float (N, C, H, W) in [-1, 1]."""
    return Pictures(array.shape[1:]).encode(np.asarray(array))


def main(name: str, samples: str) -> None:
    """Trains, classifies, prints."""
    torch.manual_seed(0)
    train, test = load(name), load(name, "test")
    assert train.labels is not None and test.labels is not None
    x, y = images_of(train.images), torch.from_numpy(np.array(train.labels))
    network = classifier(x.shape[1], len(train.classes))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    network.eval()
    with np.load(samples, allow_pickle=False) as file:
        asked, drawn = file["labels"], file["images"]

    @torch.inference_mode()
    def seen(array: np.ndarray) -> np.ndarray:
        return np.concatenate([network(part).argmax(1).numpy() for part in images_of(array).split(500)])

    in_test, in_samples = seen(test.images), seen(drawn)
    print(f"{'class':14} {'test':>6} {'samples':>8} {'asked':>6} {'seen':>6}")
    for label, title in enumerate(train.classes):
        pairs = (in_test, test.labels), (in_samples, asked)
        right = [(found[truth == label] == label).mean() for found, truth in pairs]
        print(f"{title:14} {right[0]:6.1%} {right[1]:8.1%} {(asked == label).sum():6} {(in_samples == label).sum():6}")
    print(f"{'all':14} {(in_test == test.labels).mean():6.1%} {(in_samples == asked).mean():8.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
