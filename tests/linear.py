"""Correlated normal data, and what is known of it from linear observations, in NumPy: for the tests of restoration."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.guidance import LinearMap, Observation
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand

SHAPE = (3, 4, 6)


def ar1(side: int, rho: float) -> np.ndarray:
    """rho^|i - j|: an autoregressive process of order 1."""
    place = np.arange(side)
    return rho ** np.abs(place[:, None] - place)


def picture_covariance() -> np.ndarray:
    """Of (C, H, W) pictures: channels that go together, AR(1) along both sides."""
    channels = 0.2 * np.array([[1.0, 0.7, 0.5], [0.7, 1.2, 0.6], [0.5, 0.6, 0.8]])
    return np.kron(channels, np.kron(ar1(SHAPE[1], 0.9), ar1(SHAPE[2], 0.7)))


def dense(map: LinearMap) -> np.ndarray:
    """H as a matrix (M, D), column by column."""
    units = torch.eye(int(np.prod(map.shape)), dtype=torch.float64)
    return map.forward(units.view(-1, *map.shape)).flatten(1).T.numpy()


@dataclass(frozen=True)
class Normal:
    """x_0 ~ N(mean, covariance), of any shape."""

    mean: np.ndarray
    covariance: np.ndarray

    def given(self, matrix: np.ndarray, seen: np.ndarray, variance: np.ndarray) -> "Normal":
        """x_0 given seen = matrix x_0 + n, n of independent numbers of these variances (Kalman's update)."""
        joint = matrix @ self.covariance @ matrix.T + np.diag(variance)
        gain = np.linalg.solve(joint, matrix @ self.covariance).T
        rest = np.eye(len(self.mean)) - gain @ matrix
        covariance = rest @ self.covariance @ rest.T + gain * variance @ gain.T  # Joseph's form
        return Normal(self.mean + gain @ (seen - matrix @ self.mean), covariance)

    def noisy(self, alpha: float, sigma: float) -> "Normal":
        """x_t."""
        return Normal(alpha * self.mean, alpha**2 * self.covariance + sigma**2 * np.eye(len(self.mean)))

    def denoiser(self, process: GaussianProcess) -> Denoise:
        """E[x_0 | x_t], as torch: differentiable, at one time or one per sample."""
        mean, covariance = torch.from_numpy(self.mean), torch.from_numpy(self.covariance)
        unit = torch.eye(len(mean), dtype=torch.float64)

        def denoise(x_t: Tensor, t: Time) -> Prediction:
            level = process.noise_level(t)
            alpha, sigma = (value.reshape(-1, 1, 1) for value in (level.alpha, level.sigma))
            unexpected = x_t.flatten(1)[..., None] - alpha * mean[:, None]
            x0 = mean[:, None] + alpha * covariance @ torch.linalg.solve(
                alpha**2 * covariance + sigma**2 * unit, unexpected
            )
            x0 = x0.view_as(x_t)
            return Prediction(x0, (x_t - expand(level.alpha, x_t) * x0) / expand(level.sigma, x_t))

        return denoise

    def draw(self, count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, count, method="eigh")


PICTURES = Normal(np.linspace(-0.5, 0.5, 72), picture_covariance())


def posterior_means(data: Normal, x_t: Tensor, alpha: float, sigma: float, observation: Observation) -> np.ndarray:
    """E[x_0 | x_t, y] of every sample (B, D): x_t and y are two observations of x_0, seen at once."""
    size = len(data.mean)
    both = np.concatenate([alpha * np.eye(size), dense(observation.map)])
    variance = np.concatenate([np.full(size, sigma**2), observation.variance.numpy()])
    y = observation.y.flatten(1).expand(len(x_t), -1).numpy()
    seen = np.concatenate([x_t.flatten(1).numpy(), y], 1)
    return np.stack([data.given(both, one, variance).mean for one in seen])


def affine(run: Callable[[Tensor], Tensor], start: Normal, shape: tuple[int, ...]) -> Normal:
    """The law at the end of an affine map: from where it takes the mean, and each column of the covariance's root."""
    values, vectors = np.linalg.eigh(start.covariance)
    starts = np.concatenate([start.mean[None], start.mean + (vectors * np.sqrt(values.clip(0))).T])
    ends = run(torch.from_numpy(starts).view(-1, *shape)).flatten(1).numpy()
    return Normal(ends[0], (ends[1:] - ends[0]).T @ (ends[1:] - ends[0]))
