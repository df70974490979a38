"""Feature extractors for images, and the facts about them that make a number meaningful."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional


class Features(NamedTuple):
    """float32, N rows each: pooled (N, D); spatial (N, S), which keeps positions; logits (N, K) of classes."""

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extracted:
    """Images uint8 (N, H, W, C) and their features, float32 memory maps of N rows as in `Features`."""

    images: np.ndarray
    pooled: np.ndarray
    spatial: np.ndarray | None = None
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        name: printed beside every number.
        extract: uint8 (N, H, W, C) images, C in {1, 3} -> Features.
        facts: preprocessing, sha256 of the weights and the like, JSON: recorded in results, key of caches.
        classes: names for the logits, if they are the data's own classes.
        is_fid: whether it is the original Inception network, whose Frechet distance is the FID.
        batch_size: images at once; affects memory, not the features.
    """

    name: str
    extract: Callable[[Tensor], Features]
    facts: dict[str, Any]
    classes: tuple[str, ...] = ()
    is_fid: bool = False
    batch_size: int = 32


def to_floats(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, channels, H, W) in 0 .. 255; grey is repeated."""
    x = images.permute(0, 3, 1, 2).float()
    return x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x


def resized(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, size, size): bilinear, antialiased when shrinking."""
    if x.shape[-2:] == (size, size):
        return x
    return functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
