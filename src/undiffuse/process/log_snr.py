"""A schedule given by its log-SNR at evenly spaced times, linear between them, such as a learned one (VDM, 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.process.schedule import NoiseLevel, Schedule, Time, cached_by_time, float64


class LogSNR(Schedule):
    """Variance preserving, alpha_t^2 = sigmoid(lambda_t), sigma_t^2 = sigmoid(-lambda_t) (Kingma et al. 2021, eq. 3).

    lambda is linear between K + 1 knots, evenly spaced from t_min to 1; before t_min, sigma / alpha is proportional to
    t, so that t = 0 is the data.

    Args:
        log_snrs: the knots, strictly decreasing, at least two. Raises ValueError otherwise.
    """

    def __init__(self, log_snrs: Sequence[float], t_min: float = 1e-3):
        self.log_snrs = float64(list(log_snrs))
        if len(self.log_snrs) < 2 or not (self.log_snrs.diff() < 0).all() or not self.log_snrs.isfinite().all():
            raise ValueError("log_snrs must be at least two numbers, strictly decreasing")
        if not 0 < t_min < 1:
            raise ValueError("needs 0 < t_min < 1")
        self.t_min = t_min

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The knot below t and the fraction of the way to the next one."""
        last = len(self.log_snrs) - 1
        position = ((t - self.t_min) / (1 - self.t_min) * last).clamp(0, last)
        below = position.floor().clamp(max=last - 1)
        return below.long(), position - below

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        t = float64(t)
        below, share = self._segment(t)
        early = -2 * (t / self.t_min).clamp(max=1).log()
        return torch.lerp(self.log_snrs[below], self.log_snrs[below + 1], share) + early

    @cached_by_time
    def noise_level(self, t: Time) -> NoiseLevel:
        log_snr = self.log_snr(t)
        return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())

    def log_snr_derivative(self, t: Time) -> Tensor:
        t = float64(t)
        below, _ = self._segment(t)
        slope = self.log_snrs.diff()[below] * (len(self.log_snrs) - 1) / (1 - self.t_min)
        return torch.where(t < self.t_min, -2 / t, slope)

    def time(self, log_snr: Time) -> Tensor:
        log_snr = float64(log_snr)
        last = len(self.log_snrs) - 1
        below = (torch.searchsorted(-self.log_snrs, -log_snr, right=True) - 1).clamp(0, last - 1)
        share = ((self.log_snrs[below] - log_snr) / (self.log_snrs[below] - self.log_snrs[below + 1])).clamp(0, 1)
        early = ((self.log_snrs[0] - log_snr) / 2).clamp(max=0).exp()
        late = self.t_min + (1 - self.t_min) * (below + share) / last
        return torch.where(log_snr > self.log_snrs[0], self.t_min * early, late)
