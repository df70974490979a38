"""What a data set is to the rest of the package: images, and what is known about them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from undiffuse.domains import Pictures

from undiffuse.errors import UsageError


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, ready to train on.

    images       uint8 (N, H, W, C), C in {1, 3}; a read-only memory map
    labels       int64 (N,), each an index into `classes`; None when unlabelled
    classes      class names, () when unlabelled
    names        one name per image, () when there are none
    licence      as its publisher states it, "not stated" otherwise
    fingerprint  sha256 over images, labels and classes: what a model card and reference statistics quote
    skipped      how many unreadable images `skip_corrupt` left out
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    names: tuple[str, ...]
    licence: str
    fingerprint: str
    skipped: int = 0

    @property
    def domain(self) -> "Pictures":
        """What the images are: how they become x_0."""
        from undiffuse.domains import Pictures

        return Pictures(*self.shape)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def by(shape: tuple[int, ...]) -> str:
    """A shape as it is written: 28x28x1."""
    return "x".join(map(str, shape))


class MixedSizes(UsageError):
    """Images of several sizes, where they were to keep the one they have."""
