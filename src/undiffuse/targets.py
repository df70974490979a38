"""Prediction targets: linear combinations of the data and the noise, and the way back to x_0.

    output = a x_0 + b eps,        x_0 = c_skip x_t + c_out output      (Karras et al. 2022, eq. 7).

a, b, c_out and r c_skip, with r^2 = alpha^2 + sigma^2, depend on sigma / alpha alone. So a network trained
under one process can be used under every other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse.process import NoiseLevel
from undiffuse.registry import TARGETS

Target = Callable[[NoiseLevel, float], "Coefficients"]
"""(noise level, sigma_data) -> the coefficients: what a name in TARGETS stands for."""


class Coefficients(NamedTuple):
    """output = a x_0 + b eps and x_0 = c_skip x_t + c_out output: float64, shaped like the noise level."""

    a: Tensor
    b: Tensor
    c_skip: Tensor
    c_out: Tensor


def eps(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The noise (Ho et al. 2020)."""
    _needs_signal(level, "eps")
    zero = torch.zeros_like(level.alpha)
    return Coefficients(zero, zero + 1, 1 / level.alpha, -level.sigma / level.alpha)


def x0(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The data."""
    zero = torch.zeros_like(level.alpha)
    return Coefficients(zero + 1, zero, zero, zero + 1)


def v(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """v = alpha eps - sigma x_0 (Salimans & Ho 2022), with x_t first scaled to alpha^2 + sigma^2 = 1."""
    r = (level.alpha**2 + level.sigma**2).sqrt()
    return Coefficients(-level.sigma / r, level.alpha / r, level.alpha / r**2, -level.sigma / r)


def score(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The score -r eps / sigma of x_t / r, which is x_t if the process preserves variance (Song et al. 2021)."""
    _needs_signal(level, "score")
    zero = torch.zeros_like(level.alpha)
    r = (level.alpha**2 + level.sigma**2).sqrt()
    return Coefficients(zero, -r / level.sigma, 1 / level.alpha, level.sigma**2 / (level.alpha * r))


def score_of_state(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The score -eps / sigma of x_t itself, which depends on the scale of the process, so it is tied to one."""
    _needs_signal(level, "score")
    zero = torch.zeros_like(level.alpha)
    return Coefficients(zero, -1 / level.sigma, 1 / level.alpha, level.sigma**2 / level.alpha)


def flow(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The velocity eps - x_0 of the straight path (Lipman et al. 2023)."""
    total = level.alpha + level.sigma
    one = torch.ones_like(total)
    return Coefficients(-one, one, 1 / total, -level.sigma / total)


def edm(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """F in x_0 = c_skip x + c_out F (Karras et al. 2022, eq. 7 and table 1), for any alpha."""
    variance = level.sigma**2 + (level.alpha * sigma_data) ** 2
    return Coefficients(
        a=level.sigma / (sigma_data * variance.sqrt()),
        b=-level.alpha * sigma_data / variance.sqrt(),
        c_skip=level.alpha * sigma_data**2 / variance,
        c_out=level.sigma * sigma_data / variance.sqrt(),
    )


SCORE_OF_STATE = "score-of-state"
"""What "score" once meant under every process, kept for models saved then (denoiser.score_scale=state)."""


def coefficients(target: str, level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The coefficients of a target by name, at a noise level. Raises UsageError for an unknown target."""
    function: Target = score_of_state if target == SCORE_OF_STATE else TARGETS.find(target)
    return function(level, sigma_data)


def _needs_signal(level: NoiseLevel, target: str) -> None:
    if (level.alpha == 0).any():
        raise ValueError(
            f"the target {target} does not determine x_0 where no signal is left (alpha = 0): "
            "use v, x0, flow or edm with a schedule that ends at zero SNR"
        )
