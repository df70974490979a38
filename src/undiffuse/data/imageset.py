"""A data set as the rest of the package sees it: its rows, mostly pictures, and what is known about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from undiffuse.conditions import Captions, Condition


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, ready to train on.

    images       rows of the domain, a read-only memory map: for pictures, uint8 (N, H, W, C) with C in {1, 3}
    labels       int64 (N,), each an index into `classes`; None when unlabelled
    classes      class names, () when unlabelled
    names        one name per image, () when there are none
    captions     one sentence or more that describe each image, () for an image without any; () when none has one
    attributes   what is known exactly of each image: attribute -> one value per image
    licence      as stated by the publisher, else "not stated"
    fingerprint  sha256 over images, labels, classes and captions, as in model cards and reference statistics
    skipped      how many unreadable images `skip_corrupt` left out
    domain       the kind of rows: a name in undiffuse.domains.DOMAINS
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
    domain: str = "pictures"
    captions: tuple[tuple[str, ...], ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _described: "dict[tuple[str, int], Captions]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def condition(self) -> "Condition | None":
        """The class of each image; None without classes. A subclass may have another condition."""
        import torch  # not needed for reading data

        from undiffuse.conditions import Labels

        if self.labels is None or not self.classes:
            return None
        return Labels(torch.tensor(self.labels, dtype=torch.int64), len(self.classes))

    def described(self, text: str, length: int) -> "Captions | None":
        """The captions as a condition: tokens by `text`, a name in undiffuse.registry.TEXTS, at most `length` each.

        Made once. None without captions.
        """
        from undiffuse.conditions import Captions
        from undiffuse.registry import TEXTS

        if not any(self.captions):
            return None
        if (text, length) not in self._described:
            made = TEXTS.find(text).learnt([one for captions in self.captions for one in captions], length)
            self._described[text, length] = Captions.of(self.captions, made)
        return self._described[text, length]

    @property
    def sound(self) -> dict[str, Any] | None:
        """What the domain needs besides the shape of a row: for sounds their rate; None for other data."""
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row: (H, W, C) for pictures."""
        return self.images.shape[1:]


class MixedSizes(UsageError):
    """Images of several sizes, which were to keep their own."""
