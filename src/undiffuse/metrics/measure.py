"""Every metric by name: its title, which direction is better, what it needs and how it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from undiffuse.errors import UsageError
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.features import Extracted, Extractor
from undiffuse.metrics.frechet import measure_frechet
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.kernel import measure_kernel
from undiffuse.metrics.manifold import measure_copying, measure_manifold, nearest
from undiffuse.metrics.scores import class_entropy, inception_score, recognised
from undiffuse.names import counted

Better = Literal["lower", "higher", None]
FEWEST = 2  # samples; metrics that need more are left out


@dataclass(frozen=True)
class Reference:
    """What samples are compared with; `held_out`: distances from images never trained on to the training images."""

    items: Extracted
    held_out: np.ndarray


@dataclass(frozen=True)
class Subject:
    """What is measured: images and features; `train`, uint8 images that may have been copied; `requested`, the classes
    (N,) that were requested, if any."""

    items: Extracted
    train: np.ndarray
    requested: np.ndarray | None = None

    @cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """The distance and the index of the nearest image in `train`, for each image."""
        return nearest(self.items.images, self.train)


Values = dict[str, Measure]


def _frechet(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    return measure_frechet(subject.items.pooled, reference.items.pooled)


def _spatial(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    if subject.items.spatial is None or reference.items.spatial is None:
        return {}
    return {"spatial_frechet": measure_frechet(subject.items.spatial, reference.items.spatial)["frechet"]}


def _kernel(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    return measure_kernel(subject.items.pooled, pick(reference.items.pooled, len(subject.items)))


def _manifold(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    return measure_manifold(subject.items.pooled, pick(reference.items.pooled, len(subject.items)))


def _scores(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    if subject.items.logits is None:
        return {}
    return {"inception_score": inception_score(subject.items.logits)}


def _classes(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    if subject.items.logits is None or not extractor.classes:
        return {}
    seen = subject.items.logits.argmax(1)
    values = {"class_entropy": class_entropy(seen, len(extractor.classes))}
    if subject.requested is not None:
        values["recognised"] = recognised(seen, subject.requested)
    return values


def _copying(subject: Subject, reference: Reference, extractor: Extractor) -> Values:
    return measure_copying(subject.nearest[0], reference.held_out)


@dataclass(frozen=True)
class Metric:
    """A metric's title, which direction is better, what it measures of the trilemma, its group, and the least numbers
    of samples and reference images that it needs."""

    title: str
    better: Better
    what: str
    group: str
    samples: int = 2
    reference: int = 1


METRICS: dict[str, Metric] = {
    # A covariance needs two images; the limit needs one for each half of the samples.
    "frechet": Metric("Frechet distance", "lower", "quality and diversity", "frechet", reference=2),
    "frechet_limit": Metric("Frechet distance, N -> infinity", "lower", "quality and diversity", "frechet", 4, 2),
    "spatial_frechet": Metric("spatial Frechet distance", "lower", "quality and diversity", "spatial", reference=2),
    "kernel": Metric("kernel distance", "lower", "quality and diversity", "kernel", reference=2),
    # A k-th neighbour needs k others; groups "kernel" and "manifold" use at most as many reference images as samples.
    "precision": Metric("precision", "higher", "quality", "manifold", 4, 4),
    "recall": Metric("recall", "higher", "diversity", "manifold", 4, 4),
    "density": Metric("density", "higher", "quality", "manifold", 6, 6),
    "coverage": Metric("coverage", "higher", "diversity", "manifold", 6, 6),
    "inception_score": Metric("classifier score", "higher", "quality and diversity", "scores"),
    "class_entropy": Metric("class entropy, bits", "higher", "diversity", "classes"),
    "recognised": Metric("recognised as requested", "higher", "quality", "classes"),
    "nearer": Metric("nearer to training data than real", None, "copying; 0.5 without", "copying"),
    "copies": Metric("copies", None, "copying; 0.01 without", "copying"),
}
FID_TITLES = {
    "frechet": "FID",
    "frechet_limit": "FID, N -> infinity",
    "spatial_frechet": "sFID",
    "kernel": "KID",
    "inception_score": "Inception score",
}
GROUPS: dict[str, Callable[[Subject, Reference, Extractor], Values]] = {
    "frechet": _frechet,
    "spatial": _spatial,
    "kernel": _kernel,
    "manifold": _manifold,
    "scores": _scores,
    "classes": _classes,
    "copying": _copying,
}
GROUP_HELP = (
    "frechet (FID with inception), spatial (sFID), kernel (KID), manifold (precision, recall, density, coverage), "
    "scores (Inception score), classes (entropy, recognised), copying; or bpd, ode, text (of a model, not of samples)"
)


def title(key: str, extractor: Extractor) -> str:
    """The printed title of a metric: names such as FID are only for the original Inception network."""
    return FID_TITLES.get(key, METRICS[key].title) if extractor.is_fid else METRICS[key].title


def parse_groups(text: str) -> list[str]:
    """ "frechet,manifold" -> the groups; "all" means all of them. Raises UsageError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(GROUPS)
    for name in names:
        if name not in GROUPS:
            raise UsageError(f"no metrics are called {name!r}: choose all, or from {GROUP_HELP}")
    if not names:
        raise UsageError(f"--metrics is empty: choose all, or from {GROUP_HELP}")
    return names


def too_few(groups: Sequence[str], samples: int, reference: int) -> dict[str, str]:
    """The metrics of `groups` that need more samples or reference images than these: key -> what it needs."""
    return {
        key: f"needs {metric.samples} samples and {counted(metric.reference, 'reference image')}"
        for key, metric in METRICS.items()
        if metric.group in groups and (samples < metric.samples or reference < metric.reference)
    }


def measure(
    subject: Subject,
    reference: Reference,
    extractor: Extractor,
    groups: Sequence[str],
    tick: Callable[[int], None] | None = None,
) -> Values:
    """The metrics of `groups` that these features have, and that there are enough images for (`too_few`).

    `tick(1)` is called after each group.
    """
    without = too_few(groups, len(subject.items), len(reference.items))
    values: Values = {}
    for name in groups:
        if any(metric.group == name and key not in without for key, metric in METRICS.items()):
            found = GROUPS[name](subject, reference, extractor)
            values |= {key: value for key, value in found.items() if key not in without}
        if tick:
            tick(1)
    return values
