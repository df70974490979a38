"""Published samplers for y = H x_0 + n, as step rules: for comparison with the guidances of `undiffuse.guidance`.

Each is its paper's algorithm for any process of the Gaussian family, n of one standard deviation r, with the paper's
constants as defaults and every norm of one sample alone. None of them samples p(x_0 | y), not even for normal x_0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.guidance import LinearMap, Observation, differentiated
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, float64_device
from undiffuse.randomness import KeyedDraw
from undiffuse.sampling import State, ancestral, ddim, trajectory
from undiffuse.sampling.steps import PURE_NOISE


@dataclass(frozen=True)
class Spectrum:
    """H = U diag(s) V^T with the singular values that are not 0.

    Attributes:
        left: U, float64 (M, K).
        values: s, float64 (K,).
        right: V, float64 (D, K).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, map: LinearMap, device: torch.device | str = "cpu") -> "Spectrum":
        """That of a linear map, from its matrix (M, D), on a device that has float64."""
        units = torch.eye(math.prod(map.shape), dtype=torch.float64, device=device)
        matrix = map.forward(units.unflatten(1, map.shape)).flatten(1).T
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        there = values > torch.finfo(values.dtype).eps * max(matrix.shape) * values[0]
        return cls(left[:, there], values[there], right[there].T)

    def replaced(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, D) with the coordinates `seen` (B, K) where H sees it."""
        return x + (seen - x @ self.right) @ self.right.T

    def solve(self, misfit: Tensor, ridge: Tensor | float) -> Tensor:
        """H^T (H H^T + ridge I)^-1 misfit: float64 (B, M) -> (B, D)."""
        return (misfit @ self.left * (self.values / (self.values**2 + ridge))) @ self.right.T


def noise_of(observation: Observation) -> float:
    """r. Raises UsageError where it is not one number."""
    if isinstance(observation.noise, Tensor) and observation.noise.ndim:
        raise UsageError("this method takes one noise for all of an observation: take gaussian or mmps")
    return float(observation.noise)


def spread_of(process: GaussianProcess, t: float) -> Tensor:
    """sigma / alpha, at most what counts as pure noise: the papers' schedules end about there, others at infinity."""
    level = process.noise_level(t)
    return (level.sigma / level.alpha).clamp(max=PURE_NOISE)


def known(prediction: Prediction) -> Denoise:
    """The denoiser that says what was evaluated already."""

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        return prediction

    return denoise


def dps(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: KeyedDraw,
    *,
    observation: Observation,
    zeta: float = 1.0,
) -> State:
    """DPS (Chung et al. 2023, algorithm 1): DDPM's step, less zeta / |y - H D| times the gradient of |y - H D|^2.

    The correction does not depend on r and is about as long in every step: zeta = 1 is meant for 1,000 steps.
    """
    prediction, pull = differentiated(denoise, state.x, state.t)
    after = ancestral(state, s, known(prediction), process, draw)
    misfit = observation.misfit(prediction.x0)
    unit = misfit / misfit.norm(dim=1, keepdim=True).clamp(min=torch.finfo(misfit.dtype).tiny)
    toward = pull(observation.map.adjoint(unit.unflatten(1, observation.map.observed)).to(state.x))
    return State(after.x + 2 * zeta * toward, s, prediction.x0)


def pigdm(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: KeyedDraw,
    *,
    observation: Observation,
    spectrum: Spectrum,
    eta: float = 1.0,
) -> State:
    """PiGDM (Song et al. 2023, eq. 7-8, algorithm 1): p(x_0 | x_t) = N(D, q^2 I), q^2 = sigma^2 / (sigma^2 + alpha^2).

    The step is DDIM's from the unguided prediction; then alpha_s alpha_t q^2 times the gradient of ln p(y | x_t) is
    added, where the mean of x_0 given y moves by sigma_t^2 / alpha_t times it, and eps as well.
    """
    prediction, pull = differentiated(denoise, state.x, state.t)
    after = ddim(state, s, known(prediction), process, draw, eta=eta)
    at_t, at_s = process.noise_level(state.t), process.noise_level(s)
    square = at_t.sigma**2 / (at_t.sigma**2 + at_t.alpha**2)
    change = spectrum.solve(observation.misfit(prediction.x0), noise_of(observation) ** 2 / square)
    return State(after.x + at_s.alpha * at_t.alpha * pull(change.view_as(state.x).to(state.x)), s, prediction.x0)


def ddrm(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: KeyedDraw,
    *,
    observation: Observation,
    spectrum: Spectrum,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> State:
    """DDRM (Kawar et al. 2022, eq. 7-8) in x / alpha, with u = sigma / alpha at s and the coordinates of H's spectrum.

    What H does not see takes a DDIM step; what it sees with less noise than u is at y; the rest moves towards y. It
    starts from the prior, the paper's x_T but for alpha_T y.
    """
    prediction = denoise(state.x, state.t)
    level, r = process.noise_level(s), noise_of(observation)
    u = level.sigma / level.alpha
    x0, eps, z = (
        float64_device(part.flatten(1)).double() for part in (prediction.x0, prediction.eps, draw.normal(state.x))
    )
    unseen = x0 + u * (math.sqrt(1 - eta**2) * eps + eta * z)
    mean, noise = x0 @ spectrum.right, z @ spectrum.right
    y = observation.y.double().flatten(1) @ spectrum.left / spectrum.values
    own = r / spectrum.values  # the noise of y, in these coordinates
    noisier = mean + u * (math.sqrt(1 - eta**2) * (y - mean) / own + eta * noise)
    clearer = (1 - eta_b) * mean + eta_b * y + (u**2 - (eta_b * own) ** 2).clamp(min=0).sqrt() * noise
    seen = torch.where(u < own, noisier, clearer)
    return State((level.alpha * spectrum.replaced(unseen, seen)).view_as(state.x).to(state.x), s, prediction.x0)


def diffpir(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: KeyedDraw,
    *,
    observation: Observation,
    spectrum: Spectrum,
    weight: float = 8.0,
    zeta: float = 0.3,
) -> State:
    """DiffPIR (Zhu et al. 2023, algorithm 1): x_0 = argmin_x |y - H x|^2 / r^2 + weight (alpha / sigma)^2 |x - D|^2.

    `weight` is their lambda. Then x_s = alpha_s x_0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) noise).
    """
    prediction = denoise(state.x, state.t)
    at_t, at_s = process.noise_level(state.t), process.noise_level(s)
    ridge = weight * (noise_of(observation) / spread_of(process, state.t)) ** 2
    change = spectrum.solve(observation.misfit(prediction.x0), ridge).view_as(state.x).to(state.x)
    nearest = prediction.with_x0(prediction.x0 + change, state.x, at_t)
    noise = math.sqrt(1 - zeta) * nearest.eps + math.sqrt(zeta) * draw.normal(state.x)
    return State(at_s.alpha * nearest.x0 + at_s.sigma * noise, s, nearest.x0)


def daps(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: KeyedDraw,
    *,
    observation: Observation,
    spectrum: Spectrum,
    evaluations: int = 5,
    iterations: int = 100,
    rate: float = 1e-4,
    least: float = 0.01,
    tau: float = 0.01,
) -> State:
    """DAPS (Zhang et al. 2024, algorithm 1): a draw of x_0 given x_t and y, then x_s = alpha_s x_0 + sigma_s noise.

    x_0 given x_t is N(m, u^2 I), u = sigma / alpha, with m the end of the probability flow from x_t in a few Euler
    steps. From there Langevin's chain of so many `iterations` of the length e = rate (least + (1 - least) t) has

        x <- x - e P (x - x*) + sqrt(2 e) noise,   P = I / u^2 + H^T H / tau^2,

    for the law of x_0 given y as well, around its mean x*, with tau in place of r. It is not run: where H is linear,
    its end is normal and known from H's spectrum. Where it would diverge, e is shorter. It is too short to forget m in
    what y says nothing of.
    """
    at_s, u = process.noise_level(s), spread_of(process, state.t)
    between = u * torch.linspace(1, 0, evaluations + 1, dtype=torch.float64)[1:-1] ** 3
    grid = torch.tensor([state.t, *process.schedule.time(-2 * between.log()).tolist(), 0.0], dtype=torch.float64)
    *_, end = trajectory(denoise, process, grid, ddim, state.x, lambda k: draw)
    m, z = (float64_device(x.flatten(1)).double() for x in (end.x, draw.fold(1).normal(end.x)))
    precision = 1 / u**2 + (spectrum.values / tau) ** 2
    length = (1 / precision.max()).clamp(max=rate * (least + (1 - least) * state.t))

    def chain(start: Tensor, target: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        kept = 1 - length * precision
        spread = (2 * length * (1 - kept ** (2 * iterations)) / (1 - kept**2)).sqrt()
        return target + kept**iterations * (start - target) + spread * noise

    at = m @ spectrum.right
    y = observation.y.double().flatten(1) @ spectrum.left
    seen = chain(at, (at / u**2 + spectrum.values * y / tau**2) / precision, precision, z @ spectrum.right)
    unseen = chain(m, m, 1 / u**2, z)
    x0 = spectrum.replaced(unseen, seen).view_as(state.x).to(state.x)
    if s == 0:
        return State(x0, s, x0)
    return State(at_s.alpha * x0 + at_s.sigma * draw.normal(state.x), s, x0)
