"""What every evaluation against one data set shares: its features, their extractor, the floor real images reach."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from undiffuse.build import make_data_of
from undiffuse.config import Data
from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.features import Extractor, find_extractor
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.manifold import nearest
from undiffuse.metrics.measure import FEWEST, GROUPS, Reference, Subject, measure
from undiffuse.metrics.store import features_of
from undiffuse.progress import Bar, no_bar

OTHER = {"test": "train", "train": "test"}
HELD_OUT = 2000


@dataclass(frozen=True)
class Bench:
    """All that evaluations against one data set share: make it once with `bench`, use it for many subjects.

    Attributes:
        train: what a model may have copied.
        real: the other split than that measured against, for the floor.
        floors: what `floor_of` found, by n.
    """

    reference: Reference
    train: np.ndarray
    real: ImageSet
    extractor: Extractor
    groups: Sequence[str]
    facts: dict[str, Any]
    bar: Bar = no_bar
    floors: dict[int, tuple[dict[str, Measure], int]] = field(default_factory=dict)


def bench(
    data: Data,
    shape: tuple[int, int, int],
    split: str = "test",
    features: str = "auto",
    groups: Sequence[str] = tuple(GROUPS),
    bar: Bar = no_bar,
) -> Bench:
    """Readies a data set to measure images of `shape` (H, W, C) against: `split` of it, read as `data` says and, where
    that does not have the shape, brought to it.

    Raises UsageError for data that cannot be brought to the shape, or a split too small to measure against.
    """
    if split not in OTHER:
        raise UsageError(f"--split {split}: choose test or train; the other one gives the floor and shows copying")
    if split == "train" and "copying" in groups:
        groups = [name for name in groups if name != "copying"]  # it compares with images never trained on
    source = data.source
    sets = {name: make_data_of(shape, data, name, bar) for name in OTHER}
    for name, images in sets.items():
        if len(images) < FEWEST:
            raise UsageError(f"the {name} split of {source} has {len(images)} images, and {FEWEST} are the least")
    with bar("training a classifier of the data", 0) as tick:
        extractor = find_extractor(features, sets["train"], sets["test"], tick)
    with bar(f"features of {source} ({split})", len(sets[split])) as tick:
        items = features_of(sets[split].images, extractor, tick)
    held_out = np.empty(0)
    if "copying" in groups:
        held_out = nearest(pick(sets["test"].images, HELD_OUT), sets["train"].images)[0]
    facts = {
        "data": source,
        "split": split,
        "images": len(sets[split]),
        "fingerprint": sets[split].fingerprint,
        "train_fingerprint": sets["train"].fingerprint,
        "shape": shape,
        "features": {"name": extractor.name, **extractor.facts},
    }
    return Bench(Reference(items, held_out), sets["train"].images, sets[OTHER[split]], extractor, groups, facts, bar)


def floor_of(bench: Bench, n: int) -> tuple[dict[str, Measure], int]:
    """The metrics of n real images of the other split (of all, where there are fewer), and how many there were.

    Copying has no floor: it is measured against what real images do.
    """
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
