"""A measured number with its 95% interval, and the bootstrap that gives it (Efron 1979)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from undiffuse.randomness import Purpose, stream


@dataclass(frozen=True)
class Measure:
    """A value and, where it has one, its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


def resampled(count: int, replicates: int) -> Iterator[np.ndarray]:
    """How often each of `count` items is drawn in each replicate of a bootstrap: int64 (count,); always the same."""
    generator = stream(0, Purpose.RESAMPLE, count)
    for _ in range(replicates):
        yield np.bincount(generator.integers(count, size=count), minlength=count)


def bootstrap(count: int, statistic: Callable[[np.ndarray], float], replicates: int) -> Measure:
    """`statistic` of the counts (how often each item is there), 1.96 standard deviations of its replicates either way.

    For statistics that are biased at a finite count: items drawn more than once add a bias of their own, so where the
    replicates lie says nothing, only how far apart they do. The interval says how the value would vary at this count.
    """
    value = statistic(np.ones(count, dtype=np.int64))
    spread = 1.96 * float(np.std([statistic(counts) for counts in resampled(count, replicates)], ddof=1))
    return Measure(value, value - spread, value + spread)


def mean(values: np.ndarray) -> Measure:
    """The mean of one value an item, with the percentile interval of 500 replicates."""
    values = np.asarray(values, dtype=np.float64)
    again = [counts @ values / len(values) for counts in resampled(len(values), 500)]
    low, high = np.quantile(again, (0.025, 0.975))
    return Measure(float(values.mean()), float(low), float(high))
