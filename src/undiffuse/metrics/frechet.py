"""The Frechet distance between Gaussians fitted to features, in float64: with Inception features, FID.

With fewer samples than dimensions the covariances are singular. The trace of the root of their product is therefore
taken as a nuclear norm, tr (S1 S2)^(1/2) = ||S1^(1/2) S2^(1/2)||_*: its singular values are exact to rounding,
while a matrix square root would give imaginary noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.blocks import blocks
from undiffuse.metrics.intervals import Measure, bootstrap
from undiffuse.randomness import Purpose, stream

REPLICATES = 30


@dataclass(frozen=True)
class Gaussian:
    """A mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: np.ndarray, counts: np.ndarray | None = None) -> Gaussian:
    """Mean and unbiased covariance of the rows of (N, D), each counted `counts` (N,) times, or once if it is None."""
    weights = torch.ones(len(features)) if counts is None else torch.from_numpy(counts)
    weights = weights.double()
    total, dimensions = weights.sum(), features.shape[1]
    mean = torch.zeros(dimensions, dtype=torch.float64)
    for rows, x in blocks(features):
        mean += weights[rows] @ x / total
    covariance = torch.zeros(dimensions, dimensions, dtype=torch.float64)
    for rows, x in blocks(features):
        centred = x - mean
        covariance.addmm_(centred.T * weights[rows], centred)
    return Gaussian(mean, covariance / (total - 1))


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues at rounding level count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return (vectors * torch.where(values > noise, values, 0).sqrt()) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian, root_b: Tensor | None = None) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    `root_b`: the root of b's covariance, if it is known already.
    """
    overlap = torch.linalg.svdvals(root(a.covariance) @ (root(b.covariance) if root_b is None else root_b)).sum()
    apart = (a.mean - b.mean).square().sum()
    return (apart + a.covariance.trace() + b.covariance.trace() - 2 * overlap).item()


def _distance_of_few(samples: np.ndarray, target: Gaussian, root_b: Tensor) -> Callable[[np.ndarray], float]:
    """`frechet_distance` for fewer samples than dimensions, as a function of how often each is counted.

    With S_a = Y^T Y, where the rows of Y are the centred and weighted samples, ||S_a^(1/2) S_b^(1/2)||_* is
    ||Y S_b^(1/2)||_*: a matrix with one row per sample instead of one per dimension.
    """
    x = torch.tensor(np.asarray(samples), dtype=torch.float64)  # a copy: memory maps cannot be written
    projected, trace = x @ root_b, target.covariance.trace()

    def distance(counts: np.ndarray) -> float:
        there = torch.from_numpy(np.flatnonzero(counts))
        weights = torch.from_numpy(counts).double()[there]
        total = weights.sum()
        scale = (weights / (total - 1)).sqrt()[:, None]
        mean = weights @ x[there] / total
        within = (scale * (x[there] - mean)).square().sum()
        overlap = torch.linalg.svdvals(scale * (projected[there] - mean @ root_b)).sum()
        return ((mean - target.mean).square().sum() + within + trace - 2 * overlap).item()

    return distance


def measure_frechet(samples: np.ndarray, reference: np.ndarray, replicates: int = REPLICATES) -> dict[str, Measure]:
    """The distance of samples (N, D) from a reference (M, D), N and M >= 2, and, for N >= 4, its limit as N grows.

    The interval of `frechet` covers its variation at this N, not its bias.
    The bias of N samples falls as 1 / N (Chong & Forsyth 2020), so `frechet_limit` = 2 d(N) - d(N / 2), with d(N / 2)
    the mean over two halves, cancels its first order; the bias from the size of the reference remains.
    """
    target = moments(reference)
    root_b = root(target.covariance)

    def of_moments(counts: np.ndarray) -> float:
        return frechet_distance(moments(samples, counts), target, root_b)

    few = len(samples) < samples.shape[1]
    distance = _distance_of_few(samples, target, root_b) if few else of_moments

    whole = bootstrap(len(samples), distance, replicates)
    if len(samples) < 4:  # half of them have no covariance
        return {"frechet": whole}
    half = np.zeros(len(samples), dtype=np.int64)
    half[stream(0, Purpose.CHOICE).permutation(len(samples))[: len(samples) // 2]] = 1
    limit = 2 * whole.value - (distance(half) + distance(1 - half)) / 2
    return {"frechet": whole, "frechet_limit": Measure(limit)}
