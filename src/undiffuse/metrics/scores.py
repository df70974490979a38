"""Scores from a classifier of samples: its confidence, the classes it sees, whether they are those requested."""

import numpy as np

from undiffuse.metrics.intervals import Measure, bootstrap, mean


def _entropy(p: np.ndarray, axis: int = -1) -> np.ndarray:
    """In nats."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def inception_score(logits: np.ndarray) -> Measure:
    """exp of the mean KL divergence of p(y | x) from p(y) (Salimans et al. 2016): from 1 to the number of classes."""
    p = np.exp(_log_softmax(logits))
    entropies = _entropy(p)

    def score(counts: np.ndarray) -> float:
        share = counts / counts.sum()
        return float(np.exp(_entropy(share @ p) - share @ entropies))

    return bootstrap(len(p), score, replicates=200)


def modified_inception_score(logits: np.ndarray) -> Measure:
    """exp of the mean KL divergence of p(y | x_i) from p(y | x_j) over all pairs (Gurumurthy et al. 2017, section 4).

    With the samples of all classes together, as for SC09 (Kong et al. 2021), it has no upper bound.
    """
    log_p = _log_softmax(logits)
    p = np.exp(log_p)
    entropies = _entropy(p)

    def score(counts: np.ndarray) -> float:
        share = counts / counts.sum()
        return float(np.exp(-(share @ p) @ (share @ log_p) - share @ entropies))

    return bootstrap(len(p), score, replicates=200)


def am_score(logits: np.ndarray, shares: np.ndarray) -> Measure:
    """KL(shares, p(y)) plus the mean entropy of p(y | x), in nats (Zhou et al. 2018, eq. 14): 0 at best.

    `shares` (K,): of the classes in training.
    """
    p = np.exp(_log_softmax(logits))
    entropies = _entropy(p)
    here = shares > 0

    def score(counts: np.ndarray) -> float:
        share = counts / counts.sum()
        return float(shares[here] @ np.log(shares[here] / (share @ p)[here]) + share @ entropies)

    return bootstrap(len(p), score, replicates=200)


def share_distance(labels: np.ndarray, shares: np.ndarray) -> Measure:
    """The total variation distance of the frequencies of labels (N,) from `shares` (K,): from 0 to 1."""

    def distance(counts: np.ndarray) -> float:
        return float(np.abs(np.bincount(labels, counts, len(shares)) / counts.sum() - shares).sum() / 2)

    return bootstrap(len(labels), distance, replicates=200)


def class_entropy(labels: np.ndarray, classes: int) -> Measure:
    """The entropy, in bits, of the frequencies of labels (N,): at most log2(classes), 0 for a single class."""

    def bits(counts: np.ndarray) -> float:
        return float(_entropy(np.bincount(labels, counts, classes) / counts.sum()) / np.log(2))

    return bootstrap(len(labels), bits, replicates=200)


def recognised(labels: np.ndarray, requested: np.ndarray) -> Measure:
    """The share of samples whose predicted class (`labels`, (N,)) is the requested one (`requested`)."""
    return mean(labels == requested)
