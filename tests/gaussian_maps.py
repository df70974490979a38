"""Flow maps of N(MEAN, STD^2) in closed form: what students, paths and teachers of it are exactly."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.build import make_schedule
from undiffuse.config import ProcessConfig
from undiffuse.objectives.flow_map import aim
from undiffuse.objectives.paths import Leaps
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand

MEAN, STD = 0.3, 0.4


def process_of(schedule: str) -> GaussianProcess:
    return GaussianProcess(make_schedule(ProcessConfig(schedule=schedule)))


def variance(process: GaussianProcess, t: Time) -> Tensor:
    level = process.noise_level(t)
    return (level.alpha * STD) ** 2 + level.sigma**2


def exact(process: GaussianProcess) -> Denoise:
    """E[x_0 | x_t] of N(MEAN, STD^2)."""

    def denoise(x: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        gain = level.alpha * STD**2 / variance(process, t)
        x0 = MEAN + expand(gain, x) * (x - expand(level.alpha, x) * MEAN)
        return Prediction(x0, x0).with_x0(x0, x, level)

    return denoise


def mapped(process: GaussianProcess, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """X_{t -> s} = alpha_s mu + sqrt(V_s / V_t) (x - alpha_t mu)."""
    at_t, at_s = process.noise_level(t), process.noise_level(s)
    scale = (variance(process, s) / variance(process, t)).sqrt()
    return expand(at_s.alpha, x) * MEAN + expand(scale, x) * (x - expand(at_t.alpha, x) * MEAN)


class Exact:
    """A student that is the exact map, times `wrong`."""

    def __init__(self, process: GaussianProcess, wrong: float = 1.0):
        self.process, self.wrong = process, wrong

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
        x0 = exact(self.process)(x, t).x0.clone()
        moved = s < t
        if moved.any():
            there = mapped(self.process, x[moved], t[moved], s[moved])
            x0[moved] = aim(self.process, there, x[moved], t[moved], s[moved])
        x0 = x0 * self.wrong
        return Prediction(x0, x0).with_x0(x0, x, self.process.noise_level(t))


def samples(process: GaussianProcess, t: Tensor) -> Tensor:
    x0 = MEAN + STD * torch.randn(len(t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return process.marginal(x0, t).at(noise)


@dataclass(frozen=True)
class ExactPaths:
    """Those of N(MEAN, STD^2), from levels to others below."""

    process: GaussianProcess
    t: Tensor
    s: Tensor

    def leaps(self, u: Tensor) -> Leaps:
        t, s = self.t[: len(u)], self.s[: len(u)]
        numbers = torch.randn(2, len(u), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        level = self.process.noise_level(t)
        x = expand(level.alpha, numbers[0]) * (MEAN + STD * numbers[0]) + expand(level.sigma, numbers[0]) * numbers[1]
        return Leaps(x, t, mapped(self.process, x, t, s), s, None)


def nodes(count: int = 8) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights of the standard normal law: exact for polynomials of degree 15."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(points), torch.from_numpy(weights / math.sqrt(2 * math.pi))
