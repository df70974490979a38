"""Guidance by linear observations y = H x_0 + n, n ~ N(0, R): a denoiser of x_t becomes one of x_t and y.

With D = E[x_0 | x_t] and S = Cov[x_0 | x_t], the law of x_0 given x_t is taken for N(D, S). Then

    E[x_0 | x_t, y] = D + S H^T (H S H^T + R)^-1 (y - H D),

which is D + (sigma^2 / alpha) grad log p(y | x_t). The two guidances differ in S. Where x_0 is normal both are exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand, float64

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
        y: (B, *observed), or (1, *observed) for one y of all samples.
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
        """y - H x_0, float64 (B, M)."""
        return (self.y.double() - self.map.forward(x0.double())).flatten(1)

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
    values, vectors = covariance.values, covariance.vectors
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
        return prediction.with_x0(prediction.x0 + change.view_as(x_t).to(x_t.dtype), x_t, level)

    return guided


def inverse(covariance: Tensor, variance: Tensor) -> Tensor:
    """(H S H^T + R)^-1, float64 (M, M), of the covariance of H x_0 and the diagonal of R.

    Without noise, what x_0 cannot vary in is left alone: the pseudo-inverse.
    """
    matrix = covariance + variance.diag()
    if variance.min() > torch.finfo(matrix.dtype).eps * len(matrix) * matrix.diagonal().max():
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return torch.linalg.pinv(matrix, hermitian=True)


def moment_matching(
    denoise: Denoise,
    process: GaussianProcess,
    observation: Observation,
    tolerance: float = 1e-3,
    iterations: int = 100,
    tell: Callable[[Tensor], object] = lambda residuals: None,
) -> Denoise:
    """MMPS (Rozet et al. 2024, eq. 16-18): S = (sigma^2 / alpha) dD/dx_t, which is the covariance of x_0 given x_t.

    S is never formed: vectors are multiplied by the network's derivative.

    The system is solved by conjugate gradients for each sample, until |residual| <= tolerance |y - H D|. They end
    earlier after so many `iterations`, or where a network's derivative shows that it is not symmetric or not positive
    as a covariance is; then the best that was found is taken. `tell` is given the relative residuals (B,) of every
    evaluation. In pure noise without signal (alpha = 0) the derivative says
    nothing, and D stays as it is.
    """
    variance = observation.variance

    def guided(x_t: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        if (level.alpha == 0).any():
            unguided: Prediction = denoise(x_t, t)
            return unguided
        prediction, pull = differentiated(denoise, x_t, t)
        ratio = expand(level.sigma**2 / level.alpha, x_t)

        def spread(w: Tensor) -> Tensor:
            """S H^T w, float64 (B, *shape of x_0)."""
            return ratio * pull(observation.map.adjoint(w.unflatten(1, observation.map.observed)).to(x_t)).double()

        def observe(x: Tensor) -> Tensor:
            return observation.map.forward(x).flatten(1)

        misfit = observation.misfit(prediction.x0)
        start = torch.zeros_like(x_t, dtype=torch.float64)
        change, residuals = conjugate_gradients(spread, observe, variance, misfit, start, tolerance, iterations)
        tell(residuals)
        return prediction.with_x0(prediction.x0 + change.to(x_t.dtype), x_t, level)

    return guided


def differentiated(denoise: Denoise, x_t: Tensor, t: Time) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """The prediction at x_t, and w -> (dD/dx_t)^T w for w shaped like x_t.

    Raises UsageError where the denoiser cannot be differentiated, as ONNX Runtime's cannot.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        prediction = denoise(x, t)
    if not prediction.x0.requires_grad:
        raise UsageError("this method differentiates the network, which its engine cannot do: take --engine torch")
    v, logits = (part if part is None else part.detach() for part in (prediction.v, prediction.logits))
    detached = Prediction(prediction.x0.detach(), prediction.eps.detach(), v, logits)
    return detached, lambda w: torch.autograd.grad(prediction.x0, x, w, retain_graph=True)[0]


def conjugate_gradients(
    spread: Callable[[Tensor], Tensor],
    observe: Callable[[Tensor], Tensor],
    variance: Tensor,
    misfit: Tensor,
    start: Tensor,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """S H^T w, where (H S H^T + R) w = misfit, and |misfit - (H S H^T + R) w| / |misfit| (B,): each sample by itself.

    Residuals are kept orthogonal to all before them. Without that, rounding is amplified from step to step, and what a
    sample becomes depends on the batch it is in.

    Args:
        spread: w (B, M) -> S H^T w (B, *shape).
        observe: x (B, *shape) -> H x (B, M).
        variance: the diagonal of R (M,).
        misfit: (B, M), float64.
        start: zeros (B, *shape), float64.
    """

    def each(value: Tensor) -> Tensor:
        return value.view(-1, *[1] * (start.ndim - 1))

    residual, direction, w = misfit, misfit, torch.zeros_like(misfit)
    change, best = start, start
    square = whole = least = misfit.square().sum(1)
    active, before = square > 0, []
    for _ in range(iterations):
        if not active.any():
            break
        step = spread(direction)
        product = observe(step) + variance * direction
        curvature = (direction * product).sum(1)
        active = active & (curvature > 0)
        length = torch.where(active, square / curvature, 0)
        w, change = w + length[:, None] * direction, change + each(length) * step
        left = (misfit - observe(change) - variance * w).square().sum(1)
        best = torch.where(each(left < least), change, best)
        least = torch.minimum(left, least)
        before.append(torch.nn.functional.normalize(residual, dim=1))
        residual = residual - length[:, None] * product
        for q in before:
            residual = residual - (q * residual).sum(1, keepdim=True) * q
        last, square = square, residual.square().sum(1)
        active = active & (torch.minimum(least, square) > tolerance**2 * whole)
        direction = residual + torch.where(active, square / last, 0)[:, None] * direction
    return best, torch.where(whole > 0, least / whole, 0).sqrt()
