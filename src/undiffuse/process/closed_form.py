"""Schedules in closed form: VP, sub-VP, VE (Song et al. 2021), EDM (Karras et al. 2022), flow matching, survival."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process.schedule import NoiseLevel, Schedule, Time, cached_by_time, float64


@dataclass(frozen=True)
class VP(Schedule):
    """The variance-preserving SDE with beta(t) linear in t: alpha_t^2 = exp(-B(t)), sigma_t^2 = 1 - exp(-B(t)).

    B(t) is the integral of beta; the continuous limit of DDPM's linear table (Song et al. 2021, eq. 32-33).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.beta_min <= self.beta_max and 0 < self.t_min < 1):
            raise ValueError("needs 0 < beta_min <= beta_max and 0 < t_min < 1")

    def integral(self, t: Time) -> Tensor:
        """B(t) = beta_min t + (beta_max - beta_min) t^2 / 2."""
        t = float64(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, b: Tensor) -> Tensor:
        # The root of the quadratic written without cancellation.
        slope = self.beta_max - self.beta_min
        t = 2 * b / (self.beta_min + (self.beta_min**2 + 2 * slope * b).sqrt())
        return torch.where(b.isinf(), 1.0, t).clamp(0, 1)

    def _rate(self, t: Time) -> Tensor:
        return self.beta_min + float64(t) * (self.beta_max - self.beta_min)

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        b = self.integral(t)
        return NoiseLevel((-0.5 * b).exp(), (-torch.expm1(-b)).sqrt())

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        return -torch.expm1(self.integral(t)).log()

    def log_snr_derivative(self, t: Time) -> Tensor:
        return self._rate(t) / torch.expm1(-self.integral(t))

    def time(self, log_snr: Time) -> Tensor:
        return self._time_of_integral(torch.logaddexp(float64(0.0), -float64(log_snr)))


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE: VP's alpha with the smaller noise sigma_t = 1 - exp(-B(t)) (Song et al. 2021, eq. 29)."""

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        b = self.integral(t)
        return NoiseLevel((-0.5 * b).exp(), -torch.expm1(-b))

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        # sigma / alpha = exp(B/2) - exp(-B/2) = 2 sinh(B/2)
        return -2 * (2 * torch.sinh(0.5 * self.integral(t))).log()

    def log_snr_derivative(self, t: Time) -> Tensor:
        return -self._rate(t) / torch.tanh(0.5 * self.integral(t))

    def time(self, log_snr: Time) -> Tensor:
        return self._time_of_integral(2 * torch.asinh(0.5 * (-0.5 * float64(log_snr)).exp()))


@dataclass(frozen=True)
class VE(Schedule):
    """The variance-exploding SDE: alpha = 1, sigma_t^2 = sigma_min^2 ((sigma_max / sigma_min)^(2t) - 1).

    The noise that the SDE adds between time 0, the data itself, and t (Song et al. 2021, eq. 30).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max and 0 < self.t_min < 1):
            raise ValueError("needs 0 < sigma_min < sigma_max and 0 < t_min < 1")

    @property
    def _log_ratio(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        sigma = self.sigma_min * torch.expm1(float64(t) * self._log_ratio).sqrt()
        return NoiseLevel(torch.ones_like(sigma), sigma)

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        return -2 * self.noise_level(t).sigma.log()

    def log_snr_derivative(self, t: Time) -> Tensor:
        return self._log_ratio / torch.expm1(-float64(t) * self._log_ratio)

    def time(self, log_snr: Time) -> Tensor:
        variance = (-float64(log_snr)).exp() / self.sigma_min**2
        return (torch.log1p(variance) / self._log_ratio).clamp(0, 1)


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = sigma_max t: sigma is linear in time (Karras et al. 2022, table 1).

    `t_min` is where sigma = sigma_min, the last level a sampler visits before it steps to the data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError("needs 0 < sigma_min < sigma_max")
        object.__setattr__(self, "t_min", self.sigma_min / self.sigma_max)

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        sigma = self.sigma_max * float64(t)
        return NoiseLevel(torch.ones_like(sigma), sigma)

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        return -2 * self.noise_level(t).sigma.log()

    def log_snr_derivative(self, t: Time) -> Tensor:
        return -2 / float64(t)

    def time(self, log_snr: Time) -> Tensor:
        return ((-0.5 * float64(log_snr)).exp() / self.sigma_max).clamp(0, 1)


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """The straight path x_t = (1 - t) x_0 + t eps (Lipman et al. 2023; Liu et al. 2023), no signal left at t = 1."""

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError("needs 0 < t_min < 1")

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        t = float64(t)
        return NoiseLevel(1 - t, t)

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        t = float64(t)
        return 2 * (torch.log1p(-t) - t.log())

    def log_snr_derivative(self, t: Time) -> Tensor:
        t = float64(t)
        return -2 / (t * (1 - t))

    def snr_derivative(self, t: Time) -> Tensor:
        t = float64(t)
        return -2 * (1 - t) / t**3

    def time(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-0.5 * float64(log_snr))


@dataclass(frozen=True)
class LinearSurvival(Schedule):
    """alpha_t^2 = 1 - t: the share of a categorical process's elements that survive falls linearly, from 1 to 0.

    The masking schedule 1 / (T - t + 1) of D3PM (Austin et al. 2021, section 3.1), and the linear one of MDLM and MD4.
    Both ends are exact, so no time above 0 has to be the first: t_min = 0.
    """

    t_min = 0.0

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        t = float64(t)
        return NoiseLevel((1 - t).sqrt(), t.sqrt())

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        t = float64(t)
        return torch.log1p(-t) - t.log()

    def log_snr_derivative(self, t: Time) -> Tensor:
        t = float64(t)
        return -1 / (t * (1 - t))

    def snr_derivative(self, t: Time) -> Tensor:
        return -1 / float64(t) ** 2

    def time(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-float64(log_snr))
