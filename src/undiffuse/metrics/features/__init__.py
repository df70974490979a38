"""Feature extractors: what a Frechet distance is measured in."""

from collections.abc import Callable

from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.metrics.features.extractor import Extractor, Features

__all__ = ["CHOICES", "Extractor", "Features", "find_extractor"]

CHOICES = "auto, efficientnet-lite0, classifier, inception, inception:FILE or package.module:function"


def find_extractor(
    name: str, train: ImageSet, test: ImageSet, tick: Callable[[int, int], None] | None = None
) -> Extractor:
    """The extractor that `name` (see CHOICES) means for a data set.

    auto: a classifier of the data's own for labelled grey images, else EfficientNet-Lite0. `tick` is told (steps done,
    steps in all) where a classifier has to be trained first. Raises UsageError for a name or file that there is not.
    """
    if name == "auto":
        name = "classifier" if train.labels is not None and train.shape[2] == 1 else "efficientnet-lite0"
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
        from undiffuse.metrics.features.own import own

        return own(name)
    raise UsageError(f"no features are called {name!r}: choose {CHOICES}")
