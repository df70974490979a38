"""benchmarks/points.py knows its densities, measures an exact model as exact, and runs."""

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from references import oracle
from scipy.integrate import dblquad
from torch import Tensor

from undiffuse.denoiser import Denoiser, Prediction
from undiffuse.files import read_json
from undiffuse.process import GaussianProcess, LogSNR, Time

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import points

pytest.importorskip("torchdiffeq")

COUNT = 200_000


def drawn(name: str) -> tuple[points.Density, Tensor]:
    density = points.DENSITIES[name]()
    return density, density.sample(COUNT, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", points.DENSITIES)
def test_densities_integrate_to_one(name: str) -> None:
    """Over squares of side 1/64: exact for even squares, to rounding for smooth densities that end within the grid."""
    density = points.DENSITIES[name]()
    axis = (torch.arange(-6 * 64, 6 * 64, dtype=torch.float64) + 0.5) / 64
    high = axis if name != "banana" else (torch.arange(-3 * 64, 22 * 64, dtype=torch.float64) + 0.5) / 64
    total = density.log_prob(torch.cartesian_prod(axis, high)).exp().sum().item() / 64**2
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", points.DENSITIES)
def test_points_have_their_density(name: str) -> None:
    """Monte Carlo: the mean of -ln p is the entropy, and cells get the shares that the density says."""
    density, x = drawn(name)
    nats = -density.log_prob(x)
    assert (nats.mean() - density.entropy).abs() <= 4 * nats.std() / COUNT**0.5 + 1e-12
    edges = np.linspace(-3, 3, 13)
    counts, _, _ = np.histogram2d(*x.numpy().T, bins=(edges, edges))
    fine = (torch.arange(-3 * 64, 3 * 64, dtype=torch.float64) + 0.5) / 64
    mass = density.log_prob(torch.cartesian_prod(fine, fine)).exp().view(12, 32, 12, 32).sum((1, 3)).numpy() / 64**2
    assert (np.abs(counts / COUNT - mass) <= 5 * np.sqrt(mass / COUNT) + 1e-4).all()


def test_the_entropy_of_the_ring_by_another_quadrature() -> None:
    """In polar coordinates, a sixteenth of the circle, adaptively: within 1e-6."""
    radius, std = 1.4, 0.2

    def integrand(r: float, angle: float) -> float:
        modes = np.arange(8) * np.pi / 4
        squares = (r * np.cos(angle) - radius * np.cos(modes)) ** 2 + (r * np.sin(angle) - radius * np.sin(modes)) ** 2
        p = np.exp(-squares / (2 * std**2)).mean() / (2 * np.pi * std**2)
        return -p * np.log(p) * r

    value, _ = dblquad(integrand, 0, np.pi / 8, 0, radius + 9 * std, epsabs=1e-8, epsrel=1e-8)
    assert points.ring(radius, std).entropy == pytest.approx(16 * value, abs=1e-6)


def test_entropies_in_closed_form() -> None:
    """Modes far apart add ln 8; a banana without a bend is a Gaussian."""
    apart = math.log(8) + 1 + math.log(2 * math.pi * 0.1**2)
    assert points.ring(2.0, 0.1).entropy == pytest.approx(apart, abs=1e-9)
    straight = torch.distributions.MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.09])))
    assert points.banana(0.3, 0.0).entropy == pytest.approx(straight.entropy().item(), abs=1e-6)
    assert points.banana(0.3, 0.6).entropy == points.banana(0.3, 0.0).entropy


class Ring(Denoiser):
    """E[x_0 | x_t] of the ring, in closed form."""

    def __init__(self, radius: float = 1.4, std: float = 0.2):
        super().__init__(lambda *_: torch.empty(0), GaussianProcess(LogSNR(points.LOG_SNRS)))
        angles = torch.arange(8) * math.pi / 4
        means = radius * torch.stack([angles.cos(), angles.sin()], 1)

        def x0(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            variance = alpha**2 * std**2 + sigma**2
            away = x[:, None] - (alpha * torch.ones_like(x))[:, None] * means
            share = (-away.square().sum(2) / (2 * variance * torch.ones(len(x), 1))).softmax(1)
            return (share[..., None] * means).sum(1) + alpha * std**2 / variance * (share[..., None] * away).sum(1)

        object.__setattr__(self, "denoise", oracle(self.process, x0))

    def __call__(self, x_t: Tensor, t: Time, condition: Any = None) -> Prediction:
        return self.denoise(x_t, t)


@pytest.fixture(scope="module")
def exact() -> dict[str, dict[str, float]]:
    return points.measure(Ring(), points.ring(), groups=8)


def test_an_exact_model_is_exact(exact: dict[str, dict[str, float]]) -> None:
    """The ODE to its tolerances, point by point; the continuous bound within its error, which is small."""
    assert abs(exact["ODE"]["gap"]) < 1e-3 and exact["ODE"]["error"] < 1e-4
    assert abs(exact["continuous"]["gap"]) < 3 * exact["continuous"]["error"] < 0.06


def test_bounds_fall_to_the_truth(exact: dict[str, dict[str, float]]) -> None:
    """With more steps, and with the best variance; never below the truth."""
    for variance in points.VARIANCES:
        falling = [exact[f"{steps} steps, {variance}"] for steps in sorted(points.STEPS)]
        assert all(a["gap"] > b["gap"] for a, b in itertools.pairwise(falling))
        assert all(one["gap"] > -3 * one["error"] for one in falling)
    for steps in points.STEPS:
        assert exact[f"{steps} steps, optimal"]["gap"] < exact[f"{steps} steps, small"]["gap"]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes its numbers and the figure."""
    numbers, figure = tmp_path / "points.json", tmp_path / "points.png"
    arguments = ["--quick", "--only", "checkerboard", "--json", str(numbers), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["points.py", *arguments])
    monkeypatch.setattr(points, "DRAWS", 12)
    points.main()
    told = read_json(numbers)
    found = told["densities"]["checkerboard"]["found"]
    assert told["densities"]["checkerboard"]["entropy"] == math.log(8)
    assert len(found) == 2 + len(points.STEPS) * len(points.VARIANCES)
    assert all(one["gap"] > -2 * one["error"] and math.isfinite(one["value"]) for one in found.values())
    assert "nats" in told["conditions"]["unit"] and told["conditions"]["seed"] == points.SEED
    with Image.open(figure) as image:
        assert image.width > 1000
