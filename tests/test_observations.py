"""Guidance by linear observations: the posterior mean of normal data, its law at the end of the ODE, invariances."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from linear import PICTURES, SHAPE, Normal, affine, dense, posterior_means
from references import MODES, SCHEDULES, as64, mixture_denoiser
from torch import Tensor

from undiffuse.editing.operators import parse
from undiffuse.errors import UsageError
from undiffuse.guidance import Covariance, Observation, gaussian_guidance, moment_matching, together
from undiffuse.process import GaussianProcess, Prediction, cosine
from undiffuse.sampling import ddim, dpm_solver_pp, heun, trajectory

COVARIANCE = Covariance.of(torch.from_numpy(PICTURES.covariance))
MASK = np.zeros(SHAPE[1:], bool)
MASK[1:3, 2:5] = True
SPECS = ["superres:2", "blur:0.8", "colour", "inpaint", "dequantise:4"]
TIMES = [0.05, 0.5, 1.0, as64(0.05, 0.3, 0.7, 1.0)]
solved = partial(moment_matching, tolerance=1e-14, iterations=200)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def observe(spec: str, noise: float, count: int = 4, seed: int = 0) -> Observation:
    """y of `count` pictures drawn from the data."""
    map = parse(spec, SHAPE, MASK if spec == "inpaint" else None).map
    x0 = torch.from_numpy(PICTURES.draw(count, seed)).view(-1, *SHAPE)
    return Observation(map, map.forward(x0) + noise * normal(count, *map.observed, seed=seed), noise)


def both() -> Observation:
    return together(observe("superres:2", 0.05), observe("colour", 0.3))


def assert_exact(ours: Prediction, x_t: Tensor, t: Any, process: GaussianProcess, observation: Observation) -> None:
    level = process.noise_level(torch.as_tensor(t, dtype=torch.float64).expand(len(x_t)))
    for k, (alpha, sigma) in enumerate(zip(level.alpha.tolist(), level.sigma.tolist(), strict=True)):
        here = slice(k, k + 1)
        exact = posterior_means(PICTURES, x_t[here], alpha, sigma, observation.rows(here))
        np.testing.assert_allclose(ours.x0[here].flatten(1).numpy(), exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        level.alpha.view(-1, 1, 1, 1) * ours.x0 + level.sigma.view(-1, 1, 1, 1) * ours.eps, x_t, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("t", TIMES, ids=["early", "middle", "noise", "each"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_guided_denoiser_is_the_posterior_mean(name: str, t: Any) -> None:
    """E[x_0 | x_t, y], with x_t and y conditioned on at once; every map alone, and two with noise of their own."""
    process = GaussianProcess(SCHEDULES[name])
    x_t = process.prior_scale() * normal(4, *SHAPE, seed=1)
    for observation in (*(observe(spec, 0.1) for spec in SPECS), both()):
        guided = gaussian_guidance(PICTURES.denoiser(process), process, observation, COVARIANCE)
        assert_exact(guided(x_t, t), x_t, t, process, observation)


@pytest.mark.parametrize("t", TIMES, ids=["early", "middle", "noise", "each"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_moment_matching_is_exact_on_normal_data(name: str, t: Any) -> None:
    """Its S, from derivatives, is the true one; without signal the derivative says nothing and D stays."""
    process = GaussianProcess(SCHEDULES[name])
    x_t = process.prior_scale() * normal(4, *SHAPE, seed=1)
    denoise = PICTURES.denoiser(process)
    for observation in (observe("superres:2", 0.2), observe("colour", 0.2), both()):
        left: list[Tensor] = []
        ours = solved(denoise, process, observation, tell=left.append)(x_t, t)
        seen = slice(0, int((process.noise_level(t).alpha.expand(4) > 0).sum()))  # the noisiest comes last
        torch.testing.assert_close(ours.x0[seen.stop :], denoise(x_t, t).x0[seen.stop :])
        at = t if isinstance(t, float) else t[seen]
        assert_exact(ours.rows(seen), x_t[seen], at, process, observation.rows(seen))
        assert left[0].shape == (4,) and left[0].max() < 1e-10


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_moment_matching_on_a_mixture_is_its_definition(t: float) -> None:
    """D + S H^T (H S H^T + R)^-1 (y - H D), S the covariance of x_0 given x_t by the law of total variance: by Bayes'
    rule in NumPy, without a derivative."""
    process = GaussianProcess(cosine(50))
    map = parse("superres:2", (1, 4, 4)).map
    level = process.noise_level(t)
    alpha, sigma = level.alpha.item(), level.sigma.item()
    x_t, y, noise = normal(3, 1, 4, 4, seed=2), normal(3, 1, 2, 2, seed=3), 0.1
    ours = solved(mixture_denoiser(process), process, Observation(map, y, noise))(x_t, t).x0

    x, h = x_t.flatten(1).numpy(), dense(map)
    means, weights, std = MODES["means"].numpy(), MODES["weights"].numpy(), MODES["std"]
    total = alpha**2 * std**2 + sigma**2
    odds = weights * np.exp(-((x[..., None] - alpha * means) ** 2) / (2 * total))
    odds /= odds.sum(-1, keepdims=True)
    within = means + alpha * std**2 / total * (x[..., None] - alpha * means)
    mean = (odds * within).sum(-1)
    variance = std**2 * sigma**2 / total + (odds * within**2).sum(-1) - mean**2
    for k in range(3):
        s = np.diag(variance[k])
        gain = s @ h.T @ np.linalg.inv(h @ s @ h.T + noise**2 * np.eye(len(h)))
        exact = mean[k] + gain @ (y[k].flatten().numpy() - h @ mean[k])
        np.testing.assert_allclose(ours[k].flatten().numpy(), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_singular_covariance(noise: float) -> None:
    """x_0 = m + L z with few z: the same mean of x_0 as from z given x_t and y, which has nothing singular."""
    process, root = GaussianProcess(cosine(50)), np.random.default_rng(3).normal(size=(72, 9)) / 5
    data = Normal(PICTURES.mean, root @ root.T)
    map = parse("superres:2", SHAPE).map
    x0 = torch.from_numpy(data.draw(3, 0)).view(-1, *SHAPE)
    observation = Observation(map, map.forward(x0) + noise * normal(3, *map.observed), noise)
    x_t, t = normal(3, *SHAPE, seed=1), 0.4
    level = process.noise_level(t)
    alpha, sigma = level.alpha.item(), level.sigma.item()
    covariance = Covariance.of(torch.from_numpy(data.covariance))
    ours = gaussian_guidance(data.denoiser(process), process, observation, covariance)(x_t, t)

    h = dense(map)
    for k in range(3):
        seen = np.concatenate([x_t[k].flatten().numpy() - alpha * data.mean])
        z = Normal(np.zeros(9), np.eye(9)).given(alpha * root, seen, np.full(72, sigma**2))
        if noise:
            y = observation.y[k].flatten().numpy()
            z_mean = z.given(h @ root, y - h @ data.mean, np.full(len(h), noise**2)).mean
        else:  # 18 exact equations of 9 unknowns
            z_mean = np.linalg.lstsq(h @ root, observation.y[k].flatten().numpy() - h @ data.mean)[0]
        exact = data.mean + root @ z_mean
        np.testing.assert_allclose(ours.x0[k].flatten().numpy(), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("step", "order"), [(ddim, 1), (heun, 2), (dpm_solver_pp, 2)])
@pytest.mark.parametrize("spec", ["superres:2", "colour", "both"])
def test_the_end_of_the_ode_is_the_conditional(spec: str, step: Any, order: int) -> None:
    """Mean and covariance of x_0 given y, from x_t given y, with an error that falls as the solver's order says.

    The sampler is an affine map here, so both are computed, not sampled. Without guidance by y, far from it.
    """
    process = GaussianProcess(cosine(1000))
    observation = (both() if spec == "both" else observe(spec, 0.2)).rows(slice(0, 1))
    variance = observation.variance.numpy()
    exact = PICTURES.given(dense(observation.map), observation.y[0].flatten().numpy(), variance)
    guided = gaussian_guidance(PICTURES.denoiser(process), process, observation, COVARIANCE)

    def error(steps: int) -> float:
        ratios = torch.linspace(math.log(30), math.log(1e-4), steps, dtype=torch.float64).exp()
        grid = torch.cat([process.schedule.time(-2 * ratios.log()), as64(0.0)])
        level = process.noise_level(grid[0])

        def run(start: Tensor) -> Tensor:
            *_, end = trajectory(guided, process, grid, step, start, lambda k: None)
            return end.x

        found = affine(run, exact.noisy(level.alpha.item(), level.sigma.item()), SHAPE)
        return np.abs(found.mean - exact.mean).max() + np.abs(found.covariance - exact.covariance).max()

    errors = [error(steps) for steps in (40, 80, 160)]
    assert errors[-1] < (0.02 if order == 1 else 2e-3)
    for coarse, fine in itertools.pairwise(errors):
        assert 2 ** (order - 0.3) < coarse / fine < 2 ** (order + 0.5)
    assert np.abs(PICTURES.covariance - exact.covariance).max() > 0.1


@pytest.mark.parametrize("guidance", [partial(gaussian_guidance, covariance=COVARIANCE), moment_matching])
def test_a_batch_is_its_samples(guidance: Any) -> None:
    """8 at once are 8 alone, whatever the others are, and one y of all is 8 of it."""
    process = GaussianProcess(cosine(50))
    observation = observe("blur:0.8", 0.1, count=8)
    x_t = torch.logspace(-1, 1, 8, dtype=torch.float64).view(-1, 1, 1, 1) * normal(8, *SHAPE)
    denoise = PICTURES.denoiser(process)
    crowd = guidance(denoise, process, observation)(x_t, 0.5).x0
    one = Observation(observation.map, observation.y[:1], 0.1)
    torch.testing.assert_close(guidance(denoise, process, one)(x_t, 0.5).x0[0], crowd[0], rtol=1e-12, atol=1e-12)
    for k in range(8):
        here = slice(k, k + 1)
        alone = guidance(denoise, process, observation.rows(here))(x_t[here], 0.5).x0
        torch.testing.assert_close(alone, crowd[here], rtol=1e-12, atol=1e-12)


def test_a_derivative_that_is_not_positive_is_told_and_does_no_harm() -> None:
    """D = -x_t has the derivative -I: conjugate gradients end at once, x_0 stays and the residual is y - H D."""
    process, left = GaussianProcess(cosine(50)), []

    def denoise(x_t: Tensor, t: float) -> Prediction:
        return Prediction(-x_t, x_t).with_x0(-x_t, x_t, process.noise_level(t))

    x_t = normal(4, *SHAPE)
    ours = moment_matching(denoise, process, observe("superres:2", 0.01), tell=left.append)(x_t, 0.5)
    torch.testing.assert_close(ours.x0, -x_t)
    assert left[0].tolist() == [1.0] * 4


def test_the_residual_that_is_told_is_that_of_the_step_taken() -> None:
    """With a derivative that is not symmetric conjugate gradients need not converge: the best of them is taken, and its
    residual is told. H = I, so that w = S^-1 (S w) is known from the step."""
    process, map, t = GaussianProcess(cosine(50)), parse("dequantise", (1, 3, 4)).map, 0.5
    skew = normal(12, 12, seed=4)
    slope = torch.eye(12, dtype=torch.float64) + 0.5 * (skew - skew.T)
    level = process.noise_level(t)
    s = (level.sigma**2 / level.alpha * slope.T).numpy()

    def denoise(x_t: Tensor, t: float) -> Prediction:
        x0 = (x_t.flatten(1) @ slope.T).view_as(x_t)
        return Prediction(x0, x0).with_x0(x0, x_t, process.noise_level(t))

    x_t, y, told = normal(4, 1, 3, 4), normal(4, 1, 3, 4, seed=1), []
    for iterations in (1, 2, 3, 5, 8, 12):
        guided = moment_matching(denoise, process, Observation(map, y, 0.1), 1e-12, iterations, told.append)
        d = denoise(x_t, t).x0
        step, misfit = ((part - d).flatten(1).numpy() for part in (guided(x_t, t).x0, y))
        left = misfit - step - 0.01 * np.linalg.solve(s, step.T).T
        exact = np.linalg.norm(left, axis=1) / np.linalg.norm(misfit, axis=1)
        np.testing.assert_allclose(told[-1], exact, rtol=1e-9, atol=1e-12)
    assert (torch.stack(told).diff(dim=0) <= 1e-12).all() and told[-1].min() > 0.01


def test_a_denoiser_without_derivatives_is_refused() -> None:
    process = GaussianProcess(cosine(50))
    with pytest.raises(UsageError, match="--engine torch"):
        moment_matching(lambda x, t: Prediction(x.detach(), x), process, observe("colour", 0.1))(normal(4, *SHAPE), 0.5)


def test_observations_that_cannot_be() -> None:
    map = parse("colour", SHAPE).map
    with pytest.raises(ValueError, match="y is"):
        Observation(map, normal(1, 3, 4, 6), 0.1)
    for noise in (-1.0, math.nan):
        with pytest.raises(ValueError, match="standard deviation"):
            Observation(map, normal(1, 1, 4, 6), noise)
