"""Dequantisation: bins that tile, offsets, exact densities of q, and a bound that reaches a known optimum."""

import math

import numpy as np
import pytest
import torch
from references import MODES, mixture_denoiser
from scipy import stats
from torch import Tensor

from undiffuse.likelihood.dequantise import (
    STEP,
    LogisticDequantiser,
    bits_per_dim,
    dequantised,
    dequantiser_loss,
    offset_bits,
    uniform,
    uniform_draws,
)
from undiffuse.process import FlowMatching, GaussianProcess

DTYPES = [torch.float32, torch.float64]


def data(levels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Every level once, at the scale that models learn from: (L, 1)."""
    return (torch.arange(levels, dtype=dtype) / ((levels - 1) / 2) - 1)[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_dequantised_points_are_in_their_bins(levels: int, dtype: torch.dtype) -> None:
    """floor((y + 1) L / 2) is k, exactly, at both ends of every bin; the bins fill [-1, 1) without a gap."""
    x, k = data(levels, dtype), torch.arange(levels, dtype=torch.float64)[:, None]
    for u in (0.0, 0.5, 1 - STEP):
        y = dequantised(x, torch.full_like(x, u), levels)
        assert y.dtype == torch.float64
        assert (((y + 1) * levels / 2).floor() == k).all()
        assert (y == (k + u) * 2 / levels - 1).all()
        assert ((y - x).abs() <= 2 / levels).all()
    assert dequantised(x[:1], torch.zeros(1, 1), levels).item() == -1
    assert y[-1].item() == 1 - STEP * 2 / levels


def test_the_offset() -> None:
    """Exactly 7 bits for 8; a uniform density is log2(L) bits, to rounding."""
    assert offset_bits(256) == offset_bits() == 7.0
    for levels in (2, 16, 256, 1000):
        log_prob = -784 * math.log(2) * torch.ones(3, dtype=torch.float64)  # 1/2 on [-1, 1)
        bits = bits_per_dim(log_prob, 784, levels)
        torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=1e-15, atol=0)


def test_the_probabilities_of_the_levels_are_those_of_a_model() -> None:
    """The ODE's density, integrated over a bin, is the mass that the mixture has there, for all 256.

    Four points a bin by Gauss-Legendre: exact to 1e-9 for bins of a thirtieth of a mode's width.
    """
    pytest.importorskip("torchdiffeq")
    from undiffuse.likelihood.ode import log_likelihood
    from undiffuse.likelihood.solver import Solver

    process = GaussianProcess(FlowMatching())
    roots, weights = np.polynomial.legendre.leggauss(4)
    points, weights = torch.from_numpy((roots + 1) / 2), torch.from_numpy(weights / 2)
    y = torch.cat([dequantised(data(256), torch.full((256, 1), u), 256) for u in points.tolist()])
    found = log_likelihood(mixture_denoiser(process), process, y, solver=Solver("dopri8", 1e-7, 1e-7))
    probability = (2 ** -bits_per_dim(found.log_prob, 1)).view(4, 256).T @ weights
    level, edges = process.noise_level(process.schedule.t_min), np.linspace(-1, 1, 257)
    std = math.hypot(level.alpha * MODES["std"], level.sigma)
    mass = sum(
        w * np.diff(stats.norm.cdf(edges, level.alpha.item() * m, std))
        for w, m in zip(MODES["weights"].tolist(), MODES["means"].tolist(), strict=True)
    )
    np.testing.assert_allclose(probability.numpy(), mass, rtol=1e-6, atol=0)


def test_draws_are_a_function_of_their_keys() -> None:
    """Alone or in a crowd, different for other samples, draws and seeds; uniform multiples of 2^-24."""
    v = uniform_draws(3, range(20), (2, 500))
    assert v.shape == (20, 2, 500)
    assert v.dtype == torch.float32
    assert (uniform_draws(3, [17, 4], (2, 500)) == v[[17, 4]]).all()
    for other in (uniform_draws(4, range(20), (2, 500)), uniform_draws(3, range(20), (2, 500), draw=1)):
        assert (other != v).float().mean() > 0.999
    assert ((v / STEP) % 1 == 0).all()
    assert v.min() >= 0 and v.max() < 1
    assert stats.kstest(v.flatten().numpy(), "uniform").pvalue > 1e-3


def shaken(channels: int, seed: int) -> LogisticDequantiser:
    """A dequantiser with random weights, float64."""
    torch.manual_seed(seed)
    module = LogisticDequantiser(channels, width=8).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return module


@torch.no_grad()
def test_it_begins_uniform() -> None:
    """u = v and ln q = 0, to float32's rounding of logits; at v = 0 too, where a logit has none."""
    x, v = torch.rand(3, 2, 4, 4) * 2 - 1, torch.rand(3, 2, 4, 4)
    v[0, 0, 0, :2] = torch.tensor([0.0, 1 - STEP])
    u, log_q = LogisticDequantiser(2)(x, v)
    torch.testing.assert_close(u, v, rtol=0, atol=3e-7)
    torch.testing.assert_close(log_q, torch.zeros(3), rtol=0, atol=1e-4)
    assert (u > 0).all() and (u < 1).all()


@torch.no_grad()
def test_log_q_is_a_density() -> None:
    """q(u | x) integrates to one over u (trapezium rule, even in the logit of v), and where it lies depends on x."""
    module, medians = shaken(1, 0), []
    v = torch.sigmoid(torch.linspace(-16, 16, 4001, dtype=torch.float64)).view(-1, 1, 1, 1)
    for x in (-1.0, 0.0, 1.0):
        u, log_q = module(torch.full_like(v, x), v)
        assert torch.trapezoid(log_q.exp(), u.flatten()).item() == pytest.approx(1, abs=1e-4)
        medians.append(u[2000].item())
    assert max(medians) - min(medians) > 0.02


@torch.no_grad()
def test_log_q_of_an_image_is_the_sum_over_its_pixels() -> None:
    """Given x, pixels are independent: changing one v changes its u alone, and ln q by that pixel's share."""
    module, v = shaken(2, 1), torch.rand(2, 2, 4, 4, dtype=torch.float64)
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64).expand(2, -1, -1, -1)
    v[1] = v[0]
    v[1, 0, 1, 2] = 0.9 - 0.5 * v[0, 0, 1, 2]
    u, log_q = module(x, v)
    assert (u[0] != u[1]).sum() == 1
    h = 1e-6
    moved = v.clone()
    moved[:, 0, 1, 2] += h
    slope = (module(x, moved)[0] - u)[:, 0, 1, 2] / h  # q(u) du = dv
    torch.testing.assert_close(log_q[1] - log_q[0], (slope[0] / slope[1]).log(), rtol=1e-4, atol=1e-5)


def test_a_learned_q_reaches_the_optimum_that_uniform_noise_misses() -> None:
    """A model whose density within a bin is logistic, another one for each of two levels, which have probability 1/4.

    The bound then is 2 bits at q = p(u | k), and with uniform noise more by the divergence KL(uniform || p), here by
    quadrature. Trained for some seconds, q closes 95 % of the gap, and is never below the optimum.
    """
    levels, wanted = 4, {0: (1.5, 0.5), 2: (-1.0, 0.7)}

    def log_within(u: Tensor, mean: float, scale: float) -> Tensor:
        a = (torch.logit(u) - mean) / scale
        return torch.log(torch.sigmoid(a) * torch.sigmoid(-a) / (scale * u * (1 - u)))

    def log_prob(y: Tensor) -> Tensor:
        place = (y + 1) * levels / 2
        k = place.detach().floor()
        u = (place - k).clamp(1e-12, 1 - 1e-12)
        within = torch.where(k == 0, log_within(u, *wanted[0]), log_within(u, *wanted[2]))
        return (within - math.log(4) + math.log(levels / 2)).flatten(1).sum(1)

    nodes, weights = np.polynomial.legendre.leggauss(400)
    u, weights = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    gap = np.mean([-(weights * log_within(u, *wanted[k])).sum().item() / math.log(2) for k in (0, 2)])

    images = torch.stack([data(levels)[k].expand(4, 4) for k in (0, 2)])[:, None].repeat(8, 1, 1, 1)
    torch.manual_seed(0)
    q = LogisticDequantiser(1, width=8).double()
    optimiser = torch.optim.Adam(q.parameters(), lr=0.05)
    for step in range(100):
        v = uniform_draws(0, range(16), (1, 4, 4), step).double()
        loss = dequantiser_loss(q, log_prob, images, v, levels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        v = uniform_draws(1, range(16 * 40), (1, 4, 4)).double()
        many = images.repeat(40, 1, 1, 1)
        learned, plain = (dequantiser_loss(d, log_prob, many, v, levels).item() for d in (q, uniform))
    assert gap > 0.5
    assert plain == pytest.approx(2 + gap, rel=0.03)
    assert 2 - 0.01 * gap < learned < 2 + 0.05 * gap
    assert dequantiser_loss(uniform, lambda y: y.new_zeros(len(y)), images, images).item() == 7.0
