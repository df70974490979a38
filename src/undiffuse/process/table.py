"""Schedules that are a table of betas: the discrete-time models (Sohl-Dickstein et al. 2015; Ho et al. 2020)."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from undiffuse.process.schedule import NoiseLevel, Schedule, Time, cached_by_time, float64


class Table(Schedule):
    """beta_1 .. beta_T, with alpha_bar_i = prod(1 - beta_1 .. 1 - beta_i) at the time i / T.

    Between two steps alpha_bar is interpolated linearly, so every t in [0, 1] has a level (the network is conditioned
    on the log-SNR, so the choice of interpolation does not matter to it).

    Args:
        betas: T numbers in (0, 1); the last may be 1 (no signal left at t = 1). Raises ValueError otherwise.
    """

    def __init__(self, betas: Sequence[float] | Tensor):
        self.betas = float64(betas if isinstance(betas, Tensor) else torch.tensor(list(betas), dtype=torch.float64))
        if self.betas.ndim != 1 or len(self.betas) == 0:
            raise ValueError("betas must be a non-empty list of numbers")
        inside = (self.betas > 0) & (self.betas < 1)
        inside[-1] |= self.betas[-1] == 1
        if not inside.all():
            wrong = int((~inside).nonzero()[0])
            raise ValueError(f"betas must lie in (0, 1) (the last may be 1): beta_{wrong + 1} = {self.betas[wrong]:g}")
        self.steps: int = len(self.betas)
        self.t_min = 1 / self.steps

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_0 = 1, ..., alpha_bar_T: float64 (T + 1,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0).exp()])

    @cached_property
    def noise_variance(self) -> Tensor:
        """1 - alpha_bar, without cancellation: float64 (T + 1,)."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.expm1(torch.log1p(-self.betas).cumsum(0))])

    def _segment(self, t: Time) -> tuple[Tensor, Tensor]:
        """The step below t and the fraction of the way to the next one."""
        t = float64(t).clamp(0, 1)
        nearest = (t * self.steps).round()
        position = torch.where(t == nearest / self.steps, nearest, t * self.steps)  # i / T * T is exactly i
        below = position.floor().clamp(max=self.steps - 1)
        return below.long(), position - below

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        i, w = self._segment(t)
        return NoiseLevel(
            torch.lerp(self.alpha_bar[i], self.alpha_bar[i + 1], w).sqrt(),
            torch.lerp(self.noise_variance[i], self.noise_variance[i + 1], w).sqrt(),
        )

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        return self.noise_level(t).log_snr

    def _slope(self, t: Time) -> Tensor:
        """d sigma^2 / dt = -d alpha^2 / dt, from the smaller of the two, which is more precise."""
        i, _ = self._segment(t)
        level = self.noise_level(t)
        noise, signal = self.noise_variance.diff()[i], -self.alpha_bar.diff()[i]
        return self.steps * torch.where(level.alpha < level.sigma, signal, noise)

    def log_snr_derivative(self, t: Time) -> Tensor:
        level = self.noise_level(t)
        return -self._slope(t) / (level.alpha * level.sigma) ** 2

    def snr_derivative(self, t: Time) -> Tensor:
        return -self._slope(t) / self.noise_level(t).sigma ** 4

    def time(self, log_snr: Time) -> Tensor:
        log_snr = float64(log_snr)
        table = self.alpha_bar.log() - self.noise_variance.log()
        below = (torch.searchsorted(-table, -log_snr, right=True) - 1).clamp(0, self.steps - 1)
        # The smaller of sigma^2 and alpha^2 keeps its relative precision: solve for the fraction with that one.
        noisy = log_snr < 0
        wanted = torch.where(noisy, torch.sigmoid(log_snr), torch.sigmoid(-log_snr))
        start = torch.where(noisy, self.alpha_bar[below], self.noise_variance[below])
        end = torch.where(noisy, self.alpha_bar[below + 1], self.noise_variance[below + 1])
        return (below + ((wanted - start) / (end - start)).clamp(0, 1)) / self.steps


def linear(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Table:
    """beta_i evenly spaced (Ho et al. 2020). For T != 1000 betas are scaled by 1000 / T, for the same total noise."""
    scale = 1000 / steps
    return Table(torch.linspace(scale * beta_min, min(scale * beta_max, 0.999), steps, dtype=torch.float64))


def scaled_linear(steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> Table:
    """sqrt(beta_i) evenly spaced (Rombach et al. 2022); scaled by 1000 / T like `linear`."""
    scale = 1000 / steps
    ends = math.sqrt(scale * beta_min), math.sqrt(min(scale * beta_max, 0.999))
    return Table(torch.linspace(*ends, steps, dtype=torch.float64) ** 2)


def quadratic(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Table:
    """`scaled_linear` between the ends of `linear` (the "quad" schedule of Ho et al.'s code)."""
    return scaled_linear(steps, beta_min, beta_max)


def sigmoid(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Table:
    """beta_i along a logistic curve over [-6, 6] between the ends of `linear`; scaled by 1000 / T."""
    scale = 1000 / steps
    low, high = scale * beta_min, min(scale * beta_max, 0.999)
    return Table(low + (high - low) * torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)))


def cosine(steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Table:
    """alpha_bar(t) = f(t) / f(0), f = cos^2(pi/2 (t + offset) / (1 + offset)), betas capped (IDDPM, 2021, eq. 17)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    log_alpha_bar = 2 * torch.cos((t + offset) / (1 + offset) * math.pi / 2).log()
    return Table((-torch.expm1(log_alpha_bar.diff())).clamp(max=beta_max))


def zero_terminal_snr(table: Table) -> Table:
    """`table` shifted and scaled so that alpha_1 is unchanged and alpha_T = 0 (Lin et al. 2024, algorithm 1).

    Raises ValueError for a table of one step, whose alpha_1 is alpha_T.
    """
    if table.steps == 1:
        raise ValueError("a table of one step cannot be rescaled to zero terminal SNR")
    alpha = table.alpha_bar[1:].sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    betas[0] = table.betas[0]  # unchanged, and without the cancellation
    return Table(betas)
