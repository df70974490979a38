"""Guidance by linear observations y = H x_0 + n, n ~ N(0, R): a denoiser of x_t becomes one of x_t and y.

With D = E[x_0 | x_t] and S = Cov[x_0 | x_t], the law of x_0 given x_t is taken for N(D, S). Then

    E[x_0 | x_t, y] = D + S H^T (H S H^T + R)^-1 (y - H D),

which is D + (sigma^2 / alpha) grad log p(y | x_t). Here S is what it would be for normal data of the data's covariance;
in undiffuse/guidance/mmps.py it is the network's own. Where x_0 is normal both are exact.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, float64

MEMORY = 1 << 30
"""Bytes of factorisations that one guidance keeps, the last used: a sampler comes back to the same noise levels."""


class LinearMap(Protocol):
    """H, on batches of any floating dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x_0."""

    @property
    def observed(self) -> tuple[int, ...]:
        """Of y."""

    def forward(self, x: Tensor) -> Tensor:
        """H x: (B, *shape) -> (B, *observed)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y: (B, *observed) -> (B, *shape)."""


@dataclass(frozen=True)
class Observation:
    """y = H x_0 + n of B samples.

    Attributes:
        map: H.
        y: (B, *observed), or (1, *observed) for one y of all samples; on a device that has float64.
        noise: r, the standard deviation of n: R = r^2 I; or one for each number of y, shaped (*observed).
    """

    map: LinearMap
    y: Tensor
    noise: float | Tensor

    def __post_init__(self) -> None:
        if tuple(self.y.shape[1:]) != self.map.observed:
            raise ValueError(f"y is (B, *{self.map.observed}), not {tuple(self.y.shape)}")
        if not bool((float64(self.noise) >= 0).all()):
            raise ValueError(f"the noise's standard deviation is at least 0, not {self.noise}")

    @property
    def variance(self) -> Tensor:
        """The diagonal of R, float64 (M,), M numbers observed."""
        return float64(self.noise).square().expand(self.map.observed).flatten().to(self.y.device)

    def misfit(self, x0: Tensor) -> Tensor:
        """y - H x_0, float64 (B, M), where y is."""
        return (self.y.double() - self.map.forward(x0.to(self.y.device).double())).flatten(1)

    def rows(self, rows: slice) -> "Observation":
        """That of some samples; itself where all have one y."""
        return self if len(self.y) == 1 else replace(self, y=self.y[rows])


@dataclass(frozen=True)
class Together:
    """Several maps of one x_0, what they observe in one row: a `LinearMap`."""

    maps: tuple[LinearMap, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x_0."""
        return self.maps[0].shape

    @property
    def observed(self) -> tuple[int, ...]:
        """(M,), all numbers."""
        return (sum(math.prod(one.observed) for one in self.maps),)

    def forward(self, x: Tensor) -> Tensor:
        """H x."""
        return torch.cat([one.forward(x).flatten(1) for one in self.maps], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y."""
        parts = y.split([math.prod(one.observed) for one in self.maps], 1)
        return sum(
            (one.adjoint(part.unflatten(1, one.observed)) for one, part in zip(self.maps, parts, strict=True)),
            start=torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device),
        )


def together(*observations: Observation) -> Observation:
    """Several observations of the same samples as one. Guiding by one after the other would use S twice."""
    count = max(len(one.y) for one in observations)
    y = [one.y.flatten(1).expand(count, -1) for one in observations]
    noise = [one.variance.sqrt() for one in observations]
    return Observation(Together(tuple(one.map for one in observations)), torch.cat(y, 1), torch.cat(noise))


@dataclass(frozen=True)
class Covariance:
    """Of the data: Cov[x_0] = V diag(values) V^T, in the order of x_0's numbers. It may be singular.

    Attributes:
        values: the eigenvalues, float64 (D,), none negative.
        vectors: V, float64 (D, D), in columns.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Covariance":
        """That of a symmetric positive semi-definite matrix (D, D). Eigenvalues below 0 are rounding."""
        values, vectors = torch.linalg.eigh(matrix.double())
        return cls(values.clamp(min=0), vectors)


def gaussian_guidance(
    denoise: Denoise, process: GaussianProcess, observation: Observation, covariance: Covariance
) -> Denoise:
    """S from the data's own covariance: S = (Cov^-1 + (alpha / sigma)^2 I)^-1, what it would be for normal x_0.

    No derivative of the network is taken, so any engine will do. One evaluation, and products with matrices that are
    factorised once for each noise level, in float64.
    """
    values, vectors = (part.to(observation.y.device) for part in (covariance.values, covariance.vectors))
    if math.prod(observation.map.shape) != len(values):
        raise ValueError(f"a covariance of {len(values)} numbers for samples of {observation.map.shape}")
    columns = observation.map.forward(vectors.T.reshape(-1, *observation.map.shape)).flatten(1)  # (H V)^T
    variance = observation.variance
    kept = max(1, MEMORY // (8 * columns.shape[1] ** 2 or 1))

    @lru_cache(maxsize=kept)
    def factors(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """S's eigenvalues, 1 / (1 / values + (alpha / sigma)^2), and (H S H^T + R)^-1."""
        spread = values / (1 + values * (alpha / sigma) ** 2)
        return spread, inverse(columns.T * spread @ columns, variance)

    def correction(misfit: Tensor, alpha: float, sigma: float) -> Tensor:
        spread, precision = factors(alpha, sigma)
        return (misfit @ precision @ columns.T * spread) @ vectors.T

    def guided(x_t: Tensor, t: Time) -> Prediction:
        prediction, level = denoise(x_t, t), process.noise_level(t)
        misfit = observation.misfit(prediction.x0)
        if level.alpha.ndim:
            pairs = zip(misfit.split(1), level.alpha.tolist(), level.sigma.tolist(), strict=True)
            change = torch.cat([correction(*pair) for pair in pairs])
        else:
            change = correction(misfit, level.alpha.item(), level.sigma.item())
        return prediction.with_x0(prediction.x0 + change.view(x_t.shape).to(x_t), x_t, level)

    return guided


def inverse(covariance: Tensor, variance: Tensor) -> Tensor:
    """(H S H^T + R)^-1, float64 (M, M), of the covariance of H x_0 and the diagonal of R.

    Without noise, what x_0 cannot vary in is left alone: the pseudo-inverse.
    """
    matrix = covariance + variance.diag()
    if variance.min() > torch.finfo(matrix.dtype).eps * len(matrix) * matrix.diagonal().max():
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return torch.linalg.pinv(matrix, hermitian=True)
