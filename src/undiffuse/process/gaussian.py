"""The Gaussian process q: how noise is added, and what is known of a less noisy x_s given x_t and x_0.

One family covers VP, VE and flow matching; they differ in the schedule alone (x_t / alpha_t maps one onto another).
Notation and results as in Kingma et al. 2021 (VDM), appendix A; Ho et al. 2020, eq. 2-7 are the case s = t - 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process.schedule import Level, Schedule, Time


def expand(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient made ready to multiply `like`: 0-dim as it is, one per sample as (B, 1, ..., 1), else its shape.

    A 0-dim float64 CPU tensor multiplies a float32 tensor on any device without raising its dtype or synchronising.
    """
    if value.ndim == 0:
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return value.view(-1, *[1] * (like.ndim - 1)) if value.ndim == 1 else value


@dataclass(frozen=True)
class Normal:
    """N(mean, variance I): `variance` is 0-dim or one per sample, as `expand` broadcasts it (or shaped like `mean`)."""

    mean: Tensor
    variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sqrt(variance) noise."""
        return self.mean + expand(self.variance.sqrt(), self.mean) * noise

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) per element, in nats: shaped like the means. Infinite where only one variance is 0."""
        own, its = (torch.as_tensor(expand(v, self.mean)) for v in (self.variance, other.variance))
        ratio = own / its
        kl = 0.5 * ((self.mean - other.mean) ** 2 / its + (ratio - 1 - ratio.log()))
        return torch.where((its == 0) & (own > 0), torch.inf, kl)


@dataclass(frozen=True)
class GaussianProcess:
    """q for a schedule. Times are floats or float64 tensors, one per batch or one per sample; always s < t.

    Data and noisy states are (B, ...) tensors of any floating dtype, which every result keeps.
    """

    schedule: Schedule

    def level(self, t: Time) -> Level:
        """The schedule's alpha_t and sigma_t."""
        return self.schedule.level(t)

    def marginal(self, x0: Tensor, t: Time) -> Normal:
        """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) (Ho et al. 2020, eq. 4)."""
        level = self.level(t)
        return Normal(expand(level.alpha, x0) * x0, level.sigma**2)

    def corrupt(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise."""
        level = self.level(t)
        return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise

    def noise_fraction(self, s: Time, t: Time) -> Tensor:
        """c = 1 - SNR(t)/SNR(s): the share of sigma_t^2 that was added after s, in [0, 1]; exact at both ends."""
        return -torch.expm1(self.schedule.log_snr(t) - self.schedule.log_snr(s))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """q(x_t | x_s) = N(alpha_t / alpha_s x_s, c sigma_t^2 I): beta_t for neighbouring steps."""
        at_s, at_t = self.level(s), self.level(t)
        return Normal(expand(at_t.alpha / at_s.alpha, x_s) * x_s, self.noise_fraction(s, t) * at_t.sigma**2)

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Normal:
        """q(x_s | x_t, x_0), variance c sigma_s^2 (Ho et al. 2020, eq. 6-7); exactly x_0 at s = 0."""
        at_s, at_t, c = self.level(s), self.level(t), self.noise_fraction(s, t)
        from_x0 = at_s.alpha * c
        from_x_t = at_t.alpha / at_s.alpha * (at_s.sigma / at_t.sigma) ** 2
        return Normal(expand(from_x0, x0) * x0 + expand(from_x_t, x_t) * x_t, c * at_s.sigma**2)

    def prior_scale(self) -> Tensor:
        """The standard deviation of the prior: that of x_1 for data of unit variance, 1 for every VP schedule."""
        end = self.level(1.0)
        return (end.alpha**2 + end.sigma**2).sqrt()

    def prior(self, like: Tensor) -> Normal:
        """p(x_1), which sampling starts from: N(0, prior_scale^2 I), shaped like `like`."""
        return Normal(torch.zeros_like(like), self.prior_scale() ** 2)
