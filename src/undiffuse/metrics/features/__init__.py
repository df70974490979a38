"""Feature extractors: the spaces in which a Frechet distance is measured."""

from collections.abc import Callable

import numpy as np

from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.metrics.features.extractor import Extracted, Extractor, Features
from undiffuse.registry import FEATURES

__all__ = ["CHOICES", "Extracted", "Extractor", "Features", "find_extractor"]

LEAST_OF_A_CLASS = 10
CHOICES = f"auto, {', '.join(FEATURES)}, inception:FILE or package.module:function"


def find_extractor(
    name: str, train: ImageSet, test: ImageSet | None, tick: Callable[[int, int], None] | None = None
) -> Extractor:
    """The extractor called `name` (see CHOICES) for a data set.

    auto: the data's own classifier for grey images with enough labels (`has_enough_labels`), else EfficientNet-Lite0.
    A classifier's accuracy is measured on `test`. `tick` gets (steps done, steps in all) if a classifier has to be
    trained first. Raises UsageError for an unknown name or a missing file.
    """
    if name == "auto":
        name = "classifier" if train.shape[2] == 1 and has_enough_labels(train) else "efficientnet-lite0"
    if name == "classifier":
        from undiffuse.metrics.features.classifier import classifier

        return classifier(train, test, tick)
    if name == "efficientnet-lite0":
        from undiffuse.metrics.features.efficientnet import efficientnet

        return efficientnet()
    kind, _, rest = name.partition(":")
    if kind == "inception":
        from undiffuse.metrics.features.inception import inception

        return inception(rest or None)
    if rest:
        from undiffuse.metrics.features.custom import custom

        return custom(name)
    raise UsageError(f"no features are called {name!r}: choose {CHOICES}")


def has_enough_labels(data: ImageSet) -> bool:
    """Whether a classifier of the data can be trained: at least two classes, ten images of each class present, and
    sides of four pixels, which its pooling needs."""
    if data.labels is None:
        return False
    _, counts = np.unique(data.labels, return_counts=True)
    return len(counts) >= 2 and bool(counts.min() >= LEAST_OF_A_CLASS) and min(data.shape[:2]) >= 4
