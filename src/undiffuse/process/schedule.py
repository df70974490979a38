"""Noise schedules: the scales of signal and noise at a time, and their log-SNR.

Time runs from t = 0, exactly the data (alpha = 1, sigma = 0), to t = 1, (almost) only noise:

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I),   log_snr(t) = ln(alpha_t^2 / sigma_t^2).

Everything is float64 on the CPU: a schedule is evaluated at a handful of scalars, and its ends need the precision.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Time = float | Tensor
"""A time, or one per sample."""
MOST_CACHED = 10_000


def float64(value: Time | list[float]) -> Tensor:
    """`value` as a float64 tensor on the CPU (a 0-dim one for a float)."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def float64_device(x: Tensor) -> Tensor:
    """x on a device that has float64: its own, or the CPU instead of MPS."""
    return x.cpu() if x.device.type == "mps" else x


def cached_by_time(method: Callable[[Any, Time], T]) -> Callable[[Any, Time], T]:
    """Caches a method of a schedule by float time: a sampler uses the same few, many times a step.

    Results are shared between callers. Not for a schedule that changes.
    """

    @functools.wraps(method)
    def cached(schedule: Any, t: Time) -> T:
        if not isinstance(t, float):
            return method(schedule, t)
        known = schedule.__dict__.setdefault("_cached", {})
        key = method.__qualname__, t
        if key not in known:
            if len(known) >= MOST_CACHED:
                known.clear()
            known[key] = method(schedule, t)
        return known[key]

    return cached


@dataclass(frozen=True)
class NoiseLevel:
    """A noise level: the scale of the signal and of the noise, float64 tensors of one shape (0-dim or one per sample).

    For the schedules here alpha falls from 1 and sigma grows from 0; only variance-preserving ones have
    alpha^2 + sigma^2 = 1.
    """

    alpha: Tensor
    sigma: Tensor

    @functools.cached_property
    def log_snr(self) -> Tensor:
        """ln(alpha^2 / sigma^2): +inf at data, -inf where no signal is left."""
        return 2 * (self.alpha.log() - self.sigma.log())


class Schedule(ABC):
    """Noise levels over time t in [0, 1]. Every argument may be a float or a tensor; every result is float64.

    Attributes:
        steps: T for a discrete-time schedule, whose own times are i / T; None for a continuous one.
        t_min: the smallest time > 0 that training draws and a sampler visits before the data.
    """

    steps: int | None = None
    t_min: float = 1e-3

    @abstractmethod
    def noise_level(self, t: Time) -> NoiseLevel:
        """alpha_t and sigma_t; exactly (1, 0) at t = 0."""

    @abstractmethod
    def log_snr(self, t: Time) -> Tensor:
        """lambda_t = ln(alpha_t^2 / sigma_t^2), strictly decreasing; +inf at t = 0."""

    @abstractmethod
    def log_snr_derivative(self, t: Time) -> Tensor:
        """d lambda / dt, negative."""

    def snr_derivative(self, t: Time) -> Tensor:
        """d SNR / dt, negative and finite for t > 0, even where no signal is left."""
        return self.log_snr_derivative(t) * self.log_snr(t).exp()

    @abstractmethod
    def time(self, log_snr: Time) -> Tensor:
        """The inverse of `log_snr`; values outside its range are clamped to it."""

    def index(self, t: Time) -> Tensor:
        """The int64 step i of the time t = i / T. Raises ValueError for a continuous schedule or between steps."""
        if self.steps is None:
            raise ValueError(f"{type(self).__name__} is continuous: it has times, not step indices")
        position = float64(t) * self.steps
        if (position - position.round()).abs().max() > 1e-6:
            raise ValueError(f"time {t} lies between the steps i / {self.steps}")
        return position.round().long()

    def time_of(self, index: int | Tensor) -> Tensor:
        """The time i / T of step i in 0..T (0 is the data); `index` is its exact inverse."""
        if self.steps is None:
            raise ValueError(f"{type(self).__name__} is continuous: it has times, not step indices")
        return torch.as_tensor(index).to(torch.float64) / self.steps
