"""Thresholds: clipping and dynamic thresholding of the predicted x_0."""

import torch

from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, per_sample


def clip(denoise: Denoise, process: GaussianProcess, low: float = -1.0, high: float = 1.0) -> Denoise:
    """x_0 clipped to the range of the data, and eps made to fit (Ho et al. 2020, their code)."""

    def clipped(x_t: torch.Tensor, t: Time) -> Prediction:
        prediction = denoise(x_t, t)
        return prediction.with_x0(prediction.x0.clamp(low, high), x_t, process.noise_level(t))

    return clipped


def dynamic_threshold(denoise: Denoise, process: GaussianProcess, quantile: float = 0.995) -> Denoise:
    """x_0 clipped to [-m, m] and divided by m, the sample's quantile of |x_0| and at least 1 (Saharia et al. 2022)."""

    def thresholded(x_t: torch.Tensor, t: Time) -> Prediction:
        prediction = denoise(x_t, t)
        m = torch.quantile(prediction.x0.flatten(1).abs().float(), quantile, dim=1).clamp(min=1).to(x_t.dtype)
        m = per_sample(m, x_t)
        return prediction.with_x0(prediction.x0.clamp(-m, m) / m, x_t, process.noise_level(t))

    return thresholded


def unchanged(denoise: Denoise, process: GaussianProcess) -> Denoise:
    """x_0 as it is predicted."""
    return denoise


class Overshoot:
    """How much of the predicted data lies outside its range, as strong guidance makes it, before a threshold.

    Counted are the values of each trajectory's last prediction beyond [-1, 1] by more than half a step of 8 bits.
    """

    def __init__(self) -> None:
        self._last: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []

    def watch(self, denoise: Denoise) -> Denoise:
        """`denoise`, observed."""

        def watched(x_t: torch.Tensor, t: Time) -> Prediction:
            prediction: Prediction = denoise(x_t, t)
            self._last = [prediction.x0]
            return prediction

        return watched

    def keep(self) -> None:
        """Counts the last prediction: a trajectory is at its end."""
        self.kept += [(x0.abs() > 1 + 1 / 255).flatten(1).float().mean(1).cpu().double() for x0 in self._last]
        self._last = []

    @property
    def share(self) -> float:
        """The mean share over the samples, 0 without any."""
        return float(torch.cat(self.kept).mean()) if self.kept else 0.0
