"""The published methods of restoration beside NumPy, and their distance from the true posterior."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from linear import PICTURES, SHAPE, Normal, ar1, dense
from torch import Tensor

from undiffuse.editing import baselines
from undiffuse.editing.baselines import Spectrum
from undiffuse.editing.operators import parse
from undiffuse.errors import UsageError
from undiffuse.guidance import Covariance, Observation, gaussian_guidance, together
from undiffuse.process import EDM, VP, FlowMatching, GaussianProcess, cosine
from undiffuse.randomness import keyed_draws
from undiffuse.registry import RESTORERS
from undiffuse.sampling import State, ddim, make_grid, trajectory

STEPS = [name for name, entry in RESTORERS.items() if entry.steps]
PROCESSES = {"cosine": GaussianProcess(cosine(50)), "vp": GaussianProcess(VP()), "edm": GaussianProcess(EDM())}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def observe(
    spec: str, noise: float, count: int, data: Normal = PICTURES, shape: tuple[int, ...] = SHAPE
) -> Observation:
    map = parse(spec, shape).map
    x0 = torch.from_numpy(data.draw(count, 0)).view(-1, *shape)
    return Observation(map, map.forward(x0) + noise * normal(count, *map.observed), noise)


def rule(name: str, observation: Observation, **options: Any) -> Any:
    """A step rule with what it needs."""
    needs = {"spectrum": Spectrum.of(observation.map)} if RESTORERS[name].needs else {}
    return partial(getattr(baselines, name), observation=observation, **needs, **options)


class Fixed:
    """A draw of given noise: `fold(k)` has the k-th."""

    def __init__(self, *noise: Tensor):
        self.noise = noise

    def normal(self, like: Tensor) -> Tensor:
        return self.noise[0]

    def fold(self, number: int) -> "Fixed":
        return Fixed(self.noise[number])


class Fresh:
    """A draw of other noise whenever it is asked."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)

    def fold(self, number: int) -> "Fresh":
        return self


# The published steps.


def test_the_spectrum_is_that_of_the_matrix() -> None:
    """U diag(s) V^T is H, and `solve` the ridge regression of NumPy; without a ridge the pseudo-inverse."""
    map = parse("blur:2", SHAPE).map  # nearly singular
    matrix, spectrum, y = dense(map), Spectrum.of(map), normal(3, 72)
    np.testing.assert_allclose(spectrum.left * spectrum.values @ spectrum.right.T, matrix, atol=1e-13)
    expected = np.linalg.solve(matrix @ matrix.T + 0.3 * np.eye(72), y.numpy().T).T @ matrix
    np.testing.assert_allclose(spectrum.solve(y, 0.3), expected, atol=1e-12)
    map = parse("superres:2", SHAPE).map
    np.testing.assert_allclose(
        Spectrum.of(map).solve(y[:, :18], 0.0), y[:, :18].numpy() @ np.linalg.pinv(dense(map)).T, atol=1e-12
    )


@pytest.mark.parametrize("s", [0.3, 0.0])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_dps_and_pigdm_are_their_papers(process: GaussianProcess, s: float) -> None:
    """Written out in NumPy where the derivative of D is a matrix G: DPS adds 2 zeta G^T H^T e / |e| to DDPM's step,
    PiGDM alpha_s alpha_t q^2 times the gradient, G^T H^T (q^2 H H^T + r^2)^-1 e, to DDIM's."""
    t, r = 0.6, 0.3
    observation = observe("superres:2", r, 4)
    (alpha, sigma), (alpha_s, sigma_s) = (
        (level.alpha.item(), level.sigma.item()) for level in map(process.noise_level, (t, s))
    )
    x_t, z = normal(4, *SHAPE, seed=1), normal(4, *SHAPE, seed=2)
    c, h = PICTURES.covariance, dense(observation.map)
    g = alpha * np.linalg.solve(alpha**2 * c + sigma**2 * np.eye(72), c).T
    x, noise = x_t.flatten(1).numpy(), z.flatten(1).numpy()
    x0 = PICTURES.mean + (x - alpha * PICTURES.mean) @ g.T
    e = observation.y.flatten(1).numpy() - x0 @ h.T
    fraction = 1 - (alpha / alpha_s * sigma_s / sigma) ** 2
    std = sigma_s * math.sqrt(fraction)
    eps = (x - alpha * x0) / sigma
    after = alpha_s * x0 + math.sqrt(max(sigma_s**2 - std**2, 0)) * eps + std * noise

    state, denoise, draw = State(x_t, t), PICTURES.denoiser(process), Fixed(z)
    ours = rule("dps", observation, zeta=0.7)(state, s, denoise, process, draw).x.flatten(1)
    exact = after + 2 * 0.7 * (e / np.linalg.norm(e, axis=1, keepdims=True)) @ h @ g
    np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-9)

    ours = rule("pigdm", observation)(state, s, denoise, process, draw).x.flatten(1)
    q = sigma**2 / (sigma**2 + alpha**2)
    gradient = np.linalg.solve(q * h @ h.T + r**2 * np.eye(len(h)), e.T).T @ h @ g
    np.testing.assert_allclose(ours, after + alpha_s * alpha * q * gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_diffpir_is_its_paper(process: GaussianProcess) -> None:
    """x_0 minimises |y - H x|^2 / r^2 + lambda (alpha / sigma)^2 |x - D|^2: least squares of both, stacked."""
    t, s, r, weight, zeta = 0.6, 0.3, 0.2, 5.0, 0.4
    observation = observe("colour", r, 3)
    (alpha, sigma), (alpha_s, sigma_s) = (
        (level.alpha.item(), level.sigma.item()) for level in map(process.noise_level, (t, s))
    )
    x_t, z = normal(3, *SHAPE, seed=1), normal(3, *SHAPE, seed=2)
    denoise = PICTURES.denoiser(process)
    step = rule("diffpir", observation, weight=weight, zeta=zeta)
    ours = step(State(x_t, t), s, denoise, process, Fixed(z))
    pull = math.sqrt(weight) * alpha / sigma
    rows = np.concatenate([dense(observation.map) / r, pull * np.eye(72)])
    d = denoise(x_t, t).x0.flatten(1).numpy()
    for k in range(3):
        right = np.concatenate([observation.y[k].flatten().numpy() / r, pull * d[k]])
        x0 = np.linalg.lstsq(rows, right)[0]
        eps = (x_t[k].flatten().numpy() - alpha * x0) / sigma
        noise = math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * z[k].flatten().numpy()
        np.testing.assert_allclose(ours.x0[k].flatten(), x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours.x[k].flatten(), alpha_s * x0 + sigma_s * noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_daps_has_the_law_of_its_chain(process: GaussianProcess) -> None:
    """Langevin's chain of 30 steps from m, its mean and covariance carried from step to step in NumPy.

    Ours is an affine map of the noise, so its mean and covariance are computed too."""
    t, tau, count = 0.6, 0.2, 72
    observation = observe("superres:2", 0.3, 1)
    level = process.noise_level(t)
    u = min((level.sigma / level.alpha).item(), 80)
    x_t = normal(1, *SHAPE, seed=1).expand(count + 1, *SHAPE).contiguous()
    units = torch.cat([torch.zeros(1, count), torch.eye(count)]).double().unflatten(1, SHAPE)
    denoise = PICTURES.denoiser(process)
    step = rule("daps", observation, evaluations=1, iterations=30, rate=3e-3, tau=tau)
    ours = step(State(x_t, t), 0.3, denoise, process, Fixed(torch.zeros_like(x_t), units)).x0.flatten(1).numpy()

    h, y = dense(observation.map), observation.y.flatten().numpy()
    precision, length = np.eye(count) / u**2 + h.T @ h / tau**2, 3e-3 * (0.01 + 0.99 * t)
    start = denoise(x_t[:1], t).x0.flatten().numpy()  # the flow in one Euler step
    target = np.linalg.solve(precision, start / u**2 + h.T @ y / tau**2)
    mean, covariance, move = start, np.zeros((count, count)), np.eye(count) - length * precision
    for _ in range(30):
        mean = mean - length * precision @ (mean - target)
        covariance = move @ covariance @ move.T + 2 * length * np.eye(count)
    np.testing.assert_allclose(ours[0], mean, rtol=1e-9, atol=1e-9)
    moved = ours[1:] - ours[0]
    np.testing.assert_allclose(moved.T @ moved, covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ddrm_without_noise(process: GaussianProcess) -> None:
    """What H sees ends at y exactly; what it does not see and depends on nothing else is DDIM's, to the bit of eta."""
    shape = (1, 4, 6)
    data = Normal(np.zeros(24), np.diag(np.linspace(0.1, 1, 24)))
    mask = np.zeros((4, 6), bool)
    mask[1:] = True
    map = parse("inpaint", shape, mask).map
    observation = Observation(map, normal(3, *map.observed), 0.0)
    grid, start = make_grid("trailing", process.schedule, 10), process.prior_scale() * normal(3, *shape, seed=1)
    denoise, draws = data.denoiser(process), keyed_draws(0, range(3))
    for eta in (0.0, 0.85):
        *_, ours = trajectory(denoise, process, grid, rule("ddrm", observation, eta=eta), start, draws)
        *_, free = trajectory(denoise, process, grid, partial(ddim, eta=eta), start, draws)
        np.testing.assert_allclose(map.forward(ours.x), observation.y, atol=1e-12)
        if eta == 0:
            torch.testing.assert_close(ours.x[:, :, 1:], free.x[:, :, 1:], rtol=1e-10, atol=1e-10)


def test_ddrm_with_noise_is_its_paper() -> None:
    """Equation 7-8, coordinate by coordinate of the matrix's SVD in NumPy, at a noise where some are of each case."""
    process, t, s, r, eta, eta_b = PROCESSES["vp"], 0.5, 0.3, 0.4, 0.8, 0.9
    map = parse("blur:1.2", SHAPE).map
    observation = Observation(map, normal(2, *SHAPE), r)
    alpha_s, sigma_s = (value.item() for value in (process.noise_level(s).alpha, process.noise_level(s).sigma))
    x_t, z, denoise = normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2), PICTURES.denoiser(process)
    step = rule("ddrm", observation, eta=eta, eta_b=eta_b)
    ours = step(State(x_t, t), s, denoise, process, Fixed(z)).x.flatten(1)
    left, values, right = np.linalg.svd(dense(map))
    then, cases = sigma_s / alpha_s, set()
    for k in range(2):
        d, noise = (right @ part[k].flatten().numpy() for part in (denoise(x_t, t).x0, z))
        y = left.T @ observation.y[k].flatten().numpy() / values
        new = np.empty(72)
        for i, value in enumerate(values):
            cases.add(bool(then < r / value))
            if then < r / value:
                new[i] = d[i] + math.sqrt(1 - eta**2) * then * (y[i] - d[i]) / (r / value) + eta * then * noise[i]
            else:
                new[i] = (1 - eta_b) * d[i] + eta_b * y[i] + math.sqrt(then**2 - (r * eta_b / value) ** 2) * noise[i]
        np.testing.assert_allclose(ours[k], alpha_s * right.T @ new, rtol=1e-7, atol=1e-8)
    assert cases == {True, False}


# How far they are from the truth.


def distance(name: str, steps: int, **options: Any) -> float:
    """Between 4,000 samples and p(x_0 | y) of an AR(1) of 12: the root mean square error of the mean,
    plus the largest error in the covariance."""
    side, r = 12, 0.3
    data = Normal(np.zeros(side), ar1(side, 0.8))
    process, shape = GaussianProcess(FlowMatching()), (1, 1, side)
    observation = observe("blur:1", r, 1, data, shape)
    grid = make_grid("karras", process.schedule, steps)
    denoise = data.denoiser(process)
    if name == "gaussian":
        covariance = Covariance.of(torch.from_numpy(data.covariance))
        denoise, step = gaussian_guidance(denoise, process, observation, covariance), partial(ddim, eta=1.0)
    else:
        step = rule(name, observation, **options)
    exact = data.given(dense(observation.map), observation.y[0].flatten().numpy(), observation.variance.numpy())
    draw = Fresh()
    start = process.prior(torch.empty(4000, *shape, dtype=torch.float64)).sample(draw)
    *_, end = trajectory(denoise, process, grid, step, start, lambda k: draw)
    x = end.x.flatten(1).numpy()
    mean, covariance = x.mean(0), np.cov(x.T)
    bias = np.linalg.norm(mean - exact.mean) / math.sqrt(side)
    return bias + np.abs(covariance - exact.covariance).max()


def test_the_exact_method_is_nearer_to_the_posterior_than_any_of_them() -> None:
    """On an AR(1) seen through a blur, 40 steps: all but the exact one miss the mean or the covariance of p(x_0 | y).

    With 4,000 samples the exact one is within their error, 0.03."""
    found = {name: distance(name, 40) for name in ("gaussian", *STEPS)}
    exact = found.pop("gaussian")
    assert exact < 0.06
    assert min(found.values()) > 1.5 * exact, found


def test_noise_of_its_own_for_each_number_is_refused() -> None:
    both = together(*(Observation(map, torch.zeros(1, *map.observed), 0.1) for map in 2 * [parse("blur:1", SHAPE).map]))
    with pytest.raises(UsageError, match="one noise"):
        baselines.noise_of(both)
