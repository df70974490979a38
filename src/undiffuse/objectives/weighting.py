"""Loss weightings: functions of the log-SNR that multiply ||x_0 - x_0_hat||^2.

Losses on eps, v or EDM's F are the same loss under other weightings (Salimans & Ho 2022; Kingma & Gao 2023): an error e
in x_0 is an error e sqrt(SNR) in eps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
"""log-SNR -> weight, both float64 of one shape."""


def simple(log_snr: Tensor) -> Tensor:
    """The squared error in eps: L_simple (Ho et al. 2020, eq. 14). The weight is the SNR."""
    return log_snr.exp()


def x0(log_snr: Tensor) -> Tensor:
    """The squared error in x_0."""
    return torch.ones_like(log_snr)


def snr_plus_one(log_snr: Tensor) -> Tensor:
    """The squared error in v (Salimans & Ho 2022)."""
    return log_snr.exp() + 1


def truncated_snr(log_snr: Tensor) -> Tensor:
    """max(SNR, 1): the larger of the errors in x_0 and eps (Salimans & Ho 2022)."""
    return log_snr.exp().clamp(min=1)


def min_snr(log_snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) (Hang et al. 2023)."""
    return log_snr.exp().clamp(max=gamma)


def sigmoid(log_snr: Tensor, bias: float = 2.0) -> Tensor:
    """sigmoid(bias - log-SNR) on the error in eps: the factor of Kingma & Gao 2023 and Hoogeboom et al. 2024.

    Their loss also has -d log-SNR / dt, so it does not depend on the schedule; here the distribution of times decides.
    """
    return (log_snr + torch.nn.functional.logsigmoid(bias - log_snr)).exp()


def flow(log_snr: Tensor) -> Tensor:
    """The squared error in the velocity eps - x_0 (Lipman et al. 2023): (1 + alpha / sigma)^2."""
    return (1 + (0.5 * log_snr).exp()) ** 2


def edm(log_snr: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The squared error in F: 1 / sigma_data^2 + SNR (Karras et al. 2022, table 1)."""
    return 1 / sigma_data**2 + log_snr.exp()
