"""What all evaluations against one data set share: its features, their extractor, the floor that real images reach."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from undiffuse.build import make_data, make_data_of
from undiffuse.config import DataConfig
from undiffuse.data import ImageSet, stored_sizes
from undiffuse.errors import UsageError
from undiffuse.evaluation.store import features_of
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.features import Extractor, find_extractor
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.manifold import nearest
from undiffuse.metrics.measure import FEWEST, GROUPS, Reference, Subject, measure
from undiffuse.progress import Bar, no_bar

OTHER = {"test": "train", "train": "test"}
HELD_OUT = 2000

logger = logging.getLogger("undiffuse")


@dataclass(frozen=True)
class Bench:
    """What evaluations against one data set share: make it once with `bench`, use it for many subjects.

    Attributes:
        train: what a model may have copied.
        real: the split that is not measured against, for the floor; None if there is none.
        floors: results of `floor_of`, by n.
    """

    reference: Reference
    train: np.ndarray
    real: ImageSet | None
    extractor: Extractor
    groups: Sequence[str]
    facts: dict[str, Any]
    bar: Bar = no_bar
    floors: dict[int, tuple[dict[str, Measure], int]] = field(default_factory=dict)


def bench(
    data: DataConfig,
    shape: tuple[int, ...],
    split: str = "test",
    features: str = "auto",
    groups: Sequence[str] = tuple(GROUPS),
    bar: Bar = no_bar,
) -> Bench:
    """Prepares `split` of a data set to measure images of `shape` (H, W, C) against, resized to that shape if needed.

    If the data has no test split (fewer than ten images), its training images are measured against, without a floor
    and without copying, and a warning says so. Raises UsageError for data that cannot be resized to the shape.
    """
    if split not in OTHER:
        raise UsageError(f"--split {split}: choose test or train; the other one gives the floor and shows copying")
    source = data.source
    train, test = make_data_of(shape, data, "train", bar), _test_split(shape, data, bar)
    if test is None and split == "test":
        split = "train"
        logger.warning("%s has no test split: measured against its %d training images", source, len(train))
    sets = {"train": train, "test": test}
    measured = train if test is None or split == "train" else test
    if split == "train":
        groups = [name for name in groups if name != "copying"]  # it compares with images never trained on
        if not groups:
            raise UsageError(f"copying is measured with images never trained on, not with those of {source} (train)")
    with bar("training a classifier of the data", 0) as tick:
        extractor = find_extractor(features, train, test, tick)
    with bar(f"features of {source} ({split})", len(measured)) as tick:
        items = features_of(measured.images, extractor, tick)
    if items.spatial is None:
        groups = [name for name in groups if name != "spatial"]
    held_out = np.empty(0)
    if "copying" in groups:
        held_out = nearest(pick(measured.images, HELD_OUT), train.images)[0]
    facts = {
        "data": source,
        "split": split,
        "images": len(measured),
        "fingerprint": measured.fingerprint,
        "train_fingerprint": train.fingerprint,
        "shape": shape,
        "stored_sizes": _other_sizes(shape, data, split),
        "features": {"name": extractor.name, **extractor.facts},
    }
    return Bench(Reference(items, held_out), train.images, sets[OTHER[split]], extractor, groups, facts, bar)


def _other_sizes(shape: tuple[int, ...], data: DataConfig, split: str) -> list[tuple[int, int]]:
    """The sizes that images had before they were resized to `shape`; [] if the data is read in that shape anyway."""
    if make_data(data, split).shape[:2] == shape[:2]:
        return []
    found = stored_sizes(data.source)
    return [] if found == [shape[:2]] else found


def _test_split(shape: tuple[int, ...], data: DataConfig, bar: Bar) -> ImageSet | None:
    try:
        return make_data_of(shape, data, "test", bar)
    except UsageError:  # the training split could be read, so this one is empty
        return None


def floor_of(bench: Bench, n: int) -> tuple[dict[str, Measure], int]:
    """The metrics of n real images of the other split (of all if there are fewer), and how many images were used; no
    metrics with fewer than two.

    Copying has no floor: it is relative to real images already.
    """
    if bench.real is None or len(bench.real) < FEWEST:
        return {}, 0
    if n in bench.floors:
        return bench.floors[n]
    images = pick(bench.real.images, n)
    groups = [name for name in bench.groups if name != "copying"]
    labels = None
    if bench.real.labels is not None:
        labels = pick(np.asarray(bench.real.labels), n)
    with bench.bar(f"features of {len(images)} real images, for the floor", len(images)) as tick:
        items = features_of(images, bench.extractor, tick)
    with bench.bar("measuring real against real", len(groups)) as tick:
        values = measure(Subject(items, bench.train, labels), bench.reference, bench.extractor, groups, tick)
    return bench.floors.setdefault(n, (values, len(images)))
