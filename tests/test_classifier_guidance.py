"""Classifier guidance: where p(y | x_t) is known, the guided denoiser is the posterior mean given y, at every time."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from references import SCHEDULES, ZERO_SNR, as64, gaussian_denoiser, levels, oracle, walk
from torch import Tensor

from undiffuse.guidance import classifier_guidance, clip
from undiffuse.guidance.classifier import LogProb, gradient
from undiffuse.likelihood import Solver, decode, log_likelihood
from undiffuse.process import VP, Denoise, FlowMatching, GaussianProcess, Prediction, Time, expand
from undiffuse.sampling import SAMPLERS, ddim, make_grid

# A mixture of five Gaussians in three dimensions, and to which class each belongs.
MEANS = torch.tensor(
    [[-1.0, 0.2, 0.5], [0.8, -0.3, 0.1], [0.1, 0.9, -0.6], [0.4, 0.4, 0.9], [-0.5, -0.9, -0.2]]
).double()
STDS = as64(0.3, 0.15, 0.4, 0.2, 0.25)
WEIGHTS = as64(0.3, 0.1, 0.25, 0.15, 0.2)
GAUSSIANS, MIXTURES = torch.arange(5), torch.tensor([0, 0, 1, 1, 1])
TIMES: list[Time] = [0.05, 0.4, 0.85, 1.0, as64(0.05, 0.3, 0.7, 1.0)]


def joint(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """ln p(x_t, k) of every component: (B, 5)."""
    variance = (alpha * STDS) ** 2 + sigma**2
    distance = ((x[:, None] - alpha[..., None] * MEANS if alpha.ndim else x[:, None] - alpha * MEANS) ** 2).sum(2)
    return WEIGHTS.log() - distance / (2 * variance) - 1.5 * variance.log()


def mixture(process: GaussianProcess, among: Tensor) -> Denoise:
    """E[x_0 | x_t] of the mixture of the components `among`, bool (5,)."""

    def x0_of(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        share = joint(x, alpha, sigma).masked_fill(~among, -torch.inf).softmax(1)
        gain = alpha * STDS**2 / ((alpha * STDS) ** 2 + sigma**2) * torch.ones_like(share)
        at = alpha[..., None] * MEANS if alpha.ndim else alpha * MEANS
        return (share[..., None] * (MEANS + gain[..., None] * (x[:, None] - at))).sum(1)

    return oracle(process, x0_of)


EVERYTHING = torch.ones(5, dtype=torch.bool)


def class_of(process: GaussianProcess, classes: Tensor, y: int) -> LogProb:
    """ln p(y | x_t), exactly."""

    def log_prob(x: Tensor, t: Time) -> Tensor:
        level = process.noise_level(t)
        found = joint(x, expand(level.alpha, x), expand(level.sigma, x))
        return found.masked_fill(classes != y, -torch.inf).logsumexp(1) - found.logsumexp(1)

    return log_prob


def noisy(process: GaussianProcess, t: Time, seed: int = 0) -> Tensor:
    """Four states as large as they are at t."""
    level, random = process.noise_level(t), torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(4, 3, dtype=torch.float64, generator=random) for _ in range(2))
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def beyond(process: GaussianProcess, t: Time) -> bool:
    """Whether so little signal is left that the limit is taken, at alpha / sigma = e^-10."""
    return bool((process.schedule.log_snr(t) < -20).any())


def close(ours: Tensor, exact: Tensor, limit: bool = False) -> None:
    """To rounding; or, in the limit, to a few of its alpha / sigma."""
    tolerance = 3e-4 if limit else 1e-9
    torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", [GAUSSIANS, MIXTURES], ids=["Gaussians", "mixtures"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_scale_one_is_the_conditional_denoiser(name: str, classes: Tensor) -> None:
    """x_0 and eps are those of the class's own law, for one time and for one per sample, at pure noise too."""
    process = GaussianProcess(SCHEDULES[name])
    for t in TIMES:
        x_t, limit = noisy(process, t), beyond(process, t)
        for y in range(2):
            guided = classifier_guidance(mixture(process, EVERYTHING), process, class_of(process, classes, y))(x_t, t)
            exact = mixture(process, classes == y)(x_t, t)
            close(guided.x0, exact.x0, limit)
            close(guided.eps, exact.eps, limit)
            assert guided.x0.isfinite().all()


@pytest.mark.parametrize("name", ["vp", "zero-snr", "edm", "flow"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm-learned"])
def test_every_sampler_draws_the_class(sampler: str, name: str) -> None:
    """From the same noise it goes where it goes with the class's own denoiser, step by step, on two grids."""
    process = GaussianProcess(SCHEDULES[name])
    noise = [noisy(GaussianProcess(SCHEDULES["edm"]), 1 / 80, seed=k) for k in range(9)]
    guided = classifier_guidance(mixture(process, EVERYTHING), process, class_of(process, MIXTURES, 1))
    for rule in {SAMPLERS[sampler].grid, "trailing"}:
        grid, step = make_grid(rule, process.schedule, 8), SAMPLERS[sampler].step
        exact = walk(mixture(process, MIXTURES == 1), process, grid, step, noise.__getitem__)
        for ours, theirs in zip(walk(guided, process, grid, step, noise.__getitem__), exact, strict=True):
            close(ours.x, theirs.x, name in ZERO_SNR)


@pytest.mark.parametrize("schedule", [VP(), FlowMatching()], ids=["vp", "flow"])
def test_the_flow_ends_in_the_law_of_the_class(schedule: VP | FlowMatching) -> None:
    """The guided probability flow maps noise to a Gaussian class affinely, and has its density."""
    process, y, t = GaussianProcess(schedule), 2, schedule.t_min
    guided = classifier_guidance(mixture(process, EVERYTHING), process, class_of(process, GAUSSIANS, y))
    latent = noisy(process, 1.0)
    (alpha_1, sigma_1), (alpha, sigma) = levels(process, as64(1.0, t))
    spread_1, spread = ((a * STDS[y]).hypot(torch.tensor(s).double()) for a, s in ((alpha_1, sigma_1), (alpha, sigma)))
    exact = alpha * MEANS[y] + spread / spread_1 * (latent - alpha_1 * MEANS[y])
    x = decode(guided, process, latent, Solver(rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-5)  # the limit at alpha = 0 costs 5e-5, which the flow forgets
    found = log_likelihood(guided, process, x, divergence="exact", solver=Solver(rtol=1e-7, atol=1e-7)).log_prob
    prior = torch.distributions.Normal(torch.zeros(3).double(), process.prior_scale())
    log_det = 3 * (spread_1 / spread).log()  # of the affine map, from x to the latent
    torch.testing.assert_close(found, prior.log_prob(latent).sum(1) + log_det, rtol=0, atol=1e-4)


# Gaussian data and linear observations of it.

COVARIANCE = torch.tensor([[0.5, 0.3, -0.1], [0.3, 0.4, 0.1], [-0.1, 0.1, 0.3]]).double()
CENTRE = as64(0.2, -0.1, 0.4)
FIRST = (torch.tensor([[1.0, -1.0, 0.5]]).double(), as64(0.04).diag(), as64(0.7))  # H, R, y
SECOND = (torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]).double(), as64(0.3, 0.1).diag(), as64(-0.2, 0.5))
BOTH = (torch.cat([FIRST[0], SECOND[0]]), torch.block_diag(FIRST[1], SECOND[1]), torch.cat([FIRST[2], SECOND[2]]))
EYE = torch.eye(3, dtype=torch.float64)
Observation = tuple[Tensor, Tensor, Tensor]


def correlated(process: GaussianProcess, covariance: Tensor) -> Denoise:
    """E[x_0 | x_t] for N(CENTRE, covariance): the Wiener filter."""

    def x0_of(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * EYE)
        return CENTRE + (x - alpha * CENTRE) @ gain.mT

    return oracle(process, x0_of)


def observed(process: GaussianProcess, covariance: Tensor, observation: Observation) -> LogProb:
    """ln p(y | x_t), y = H x_0 + N(0, R): N(H E[x_0 | x_t], H Cov[x_0 | x_t] H^T + R)."""
    h, r, y = observation

    def log_prob(x: Tensor, t: Time) -> Tensor:
        level, denoise = process.noise_level(t), correlated(process, covariance)
        gain = level.alpha * covariance @ torch.linalg.inv(level.alpha**2 * covariance + level.sigma**2 * EYE)
        posterior = covariance - level.alpha * gain @ covariance
        mean = denoise(x, t).x0 @ h.mT
        return torch.distributions.MultivariateNormal(mean, h @ posterior @ h.mT + r).log_prob(y)

    return log_prob


def information_form(
    process: GaussianProcess, covariance: Tensor, x: Tensor, t: float, observation: Observation
) -> Tensor:
    """E[x_0 | x_t, y] by adding precisions."""
    (h, r, y), ((alpha, sigma),) = observation, levels(process, as64(t))
    precision, weight = torch.linalg.inv(covariance), h.mT @ torch.linalg.inv(r)
    total = precision + alpha**2 / sigma**2 * EYE + weight @ h
    return torch.linalg.solve(total, (precision @ CENTRE + weight @ y + alpha / sigma**2 * x).mT).mT


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_linear_observation_gives_the_posterior_mean(name: str) -> None:
    """And two give that of both: the second's probability is that given the first."""
    process = GaussianProcess(SCHEDULES[name])
    log_prob = partial(observed, process, COVARIANCE)

    def second(x: Tensor, t: Time) -> Tensor:
        return log_prob(BOTH)(x, t) - log_prob(FIRST)(x, t)

    for t in (0.05, 0.5, 1.0):
        x_t = noisy(process, t)
        once = classifier_guidance(correlated(process, COVARIANCE), process, log_prob(FIRST))
        limit = beyond(process, t)
        close(once(x_t, t).x0, information_form(process, COVARIANCE, x_t, t, FIRST), limit)
        twice = classifier_guidance(once, process, second)
        close(twice(x_t, t).x0, information_form(process, COVARIANCE, x_t, t, BOTH), limit)


def test_observations_multiply_where_they_are_independent_given_the_state() -> None:
    """Of parts of x_0 that are independent, each needs to know nothing of the other; of dependent ones it does."""
    process, t = GaussianProcess(SCHEDULES["vp"]), 0.4
    x_t, found = noisy(process, t), []
    one, two = ((EYE[k : k + 1], as64(0.05).diag(), as64(y)) for k, y in ((0, 0.9), (1, -0.5)))
    both = (torch.cat([one[0], two[0]]), torch.block_diag(one[1], two[1]), torch.cat([one[2], two[2]]))
    for covariance in (COVARIANCE.diagonal().diag(), COVARIANCE):
        denoise = correlated(process, covariance)
        for observation in (one, two):
            denoise = classifier_guidance(denoise, process, observed(process, covariance, observation))
        found.append((denoise(x_t, t).x0 - information_form(process, covariance, x_t, t, both)).abs().max().item())
    assert found[0] < 1e-12 and found[1] > 0.01


# What goes wrong elsewhere.


@pytest.mark.parametrize("s", [0.0, 0.1, 0.3, 0.45, 0.49])
def test_a_guided_x0_with_the_old_eps_depends_on_the_step(s: float) -> None:
    """One DDIM step is that of the conditional denoiser. With eps left as it was the shift is 1 / (1 - r_s / r_t) times
    as large, r = sigma / alpha: right onto the data alone, and ever worse the shorter the step."""
    process, t = GaussianProcess(SCHEDULES["vp"]), 0.5
    x_t, plain = noisy(process, t), mixture(process, EVERYTHING)
    guided = classifier_guidance(plain, process, class_of(process, MIXTURES, 0))

    def half_guided(x: Tensor, t: Time) -> Prediction:
        return replace(plain(x, t), x0=guided(x, t).x0)

    def after(denoise: Denoise) -> Tensor:
        *_, last = walk(denoise, process, as64(t, s), ddim, torch.empty, x_t)
        return last.x

    close(after(guided), after(mixture(process, MIXTURES == 0)))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(process, as64(t, s))
    too_much = 1 / (1 - sigma_s / alpha_s * alpha_t / sigma_t)
    close(after(half_guided) - after(plain), too_much * (after(guided) - after(plain)))


def test_adms_shift_of_the_mean_is_the_limit_of_small_steps() -> None:
    """The mean of p(x_s | x_t) moves by alpha_s / alpha_t c sigma_t^2 grad; ADM's Sigma grad differs by O(t - s)."""
    process, t, errors = GaussianProcess(SCHEDULES["vp"]), 0.5, []
    x_t, log_prob = noisy(process, t), class_of(process, MIXTURES, 0)
    plain = mixture(process, EVERYTHING)
    guided, slope = classifier_guidance(plain, process, log_prob), gradient(log_prob, x_t, t)
    for length in (0.08, 0.04, 0.02, 0.01):
        before, after = (process.reverse(denoise(x_t, t), x_t, t - length, t) for denoise in (plain, guided))
        (alpha_s, _), (alpha_t, sigma_t) = levels(process, as64(t - length, t))
        c = process.noise_fraction(t - length, t)
        close(after.mean - before.mean, alpha_s / alpha_t * c * sigma_t**2 * slope)
        adm = before.variance * slope
        errors.append(((after.mean - before.mean) / adm - 1).abs().max().item())
    assert all(1.8 < large / small < 2.6 for large, small in itertools.pairwise(errors)) and errors[-1] < 0.2


# Invariances.


def test_the_scale_is_linear_and_zero_is_no_guidance() -> None:
    """D + w (D_1 - D); at 0 the same bits. The learnt variance and logits are kept, thresholds go around it."""
    process, t = GaussianProcess(SCHEDULES["linear"]), as64(0.1, 0.4, 0.7, 1.0)
    x_t, log_prob = noisy(process, t), class_of(process, MIXTURES, 0)

    def learned(x: Tensor, t: Time) -> Prediction:
        return replace(mixture(process, EVERYTHING)(x, t), v=x, logits=2 * x)

    scaled = {w: classifier_guidance(learned, process, log_prob, w)(x_t, t) for w in (0.0, 1.0, 3.5, -1.0)}
    assert (scaled[0.0].x0 == learned(x_t, t).x0).all()
    for w, prediction in scaled.items():
        close(prediction.x0, scaled[0.0].x0 + w * (scaled[1.0].x0 - scaled[0.0].x0))
        assert prediction.v is x_t and (prediction.logits == 2 * x_t).all()
    wrapped = clip(classifier_guidance(learned, process, log_prob, 50.0), process)(x_t, t)
    assert wrapped.x0.abs().max() == 1


def test_samples_do_not_depend_on_each_other() -> None:
    """Four samples at four times are four batches of one."""
    process, t = GaussianProcess(SCHEDULES["edm"]), as64(0.002, 0.05, 0.3, 1.0)
    x_t = noisy(process, t)
    guided = classifier_guidance(mixture(process, EVERYTHING), process, class_of(process, MIXTURES, 1), 2.0)
    together = guided(x_t, t)
    for k in range(4):
        alone = guided(x_t[k : k + 1], t[k].item())
        torch.testing.assert_close(alone.x0[0], together.x0[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.eps[0], together.eps[k], rtol=1e-12, atol=1e-12)


def test_gradients_are_had_while_sampling_without_them() -> None:
    """Within no_grad, as samplers run, and inference_mode; what comes out has no graph, and x_t is left as it was."""
    process, x_t = GaussianProcess(SCHEDULES["vp"]), noisy(GaussianProcess(SCHEDULES["vp"]), 0.5)
    guided = classifier_guidance(gaussian_denoiser(process, as64(0.0), as64(1.0)), process, lambda x, t: -(x**2).sum(1))
    ((alpha, sigma),) = levels(process, as64(0.5))
    plain = gaussian_denoiser(process, as64(0.0), as64(1.0))(x_t, 0.5)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            prediction = guided(x_t + 0, 0.5)
        assert not prediction.x0.requires_grad and not x_t.requires_grad
        close(prediction.x0, plain.x0 - 2 * sigma**2 / alpha * x_t)
