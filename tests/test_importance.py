"""Times by importance: unbiased, the best but for a known share, and the noise schedule that is the same thing."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from references import as64, gaussian_denoiser
from torch import Tensor

from undiffuse.denoiser import Denoiser, Prediction
from undiffuse.objectives import Importance, continuous_bound
from undiffuse.objectives.importance import RATE, UNIFORM
from undiffuse.process import GaussianProcess, LogSNR
from undiffuse.randomness import Given

BINS = 128
MIDDLES = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS


def loss(u: Tensor) -> Tensor:
    """A loss over u that varies by a factor of 100, more where u is small."""
    return 0.05 + 5 * torch.exp(-12 * u) + 0.3 * torch.sin(9 * u) ** 2


def told(function: Callable[[Tensor], Tensor] = loss, bins: int = BINS, spread: float = 0.0) -> Importance:
    """Told of function(u) (1 +- spread) in every interval, twice."""
    importance = Importance(bins)
    u = ((torch.arange(bins, dtype=torch.float64) + 0.5) / bins).repeat(2)
    sign = torch.cat([torch.ones(bins, dtype=torch.float64), -torch.ones(bins, dtype=torch.float64)])
    importance.update(u, function(u) * (1 + spread * sign))
    return importance


def through(importance: Importance, nodes: int = 8) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre u and weights in [0, 1), whose panels are where the density is constant."""
    density = importance.density.numpy()
    edges = np.concatenate([[0.0], np.cumsum(density)]) / density.sum()
    root, weight = np.polynomial.legendre.leggauss(nodes)
    widths = np.diff(edges)[:, None]
    u = edges[:-1, None] + widths * (root + 1) / 2
    return torch.from_numpy(u.flatten()), torch.from_numpy((widths * weight / 2).flatten())


def test_the_density_is_the_root_of_the_second_moment() -> None:
    """Noise counts with the mean: p is proportional to sqrt(E[l^2]), mixed with an even share, of mean 1."""
    # a noise that is larger where the mean is smaller, which alone would give another density
    noisy = Importance(BINS)
    for sign in (1, -1):
        noisy.update(MIDDLES, loss(MIDDLES) + sign * MIDDLES)
        noisy.update(MIDDLES, loss(MIDDLES) - sign * MIDDLES)
    for found, moment in ((told(), loss(MIDDLES) ** 2), (noisy, loss(MIDDLES) ** 2 + MIDDLES**2)):
        root = moment.sqrt()
        expected = UNIFORM + (1 - UNIFORM) * root / root.mean()
        torch.testing.assert_close(found.density, expected, rtol=1e-13, atol=0)
        assert found.density.mean().item() == pytest.approx(1, rel=1e-14)


def test_it_is_found_from_the_losses_it_asks_for() -> None:
    """Trained as a run is, on noisy losses at times of its own density, it comes near p and stays there."""
    importance, draw = Importance(32), torch.Generator().manual_seed(0)
    total, rounds = torch.zeros(32, dtype=torch.float64), 0
    for step in range(600):
        shift = torch.rand((), generator=draw, dtype=torch.float64)
        u, _ = importance.warp(torch.frac((shift + torch.arange(128, dtype=torch.float64)) / 128))
        importance.update(u, loss(u) * (1 + 0.5 * torch.randn(128, generator=draw, dtype=torch.float64)))
        if step >= 100:
            total, rounds = total + importance.density, rounds + 1
    fine = loss((torch.arange(32 * 64, dtype=torch.float64) + 0.5) / 32 / 64).view(32, 64)
    root = fine.square().mean(1).sqrt()
    # the root of a moment that remembers some ten losses lies below that of its mean, by an eighth of its variance
    torch.testing.assert_close(total / rounds, UNIFORM + (1 - UNIFORM) * root / root.mean(), rtol=0.05, atol=0)


def test_a_moment_is_a_mean_that_becomes_a_memory() -> None:
    """Up to 1 / RATE losses count alike, later ones RATE; other intervals are left alone."""
    losses, importance = as64(3.0, -1.0, 2.0, 0.5, 7.0, 1.0, 1.5, 2.5, 0.0, 4.0, 6.0, 5.0, 2.0), Importance(4)
    expected = 0.0
    for k, value in enumerate(losses.tolist()):
        importance.update(as64(0.6), as64(value))
        expected += max(RATE, 1 / (k + 1)) * (value**2 - expected)
        assert importance.moments.tolist() == pytest.approx([0, 0, expected, 0], rel=1e-14)
    assert importance.seen.tolist() == [0, 0, len(losses), 0]
    # c losses at once weigh what c of them would, one after another
    importance.update(as64(0.5, 0.74, 0.0, 0.51), torch.tensor([1.0, 2.0, 9.0, 4.0], requires_grad=True))
    weight = (1 - RATE) ** 3
    assert importance.moments.tolist() == pytest.approx([81, 0, weight * expected + (1 - weight) * 7, 0], rel=1e-14)
    assert importance.seen.tolist() == [1, 0, len(losses) + 3, 0]
    importance.update(as64(1 - 2.0**-53), as64(2.0))
    assert importance.moments[3] == 4 and not importance.moments.requires_grad


def test_all_are_drawn_alike_until_all_are_seen() -> None:
    """The warp is the identity with weights of 1 until the last interval has a loss; so it is for losses of 0."""
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    importance = Importance(BINS)
    importance.update(MIDDLES[1:], loss(MIDDLES[1:]))
    silent = told(torch.zeros_like)
    for even in (Importance(BINS), importance, silent):
        warped, weights = even.warp(u)
        torch.testing.assert_close(warped, u, rtol=0, atol=1e-14)
        assert (weights == 1).all()
    starts = torch.arange(BINS, dtype=torch.float64) / BINS
    assert (importance.warp(starts)[0] == starts).all()
    importance.update(MIDDLES[:1], loss(MIDDLES[:1]))
    assert (importance.density != 1).all()


@pytest.mark.parametrize("bins", [1, 7, BINS])
def test_weighted_means_are_the_even_ones(bins: int) -> None:
    """The integral of f at warped u, weighted, is that of f at u: by Gauss and Legendre, to rounding."""
    importance = told(bins=bins)
    u, rule = through(importance)
    warped, weights = importance.warp(u)
    assert (weights * rule).sum().item() == pytest.approx(1, rel=1e-13)
    for power in (1, 2, 5):  # of u
        assert ((warped**power * weights) @ rule).item() == pytest.approx(1 / (power + 1), rel=1e-12)
    exact = 0.05 + 5 / 12 * (1 - math.exp(-12)) + 0.15 * (1 - math.sin(18) / 18)
    if bins == BINS:
        assert ((loss(warped) * weights) @ rule).item() == pytest.approx(exact, rel=1e-12)


def test_warped_places_have_the_density() -> None:
    """The warp rises, its share below each interval's end is that of p, and it does not leave [0, 1)."""
    importance = told()
    density = importance.density.numpy()
    edges = np.append(0, np.cumsum(density)) / density.sum()
    warped, weights = importance.warp(torch.from_numpy(edges[:-1] + 1e-9))
    np.testing.assert_allclose(warped.numpy(), np.arange(BINS) / BINS, atol=1e-8)
    np.testing.assert_allclose(weights.numpy() * density, 1, rtol=1e-12)
    u = torch.linspace(0, 1 - 2.0**-53, 10_001, dtype=torch.float64)
    warped, _ = importance.warp(u)
    assert (warped.diff() > 0).all() and warped[0] == 0 and warped[-1] < 1
    assert told(lambda u: 0.01 + u**8).warp(u[-1:])[0] < 1
    inside = torch.from_numpy(np.interp(u.numpy(), edges, np.arange(BINS + 1) / BINS))
    torch.testing.assert_close(warped, inside, rtol=0, atol=1e-11)


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_the_variance_is_near_the_least(spread: float) -> None:
    """E[(l / p)^2] is (the integral of sqrt(E[l^2]))^2 at best, here at most 1 / (1 - UNIFORM) of it; evenly, twice."""

    def constant(u: Tensor) -> Tensor:
        return loss((u * BINS).floor() / BINS + 0.5 / BINS)

    importance = told(constant, spread=spread)
    u, rule = through(importance)
    warped, weights = importance.warp(u)
    second = (((constant(warped) * weights) ** 2) @ rule).item() * (1 + spread**2)
    best = constant(MIDDLES).mean().item() ** 2 * (1 + spread**2)
    evenly = constant(MIDDLES).square().mean().item() * (1 + spread**2)
    assert best < second < best / (1 - UNIFORM)
    assert second < 0.5 * evenly
    density = importance.density
    exact = (constant(MIDDLES) ** 2 / density).mean().item() * (1 + spread**2)
    assert second == pytest.approx(exact, rel=1e-12)


class Known(Denoiser):
    """What it predicts is network(x_t, t): float64, at any time."""

    def __call__(self, x_t: Tensor, t: Any, condition: Any = None) -> Prediction:
        predict: Any = self.network
        return predict(x_t, t)


FIRST, LAST, STD = 8.0, -6.0, 0.5


def bound_terms(schedule: LogSNR, u: Tensor) -> tuple[Tensor, Tensor]:
    """The continuous bound's integrand of N(0, STD^2) under its optimal denoiser: E[l] at u, and sqrt(E[l^2])."""
    process = GaussianProcess(schedule)
    denoiser = Known(gaussian_denoiser(process, as64(0.0), as64(STD)), process)
    # the error is linear in x_0 and eps: its fourth power is exact by three points each
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    x0, noise = (STD * nodes).repeat(3)[:, None], nodes.repeat_interleave(3)[:, None]
    chance = (weights.repeat(3) * weights.repeat_interleave(3)) / weights.sum() ** 2
    count = len(u)
    term = continuous_bound(
        denoiser, x0.repeat(count, 1), None, u.repeat_interleave(9), Given(noise.repeat(count, 1)), values=None
    ).view(count, 9)
    return term @ chance, (term**2 @ chance).sqrt()


def test_a_learnt_schedule_is_the_importance_sampling() -> None:
    """Even times of the learnt schedule are those of density p of the old one; the ends stay, log-SNR falls."""
    old = LogSNR([FIRST, 6.0, -1.0, LAST])
    share = 1 / 64
    importance = told()
    learnt = importance.learnt_log_snrs(old.log_snrs, share, 33)
    assert learnt[[0, -1]].tolist() == [FIRST, LAST] and (learnt.diff() < 0).all()
    density = importance.density.numpy()
    below = density[:2].sum() / density.sum()  # the share of u that is no time, two intervals of it
    u, _ = importance.warp(torch.from_numpy(below + (1 - below) * np.linspace(0, 1, 33)[1:-1]))
    time = old.t_min + (1 - old.t_min) * (u - share) / (1 - share)
    torch.testing.assert_close(learnt[1:-1], old.log_snr(time), rtol=1e-10, atol=1e-10)
    assert len(importance.learnt_log_snrs(old.log_snrs, share)) == 65


def test_even_losses_keep_the_schedule() -> None:
    """Where all times matter alike the learnt schedule is the one there was, for any share of the first term."""
    old = as64(9.0, 4.0, 3.5, -2.0, -7.0)
    for share in (0.0, 1 / 64, 0.3):
        learnt = told(torch.ones_like).learnt_log_snrs(old, share, 9)
        np.testing.assert_allclose(
            learnt.numpy(), np.interp(np.arange(9) / 8, np.arange(5) / 4, old.numpy()), atol=1e-12
        )


def test_losses_are_even_on_the_learnt_schedule() -> None:
    """The bound's terms of Gaussian data: the same mean, and sqrt(E[l^2]) at even times as p has it.

    It is l / p of what it was, so constant but for the even share: where the root was r of its mean, it becomes
    r / (UNIFORM + (1 - UNIFORM) r); the second moment is then the least there is, to 1 / (1 - UNIFORM) and the knots.
    """
    old, bins, count = LogSNR([FIRST, LAST]), 1024, 1025
    u = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    share = 1 / 64
    importance = Importance(bins)
    importance.update(u, bound_terms(old, u)[1])
    new = LogSNR(importance.learnt_log_snrs(old.log_snrs, share, count).tolist())
    even = share + (1 - share) * u
    (mean_old, root_old), (mean, root) = bound_terms(old, even), bound_terms(new, even)
    assert mean.mean().item() == pytest.approx(mean_old.mean().item(), rel=1e-5)
    # where each even time of the new one lies on the old one, by log-SNR alone
    t = new.t_min + (1 - new.t_min) * u
    place = (old.time(new.log_snr(t)) - old.t_min) / (1 - old.t_min)
    was = bound_terms(old, share + (1 - share) * place)[1]
    r = was / root_old.mean()
    p = r / (UNIFORM * importance.moments.sqrt().mean() / root_old.mean() + (1 - UNIFORM) * r)
    torch.testing.assert_close(root / root.mean(), p / p.mean(), rtol=0.01, atol=0)
    least = root_old.mean().item() ** 2
    assert least * (1 - 1e-4) < root.square().mean().item() < least / (1 - UNIFORM)
    assert root_old.square().mean().item() > 1.5 * least
