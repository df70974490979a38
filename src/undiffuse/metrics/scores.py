"""Scores from a classifier of samples: its confidence, the classes it sees, whether they are those requested."""

import numpy as np

from undiffuse.metrics.intervals import Measure, bootstrap, mean


def _entropy(p: np.ndarray, axis: int = -1) -> np.ndarray:
    """In nats."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis)


def inception_score(logits: np.ndarray) -> Measure:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans et al. 2016): from 1 to the number of classes."""
    p = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    p /= p.sum(1, keepdims=True)
    entropies = _entropy(p)

    def score(counts: np.ndarray) -> float:
        share = counts / counts.sum()
        return float(np.exp(_entropy(share @ p) - share @ entropies))

    return bootstrap(len(p), score, replicates=200)


def class_entropy(labels: np.ndarray, classes: int) -> Measure:
    """The entropy, in bits, of the frequencies of labels (N,): at most log2(classes), 0 for a single class."""

    def bits(counts: np.ndarray) -> float:
        return float(_entropy(np.bincount(labels, counts, classes) / counts.sum()) / np.log(2))

    return bootstrap(len(labels), bits, replicates=200)


def recognised(labels: np.ndarray, requested: np.ndarray) -> Measure:
    """The share of samples whose predicted class (`labels`, (N,)) is the requested one (`requested`)."""
    return mean(labels == requested)
