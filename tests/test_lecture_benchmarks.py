"""What the lecture's claims are measured with: targets and weights, modes, the terms of bounds, a projection."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # no package: its files import each other like this

import ablations
import bounds
import modes
import scribbles

from undiffuse.process import GaussianProcess, cosine, linear
from undiffuse.registry import TARGETS, WEIGHTINGS
from undiffuse.targets import Coefficients

PROCESS = GaussianProcess(linear(ablations.STEPS))
TIMES = torch.tensor([2, 10, 300, 999, 1000], dtype=torch.float64) / ablations.STEPS


def betas() -> Tensor:
    """Those of Ho et al. 2020, section 4."""
    return torch.linspace(1e-4, 0.02, ablations.STEPS, dtype=torch.float64)


def posterior_mean(x0: Tensor, x_t: Tensor) -> Tensor:
    """Of q(x_{t-1} | x_t, x_0), at TIMES: eq. 7 of Ho et al. 2020, from the betas."""
    t = (TIMES * ablations.STEPS).round().long() - 1
    left = (1 - betas()).cumprod(0)
    beta, now, before = betas()[t], left[t], left[t - 1]
    return (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - now)


def test_mu_is_the_mean_of_the_posterior_and_gives_x0_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(len(TIMES), dtype=torch.float64, generator=generator) for _ in range(2))
    level = PROCESS.noise_level(TIMES)
    x_t = level.alpha * x0 + level.sigma * eps
    made: Coefficients = ablations.mu(level, 0.5)
    mean = made[0] * x0 + made[1] * eps
    torch.testing.assert_close(mean, posterior_mean(x0, x_t), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(made[2] * x_t + made[3] * mean, x0, rtol=1e-6, atol=1e-6)


def test_weights_are_those_of_errors_in_mu_and_of_the_bound() -> None:
    """An error e of x_0 is one of d mu / d x_0 e in mu; the bound divides its square by twice the posterior's
    variance (Ho et al. 2020, eq. 8)."""
    log_snr = PROCESS.schedule.log_snr(TIMES)
    slope = posterior_mean(torch.ones(5).double(), torch.zeros(5).double())
    torch.testing.assert_close(ablations.of_mu(log_snr), slope**2, rtol=1e-6, atol=0)
    t = (TIMES * ablations.STEPS).round().long() - 1
    left = (1 - betas()).cumprod(0)
    variance = (1 - left[t - 1]) / (1 - left[t]) * betas()[t]
    torch.testing.assert_close(ablations.of_bound(log_snr), slope**2 / (2 * variance), rtol=1e-6, atol=0)


def test_constant_betas_leave_as_much_signal() -> None:
    """Those of the linear schedule: the product of 1 - beta."""
    assert len(set(ablations.constant())) == 1 and len(ablations.constant()) == ablations.STEPS
    assert math.prod(1 - beta for beta in ablations.constant()) == pytest.approx(float((1 - betas()).prod()), rel=1e-6)


def test_no_target_stays_behind() -> None:
    """They join the registry when the benchmark runs, and not when it is imported."""
    assert "mu" not in TARGETS and "of-mu" not in WEIGHTINGS


class Reader:
    """Sees the digit that every pixel of a picture names."""

    def extract(self, images: Tensor) -> Any:
        return SimpleNamespace(logits=torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10))


def test_modes_and_their_divergence() -> None:
    """All once: 1,000 and 0. Half of them: ln 2. One alone: ln 1000."""
    digits = np.stack([np.arange(1000) // 100, np.arange(1000) // 10 % 10, np.arange(1000) % 10], 1).astype(np.uint8)
    images = np.tile(digits[:, None, None], (1, 2, 2, 1))
    reader: Any = Reader()
    for chosen, count in ((images, 1000), (images[::2], 500), (images[[137] * 40], 1)):
        found = modes.reach(chosen, reader)
        assert found == {"modes": count, "kl": pytest.approx(math.log(1000 / count), abs=1e-12)}


def test_the_divergence_that_uniform_draws_have() -> None:
    """(modes - 1) / (2 count), which is where the likelihood-ratio statistic has its mean."""
    draws = np.random.default_rng(0).integers(10, size=(25_600, 3)).astype(np.uint8)
    reader: Any = Reader()
    found = modes.reach(draws[:, None, None], reader)
    assert found["kl"] == pytest.approx(modes.expected(25_600), rel=0.15)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.1])
def test_terms_of_a_bound_are_divergences_of_the_steps(eta: float) -> None:
    """And with eta = 1 those of DDPM, 1/2 (SNR(s) - SNR(t))."""
    times = torch.linspace(0.05, 1, 12, dtype=torch.float64)
    process = GaussianProcess(cosine(1000))
    assert bounds.check(process, times, eta) < 1e-9
    if eta == 1:
        snr = process.schedule.log_snr(times).exp()
        torch.testing.assert_close(bounds.ddim_weights(process, times, eta), 0.5 * (snr[:-1] - snr[1:]))


def test_learnt_levels_are_even_where_every_step_should_cost_as_much() -> None:
    """With err(t) = 1 / SNR(t) a step costs SNR(s) / SNR(t) - 1, which is convex in its length: the sum is least where
    all are as long."""
    levels = torch.linspace(6, -6, 1001, dtype=torch.float64)
    start = torch.cat([torch.linspace(6, 5, 6), torch.linspace(3, -6, 5)]).double()
    found = bounds.learnt(start, levels, (-levels).exp())
    even = torch.linspace(6, -6, 11, dtype=torch.float64)
    assert found == pytest.approx(even, abs=0.05)
    bits = bounds.bits_of_steps(even, levels, (-levels).exp())
    assert float(bits) == pytest.approx(10 * (math.exp(1.2) - 1) / 2 / math.log(2), rel=1e-3)


def test_the_schedule_of_2015() -> None:
    """beta_t = 1 / (T + 1 - t + 1): as much of the signal is lost in every step. Stretched between the ends."""
    kept = bounds.schedules(10, 5.0, -5.0)["1 / (T - t + 1)"]
    alpha_bar = torch.arange(10, 0, -1, dtype=torch.float64) / 11
    logits = alpha_bar.log() - torch.log1p(-alpha_bar)
    expected = 5 - 10 * (logits - logits[0]) / (logits[-1] - logits[0])
    torch.testing.assert_close(kept, expected, rtol=1e-9, atol=1e-9)


def test_a_projection_finds_the_picture_that_a_generator_can_make() -> None:
    """Of a generator that shows its latents, without a prior; the prior draws to where latents are likely."""
    side = 2 * scribbles.BLOCK

    def generator(z: Tensor, labels: Tensor) -> Tensor:
        blocks = z.view(-1, 1, 2, 2)
        return torch.nn.functional.interpolate(blocks, scale_factor=scribbles.BLOCK)

    gan: Any = SimpleNamespace(latent=4, generator=generator)
    wanted = torch.tensor([[[[0.5, -1.0], [0.2, 0.0]]], [[[2.0, 1.0], [-0.3, 0.4]]]])
    labels = torch.zeros(2, dtype=torch.int64)
    found = scribbles.optimised(gan, wanted, labels, 0.0)
    assert found.shape == (2, 1, side, side)
    assert scribbles.distances(found, wanted).max() < 1e-4
    held = scribbles.optimised(gan, wanted, labels, 1.0)  # (z - w)^2 + z^2 is least at w / 2
    torch.testing.assert_close(scribbles.block_means(as_bytes(held)), wanted / 2, rtol=0, atol=0.02)


def as_bytes(pictures: Tensor) -> Any:
    """uint8 (N, H, W, 1), as block means are taken of."""
    return (127.5 * (pictures.permute(0, 2, 3, 1) + 1)).round().clamp(0, 255).byte().numpy()
