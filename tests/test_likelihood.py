"""The bound's terms against closed forms: Gaussian and categorical data of known entropy, and the papers' in NumPy."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from references import SCHEDULES, as64, gaussian_denoiser, levels
from scipy import special
from torch import Tensor

from undiffuse.denoiser import Denoiser, Prediction
from undiffuse.discretised import SHARPEST, value_log_prob, value_logits
from undiffuse.likelihood import Formula, all_steps, estimate_bound, optimal_variance, squared_errors, stratified
from undiffuse.likelihood.bound import times_of
from undiffuse.objectives import continuous_bound, hybrid, variational_bound, weighted_error
from undiffuse.objectives.bound import RECONSTRUCTION, reconstruction_log_prob
from undiffuse.process import (
    EDM,
    VP,
    FlowMatching,
    GaussianProcess,
    LogSNR,
    Schedule,
    Table,
    cosine,
    linear,
    zero_terminal_snr,
)
from undiffuse.randomness import Given
from undiffuse.registry import CATEGORICAL

MEAN, STD = 0.3, 0.6
ENTROPY = 0.5 * math.log(2 * math.pi * math.e * STD**2)
X0 = MEAN + STD * as64(1, 1, -1, -1)[:, None]
NOISE = as64(1, -1, 1, -1)[:, None]
"""With X0 the two-point rule of Gauss and Hermite for both: the mean over them is exact for what is quadratic."""
VALUES = np.linspace(-1, 1, 256)


class Known(Denoiser):
    """What it predicts is network(x_t, t): float64, at any time."""

    def __call__(self, x_t: Tensor, t: Any, condition: Any = None) -> Prediction:
        predict: Any = self.network
        return predict(x_t, t)


def gaussian(schedule: Schedule) -> Known:
    """The optimum for N(MEAN, STD^2)."""
    process = GaussianProcess(schedule)
    return Known(gaussian_denoiser(process, as64(MEAN), as64(STD)), process)


def seeded(shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    """Other noise for every draw."""
    return lambda draw: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))


def prior_gap(alpha: float, sigma: float) -> float:
    """KL(q(x_1) || p(x_1)), both Gaussian."""
    scale = alpha**2 + sigma**2
    variance = (alpha**2 * STD**2 + sigma**2) / scale
    return 0.5 * (variance - 1 - math.log(variance) + (alpha * MEAN) ** 2 / scale)


CASES = {
    "linear": (linear(20), 20),
    "linear-respaced": (linear(20), 5),
    "cosine": (cosine(12), 12),
    "zero-snr": (SCHEDULES["zero-snr"], 20),
    "vp": (VP(), 16),
    "vp-once": (VP(), 1),
    "sub-vp": (SCHEDULES["sub-vp"], 9),
    "edm": (EDM(0.02, 10), 15),
    "flow": (SCHEDULES["flow"], 15),
    "log-snr": (LogSNR([6.0, 5.0, -3.0, -4.0], 0.05), 14),
}


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
@pytest.mark.parametrize("name", CASES)
def test_every_term_of_gaussian_data(name: str, variance: str) -> None:
    """The terms' expectations are those of Gaussians; the total exceeds the entropy by the KLs of the reverse steps.

    x_s given x_t has a variance R, by Bayes' rule; with v instead a step loses 1/2 (r - 1 - ln r), r = R / v, which is
    nothing for the optimal v: there the gap is the prior's alone.
    """
    schedule, steps = CASES[name]
    denoiser, u = gaussian(schedule), all_steps(4, steps)
    times = np.arange(steps + 1) / steps
    if not schedule.steps and steps > 1:
        times = np.append(0, np.linspace(schedule.t_min, 1, steps))
    at = levels(denoiser.process, torch.from_numpy(times))
    terms, true = [], []
    gap = prior_gap(*at[-1])
    errors = squared_errors(
        denoiser, X0, steps, lambda k: Given(NOISE), ((torch.arange(steps) + 0.5) / steps).expand(4, -1)
    )
    given = optimal_variance(denoiser.process, errors)
    for i, ((alpha_s, sigma_s), (alpha_t, sigma_t)) in enumerate(itertools.pairwise(at)):
        rest = STD**2 * sigma_t**2 / (alpha_t**2 * STD**2 + sigma_t**2)  # Var[x_0 | x_t]
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        tilde = added * (sigma_s / sigma_t) ** 2
        true.append(tilde + (alpha_s * added / sigma_t**2) ** 2 * rest)
        beta = added * (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2)
        v = true[i] if variance == "optimal" else sigma_t**2 if i == 0 else {"small": tilde, "large": beta}[variance]
        # -ln N(x_0; x_0_hat, v) where the step ends at the data, else KL(q(x_s | x_t, x_0) || N(., v))
        terms.append(0.5 * (true[i] / v + (math.log(2 * math.pi * v) if i == 0 else math.log(v / tilde) - 1)))
        gap += 0.5 * (true[i] / v - 1 - math.log(true[i] / v))
    found = estimate_bound(
        denoiser, X0, Formula(steps, given if variance == "optimal" else variance, None), lambda k: Given(NOISE), u
    )
    # `added` cancels: eps sigma_t^2 / added, at most 1e-13 here
    assert given.tolist() == pytest.approx(true, rel=1e-11)
    assert found.reconstruction.mean().item() == pytest.approx(terms[0], rel=1e-11, abs=1e-12)
    each = found.draws.mean(0) / max(steps - 1, 1)
    assert each.tolist() == pytest.approx(terms[1:], rel=1e-11, abs=1e-13)
    assert found.diffusion.mean().item() == pytest.approx(sum(terms[1:]), rel=1e-11, abs=1e-13)
    alpha, sigma = at[-1]
    prior = 0.5 * ((alpha**2 * (MEAN**2 + STD**2) + sigma**2) / (scale := alpha**2 + sigma**2) - 1)
    prior -= 0.5 * math.log(sigma**2 / scale)
    assert found.prior.mean().item() == pytest.approx(prior, rel=1e-11, abs=1e-14)
    assert found.total.mean().item() - ENTROPY == pytest.approx(gap, rel=1e-10, abs=1e-12)


def test_optimal_variances_of_steps_unseen() -> None:
    """They are made of errors on either side, linear in the step; and an error seen often counts no more."""
    table, steps = linear(20), 20
    seen = np.array([0, 3, 4, 4, 10, 19])
    u = ((torch.from_numpy(seen) + 0.5) / steps).expand(4, -1)
    denoiser = gaussian(table)
    found = optimal_variance(denoiser.process, squared_errors(denoiser, X0, steps, lambda k: Given(NOISE), u))
    bar = np.concatenate([[1.0], np.cumprod(1 - table.betas.numpy())])
    rest = STD**2 * (1 - bar[1:]) / (bar[1:] * STD**2 + 1 - bar[1:])
    rest = np.interp(np.arange(steps), seen, rest[seen])
    beta = table.betas.numpy()
    tilde, weight = beta * (1 - bar[:-1]) / (1 - bar[1:]), np.sqrt(bar[:-1]) * beta / (1 - bar[1:])
    np.testing.assert_allclose(found.numpy(), tilde + weight**2 * rest, rtol=1e-11)


FIRST, LAST = 7.0, -5.0
SIGMOIDS = special.expit([FIRST, LAST])
SAME_ENDS: dict[str, Schedule] = {
    "straight": LogSNR([FIRST, LAST]),
    "bent": LogSNR([FIRST, 6.5, -4, -4.5, LAST], 0.2),
    "vp": VP(0.1, (total := 2 * math.log1p(math.exp(-LAST)) - 0.1), VP(0.1, total).time(FIRST).item()),
    "edm": EDM(math.exp(-FIRST / 2), math.exp(-LAST / 2)),
    "table": Table([1 - SIGMOIDS[0], 1 - SIGMOIDS[1] / SIGMOIDS[0]]),
}


def panels(schedule: Schedule, count: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes u and weights on [0, 1), in panels that are even in log-SNR."""
    ends = np.linspace(schedule.log_snr(schedule.t_min).item(), schedule.log_snr(1.0).item(), count + 1)
    edges = (schedule.time(torch.from_numpy(ends)).numpy() - schedule.t_min) / (1 - schedule.t_min)
    root, weight = np.polynomial.legendre.leggauss(nodes)
    widths = np.diff(edges)[:, None]
    u = edges[:-1, None] + widths * (root + 1) / 2
    return torch.from_numpy(u.flatten()), torch.from_numpy((widths * weight / 2).flatten())


def test_the_continuous_bound_depends_on_the_ends_alone() -> None:
    """1/2 ln((1 + s^2 SNR_0) / (1 + s^2 SNR_1)) for five schedules, which differ between; the total: the entropy.

    By quadrature in u. The gap is KL(q(x_1) || p(x_1)) and what a flat prior of x_0 costs, 1/2 ln(1 + 1 / (s^2 SNR_0)).
    """
    halfway = []
    for schedule in SAME_ENDS.values():
        denoiser, (u, weights) = gaussian(schedule), panels(schedule, 24, 8)
        found = estimate_bound(denoiser, X0, Formula(None, values=None), lambda k: Given(NOISE), u.expand(4, -1))
        torch.testing.assert_close(found.times[0], schedule.t_min + (1 - schedule.t_min) * u, rtol=0, atol=1e-14)
        torch.testing.assert_close(found.draws.mean(1), found.diffusion)
        diffusion = (found.draws.mean(0) @ weights).item()
        exact = 0.5 * (math.log1p(STD**2 * math.exp(FIRST)) - math.log1p(STD**2 * math.exp(LAST)))
        assert diffusion == pytest.approx(exact, rel=1e-11)
        end = schedule.noise_level(1.0)
        gap = prior_gap(end.alpha.item(), end.sigma.item()) + 0.5 * math.log1p(math.exp(-FIRST) / STD**2)
        total = (found.prior + found.reconstruction).mean().item() + diffusion
        assert total - ENTROPY == pytest.approx(gap, abs=1e-11)
        two = estimate_bound(
            denoiser, X0, Formula(None, values=None), lambda k: Given(NOISE), as64(0.0, 0.5).expand(4, 2)
        )
        halfway.append(two.draws[:, 1].mean().item())
        slope = -schedule.log_snr_derivative(schedule.t_min).item() * (1 - schedule.t_min)
        first = 0.5 * slope / (1 + math.exp(-FIRST) / STD**2)
        assert two.draws[:, 0].mean().item() == pytest.approx(first, rel=1e-11)  # u = 0 is t_min
    assert np.diff(np.log(np.sort(halfway))).min() > 0.2


def richardson(values: list[float]) -> list[np.ndarray]:
    """Values of a series in 1 / n, for n that doubles, and rows of their extrapolations without 1 / n, 1 / n^2, ..."""
    rows = [np.array(values)]
    for k in range(1, len(values)):
        rows.append((2**k * rows[-1][1:] - rows[-1][:-1]) / (2**k - 1))
    return rows


def test_many_steps_become_the_continuous_bound() -> None:
    """With n steps between, the sum exceeds the integral by C / n + O(1 / n^2), and extrapolated by nothing.

    C = range / 4 (integral of g d lambda - g at the first + g at the last), g = SNR Var[x_0 | x_t], by Euler and
    Maclaurin for a log-SNR linear in time.
    """
    schedule = LogSNR([FIRST, LAST], 0.1)
    counts = (64, 128, 256, 512, 1024)
    exact = 0.5 * (math.log1p(STD**2 * math.exp(FIRST)) - math.log1p(STD**2 * math.exp(LAST)))
    g = [STD**2 * math.exp(at) / (1 + STD**2 * math.exp(at)) for at in (FIRST, LAST)]
    gaps = []
    for n in counts:
        u = all_steps(1, n + 1)[0].repeat_interleave(4)
        x0, noise = X0.repeat(n, 1), NOISE.repeat(n, 1)
        inside = 1 / (n + 1) + n / (n + 1) * u
        terms = variational_bound(gaussian(schedule), x0, None, inside, Given(noise), "small", n + 1, None)
        gaps.append(terms.sum().item() / 4 / (n + 1) - exact)
    rows = richardson(gaps)
    for k in (1, 2, 3):  # the error that is left is of the order 1, 2, 3
        np.testing.assert_allclose(rows[k - 1][-2] / rows[k - 1][-1], 2**k, rtol=0.02)
    assert abs(rows[4][0]) < 1e-9
    c = richardson([gap * n for gap, n in zip(gaps, counts, strict=True)])
    assert c[4][0] == pytest.approx((FIRST - LAST) / 4 * (2 * exact - g[0] + g[1]), rel=1e-8)


@pytest.mark.parametrize("log_snr", [13.3, 3.0, -6.0])
def test_odds_are_by_bayes_rule(log_snr: float) -> None:
    """A network's odds, its Gaussian and x_t give SciPy's posterior over the 256 values, and its mean, per channel."""
    process, sd, channels = GaussianProcess(LogSNR([13.3, -6.0])), 0.5, 3
    t = process.schedule.time(as64(log_snr, log_snr))
    draw = torch.Generator().manual_seed(0)
    mean, sharp = torch.randn(2, 2, channels, 2, dtype=torch.float64, generator=draw)
    sharp[0, 1] = SHARPEST + 3  # no sharper than that
    free = torch.randn(2, channels, 256, 2, dtype=torch.float64, generator=draw)
    x0 = torch.from_numpy(VALUES)[torch.randint(256, (2, channels, 2), generator=draw)]
    x_t = process.corrupt(x0, t, Given(torch.randn(2, channels, 2, dtype=torch.float64, generator=draw)))
    said = torch.cat([mean / sd, sharp, free.flatten(1, 2)], 1)
    prediction = Denoiser(lambda x, log_snr, condition: said, process, CATEGORICAL, sd)(x_t, t)
    assert prediction.logits is not None
    level = process.noise_level(t[0])
    alpha, sigma = level.alpha.item(), level.sigma.item()
    ours = value_log_prob(x0, prediction.logits)
    flat = reconstruction_log_prob(x0, x_t, level, None, 256)
    everywhere = torch.from_numpy(VALUES)[:, None, None].expand(256, channels, 2)
    for logits in (prediction.logits, value_logits(x_t, level, as64(*[0.0] * 256))):
        mass = value_log_prob(everywhere, logits[:1].expand(256, -1, -1, -1)).exp().sum(0)
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-12)
    for b, c, k in itertools.product(range(2), range(channels), range(2)):
        precision = (math.exp(min(sharp[b, c, k].item(), 6)) / sd) ** 2
        told = -((x_t[b, c, k].item() - alpha * VALUES) ** 2) / (2 * sigma**2)
        own = -((VALUES - mean[b, c, k].item()) ** 2) / 2 * precision
        odds = special.log_softmax(free[b, c, :, k].numpy() + own + told)
        here = round((x0[b, c, k].item() + 1) * 127.5)
        # the squares are 1e6 at most
        assert ours[b, c, k].item() == pytest.approx(odds[here], abs=1e-9)
        assert prediction.x0[b, c, k].item() == pytest.approx(np.exp(odds) @ VALUES, abs=1e-9)
        assert flat[b, c, k].item() == pytest.approx(special.log_softmax(told)[here], abs=1e-9)
    five, x_t5 = np.linspace(-1, 1, 5), as64(*[0.37] * 5)[:, None]
    found = reconstruction_log_prob(torch.from_numpy(five)[:, None], x_t5, level, None, 5).flatten()
    expected = special.log_softmax(-((0.37 - alpha * five) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    line = reconstruction_log_prob(x0, x_t, level, None, None).numpy()
    density = np.exp(-((x0 - x_t / alpha).numpy() ** 2) * (alpha / sigma) ** 2 / 2) * alpha / sigma
    np.testing.assert_allclose(line, np.log(density / math.sqrt(2 * math.pi)), rtol=1e-9)


CATEGORIES, CHANCES = [20, 128, 230], np.array([0.2, 0.5, 0.3])


def categorical(schedule: Schedule) -> tuple[Denoiser, Tensor, Tensor, Tensor, float]:
    """A denoiser that knows the chances of CATEGORIES, half by a Gaussian; x_0, noise, weights; the bound's limit.

    Noise is by the trapezoid rule, which converges exponentially: a step of 0.1 is exact to 1e-13 for these log-SNRs.
    The limit is the entropy and KL(q(x_1) || p(x_1)).
    """
    process, nodes = GaussianProcess(schedule), np.arange(-80, 81) / 10
    chance = np.zeros(256)
    chance[CATEGORIES] = CHANCES
    mean, sharpness = 0.2, 0.3
    with np.errstate(divide="ignore"):
        free = np.log(chance) + (VALUES - mean) ** 2 / 2 * (math.exp(sharpness) / 0.5) ** 2
    said = torch.from_numpy(np.concatenate([[mean / 0.5, sharpness], free]))
    denoiser = Denoiser(lambda x, log_snr, condition: said.expand(len(x), -1), process, CATEGORICAL, 0.5)
    x0 = torch.from_numpy(VALUES[CATEGORIES].repeat(len(nodes)))[:, None]
    noise = torch.from_numpy(np.tile(nodes, 3))[:, None]
    weights = torch.from_numpy(np.outer(CHANCES, np.exp(-(nodes**2) / 2) / math.sqrt(200 * math.pi)).flatten())
    level, x = process.noise_level(1.0), np.linspace(-12, 12, 2401)
    parts = np.exp(-((x[:, None] - level.alpha.item() * VALUES[CATEGORIES]) ** 2) / (2 * level.sigma.item() ** 2))
    q = parts @ CHANCES / (level.sigma.item() * math.sqrt(2 * math.pi))
    kl = (q * (np.log(q) + x**2 / 2 + 0.5 * math.log(2 * math.pi))).sum() / 100
    return denoiser, x0, noise, weights, kl - CHANCES @ np.log(CHANCES)


def test_the_continuous_bound_of_categories_is_their_entropy() -> None:
    """All that is lost is the prior's KL: the integral of the errors is what x_t tells, its rest is the decoder's."""
    denoiser, x0, noise, chance, limit = categorical(LogSNR([4.0, -4.0]))
    u, weights = panels(denoiser.process.schedule, 2, 16)
    found = estimate_bound(denoiser, x0, Formula(None), lambda k: Given(noise), u.expand(len(x0), -1))
    assert (chance @ found.reconstruction).item() > 1e-3
    total = chance @ (found.prior + found.reconstruction + found.draws @ weights)
    assert total.item() == pytest.approx(limit, rel=1e-10)


def test_the_bound_of_categories_falls_to_their_entropy() -> None:
    """With more steps it is less, never below, and extrapolated to none it is the entropy and the prior's KL."""
    denoiser, x0, noise, chance, limit = categorical(LogSNR([4.0, -4.0], 0.05))
    gaps = []
    for n in (16, 32, 64, 128):
        found = estimate_bound(denoiser, x0, Formula(n + 1), lambda k: Given(noise), all_steps(len(x0), n + 1))
        gaps.append((chance @ found.total).item() - limit)
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > 0.03
    rows = richardson(gaps)
    assert rows[0][-2] / rows[0][-1] == pytest.approx(2, rel=0.03)
    assert abs(rows[3][0]) < 1e-5


def ddpm_terms(
    betas: np.ndarray, x0: np.ndarray, noise: Callable[[int], Tensor], said: Callable, variance: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """L_T and L_0 .. L_{T-1} of every image: Ho et al. 2020, eq. 5-13, and Nichol & Dhariwal 2021, eq. 15.

    said(x_t, log-SNR) is eps and the variance's v.
    """
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    tilde = betas * (1 - before) / (1 - bar)
    terms = []
    for i, beta in enumerate(betas):
        x_t = np.sqrt(bar[i]) * x0 + np.sqrt(1 - bar[i]) * noise(i).numpy()
        eps, v = said(x_t, np.log(bar[i] / (1 - bar[i])))
        share = 1.0 if i == 0 else {"small": 0.0, "large": 1.0, "learned": v}.get(str(variance), 0.0)
        log_variance = share * np.log(beta) + (1 - share) * np.log(tilde[i] if i else beta) + 0 * x0
        if isinstance(variance, Tensor):
            log_variance = np.full_like(x0, math.log(variance[i]))
        mean = (x_t - beta / np.sqrt(1 - bar[i]) * eps) / np.sqrt(1 - beta)
        if i == 0:
            upper = np.where(x0 > 0.999, np.inf, x0 - mean + 1 / 255) / np.exp(log_variance / 2)
            lower = np.where(x0 < -0.999, -np.inf, x0 - mean - 1 / 255) / np.exp(log_variance / 2)
            below = [special.log_ndtr(np.where(lower > 0, -b, a)) for a, b in ((upper, lower), (lower, upper))]
            kl = -(below[0] + np.log1p(-np.exp(below[1] - below[0])))
        else:
            true = np.sqrt(before[i]) * beta / (1 - bar[i]) * x0
            true = true + np.sqrt(1 - beta) * (1 - before[i]) / (1 - bar[i]) * x_t
            ratio = np.log(tilde[i]) - log_variance
            kl = 0.5 * (np.exp(ratio) - 1 - ratio + (true - mean) ** 2 / np.exp(log_variance))
        terms.append(kl.mean((1, 2)))
    prior = 0.5 * (bar[-1] * x0**2 - bar[-1] - np.log(1 - bar[-1]))
    return prior.mean((1, 2)), terms


@pytest.mark.parametrize("schedule", [zero_terminal_snr(cosine(1000)), zero_terminal_snr(linear(20)), FlowMatching()])
@pytest.mark.parametrize("target", ["v", "x0", "edm", "flow"])
def test_the_continuous_bound_of_nothing_left_is_finite(schedule: Schedule, target: str) -> None:
    """Up to the last u below 1, where no signal is left: 1/2 (-d SNR / dt) ||x_0 - x_0_hat||^2, which tends to that at
    t = 1. Of a network that says 0: x_0_hat = p x_t, and p is 0 there but for edm's alpha sigma_data^2."""
    u = 1 - as64(1e-6, 1e-9, 1e-11, 1e-12, 1e-13, 2.0**-53)
    x0, noise = as64(0.5, -0.2, 0.7)[None].repeat(6, 1), as64(1.0, 0.3, -2.0)[None].repeat(6, 1)
    denoiser = Denoiser(lambda x, *_: torch.zeros_like(x), GaussianProcess(schedule), target)
    found = continuous_bound(denoiser, x0, None, u, Given(noise))
    at_the_end = {"v": x0[0], "x0": x0[0], "edm": x0[0], "flow": x0[0] - noise[0]}[target]
    level, near = schedule.noise_level(1 - 1e-7), 1e-7
    slope = -((level.alpha / level.sigma) ** 2).item() / near  # SNR is 0 at t = 1
    scale = -0.5 * (1 - schedule.t_min) / (1 - RECONSTRUCTION) * slope
    expected = scale * at_the_end.square().mean().item()
    assert found.tolist() == pytest.approx([expected] * 6, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned", "given"])
@pytest.mark.parametrize(("table", "steps"), [(linear(20), 20), (cosine(20), 20), (linear(40), 10), (cosine(12), 4)])
def test_the_bound_is_the_papers(table: Table, steps: int, variance: str) -> None:
    """Term by term as the papers have them, of any network, on all of a table or on every n-th of its steps."""
    shape = (6, 2, 3)
    x0 = torch.from_numpy(VALUES)[torch.randint(256, shape, generator=torch.Generator().manual_seed(0))]
    x0[0, 0], x0[1, 1] = -1.0, 1.0

    def said(x: np.ndarray, log_snr: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.tanh(1.3 * x - 0.2) + np.where(log_snr > 0, 0.1, -0.1), 0.5 + 0.7 * np.sin(3 * x)

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        eps, v = said(x.numpy(), log_snr.view(-1, 1, 1).numpy())
        return torch.from_numpy(np.concatenate([eps, 2 * v - 1], 1) if variance == "learned" else eps)

    chosen: Any = torch.linspace(0.001, 0.2, steps, dtype=torch.float64) if variance == "given" else variance
    learned = variance == "learned"
    denoiser = Denoiser(network, GaussianProcess(table), "eps", 1.0, learned, least_log_snr=-40)
    found = estimate_bound(denoiser, x0, Formula(steps, chosen), lambda k: Given(seeded(shape)(k)), all_steps(6, steps))
    bar = np.append(1.0, np.cumprod(1 - table.betas.numpy()))[:: table.steps // steps]
    prior, terms = ddpm_terms(1 - bar[1:] / bar[:-1], x0.numpy(), seeded(shape), said, chosen)
    np.testing.assert_allclose(found.prior.numpy(), prior, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found.reconstruction.numpy(), terms[0], rtol=1e-10)
    # the means differ by little where the steps are small: eps / beta
    np.testing.assert_allclose(found.draws.numpy() / (steps - 1), np.stack(terms[1:], 1), rtol=1e-10)
    np.testing.assert_allclose(found.total.numpy(), prior + sum(terms), rtol=1e-10)
    assert found.times.tolist() == [pytest.approx([(i + 1) / steps for i in range(1, steps)], rel=1e-15)] * 6


@pytest.mark.parametrize("steps", [None, 5])
def test_hybrid_teaches_the_mean_by_the_error_and_the_variance_by_the_bound(steps: int | None) -> None:
    """L_simple + L_vlb / 1000; its gradient is L_simple's to the mean, that of L_vlb / 1000 to the variance."""
    process, count = GaussianProcess(cosine(10)), 20
    x0, noise = torch.randn(2, count, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = torch.from_numpy(VALUES)[((x0.clamp(-1, 1) + 1) * 127.5).round().long()]
    said = torch.randn(count, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count

    def learn(loss: Callable[[Denoiser], Tensor]) -> tuple[Tensor, Tensor]:
        output = said.clone().requires_grad_()
        value = loss(Denoiser(lambda x, log_snr, condition: output, process, "eps", 0.5, learned_variance=True))
        (gradient,) = torch.autograd.grad(value.sum(), output)
        return value.detach(), gradient

    total = steps or 10
    both, gradient = learn(lambda d: hybrid(d, x0, None, u, Given(noise), steps))
    simple, of_simple = learn(
        lambda d: weighted_error(
            d, x0, None, u, Given(noise), times=lambda schedule, u: ((u * total).floor() + 1) / total
        )
    )
    vlb, of_vlb = learn(lambda d: variational_bound(d, x0, None, u, Given(noise), "learned", steps))
    torch.testing.assert_close(both, simple + vlb / 1000, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[:, :2], of_simple[:, :2], rtol=1e-11, atol=0)
    torch.testing.assert_close(gradient[:, 2:], of_vlb[:, 2:] / 1000, rtol=1e-12, atol=0)
    assert (of_vlb[:, :2] != 0).all() and (of_vlb[u > 1 / total, 2:] != 0).all()


@pytest.mark.parametrize("formula", [Formula(10, "large"), Formula(None)])
def test_an_image_has_its_bound_in_any_company(formula: Formula) -> None:
    """Its terms are the same alone, in other batches and in another order, where its draws are."""
    shape = (6, 1, 4)
    x0 = torch.from_numpy(VALUES)[torch.randint(256, shape, generator=torch.Generator().manual_seed(3))]
    denoiser = Denoiser(lambda x, log_snr, condition: torch.sin(3 * x), GaussianProcess(cosine(10)), "v")

    def of(numbers: list[int]) -> Any:
        u = stratified(torch.tensor(numbers), 7)
        return estimate_bound(denoiser, x0[numbers], formula, lambda k: Given(seeded(shape)(k)[numbers]), u)

    whole = of(list(range(6)))
    for numbers in ([5, 2, 3], [5], [2]):
        part = of(numbers)
        for name in ("prior", "diffusion", "reconstruction", "times", "draws", "total"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[numbers], rtol=1e-13, atol=0)


def test_spread_is_even_in_every_image_and_over_them() -> None:
    """One place in each K-th of [0, 1), by the number of the image alone; all places together are even too."""
    for draws in (1, 7, 20):
        u = stratified(torch.arange(1000), draws)
        assert u.shape == (1000, draws) and u.dtype == torch.float64
        assert ((u * draws).floor() == torch.arange(draws)).all()
        assert (stratified(torch.tensor([612, 3]), draws) == u[[612, 3]]).all()
        # a golden ratio's multiples: of n points no interval has more than its share by O(ln n), here 5
        places = np.sort(u.flatten().numpy())
        assert np.abs(places - (np.arange(len(places)) + 0.5) / len(places)).max() < 5 / 1000 / draws


@pytest.mark.parametrize("steps", [2, 3, 10, 49, 1000])
def test_every_step_is_every_step(steps: int) -> None:
    """Each of the steps above the decoder's once, in order, the same for all images."""
    u = all_steps(3, steps)
    assert u.shape == (3, steps - 1) and (u == u[0]).all()
    times = times_of(gaussian(linear(steps)), Formula(steps), 1 / steps + (1 - 1 / steps) * u)
    assert linear(steps).index(times).tolist() == [list(range(2, steps + 1))] * 3


@pytest.mark.parametrize("steps", [49, 98, 103])
def test_a_step_is_never_taken_for_the_decoder(steps: int) -> None:
    """U = 0 means the first step, also where (1 / T) T rounds to less than 1."""
    process, x0 = GaussianProcess(linear(100)), torch.zeros(1, 1, dtype=torch.float64)
    asked: list[float] = []

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        asked.append(log_snr.item())
        return torch.zeros_like(x)

    estimate_bound(
        Denoiser(network, process), x0, Formula(steps), lambda k: Given(x0), torch.zeros(1, 1, dtype=torch.float64)
    )
    first, second = (process.schedule.log_snr(i / steps).item() for i in (1, 2))
    assert asked == pytest.approx([first, second], rel=1e-6)
