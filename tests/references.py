"""Independent mathematics for the tests: nothing here calls the code it is compared with, beyond a schedule's level.

Levels are written in mpmath, samplers in NumPy as their papers have them, denoisers for data whose optimum is known.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mpmath
import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from undiffuse.process import (
    EDM,
    VE,
    VP,
    Denoise,
    FlowMatching,
    GaussianProcess,
    LinearSurvival,
    Prediction,
    Schedule,
    SubVP,
    Table,
    cosine,
    expand,
    linear,
    quadratic,
    scaled_linear,
    sigmoid,
    zero_terminal_snr,
)
from undiffuse.sampling import State, Step, trajectory

EPS = float(np.finfo(np.float64).eps)

TABLES: dict[str, Callable[[int], Table]] = {
    "linear": linear,
    "scaled-linear": scaled_linear,
    "quadratic": quadratic,
    "sigmoid": sigmoid,
    "cosine": cosine,
    "zero-snr": lambda steps: zero_terminal_snr(linear(steps)),
}
FORMULAS: dict[str, Callable[[], Schedule]] = {
    "vp": VP,
    "sub-vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": FlowMatching,
    "survival": LinearSurvival,
}
SCHEDULES: dict[str, Schedule] = {name: make(20) for name, make in TABLES.items()} | {
    name: make() for name, make in FORMULAS.items()
}
ZERO_SNR = {"zero-snr", "flow", "survival"}  # no signal is left at t = 1


@dataclass(frozen=True)
class Lazy:
    """A draw whose normal numbers a function makes when they are asked for."""

    noise: Callable[[], Tensor]

    def normal(self, like: Tensor) -> Tensor:
        return self.noise()

    def uniform(self, like: Tensor) -> Tensor:
        raise AssertionError("no rule for a Gaussian process needs uniform numbers")


def walk(
    denoise: Denoise,
    process: GaussianProcess,
    grid: Tensor,
    step: Step,
    noise: Callable[[int], Tensor],
    start: Tensor | None = None,
) -> Iterator[State]:
    """A trajectory with the noise of step k given by a function; without a start, from noise 0 at the prior's scale."""
    start = process.prior_scale() * noise(0) if start is None else start
    return trajectory(denoise, process, grid, step, start, lambda k: Lazy(lambda: noise(k)))


def as64(*values: float) -> Tensor:
    """float64 (B,)."""
    return torch.tensor(values, dtype=torch.float64)


# Schedules, in mpmath.


def formula_level(name: str, t: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """alpha^2 and sigma^2 of a closed form, by the formulas of its paper, with its default parameters."""
    t = mpmath.mpf(t)
    b = mpmath.mpf("0.1") * t + (20 - mpmath.mpf("0.1")) * t**2 / 2
    return {
        "vp": lambda: (mpmath.exp(-b), 1 - mpmath.exp(-b)),
        "sub-vp": lambda: (mpmath.exp(-b), (1 - mpmath.exp(-b)) ** 2),
        "ve": lambda: (mpmath.mpf(1), mpmath.mpf("0.01") ** 2 * (mpmath.mpf(5000) ** (2 * t) - 1)),
        "edm": lambda: (mpmath.mpf(1), (80 * t) ** 2),
        "flow": lambda: ((1 - t) ** 2, t**2),
        "survival": lambda: (1 - t, t),
    }[name]()


def formula_sde(name: str) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """f and g^2 of dx = f(t) x dt + g(t) dw whose marginals the closed form claims to be."""

    def beta(t: float) -> float:
        return 0.1 + t * 19.9

    def b(t: float) -> float:
        return 0.1 * t + 19.9 * t * t / 2

    return {
        "vp": (lambda t: -0.5 * beta(t), beta),
        "sub-vp": (lambda t: -0.5 * beta(t), lambda t: beta(t) * (1 - np.exp(-2 * b(t)))),
        "ve": (lambda t: 0.0, lambda t: (0.01 * 5000**t) ** 2 * 2 * np.log(5000)),
        "edm": (lambda t: 0.0, lambda t: 2 * 80**2 * t),
        "flow": (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
        "survival": (lambda t: -0.5 / (1 - t), lambda t: 1 / (1 - t)),
    }[name]


def table_betas(name: str, steps: int) -> list[mpmath.mpf]:
    """The betas of a published table, at the precision of the caller's mpmath context."""
    m = mpmath.mpf
    scale = m(1000) / steps

    def even(low: mpmath.mpf, high: mpmath.mpf) -> list[mpmath.mpf]:
        return [low + (high - low) * i / (steps - 1) for i in range(steps)]

    low, high = scale * m("0.0001"), min(scale * m("0.02"), m("0.999"))
    if name == "linear":
        return even(low, high)
    if name == "quadratic":
        return [b**2 for b in even(mpmath.sqrt(low), mpmath.sqrt(high))]
    if name == "scaled-linear":
        return [b**2 for b in even(mpmath.sqrt(scale * m("0.00085")), mpmath.sqrt(min(scale * m("0.012"), m("0.999"))))]
    if name == "sigmoid":
        return [low + (high - low) / (1 + mpmath.exp(-x)) for x in even(m(-6), m(6))]
    if name == "cosine":
        f = [mpmath.cos((m(i) / steps + m("0.008")) / m("1.008") * mpmath.pi / 2) ** 2 for i in range(steps + 1)]
        return [min(1 - f[i + 1] / f[i], m("0.999")) for i in range(steps)]
    if name == "zero-snr":  # Lin et al. 2024, algorithm 1
        root = [mpmath.sqrt(a) for a in products(table_betas("linear", steps))[1:]]
        first, last = root[0], root[-1]
        bar = [m(1)] + [((r - last) * first / (first - last)) ** 2 for r in root]
        return [1 - bar[i + 1] / bar[i] for i in range(steps)]
    raise KeyError(name)


def products(betas: list[mpmath.mpf]) -> list[mpmath.mpf]:
    """alpha_bar_0 .. alpha_bar_T."""
    bars = [mpmath.mpf(1)]
    for beta in betas:
        bars.append(bars[-1] * (1 - beta))
    return bars


# Data whose optimal denoiser is known. They read alpha and sigma off the process, and nothing else.


def levels(process: GaussianProcess, grid: Tensor) -> list[tuple[float, float]]:
    """(alpha, sigma) along a grid, as Python floats."""
    level = process.noise_level(grid)
    return list(zip(level.alpha.tolist(), level.sigma.tolist(), strict=True))


def gaussian_x0(x: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(mean, std^2): the mean plus the Wiener gain times what is unexpected."""
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def mixture_x0(x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, weights: Tensor, std: float) -> Tensor:
    """E[x_0 | x_t] for a mixture of N(means_k, std^2), each element on its own."""
    variance = alpha**2 * std**2 + sigma**2
    unexpected = x[..., None] - (alpha * torch.ones_like(x))[..., None] * means
    spread = (variance * torch.ones_like(x))[..., None]
    share = torch.softmax(weights.log() - unexpected**2 / (2 * spread), -1)
    gain = ((alpha * std**2 / variance) * torch.ones_like(x))[..., None]
    return (share * (means + gain * unexpected)).sum(-1)


def oracle(process: GaussianProcess, x0_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """x0_of(x, alpha, sigma) as a denoiser."""

    def denoise(x: Tensor, t: float | Tensor) -> Prediction:
        level = process.noise_level(t)
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        x0 = x0_of(x, alpha, sigma)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def gaussian_denoiser(process: GaussianProcess, mean: Tensor, std: Tensor) -> Callable:
    """The optimum for N(mean, std^2), per element."""
    return oracle(process, lambda x, alpha, sigma: gaussian_x0(x, alpha, sigma, mean, std))


MODES = {"means": as64(-1.0, 0.6), "weights": as64(0.35, 0.65), "std": 0.25}


def mixture_denoiser(process: GaussianProcess) -> Callable:
    """The optimum for the two modes of MODES."""
    return oracle(process, lambda x, alpha, sigma: mixture_x0(x, alpha, sigma, **MODES))


def mixture_flow(y: np.ndarray, start: float, end: float) -> np.ndarray:
    """The probability flow of MODES in y = x / alpha from one u = sigma / alpha to another: dy/du = eps (DDIM, eq. 14).

    Integrated in ln u by an eighth-order method to 1e-13.
    """
    means, weights, std = MODES["means"].numpy(), MODES["weights"].numpy(), MODES["std"]

    def slope(log_u: float, y: np.ndarray) -> np.ndarray:
        variance = std**2 + np.exp(2 * log_u)
        d = y[:, None] - means
        logits = np.log(weights) - d**2 / (2 * variance)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return y - (share * (means + std**2 / variance * d)).sum(1)  # u eps = y - x_0

    solution = solve_ivp(slope, (np.log(start), np.log(end)), y, method="DOP853", rtol=1e-13, atol=1e-13)
    return solution.y[:, -1]


# Samplers as their papers write them. x0_of(x, alpha, sigma) works on NumPy arrays; `at` is [(alpha, sigma), ...].


def ddim_moments(
    at: list[tuple[float, float]], eta: float, mean: float, std: float, x_mean: float, x_var: float
) -> list[tuple[float, float]]:
    """Mean and variance of DDIM's states (Song et al. 2021, eq. 12 and 16) for N(mean, std^2), in alpha_bar.

    A state is scaled to alpha^2 + sigma^2 = 1 for the step, as the paper has it, and back.
    """
    moments = [(x_mean, x_var)]
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(at):
        norm_t, norm_s = np.hypot(alpha_t, sigma_t), np.hypot(alpha_s, sigma_s)
        bar_t, bar_s = (alpha_t / norm_t) ** 2, (alpha_s / norm_s) ** 2
        m, v = x_mean / norm_t, x_var / norm_t**2
        gain = np.sqrt(bar_t) * std**2 / (bar_t * std**2 + 1 - bar_t)  # x_0 = offset + gain x
        offset = mean - gain * np.sqrt(bar_t) * mean
        variance = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
        direction = np.sqrt(max(1 - bar_s - variance, 0.0))
        a = np.sqrt(bar_s) * gain + direction * (1 - np.sqrt(bar_t) * gain) / np.sqrt(1 - bar_t)
        b = np.sqrt(bar_s) * offset - direction * np.sqrt(bar_t) * offset / np.sqrt(1 - bar_t)
        x_mean, x_var = norm_s * (a * m + b), norm_s**2 * (a * a * v + variance)
        moments.append((x_mean, x_var))
    return moments


def ddpm_moments(
    at: list[tuple[float, float]], large: bool, mean: float, std: float, x_mean: float, x_var: float
) -> list[tuple[float, float]]:
    """Mean and variance of Ho et al. 2020, algorithm 2, for N(mean, std^2) under a variance-preserving schedule.

    beta is that of the interval; the last step adds no noise.
    """
    moments = [(x_mean, x_var)]
    for (alpha_t, _), (alpha_s, _) in itertools.pairwise(at):
        bar_t, bar_s = alpha_t**2, alpha_s**2
        beta = 1 - bar_t / bar_s
        gain = np.sqrt(bar_t) * std**2 / (bar_t * std**2 + 1 - bar_t)
        offset = mean - gain * np.sqrt(bar_t) * mean
        # x_s = (x_t - beta / sqrt(1 - bar_t) eps) / sqrt(1 - beta), eps = (x_t - sqrt(bar_t) x_0) / sqrt(1 - bar_t)
        weight = beta / (1 - bar_t)
        rest = np.sqrt(bar_t / bar_s)  # sqrt(1 - beta)
        a = (1 - weight * (1 - np.sqrt(bar_t) * gain)) / rest
        b = weight * np.sqrt(bar_t) * offset / rest
        variance = 0.0 if bar_s == 1 else beta if large else (1 - bar_s) / (1 - bar_t) * beta
        x_mean, x_var = a * x_mean + b, a * a * x_var + variance
        moments.append((x_mean, x_var))
    return moments


X0 = Callable[[np.ndarray, float, float], np.ndarray]


def karras_heun(x: np.ndarray, at: list[tuple[float, float]], x0_of: X0) -> np.ndarray:
    """Karras et al. 2022, algorithm 1 with s(t) = 1, sigma(t) = t: states are x / alpha, noise levels sigma / alpha.

    Their sigma_max is 80; from noisier times the step is Euler's.
    """
    u = [sigma / alpha for alpha, sigma in at]
    y = x / at[0][0]
    for t, s in itertools.pairwise(u):
        d = (y - x0_of(y, 1.0, t)) / t
        new = y + (s - t) * d
        if s != 0 and t <= 80:
            new = y + (s - t) * (d + (new - x0_of(new, 1.0, s)) / s) / 2
        y = new
    return y * at[-1][0]


def euler(x: np.ndarray, at: list[tuple[float, float]], x0_of: X0) -> np.ndarray:
    """Euler on dy/du = (y - x_0) / u, y = x / alpha, u = sigma / alpha."""
    y = x / at[0][0]
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(at):
        t, s = sigma_t / alpha_t, sigma_s / alpha_s
        y = y + (s - t) * (y - x0_of(y, 1.0, t)) / t
    return y * at[-1][0]


def dpm_solver_pp_2m(x: np.ndarray, at: list[tuple[float, float]], x0_of: X0) -> np.ndarray:
    """Lu et al. 2022b, algorithm 2."""
    last_l, last_x0 = None, None
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(at):
        x0 = x0_of(x, alpha_t, sigma_t)
        if sigma_s == 0:
            return x0
        l_t, l_s = np.log(alpha_t / sigma_t), np.log(alpha_s / sigma_s)
        h = l_s - l_t
        d = x0
        if last_l is not None:
            r = (l_t - last_l) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last_x0
        x = sigma_s / sigma_t * x - alpha_s * (np.exp(-h) - 1) * d
        last_l, last_x0 = l_t, x0
    return x


def exponential_integral(nodes: list[float], values: list[np.ndarray], start: float, end: float) -> np.ndarray:
    """int e^(l - end) P(l) dl from start to end, P the polynomial through (nodes, values), by Gauss-Legendre."""
    roots, weights = np.polynomial.legendre.leggauss(24)
    points = start + (end - start) * (roots + 1) / 2
    total = 0.0
    for k, value in enumerate(values):
        basis = np.ones_like(points)
        for j, node in enumerate(nodes):
            if j != k:
                basis = basis * (points - node) / (nodes[k] - node)
        total = total + (weights * np.exp(points - end) * basis).sum() * (end - start) / 2 * value
    return total


def multistep(x: np.ndarray, at: list[tuple[float, float]], x0_of: X0, order: int, corrected: bool) -> np.ndarray:
    """The exact integral of the polynomial through the last `order` evaluations, which order 3 solvers are.

    With two nodes DPM-Solver++ and UniPC-2 take the weight 1/2 of their papers (any 1/2 + O(h) has the order). With
    `corrected`, the evaluation at s joins the nodes and x_s is computed again (UniC); it is not evaluated again.
    """

    def update(base: np.ndarray, nodes: list[tuple[float, np.ndarray]], t: int, s: int) -> np.ndarray:
        (_, sigma_t), (alpha_s, sigma_s) = at[t], at[s]
        h = l[s] - l[t]
        if len(nodes) == 2:
            (l_a, a), (l_b, b) = nodes
            integral = (1 - np.exp(-h)) * (a + 0.5 * h / (l_b - l_a) * (b - a))
        else:
            integral = exponential_integral([n for n, _ in nodes], [v for _, v in nodes], l[t], l[s])
        return sigma_s / sigma_t * base + alpha_s * integral

    l = [np.log(a / s) if s else np.inf for a, s in at]  # noqa: E741
    past: list[tuple[float, np.ndarray]] = []
    base = x
    for i in range(len(at) - 1):
        x0 = x0_of(x, *at[i])
        if at[i + 1][1] == 0:
            return x0
        if corrected and past:
            x = update(base, [*past, (l[i], x0)], i - 1, i)
        past = [(l[i], x0), *past][:order]
        base = x
        x = update(base, past, i, i + 1)
    return x
