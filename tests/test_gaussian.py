"""The Gaussian process q: Chapman-Kolmogorov, Bayes' rule, DDPM's formulas, divergences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from references import EPS, FORMULAS, SCHEDULES, TABLES, ZERO_SNR, as64, formula_sde, levels
from scipy import integrate, stats

from undiffuse.process import VP, FlowMatching, GaussianProcess, Normal, Schedule, cosine, expand, linear
from undiffuse.randomness import Given

every_schedule = pytest.mark.parametrize("name", SCHEDULES)

PAIRS = [(0.05, 0.1), (0.05, 1.0), (0.3, 0.35), (0.5, 0.95), (0.25, 0.75), (0.9, 1.0)]


def process(name: str) -> GaussianProcess:
    return GaussianProcess(SCHEDULES[name])


@every_schedule
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_transition_after_marginal_is_marginal(name: str, s: float, t: float) -> None:
    """Chapman-Kolmogorov: q(x_s | x_0) followed by q(x_t | x_s) has the mean and variance of q(x_t | x_0)."""
    q, x0 = process(name), as64(0.7, -1.3)
    at_s, at_t = q.marginal(x0, s), q.marginal(x0, t)
    # The transition is affine: its slope and offset come from two points.
    offset = q.transition(torch.zeros_like(x0), s, t).mean
    slope = q.transition(torch.ones_like(x0), s, t).mean - offset
    torch.testing.assert_close(offset + slope * at_s.mean, at_t.mean, rtol=4 * EPS, atol=0)
    variance = slope**2 * at_s.variance + q.transition(x0, s, t).variance
    torch.testing.assert_close(variance, at_t.variance.expand(2), rtol=8 * EPS, atol=0)


@every_schedule
def test_transitions_compose(name: str) -> None:
    """q(x_t | x_s) and q(x_u | x_t) compose to q(x_u | x_s): 1 - c multiplies."""
    q, one = process(name), as64(1.0)
    a, b, c = (q.transition(one, *times) for times in ((0.2, 0.55), (0.55, 0.9), (0.2, 0.9)))
    torch.testing.assert_close(a.mean * b.mean, c.mean, rtol=8 * EPS, atol=0)
    torch.testing.assert_close(b.mean**2 * a.variance + b.variance, c.variance.expand(1), rtol=8 * EPS, atol=0)


@every_schedule
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_posterior_is_bayes_rule(name: str, s: float, t: float) -> None:
    """q(x_s | x_t, x_0) is the product of the normals q(x_s | x_0) and q(x_t | x_s) in x_s: precisions add."""
    q = process(name)
    x0, x_t = 0.8, -1.7
    (alpha_s, sigma_s), (alpha_t, sigma_t) = levels(q, as64(s, t))
    slope = alpha_t / alpha_s
    noise = sigma_t**2 - slope**2 * sigma_s**2
    precision = 1 / sigma_s**2 + slope**2 / noise
    mean = (alpha_s * x0 / sigma_s**2 + slope * x_t / noise) / precision
    ours = q.posterior(as64(x0), as64(x_t), s, t)
    # noise is a difference: it loses sigma_t^2 / noise of its digits, here less than 1e4.
    assert ours.mean.item() == pytest.approx(mean, rel=1e-11)
    assert ours.variance.item() == pytest.approx(1 / precision, rel=1e-11)


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_posterior_at_the_data_is_the_data(name: str, t: float) -> None:
    """At s = 0, x_0 to the bit and no variance, from any x_t and even from pure noise."""
    x0 = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    posterior = process(name).posterior(x0, 1e3 * x0.flip(0), 0.0, t)
    assert (posterior.mean == x0).all()
    assert posterior.variance == 0


@pytest.mark.parametrize("name", sorted(ZERO_SNR))
def test_pure_noise_says_nothing(name: str) -> None:
    """Where no signal is left, x_t is independent of x_s: the posterior is the marginal, the transition forgets."""
    q, x0 = process(name), as64(0.3)
    for x_t in (as64(-2.0), as64(5.0)):
        posterior, marginal = q.posterior(x0, x_t, 0.5, 1.0), q.marginal(x0, 0.5)
        assert (posterior.mean == marginal.mean).all()
        assert posterior.variance == marginal.variance
    transition = q.transition(as64(7.0), 0.5, 1.0)
    assert (transition.mean.item(), transition.variance.item()) == (0, 1)


@pytest.mark.parametrize("table", [linear(10), linear(1000), cosine(100), TABLES["zero-snr"](50)])
def test_neighbouring_steps_are_ddpm(table: Schedule) -> None:
    """The posterior of step i -> i - 1 is eq. 6-7 of Ho et al. 2020, the transition its eq. 2, written with betas."""
    q = GaussianProcess(table)
    betas = np.asarray(table.betas)
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    x0, x_t = 0.6, -1.1
    for i in {1, 2, len(betas) // 2, len(betas) - 1, len(betas)}:
        t, s = table.time_of(i), table.time_of(i - 1)
        beta, bar, before = betas[i - 1], bars[i], bars[i - 1]
        mean = np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x_t
        posterior = q.posterior(as64(x0), as64(x_t), s, t)
        # 1 - bar in NumPy keeps eps / (1 - bar) <= 1e4 eps of its digits, and more are lost along the product.
        assert posterior.mean.item() == pytest.approx(mean, rel=1e-10)
        assert posterior.variance.item() == pytest.approx((1 - before) / (1 - bar) * beta, rel=1e-9)
        transition = q.transition(as64(x_t), s, t)
        assert transition.mean.item() == pytest.approx(np.sqrt(1 - beta) * x_t, rel=1e-12)
        assert transition.variance.item() == pytest.approx(beta, rel=1e-10)


@every_schedule
def test_times_per_sample(name: str) -> None:
    """A vector of s and t gives each sample what it gets alone, in every method, and the dtype stays."""
    q, generator = process(name), torch.Generator().manual_seed(2)
    x0, x_t, noise = torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=generator)
    s, t = as64(0.0, 0.2, 0.45, 0.9), as64(0.05, 0.25, 1.0, 0.95)
    together = [q.marginal(x0, t), q.transition(x_t, s, t), q.posterior(x0, x_t, s, t)]
    corrupted = q.corrupt(x0, t, Given(noise))
    for k in range(4):
        one, s_k, t_k = slice(k, k + 1), s[k].item(), t[k].item()
        alone = [q.marginal(x0[one], t_k), q.transition(x_t[one], s_k, t_k), q.posterior(x0[one], x_t[one], s_k, t_k)]
        for ours, expected in zip(together, alone, strict=True):
            assert (ours.mean[one] == expected.mean).all()
            assert ours.variance[k] == expected.variance
            assert (ours.at(noise)[one] == expected.at(noise[one])).all()
        assert (corrupted[one] == q.corrupt(x0[one], t_k, Given(noise[one]))).all()
    assert q.corrupt(x0.float(), t, Given(noise.float())).dtype == torch.float32
    assert q.posterior(x0.float(), x_t.float(), s, t).sample(Given(noise.float())).dtype == torch.float32
    assert q.posterior(x0.float(), x_t.float(), 0.1, 0.2).sample(Given(noise.float())).dtype == torch.float32


@every_schedule
def test_corrupt_draws_from_the_marginal(name: str) -> None:
    """corrupt is alpha x_0 + sigma noise: the marginal's own reparametrisation."""
    q, x0, noise = process(name), as64(0.4, -2.0), as64(1.5, -0.5)
    for t in (0.05, 0.5, 1.0):
        ((alpha, sigma),) = levels(q, as64(t))
        assert q.corrupt(x0, t, Given(noise)).tolist() == [
            alpha * a + sigma * b for a, b in zip(x0, noise, strict=True)
        ]
        torch.testing.assert_close(q.marginal(x0, t).at(noise), q.corrupt(x0, t, Given(noise)), rtol=4 * EPS, atol=EPS)


@pytest.mark.parametrize("name", FORMULAS)
def test_short_transitions_keep_their_digits(name: str) -> None:
    """c sigma_t^2 over a tiny interval is d(sigma^2)/dt - (2 dln alpha/dt) sigma^2, the SDE's g^2, times its length."""
    t, length = 0.6, 1e-7
    variance = process(name).transition(as64(1.0), t - length, t).variance.item()
    # f g^2 length is left out, |f| < 8; rounding is eps |lambda| / (c ~ 1e-6)
    assert variance / length == pytest.approx(formula_sde(name)[1](t - length / 2), rel=1e-6)


def test_kl_of_normals() -> None:
    """KL agrees with numerical integration of p ln(p / q) and with torch.distributions, and is 0 for equals."""
    cases = [(0.3, 0.04, -0.2, 0.09), (1.0, 1.0, 0.0, 1.0), (0.0, 1e-4, 0.01, 2e-4), (2.0, 4.0, -1.0, 0.5)]
    for m, v, n, w in cases:
        p, q = stats.norm(m, math.sqrt(v)), stats.norm(n, math.sqrt(w))
        low, high = m - 12 * math.sqrt(v), m + 12 * math.sqrt(v)

        def integrand(x: float, p: Any = p, q: Any = q) -> float:
            return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

        exact, _ = integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-12, points=[m])
        ours = Normal(as64(m), torch.tensor(v, dtype=torch.float64)).kl(Normal(as64(n), as64(w)))
        assert ours.shape == (1,)
        assert ours.item() == pytest.approx(exact, rel=1e-9)
        p, q = torch.distributions.Normal(as64(m), as64(v).sqrt()), torch.distributions.Normal(as64(n), as64(w).sqrt())
        torch.testing.assert_close(ours, torch.distributions.kl_divergence(p, q), rtol=1e-13, atol=1e-15)
    same = Normal(as64(0.3, 4.0), as64(0.2, 7.0))
    assert (same.kl(same) == 0).all()


def test_kl_is_infinite_where_one_variance_is_zero() -> None:
    """A point against a normal, either way round, is infinitely far, as `Normal.kl` promises."""
    mean, point, wide = as64(0.0, 1.0), torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert (Normal(mean, point).kl(Normal(mean, wide)) == math.inf).all()
    assert (Normal(mean, wide).kl(Normal(mean + 1, point)) == math.inf).all()
    assert (Normal(mean, wide).kl(Normal(mean, point)) == math.inf).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-snr", "vp"])
def test_prior_of_variance_preserving_schedules_is_unit(name: str) -> None:
    """p(x_1) = N(0, 1); for the others sqrt(alpha_1^2 + sigma_1^2), what unit data becomes."""
    prior = process(name).prior(torch.full((2, 3), 9.0))
    assert (prior.mean == 0).all()
    assert prior.mean.shape == (2, 3)
    assert prior.variance.item() == pytest.approx(1, abs=4 * EPS)


def test_prior_of_other_schedules() -> None:
    """VE and EDM start from unit data plus sigma_max^2 of noise (less VE's sigma_min^2), flow from 1."""
    assert process("edm").prior_scale().item() == pytest.approx(math.sqrt(6401), rel=4 * EPS)
    assert process("ve").prior_scale().item() == pytest.approx(math.sqrt(1 + 2500 - 1e-4), rel=1e-14)
    assert GaussianProcess(FlowMatching()).prior_scale() == 1
    b = 0.1 + 19.9 / 2
    expected = math.sqrt(math.exp(-b) + (1 - math.exp(-b)) ** 2)
    assert process("sub-vp").prior_scale().item() == pytest.approx(expected, rel=4 * EPS)


def test_noise_fraction_is_the_share_of_noise_added() -> None:
    """c = 1 - SNR_t / SNR_s in exact ratios for flow matching, 1 from the data, 1 to pure noise."""
    q = GaussianProcess(FlowMatching())
    # SNR = ((1 - t) / t)^2: 1 at 1/2, 1/9 at 3/4
    assert q.noise_fraction(0.5, 0.75).item() == pytest.approx(8 / 9, rel=4 * EPS)
    assert q.noise_fraction(0.0, 0.3) == 1
    assert q.noise_fraction(0.3, 1.0) == 1
    assert q.noise_fraction(0.0, 1.0) == 1
    assert 0 < GaussianProcess(VP()).noise_fraction(0.5 - 1e-12, 0.5) < 1e-10


def test_expand_keeps_the_dtype_of_data() -> None:
    """0-dim coefficients stay as they are; one per sample becomes (B, 1, ...) in the dtype of the data."""
    x = torch.zeros(2, 3, 4)
    assert (expand(as64(1, 2), x) * torch.ones_like(x)).dtype == torch.float32
    assert expand(as64(1, 2), x).flatten().tolist() == [1, 2]
    assert expand(as64(1, 2), x).shape == (2, 1, 1)
    assert (expand(torch.tensor(0.5, dtype=torch.float64), x) * x).dtype == torch.float32


def test_a_variance_for_each_element() -> None:
    """A variance shaped like the mean belongs to its element, in `sample` and in `kl` (torch.distributions)."""
    mean, other, noise = torch.randn(3, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    own, its = noise.exp(), mean.exp()
    torch.testing.assert_close(Normal(mean, own).at(noise), mean + own.sqrt() * noise, rtol=1e-14, atol=1e-15)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, own.sqrt()), torch.distributions.Normal(other, its.sqrt())
    )
    torch.testing.assert_close(Normal(mean, own).kl(Normal(other, its)), exact, rtol=1e-12, atol=1e-14)
