"""Step rules: from x_t to x_s, usually s < t, given a denoiser. Each follows its paper.

    step(state at t, s, denoise, process, draw) -> state at s

At s = 0 every rule returns the predicted data, or with a categorical process a sample of it. Deterministic rules are
ODE solvers and go both ways; those that add noise raise ValueError for s > t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess, Process
from undiffuse.randomness import Draw


@dataclass(frozen=True)
class State:
    """The state of a sampler.

    Attributes:
        x: x_t, (B, ...).
        t: the time.
        x0: x_0 as predicted by the last evaluation (a preview), or None before the first.
        past: the evaluations that a multi-step rule remembers, newest first.
    """

    x: Tensor
    t: float
    x0: Tensor | None = None
    past: tuple["Evaluation", ...] = ()


class Evaluation(NamedTuple):
    """An earlier evaluation of the denoiser: the predicted x_0 at the time t and the state x."""

    t: float
    x0: Tensor
    x: Tensor


PURE_NOISE = 80.0
"""sigma / alpha above which nothing of the data is visible (sigma_max of Karras et al. 2022, table 1)."""
Step = Callable[[State, float, Denoise, Any, Draw], State]
"""(state at t, s, denoise, process, draw) -> state at s."""


def ancestral(state: State, s: float, denoise: Denoise, process: Process, draw: Draw, variance: str = "small") -> State:
    """Ancestral sampling, x_s ~ p(x_s | x_t): DDPM (Ho et al. 2020, algorithm 2) and D3PM (Austin et al. 2021).

    `variance`, of a Gaussian process, is "small" (the posterior's), "large" (beta) or "learned": see its `reverse`.
    """
    _needs_descent(state.t, s, "ddpm")
    prediction = denoise(state.x, state.t)
    return State(process.reverse(prediction, state.x, s, state.t, variance).sample(draw), s, prediction.x0)


def ddim(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: Draw,
    eta: float = 0.0,
) -> State:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) noise, v = eta^2 times the posterior's variance.

    Song et al. 2021 (DDIM), eq. 12 and 16. eta = 0 is deterministic: Euler on the probability-flow ODE in sigma / alpha
    (their eq. 14). eta = 1 is the posterior, DDPM with the small variance.
    """
    if eta:
        _needs_descent(state.t, s, f"ddim with eta = {eta:g}")
    prediction = denoise(state.x, state.t)
    if s == 0:
        return State(prediction.x0, s, prediction.x0)
    at_s = process.noise_level(s)
    v = eta**2 * process.noise_fraction(s, state.t) * at_s.sigma**2 if eta else torch.zeros_like(at_s.sigma)
    x = at_s.alpha * prediction.x0 + (at_s.sigma**2 - v).sqrt() * prediction.eps
    return State(x + v.sqrt() * draw.normal(x) if eta else x, s, prediction.x0)


def cfg_plus_plus(state: State, s: float, denoise: Denoise, process: GaussianProcess, draw: Draw) -> State:
    """x_s = alpha_s D' + sigma_s eps_u: CFG++ (Chung et al. 2024, algorithm 2), DDIM with two ends.

    D' is the guided x_0 and eps_u the noise of the unguided prediction, so no x_0 of the pair fits both: it is a step
    rule and no denoiser. Its scale is the paper's lambda: 0 is unconditional DDIM, and 1 is not conditional DDIM.
    """
    prediction = denoise(state.x, state.t)
    if s == 0:
        return State(prediction.x0, s, prediction.x0)
    at_t, at_s = process.noise_level(state.t), process.noise_level(s)
    without = prediction.x0 if prediction.unguided is None else prediction.unguided
    eps = (state.x - at_t.alpha * without) / at_t.sigma
    return State(at_s.alpha * prediction.x0 + at_s.sigma * eps, s, prediction.x0)


def heun(state: State, s: float, denoise: Denoise, process: GaussianProcess, draw: Draw) -> State:
    """Heun's second-order step on d(x / alpha) / d(sigma / alpha) = eps (Karras et al. 2022, algorithm 1).

    Two evaluations, but one (Euler) for steps to the data, and for steps from or to pure noise: with sigma / alpha in
    the thousands, or infinite, the trapezoidal rule does not approximate the integral, and x_0 is the mean throughout.
    """
    first = denoise(state.x, state.t)
    if s == 0:
        return State(first.x0, s, first.x0)
    at_t, at_s = process.noise_level(state.t), process.noise_level(s)
    euler = at_s.alpha * first.x0 + at_s.sigma * first.eps
    if any(at.sigma > PURE_NOISE * at.alpha for at in (at_t, at_s)):
        return State(euler, s, first.x0)
    length = at_s.sigma / at_s.alpha - at_t.sigma / at_t.alpha
    second = denoise(euler, s)
    return State(euler + at_s.alpha * length * 0.5 * (second.eps - first.eps), s, first.x0)


def _needs_descent(t: float, s: float, rule: str) -> None:
    if s > t:
        raise ValueError(f"{rule} adds noise and cannot go up from t = {t:g} to {s:g}: use one without noise, as ddim")
