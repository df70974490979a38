"""A measured number with its 95% interval, and the bootstrap that gives it (Efron 1979)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from undiffuse.randomness import Purpose, stream


@dataclass(frozen=True)
class Measure:
    """A value and, if it has one, its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


def resampled(count: int, replicates: int) -> Iterator[np.ndarray]:
    """How often each of `count` items is drawn in each replicate of a bootstrap: int64 (count,); always the same."""
    generator = stream(0, Purpose.RESAMPLE, count)
    for _ in range(replicates):
        yield np.bincount(generator.integers(count, size=count), minlength=count)


def bootstrap(count: int, statistic: Callable[[np.ndarray], float], replicates: int) -> Measure:
    """`statistic` of the counts (how often each item occurs), plus or minus 1.96 standard deviations of its replicates.

    For statistics that are biased at a finite count: repeated items add a bias of their own, so only the spread of the
    replicates is used, not their location. The interval covers the variation at this count; a single item has none.
    """
    value = statistic(np.ones(count, dtype=np.int64))
    if count < 2:
        return Measure(value)
    half = 1.96 * float(np.std([statistic(counts) for counts in resampled(count, replicates)], ddof=1))
    return Measure(value, value - half, value + half)


def mean(values: np.ndarray) -> Measure:
    """The mean of one value per item, with the percentile interval of 500 replicates; a single item has none."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Measure(float(values.mean()))
    again = [counts @ values / len(values) for counts in resampled(len(values), 500)]
    low, high = np.quantile(again, (0.025, 0.975))
    return Measure(float(values.mean()), float(low), float(high))


def proportion(right: np.ndarray) -> Measure:
    """The share of true among bool (N,), with Wilson's interval (1927), which is sound at 0 and 1 too."""
    n, share, z = len(right), float(np.mean(right)), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return Measure(share, max(0.0, centre - half), min(1.0, centre + half))
