"""Measures of generated sounds beside those of real ones: distances, classes, words, quality of speech, copies."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.evaluation.store import features_of
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.features import has_enough_labels
from undiffuse.metrics.features.extractor import Extracted, Extractor
from undiffuse.metrics.frechet import measure_frechet
from undiffuse.metrics.intervals import Measure, proportion
from undiffuse.metrics.manifold import measure_copying, nearest
from undiffuse.metrics.scores import am_score, inception_score, modified_inception_score, share_distance
from undiffuse.metrics.sounds.classifier import sound_classifier
from undiffuse.metrics.sounds.quality import TITLES, dnsmos
from undiffuse.metrics.sounds.recogniser import recognise
from undiffuse.metrics.sounds.silero import silero
from undiffuse.metrics.sounds.spectrogram import spectrograms
from undiffuse.names import one_of
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose
from undiffuse.streams import stream

HELD_OUT = 2000
FEWEST = 4  # real sounds: two in each half, for a covariance

logger = logging.getLogger("undiffuse")


@dataclass(frozen=True)
class Row:
    """One figure of the samples, the same of as many real sounds, None where it is relative to real ones already, and
    what it is."""

    measure: str
    value: Measure
    real: Measure | None
    what: str


@dataclass(frozen=True)
class Subject:
    """What is measured: samples, int16 (N, L) at `rate` Hz, beside real test sounds and the training set.

    `requested`: the class that was asked for, int64 (N,), if any.
    """

    samples: np.ndarray
    real: ImageSet
    train: ImageSet
    rate: int
    requested: np.ndarray | None
    bar: Bar = field(default=no_bar)

    @cached_property
    def classifier(self) -> Extractor:
        """That of the training set. Raises UsageError if it has too few labels."""
        if not has_enough_labels(self.train):
            raise UsageError(f"{self.train.name} has no two classes of ten sounds each, which a classifier needs")
        with self.bar("training a classifier of the data", 0) as tick:
            return sound_classifier(self.train, self.rate, tick)

    def features(self, rows: np.ndarray, extractor: Extractor) -> Extracted:
        """Those of some rows, from the cache if they were computed before."""
        with self.bar(f"features of {len(rows)} sounds: {extractor.name}", len(rows)) as tick:
            return features_of(rows, extractor, tick)


def measured(
    samples: np.ndarray,
    real: ImageSet,
    train: ImageSet,
    rate: int,
    *,
    requested: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
    bar: Bar = no_bar,
) -> list[Row]:
    """The figures of each of `metrics`, names in MEASURES.

    Args:
        samples: int16 (N, L), mono, at `rate` Hz, as long as the real ones.
        real, train: the test and the training split; rows as those of `samples`.
        requested: the class that was asked for, int64 (N,), indices into `train.classes`.
        metrics: None means all; those that cannot be measured are then left out with a warning.

    Raises UsageError for an unknown metric, for one that cannot be measured and was asked for by name, and for too few
    sounds.
    """
    if samples.dtype != np.int16 or samples.shape[1:] != real.shape or real.shape != train.shape:
        raise UsageError(
            f"samples are {samples.dtype} of shape {samples.shape[1:]}; they have to be int16 of the shape of the "
            f"sounds of {train.name}: {train.shape} in training and {real.shape} in test"
        )
    if len(samples) < 2 or len(real) < FEWEST:
        raise UsageError(
            f"too few sounds to measure: {len(samples)} samples and {len(real)} real ones of the test split, of "
            f"2 and {FEWEST} that are needed"
        )
    subject = Subject(samples, real, train, rate, requested, bar)
    rows: list[Row] = []
    for name in MEASURES if metrics is None else metrics:
        try:
            rows += MEASURES[one_of("measure of sounds", name, MEASURES)](subject)
        except UsageError as error:
            if metrics is not None:
                raise
            logger.warning("left out %s: %s", name, error)
    return rows


def _frechet(subject: Subject) -> list[Row]:
    """Samples, and half of the real test sounds, from the other half: equal numbers of both.

    The halves are drawn, since neighbours may differ in one attribute: every second row would be every second value.
    """
    order = stream(0, Purpose.CHOICE, len(subject.real)).permutation(len(subject.real))
    middle = -(-len(order) // 2)
    half, reference = (subject.real.images[np.sort(rows)] for rows in (order[:middle], order[middle:]))
    count = min(len(half), len(subject.samples))
    extractors = [silero(subject.rate)]
    if has_enough_labels(subject.train):
        extractors.append(subject.classifier)
    rows = []
    for extractor in extractors:
        target = subject.features(reference, extractor).pooled
        found, floor = (
            measure_frechet(subject.features(pick(rows_of, count), extractor).pooled, target)
            for rows_of in (subject.samples, half)
        )
        what = f"{count} of each from {len(reference)} other real ones; lower is better"
        for key, title in (("frechet", ""), ("frechet_limit", ", N -> infinity")):
            if key in found:
                rows.append(Row(f"Frechet distance, {extractor.name}{title}", found[key], floor[key], what))
    return rows


def _classes(subject: Subject) -> list[Row]:
    extractor, train = subject.classifier, subject.train
    chosen = pick(np.arange(len(subject.real)), len(subject.samples))
    shares = np.bincount(train.labels, minlength=len(train.classes)) / len(train)  # type: ignore[arg-type]

    def scores(rows: np.ndarray, truth: np.ndarray | None) -> dict[str, Measure]:
        logits = subject.features(rows, extractor).logits
        assert logits is not None
        seen = logits.argmax(1)
        asked = {} if truth is None else {"class as asked for": proportion(seen == truth)}
        return asked | {
            "classes, distance from training": share_distance(seen, shares),
            "IS": inception_score(logits),
            "modified IS": modified_inception_score(logits),
            "AM score": am_score(logits, shares),
        }

    what = {
        "class as asked for": "share that the classifier sees so; real: its accuracy, the ceiling",
        "classes, distance from training": "total variation of the classes seen; lower is better",
        "IS": f"sure and diverse: from 1 to {len(train.classes)}; higher is better",
        "modified IS": "the same between pairs; higher is better",
        "AM score": "sure, and classes as in training: 0 at best",
    }
    found = scores(subject.samples, subject.requested)
    real = scores(subject.real.images[chosen], None if subject.real.labels is None else subject.real.labels[chosen])
    return [Row(name, value, real.get(name), what[name]) for name, value in found.items()]


def _words(subject: Subject) -> list[Row]:
    """How often the recogniser, which chooses among the names of the classes, hears the one asked for."""
    classes, labels = subject.train.classes, subject.real.labels
    if subject.requested is None or labels is None or not classes:
        raise UsageError("words are the names of the classes asked for: the samples, or the data, have none")
    chosen = pick(np.arange(len(subject.real)), len(subject.samples))
    shares = []
    for rows, truth in ((subject.samples, subject.requested), (subject.real.images[chosen], labels[chosen])):
        with subject.bar("recognising words", len(rows)) as tick:
            heard = recognise(rows, subject.rate, classes, tick)
        shares.append(proportion(np.array([one == classes[label] for one, label in zip(heard, truth, strict=True)])))
    found, real = shares
    return [Row("word as asked for", found, real, "share that pocketsphinx hears so; higher is better")]


def _quality(subject: Subject) -> list[Row]:
    scores = []
    for rows in (subject.samples, pick(subject.real.images, len(subject.samples))):
        with subject.bar("judging quality", len(rows)) as tick:
            scores.append(dnsmos(rows, subject.rate, tick))
    found, real = scores
    return [Row(title, found[key], real[key], "from 1 to 5; higher is better") for key, title in TITLES.items()]


def _copying(subject: Subject) -> list[Row]:
    """By root mean square distances of log-mel spectrograms, from -1 to 1."""
    samples, real, train = (
        spectrograms(rows, subject.rate)
        for rows in (subject.samples, pick(subject.real.images, HELD_OUT), subject.train.images)
    )
    distances = (nearest(rows, train, scale=2)[0] for rows in (samples, real))
    found, alike = measure_copying(*distances), "if test sounds are like those of training"
    return [
        Row("nearer to training data than real", found["nearer"], None, f"copying; 0.5 without, {alike}"),
        Row("copies", found["copies"], None, f"copying; 0.01 without, {alike}"),
    ]


MEASURES: dict[str, Callable[[Subject], list[Row]]] = {
    "frechet": _frechet,
    "classes": _classes,
    "words": _words,
    "quality": _quality,
    "copying": _copying,
}
