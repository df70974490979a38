"""Losses, weightings and time samplers against closed forms, quadrature, and mpmath."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from references import EPS, FORMULAS, MODES, SCHEDULES, as64, gaussian_x0, levels, mixture_denoiser, mixture_x0
from scipy import special, stats
from torch import Tensor

from undiffuse.denoiser import Denoiser
from undiffuse.discretised import discretised_log_prob
from undiffuse.networks import MLP
from undiffuse.objectives import (
    DRAWS,
    TIME_SAMPLERS,
    WEIGHTINGS,
    edm_loss,
    l_simple,
    variational_bound,
    weighted_error,
)
from undiffuse.process import VP, GaussianProcess, Normal, Table, cosine, linear
from undiffuse.randomness import Given
from undiffuse.registry import TARGETS

GRID = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1  # the values of a data element


def guess(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Some prediction of x_0, neither right nor linear."""
    return torch.tanh(0.7 * x / (alpha + sigma)) - 0.1 * alpha


def network_for(target: str, process: GaussianProcess, x0_of: Callable, sd: float) -> Callable:
    """A network that says what, as `target`, means x0_of(x_t): the papers' formulas, in sigma and alpha.

    The objective hands the condition on, here the times; the input is x_t over its standard deviation for data of sd.
    """

    def network(x: Tensor, log_snr: Tensor, t: Tensor) -> Tensor:
        level = process.noise_level(t)
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        x_t = x * (sigma**2 + sd**2 * alpha**2).sqrt()
        x0 = x0_of(x_t, alpha, sigma)
        eps = (x_t - alpha * x0) / sigma
        u, norm = sigma / alpha, (alpha**2 + sigma**2).sqrt()
        return {
            "eps": eps,
            "x0": x0,
            "v": (alpha * eps - sigma * x0) / norm,
            "score": -norm * eps / sigma,
            "flow": eps - x0,
            "edm": (x0 - sd**2 / (u**2 + sd**2) * x_t / alpha) * (u**2 + sd**2).sqrt() / (u * sd),
        }[target]

    return network


WEIGHTS: dict[str, Callable[[float], float]] = {  # of the squared error in x_0, by the signal-to-noise ratio
    "simple": lambda snr: snr,
    "x0": lambda snr: 1.0,
    "v": lambda snr: 1 + snr,
    "flow": lambda snr: (1 + math.sqrt(snr)) ** 2,
    "truncated-snr": lambda snr: max(snr, 1.0),
    "min-snr": lambda snr: min(snr, 5.0),
    "sigmoid": lambda snr: snr / (1 + snr * math.exp(-2)),
    "edm": lambda snr: (1 / snr + 0.25) / (0.25 / snr),  # (u^2 + sd^2) / (u sd)^2, u^2 = 1 / snr
}


def test_weightings_are_their_definitions() -> None:
    """Each weighting at SNRs across 14 decades, and finite where there is no noise left to speak of or no signal."""
    assert WEIGHTINGS.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        for log_snr in np.linspace(-18, 14, 33):
            expected = weight(math.exp(log_snr))
            assert WEIGHTINGS[name](as64(log_snr)).item() == pytest.approx(expected, rel=1e-13), name
        assert WEIGHTINGS[name](as64(-math.inf)).isfinite().all(), name
    assert WEIGHTINGS["min-snr"](as64(3.0), gamma=2.0).item() == 2
    assert WEIGHTINGS["edm"](as64(0.0), sigma_data=0.1).item() == pytest.approx(101, rel=4 * EPS)
    # sigmoid(b - l) on eps: b = 0 halves the loss at SNR 1
    assert WEIGHTINGS["sigmoid"](as64(0.0), bias=0.0).item() == pytest.approx(0.5, rel=4 * EPS)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "sub-vp", "edm"])
def test_loss_does_not_depend_on_what_the_network_predicts(name: str, target: str, weighting: str) -> None:
    """Networks that mean the same x_0 have the same loss whatever their target: weight(SNR) mean (x_0 - x_0_hat)^2."""
    process, sd = GaussianProcess(SCHEDULES[name]), 0.6
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = as64(0.05, 0.3, 0.5, 0.75, 0.9)
    denoiser = Denoiser(network_for(target, process, guess, sd), process, target, sd)
    loss = weighted_error(
        denoiser, x0, t, t, Given(noise), times=lambda schedule, u: u, weighting=WEIGHTINGS[weighting]
    )
    for k, (alpha, sigma) in enumerate(levels(process, t)):
        x_t = alpha * x0[k] + sigma * noise[k]
        error = (x0[k] - guess(x_t, as64(alpha), as64(sigma))).square().mean().item()
        expected = WEIGHTS[weighting]((alpha / sigma) ** 2) * error
        # the difference of two outputs of size alpha / sigma, at most 320 (EDM at t = 0.05 has 1/4, tables 1e3)
        assert loss[k].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_simple_loss_is_the_error_in_eps(name: str) -> None:
    """L_simple of a network that says f(input): mean (eps - f(x_t / std))^2 (Ho et al. 2020, eq. 14)."""
    process, sd = GaussianProcess(SCHEDULES[name]), 0.4
    x0, noise = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    u = as64(0.12, 0.41, 0.83)
    denoiser = Denoiser(lambda x, log_snr, condition: torch.sin(x), process, "eps", sd)
    steps = SCHEDULES[name].steps
    for k, loss in enumerate(l_simple(denoiser, x0, None, u, Given(noise)).tolist()):
        t = (math.floor(u[k] * steps) + 1) / steps if steps else 1e-3 + (1 - 1e-3) * u[k].item()
        if name == "edm":
            t = 0.002 / 80 + (1 - 0.002 / 80) * u[k].item()
        ((alpha, sigma),) = levels(process, as64(t))
        said = np.sin((alpha * x0[k] + sigma * noise[k]).numpy() / math.hypot(alpha * sd, sigma))
        assert loss == pytest.approx(np.mean((noise[k].numpy() - said) ** 2), rel=1e-12)


@pytest.mark.parametrize("name", ["edm", "vp", "linear"])
def test_edm_loss_is_that_of_the_paper(name: str) -> None:
    """lambda(sigma) ||D(y + n; sigma) - y||^2 (Karras et al. 2022, eq. 2 and 8), D by eq. 7 and table 1, where ln sigma
    is normal of mean -1.2 and deviation 1.2; a process that scales its data is that of y + n = x_t / alpha."""
    process, sd = GaussianProcess(SCHEDULES[name]), 0.4
    y, noise = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    u = as64(0.12, 0.41, 0.83)
    denoiser = Denoiser(lambda x, log_snr, condition: torch.sin(x), process, "edm", sd)
    for k, loss in enumerate(edm_loss(denoiser, y, None, u, Given(noise)).tolist()):
        sigma = math.exp(-1.2 + 1.2 * stats.norm.ppf(u[k].item()))
        if process.schedule.steps:  # a table has the noise level of the nearest of its steps, or of one between two
            ((alpha, scaled),) = levels(process, process.schedule.time(as64(-2 * math.log(sigma))))
            sigma = scaled / alpha
        noisy = (y[k] + sigma * noise[k]).numpy()
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd / math.sqrt(sigma**2 + sd**2)
        c_in = 1 / math.sqrt(sigma**2 + sd**2)
        denoised = c_skip * noisy + c_out * np.sin(c_in * noisy)
        weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
        assert loss == pytest.approx(weight * np.mean((denoised - y[k].numpy()) ** 2), rel=1e-9)


def bound_times(process: GaussianProcess, steps: int) -> Tensor:
    """A table's i / T; of a continuous schedule 0, and then evenly from t_min to 1."""
    if process.schedule.steps:
        return torch.arange(steps + 1, dtype=torch.float64) / steps
    low = process.schedule.t_min
    return as64(0.0, *(low + (1 - low) * i / (steps - 1) for i in range(steps)))


def bound_of(process: GaussianProcess, x0_of: Callable, variance: str, steps: int | None = None) -> Callable:
    """variational_bound for the denoiser x0_of: (x0, index, noise) -> (B,)."""
    total = steps or process.schedule.steps or 1000
    times = bound_times(process, total)

    def bound(x0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        denoiser = Denoiser(network_for("x0", process, x0_of, 0.5), process, "x0", 0.5)
        t = times[index + 1]
        return variational_bound(denoiser, x0, t, (index.double() + 0.5) / total, Given(noise), variance, steps)

    return bound


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-snr", "vp", "sub-vp", "ve", "edm"])
def test_bound_terms_are_differences_of_snr(name: str) -> None:
    """With the posterior's variance L_{t-1} = 1/2 (SNR_s - SNR_t) (x_0 - x_0_hat)^2 (Kingma et al. 2021, eq. 14)."""
    process, steps = GaussianProcess(SCHEDULES[name]), 20
    x0, noise = torch.randn(2, 19, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    index = torch.arange(1, 20)
    x0_of = guess if name != "zero-snr" else lambda x, alpha, sigma: torch.tanh(x)
    loss = bound_of(process, x0_of, "small", None if SCHEDULES[name].steps else steps)(x0, index, noise)
    at = levels(process, bound_times(process, 20))
    for k, i in enumerate(index.tolist()):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = at[i], at[i + 1]
        x0_hat = x0_of(alpha_t * x0[k] + sigma_t * noise[k], as64(alpha_t), as64(sigma_t))
        difference = (alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2
        # the difference of two means over the square root of their variance: eps sqrt(SNR) <= 1e-10 for these
        expected = steps * 0.5 * difference * (x0[k] - x0_hat).square().mean().item()
        assert loss[k].item() == pytest.approx(expected, rel=1e-10)


def test_bound_terms_of_many_steps_keep_their_digits() -> None:
    """In float32, where a step is so short that the means of both sides agree in nearly all digits."""
    process, steps = GaussianProcess(SCHEDULES["vp"]), 100_000
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9))
    index, x0_hat = torch.tensor([100, 5_000, 50_000]), x0 + 0.01
    loss = variational_bound(
        Denoiser(lambda *_: x0_hat, process, "x0", 0.5),
        x0,
        None,
        (index + 0.5).double() / steps,
        Given(noise),
        steps=steps,
    )
    snr = process.schedule.log_snr(bound_times(process, steps)).exp()
    expected = steps / 2 * (snr[index] - snr[index + 1]) * (x0_hat - x0).double().square().mean(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("variance", ["large", "learned"])
def test_bound_terms_with_other_variances(variance: str) -> None:
    """L_{t-1} is torch.distributions' KL of N(mu, beta_tilde) and N(mu_hat, beta or IDDPM's mix), by betas."""
    table = cosine(20)
    process = GaussianProcess(table)
    x0, noise, mix = torch.randn(3, 19, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    mix = mix.sigmoid()
    index = torch.arange(1, 20)

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        return torch.cat([x.cos(), 2 * mix - 1], 1) if variance == "learned" else x.cos()

    denoiser = Denoiser(network, process, "x0", 0.5, learned_variance=variance == "learned")
    loss = variational_bound(denoiser, x0, None, (index.double() + 0.5) / 20, Given(noise), variance)
    betas, bars = table.betas.tolist(), [1.0, *np.cumprod(1 - table.betas.numpy())]
    for k, i in enumerate(index.tolist()):
        beta, bar, before = betas[i], bars[i + 1], bars[i]
        x_t = math.sqrt(bar) * x0[k] + math.sqrt(1 - bar) * noise[k]
        x0_hat = torch.cos(x_t / math.sqrt(0.25 * bar + 1 - bar))
        weights = math.sqrt(before) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        tilde = (1 - before) / (1 - bar) * beta
        log_variance = mix[k] * math.log(beta) + (1 - mix[k]) * math.log(tilde)
        std = (0.5 * log_variance).exp() if variance == "learned" else torch.full_like(x_t, math.sqrt(beta))
        q = torch.distributions.Normal(weights[0] * x0[k] + weights[1] * x_t, math.sqrt(tilde))
        p = torch.distributions.Normal(weights[0] * x0_hat + weights[1] * x_t, std)
        expected = 20 * torch.distributions.kl_divergence(q, p).mean().item()
        assert loss[k].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_bound_ends_with_the_discretised_decoder(variance: str) -> None:
    """L_0 = -ln of the mass of N(x_0_hat, beta_1) within 1/255 of x_0, ends open (Ho et al. 2020, eq. 13), by SciPy."""
    table = linear(50)
    x0 = GRID[torch.tensor([0, 1, 100, 127, 200, 254, 255])].view(7, 1)
    x0_hat = x0 + as64(0.01, -0.02, 0.0, 0.03, -0.1, 0.002, 0.05)[:, None]

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        return torch.cat([x0_hat, torch.full_like(x0, 0.3)], 1) if variance == "learned" else x0_hat

    denoiser = Denoiser(network, GaussianProcess(table), "x0", 0.5, learned_variance=variance == "learned")
    loss = variational_bound(denoiser, x0, None, torch.zeros(7, dtype=torch.float64), Given(x0), variance)
    std = math.sqrt(table.betas[0].item())
    for ours, x, m in zip(loss.tolist(), x0.flatten().tolist(), x0_hat.flatten().tolist(), strict=True):
        upper = math.inf if x == 1 else (x - m + 1 / 255) / std
        lower = -math.inf if x == -1 else (x - m - 1 / 255) / std
        assert ours == pytest.approx(-50 * math.log(stats.norm.cdf(upper) - stats.norm.cdf(lower)), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "zero-snr", "vp"])
def test_whole_bound_of_gaussian_data(name: str) -> None:
    """All T terms and L_T of the optimal denoiser of N(m, s^2), the expectation over eps exact, against NumPy.

    1/2 (SNR_s - SNR_t) (x_0 - x_0_hat)^2 is quadratic in eps: the 3-point Gauss-Hermite rule is exact for it. L_0 is
    compared at those points.
    """
    process, steps, m, s = GaussianProcess(SCHEDULES[name]), 20, 0.2, 0.3
    x0 = GRID[torch.tensor([40, 128, 200])]
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    index, which, node = (torch.tensor(c) for c in zip(*itertools.product(range(20), range(3), range(3)), strict=True))
    bound = bound_of(
        process, lambda x, a, b: gaussian_x0(x, a, b, as64(m), as64(s)), "small", None if name != "vp" else 20
    )
    terms = bound(x0[which][:, None], index, torch.from_numpy(nodes)[node][:, None]).view(20, 3, 3) / steps
    ours = (terms * torch.from_numpy(weights)).sum(2).sum(0)
    at = levels(process, bound_times(process, 20))
    for k, x in enumerate(x0.tolist()):
        expected = 0.0
        for i in range(1, 20):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = at[i], at[i + 1]
            variance = alpha_t**2 * s**2 + sigma_t**2
            # x_0 - x_0_hat = sigma^2 / variance (x_0 - m) - alpha s^2 sigma / variance eps
            square = (sigma_t**2 * (x - m) / variance) ** 2 + (alpha_t * s**2 * sigma_t / variance) ** 2
            expected += 0.5 * ((alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2) * square
        alpha, sigma = at[1]
        means = m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (alpha * x + sigma * nodes - alpha * m)
        mass = stats.norm.cdf((x + 1 / 255 - means) / sigma) - stats.norm.cdf((x - 1 / 255 - means) / sigma)
        expected -= (weights * np.log(mass)).sum()
        assert ours[k].item() == pytest.approx(expected, rel=1e-10)
        # L_T = KL(q(x_1 | x_0) || p(x_1)), the textbook formula
        alpha, sigma = at[-1]
        exact = 0.5 * ((alpha * x) ** 2 + sigma**2 - 1 - 2 * math.log(sigma))
        last = process.marginal(as64(x), 1.0).kl(process.prior(as64(x))).item()
        assert last == pytest.approx(exact, abs=1e-14)


def test_bound_is_above_the_entropy_and_tight() -> None:
    """Averaged over discretised Gaussian data the bound exceeds its entropy, by less the more steps there are."""
    s = 0.25
    mass = np.diff(np.concatenate([[0], stats.norm.cdf((GRID.numpy()[:-1] + 1 / 255) / s), [1]]))
    entropy = -(mass * np.log(mass)).sum()
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    points = torch.from_numpy(nodes).repeat(256)[:, None]
    chance = torch.from_numpy(np.outer(mass, weights / weights.sum())).flatten()
    x0 = GRID.repeat_interleave(8)[:, None]
    gaps = []
    for steps in (20, 80, 320):
        bars = np.concatenate([[1.0], special.expit(np.linspace(9.5, -10, steps))])  # even in log-SNR
        process = GaussianProcess(Table((1 - bars[1:] / bars[:-1]).tolist()))
        bound = bound_of(process, lambda x, a, b: gaussian_x0(x, a, b, as64(0.0), as64(s)), "small")
        total = sum((bound(x0, torch.full((2048,), i), points) * chance).sum().item() for i in range(steps)) / steps
        total += (process.marginal(x0, 1.0).kl(process.prior(x0)).flatten() * chance).sum().item()
        gaps.append(total - entropy)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    # an upper Riemann sum of the continuous bound: the gap is of order 1 / T, and nothing else is left
    assert abs(4 * gaps[2] - gaps[1]) / 3 < 0.01


def test_bound_estimates_its_sum() -> None:
    """The mean over u, evenly spaced, of the bound is the sum of its T terms; u just under 1 is the last term."""
    process, x0_of = GaussianProcess(linear(4)), lambda x, a, b: 0.3 * x
    x0, noise = GRID[torch.tensor(4 * [99])][:, None], torch.ones(4, 1, dtype=torch.float64)
    per_term = bound_of(process, x0_of, "small")(x0, torch.arange(4), noise) / 4
    denoiser = Denoiser(network_for("x0", process, x0_of, 0.5), process, "x0", 0.5)
    u = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    t = ((u * 4).floor() + 1) / 4
    mean = variational_bound(denoiser, x0[:1].expand(40, 1), t, u, Given(noise[:1].expand(40, 1))).mean()
    torch.testing.assert_close(mean, per_term.sum(), rtol=1e-13, atol=0)
    last = variational_bound(denoiser, x0[:1], as64(1.0), as64(1 - 2.0**-53), Given(noise[:1]))
    torch.testing.assert_close(last, 4 * per_term[3:], rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.3, 0.0021, 0.5, 1.0, 40.0])
def test_level_probabilities_sum_to_one(mean: float, scale: float) -> None:
    """Over the 256 values of an element the probabilities are a distribution, to 1e-12."""
    log_prob = discretised_log_prob(GRID, Normal(torch.full_like(GRID, mean), as64(scale**2)[0]))
    assert (log_prob <= 0).all()
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    five = torch.linspace(-1, 1, 5, dtype=torch.float64)
    log_prob = discretised_log_prob(five, Normal(torch.full_like(five, mean), as64(scale**2)[0]), values=5)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_level_probabilities_in_the_tails() -> None:
    """The log-probabilities equal mpmath's integral of the density, however far from the mean, on either side."""
    with mpmath.workdps(60):
        for scale, mean, k in itertools.product([0.003, 0.1, 2.0], [-3.0, -0.2, 0.0, 0.9], [0, 1, 60, 128, 254, 255]):
            x = GRID[k].item()
            half, s, offset = mpmath.mpf(1) / 255, mpmath.mpf(scale), mpmath.mpf(x) - mpmath.mpf(mean)
            low, high = (offset - half) / s, (offset + half) / s
            low, high = (-mpmath.inf if k == 0 else low), (mpmath.inf if k == 255 else high)
            if low > 0:
                low, high = -high, -low
            root = mpmath.sqrt(2)
            exact = mpmath.log((mpmath.erfc(-high / root) - mpmath.erfc(-low / root)) / 2)
            ours = discretised_log_prob(as64(x), Normal(as64(mean), as64(scale**2))).item()
            # interval ends carry eps |x| / scale, which the density multiplies by their distance from the mean
            slack = 16 * EPS * (1 + (abs(offset) + half) / s) ** 2 + 1e-13 * (1 + s)
            assert abs(ours - exact) <= slack * 4 + abs(exact) * 4 * EPS, (scale, mean, k)


def test_level_probabilities_have_finite_gradients() -> None:
    """d/dmean and d/dvariance are finite everywhere, and the mean's is that of mpmath's log-probability."""
    x = GRID[torch.tensor([0, 1, 128, 254, 255])].repeat(5)
    mean = as64(-30.0, -0.5, 0.0, 1.0, 30.0).repeat_interleave(5).requires_grad_()
    variance = torch.full((25,), 0.01, dtype=torch.float64, requires_grad=True)
    discretised_log_prob(x, Normal(mean, variance)).sum().backward()
    assert mean.grad is not None
    assert variance.grad is not None
    assert mean.grad.isfinite().all()
    assert variance.grad.isfinite().all()
    # ln of the mass between a and b has the slope (phi(a) - phi(b)) / (mass s) in the mean
    a, b = (GRID[128].item() - 1 / 255) / 0.1, (GRID[128].item() + 1 / 255) / 0.1
    exact = (stats.norm.pdf(a) - stats.norm.pdf(b)) / (stats.norm.cdf(b) - stats.norm.cdf(a)) / 0.1
    assert mean.grad[12].item() == pytest.approx(exact, rel=1e-9)

    # a white pixel that float32 is sure is grey: 100 standard deviations away
    single = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    discretised_log_prob(torch.tensor([-1.0, -1.0, 1.0]), Normal(single, torch.tensor(1e-4))).sum().backward()
    assert single.grad is not None
    assert single.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_bound_of_an_untrained_network_has_finite_gradients(variance: str, dtype: torch.dtype) -> None:
    """Black, grey and white data under a network that says 0: every term, the decoder's too, trains."""
    said = torch.zeros(20, 3, dtype=dtype, requires_grad=True)
    x0 = torch.tensor([-1.0, 1 / 255, 1.0], dtype=dtype).expand(20, 3)
    u = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    for process in (GaussianProcess(linear(20)), GaussianProcess(linear(1000))):
        denoiser = Denoiser(lambda x, log_snr, condition: said, process, "x0")
        said.grad = None
        loss = variational_bound(denoiser, x0, None, u - u[0], Given(torch.ones_like(x0)), variance)
        assert loss.isfinite().all()
        loss.sum().backward()
        assert said.grad.isfinite().all()


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_uniform_times_of_a_table_hit_every_step_alike(steps: int) -> None:
    """Even u give each i / T, i = 1..T, the same number of times; the ends of [0, 1) are the ends of the table."""
    u = (torch.arange(7 * steps, dtype=torch.float64) + 0.5) / (7 * steps)
    t = TIME_SAMPLERS["uniform"](linear(steps), u)
    assert linear(steps).index(t).bincount().tolist() == [0] + [7] * steps
    assert TIME_SAMPLERS["uniform"](linear(steps), as64(0.0, 1 - 2.0**-53)).tolist() == [1 / steps, 1]


@pytest.mark.parametrize("name", FORMULAS)
def test_uniform_times_of_a_formula(name: str) -> None:
    """t = t_min + (1 - t_min) u."""
    schedule, u = SCHEDULES[name], as64(0.0, 0.25, 0.7, 1 - 2.0**-53)
    expected = [schedule.t_min + (1 - schedule.t_min) * v for v in u.tolist()]
    assert TIME_SAMPLERS["uniform"](schedule, u).tolist() == pytest.approx(expected, rel=4 * EPS)


@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_log_normal_times_have_their_distribution(name: str) -> None:
    """ln(sigma / alpha) at u is SciPy's normal quantile (mean -1.2, std 1.2), where the schedule has such a level."""
    schedule = SCHEDULES[name]
    u = (torch.arange(999, dtype=torch.float64) + 1) / 1000
    t = TIME_SAMPLERS["log-normal"](schedule, u)
    free = (t > schedule.t_min) & (t < 1)
    assert free.double().mean() > 0.95
    expected = stats.norm(-1.2, 1.2).ppf(u.numpy())
    np.testing.assert_allclose(-0.5 * schedule.log_snr(t)[free].numpy(), expected[free.numpy()], atol=1e-9)
    ends = TIME_SAMPLERS["log-normal"](schedule, as64(0.0, 1 - 2.0**-53))
    assert (schedule.t_min <= ends).all()
    assert (ends <= 1).all()
    other = TIME_SAMPLERS["log-normal"](schedule, as64(0.5), mean=0.3, std=0.1)
    assert schedule.log_snr(other).item() == pytest.approx(-0.6, abs=1e-10)


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_are_uniform(draw: str) -> None:
    """Kolmogorov's test against U(0, 1) with a fixed seed, in [0, 1), float64, a function of the generator alone."""
    u = torch.cat([DRAWS[draw](32, torch.Generator().manual_seed(seed)) for seed in range(100)])
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    # antithetic and stratified draws are more even than independent ones: only too large a distance is wrong
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    again = DRAWS[draw](32, torch.Generator().manual_seed(0))
    assert (u[:32] == again).all()
    assert [len(DRAWS[draw](n, torch.Generator())) for n in (1, 2, 7)] == [1, 2, 7]


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_low_discrepancy_has_one_in_each_stratum(count: int) -> None:
    """Sorted, u_i lies in [i / n, (i + 1) / n), all with one offset; the order is shuffled."""
    u = torch.sort(DRAWS["low-discrepancy"](count, torch.Generator().manual_seed(3))).values
    assert (u * count).floor().tolist() == list(range(count))
    torch.testing.assert_close(u.diff(), torch.full((count - 1,), 1 / count, dtype=torch.float64), rtol=1e-11, atol=0)
    if count >= 64:
        unsorted = DRAWS["low-discrepancy"](count, torch.Generator().manual_seed(3))
        assert abs(stats.spearmanr(np.arange(count), unsorted.numpy()).statistic) < 4 / math.sqrt(count)


@pytest.mark.parametrize("count", [2, 7, 64])
def test_antithetic_pairs_sum_to_one(count: int) -> None:
    """u_{2i} + u_{2i+1} = 1; an odd one out is alone."""
    u = DRAWS["antithetic"](count, torch.Generator().manual_seed(4))
    pairs = u[: count // 2 * 2].view(-1, 2)
    assert pairs.sum(1).tolist() == pytest.approx([1] * (count // 2), abs=EPS)
    assert (pairs[:, 0] != pairs[:, 1]).all()


@pytest.mark.parametrize("target", ["eps", "edm"])
def test_training_finds_the_analytic_denoiser(target: str) -> None:
    """A few hundred Adam steps on two modes bring an MLP near E[x_0 | x_t], far closer than any constant."""
    process = GaussianProcess(VP())
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(1, 1, width=32, blocks=2), process, target, 0.8)
    means, weights, std = MODES["means"], MODES["weights"], MODES["std"]
    optimiser = torch.optim.Adam(denoiser.network.parameters(), 3e-3)
    loss_of = partial(weighted_error, denoiser, weighting=WEIGHTINGS["min-snr"])

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x0 = means[torch.multinomial(weights, count, True, generator=generator)]
        x0 = x0 + std * torch.randn(count, generator=generator, dtype=torch.float64)
        return x0[:, None].float(), torch.randn(count, 1, generator=generator)

    for step in range(500):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 500)
        x0, noise = draw(256)
        loss = loss_of(x0, None, DRAWS["low-discrepancy"](256, generator), Given(noise)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for t in (0.1, 0.2, 0.35):
        x0, noise = draw(4000)
        x_t = process.corrupt(x0, t, Given(noise)).double()
        exact = mixture_denoiser(process)(x_t, t).x0
        level = process.noise_level(t)
        assert torch.equal(exact, mixture_x0(x_t, level.alpha, level.sigma, **MODES))
        with torch.no_grad():
            ours = denoiser(x_t.float(), t).x0
        # the best constant's error is exact.var(): over 95 % of it is gone
        assert (ours - exact).square().mean() < 0.05 * exact.var()
