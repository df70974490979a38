"""The Gaussian diffusion process q: adding noise, and the posterior of a less noisy x_s given x_t and x_0.

One family covers VP, VE and flow matching; they differ in the schedule alone (x_t / alpha_t maps one onto another).
Notation and results as in Kingma et al. 2021 (VDM), appendix A; Ho et al. 2020, eq. 2-7 are the case s = t - 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process.laws import Normal, expand
from undiffuse.process.prediction import Prediction
from undiffuse.process.schedule import NoiseLevel, Schedule, Time, float64
from undiffuse.randomness import Draw


@dataclass(frozen=True)
class GaussianProcess:
    """q for a schedule. Times are floats or float64 tensors, one per batch or one per sample; always s < t.

    Data and noisy states are (B, ...) tensors of any floating dtype, which the results keep.
    """

    schedule: Schedule

    def noise_level(self, t: Time) -> NoiseLevel:
        """The schedule's alpha_t and sigma_t."""
        return self.schedule.noise_level(t)

    def marginal(self, x0: Tensor, t: Time) -> Normal:
        """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) (Ho et al. 2020, eq. 4)."""
        level = self.noise_level(t)
        return Normal(expand(level.alpha, x0) * x0, level.sigma**2)

    def corrupt(self, x0: Tensor, t: Time, draw: Draw) -> Tensor:
        """x_t ~ q(x_t | x_0): alpha_t x_0 + sigma_t eps."""
        return self.marginal(x0, t).sample(draw)

    def noise_fraction(self, s: Time, t: Time) -> Tensor:
        """c = 1 - SNR(t)/SNR(s): the share of sigma_t^2 that was added after s, in [0, 1]; exact at both ends."""
        return -torch.expm1(self.schedule.log_snr(t) - self.schedule.log_snr(s))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """q(x_t | x_s) = N(alpha_t / alpha_s x_s, c sigma_t^2 I): beta_t for neighbouring steps."""
        at_s, at_t = self.noise_level(s), self.noise_level(t)
        return Normal(expand(at_t.alpha / at_s.alpha, x_s) * x_s, self.noise_fraction(s, t) * at_t.sigma**2)

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Normal:
        """q(x_s | x_t, x_0), variance c sigma_s^2 (Ho et al. 2020, eq. 6-7); exactly x_0 at s = 0."""
        at_s, at_t, c = self.noise_level(s), self.noise_level(t), self.noise_fraction(s, t)
        from_x0 = at_s.alpha * c
        from_x_t = at_t.alpha / at_s.alpha * (at_s.sigma / at_t.sigma) ** 2
        return Normal(expand(from_x0, x0) * x0 + expand(from_x_t, x_t) * x_t, c * at_s.sigma**2)

    def reverse(
        self, prediction: Prediction, x_t: Tensor, s: Time, t: Time, variance: str | Tensor = "small"
    ) -> Normal:
        """p(x_s | x_t): the posterior's mean at the predicted x_0 (Ho et al. 2020, section 3.2), and a variance.

        At s = 0 it is the predicted x_0 itself, without noise (Ho et al. 2020, algorithm 2: z = 0).

        Args:
            variance: "small", the posterior's, optimal for data that is a point; "large", the transition's (beta), at
                the scale of x_s, optimal for standard normal data; "learned", interpolated between both in log space by
                the prediction's v; or the values themselves, 0-dim or (B,).
        """
        posterior = self.posterior(prediction.x0, x_t, s, t)
        if variance == "small":
            return posterior
        if isinstance(variance, Tensor):
            chosen = variance
        else:
            chosen = self._large_variance(s, t)
            if variance == "learned":
                chosen = _between(posterior.variance, chosen, prediction.v)
        return Normal(posterior.mean, expand((float64(s) > 0).double(), chosen) * chosen)

    def _large_variance(self, s: Time, t: Time) -> Tensor:
        at_s, at_t = self.noise_level(s), self.noise_level(t)
        scale = (at_s.alpha**2 + at_s.sigma**2) / (at_t.alpha**2 + at_t.sigma**2)  # 1 where variance is preserved
        return scale * self.noise_fraction(s, t) * at_t.sigma**2

    def prior_scale(self) -> Tensor:
        """The standard deviation of the prior: that of x_1 for data of unit variance, 1 for every VP schedule."""
        end = self.noise_level(1.0)
        return (end.alpha**2 + end.sigma**2).sqrt()

    def prior(self, like: Tensor) -> Normal:
        """p(x_1), which sampling starts from: N(0, prior_scale^2 I), shaped like `like`."""
        return Normal(torch.zeros_like(like), self.prior_scale() ** 2)


def _between(small: Tensor, large: Tensor, v: Tensor | None) -> Tensor:
    """exp(v ln large + (1 - v) ln small) (Nichol & Dhariwal 2021, eq. 15), shaped like v; large where small is 0."""
    if v is None:
        raise ValueError('variance "learned" needs a model that was trained to predict it (denoiser.learned_variance)')
    small = torch.where(small > 0, small, large)
    return (v * expand(large.log(), v) + (1 - v) * expand(small.log(), v)).exp()
