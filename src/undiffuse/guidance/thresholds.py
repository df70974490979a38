"""Thresholds: clipping and dynamic thresholding of the predicted x_0."""

import torch

from undiffuse.process import Denoise, GaussianProcess, Prediction, Time


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
        m = m.view(-1, *[1] * (x_t.ndim - 1))
        return prediction.with_x0(prediction.x0.clamp(-m, m) / m, x_t, process.noise_level(t))

    return thresholded


def unchanged(denoise: Denoise, process: GaussianProcess) -> Denoise:
    """x_0 as it is predicted."""
    return denoise
