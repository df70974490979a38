"""Samplers: the exact mean and variance of their output for Gaussian data, invariances, and where noise comes from."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from references import (
    MODES,
    SCHEDULES,
    TABLES,
    ZERO_SNR,
    as64,
    ddim_moments,
    ddpm_moments,
    euler,
    gaussian_denoiser,
    karras_heun,
    levels,
    mixture_denoiser,
    walk,
)
from scipy import stats
from torch import Tensor

from undiffuse.denoiser import Denoiser, Prediction
from undiffuse.networks import MLP, UNet
from undiffuse.process import EDM, VE, VP, FlowMatching, GaussianProcess, SubVP, Time, cosine, linear
from undiffuse.randomness import Given, Purpose, keyed_draws, normal, stream, torch_generator
from undiffuse.sampling import SAMPLERS, Step, ancestral, ddim, heun, make_grid
from undiffuse.sampling import steps as step_rules

MEAN, STD = as64(0.0, -0.4, 0.7, 2.0), as64(1.0, 0.05, 0.3, 1.7)  # of the data, each element its own
ETAS = [0.0, 0.3, 0.5, 1.0]


def moments(process: GaussianProcess, grid: Tensor, step: Step) -> list[tuple[np.ndarray, np.ndarray]]:
    """Exact mean and variance of every state for x_1 from the prior and data N(MEAN, STD^2).

    The states are affine in the start and in each step's noise: row 0 has none of them, row 1 + k a unit of noise k.
    """
    rows = len(grid) + 1

    def noise(k: int) -> Tensor:
        unit = torch.zeros(rows, len(MEAN), dtype=torch.float64)
        unit[1 + k] = 1
        return unit

    states = [s.x.numpy() for s in walk(gaussian_denoiser(process, MEAN, STD), process, grid, step, noise)]
    return [(x[0], ((x[1:] - x[0]) ** 2).sum(0)) for x in states]


def assert_moments(ours: list[tuple[np.ndarray, np.ndarray]], reference: Callable) -> None:
    """Every state has the moments that `reference` (mean, std) -> [(mean, variance), ...] says, for each element."""
    for element, (mean, std) in enumerate(zip(MEAN.tolist(), STD.tolist(), strict=True)):
        expected = np.array(reference(mean, std))
        found = np.array([(m[element], v[element]) for m, v in ours])
        scale = 1 + np.abs(expected).max()
        # 50 affine steps, each with the rounding of coefficients that carry eps SNR of 1 - alpha_bar
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * scale)


def runs(name: str) -> list[tuple[int, str]]:
    """(N, grid rule) to try; 20-step tables and formulas."""
    counts = (1, 2, 3, 5, 10) if SCHEDULES[name].steps else (1, 2, 3, 5, 10, 50)
    return [(n, rule) for n in counts for rule in ("trailing", "leading", "log-snr")]


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_output_on_gaussian_data(name: str, eta: float) -> None:
    """Mean and variance of every state at every N follow Song et al. 2021, eq. 12 and 16, from eta 0 to 1."""
    process = GaussianProcess(SCHEDULES[name])
    ((alpha, sigma),) = levels(process, as64(1.0))
    for n, rule in runs(name):
        grid = make_grid(rule, process.schedule, n)
        at = levels(process, grid)
        ours = moments(process, grid, partial(ddim, eta=eta))
        assert_moments(ours, lambda mean, std, at=at: ddim_moments(at, eta, mean, std, 0.0, alpha**2 + sigma**2))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", ["linear", "scaled-linear", "cosine", "zero-snr", "vp"])
def test_ddpm_output_on_gaussian_data(name: str, variance: str) -> None:
    """Mean and variance of every state at every N follow Ho et al. 2020, algorithm 2, with beta of the interval."""
    process = GaussianProcess(SCHEDULES[name])
    for n, rule in runs(name):
        grid = make_grid(rule, process.schedule, n)
        at = levels(process, grid)
        ours = moments(process, grid, partial(ancestral, variance=variance))
        if name in ZERO_SNR:  # 1 / sqrt(1 - beta) of the paper is 0 / 0 from pure noise: x_s ~ q(x_s | x_0 = mean)
            start = {e: (at[1][0] * MEAN[e].item(), None) for e in range(4)}
            assert all(ours[1][0][e] == pytest.approx(m, abs=1e-12) for e, (m, _) in start.items())
            added = 0.0 if n == 1 else 1.0 if variance == "large" else at[1][1] ** 2
            assert ours[1][1] == pytest.approx(4 * [added], abs=1e-12)
            for e, (mean, std) in enumerate(zip(MEAN.tolist(), STD.tolist(), strict=True)):
                rest = ddpm_moments(at[1:], variance == "large", mean, std, ours[1][0][e], ours[1][1][e])
                found = [(m[e], v[e]) for m, v in ours[1:]]
                np.testing.assert_allclose(found, rest, rtol=1e-9, atol=1e-11)
        else:
            large = variance == "large"
            assert_moments(ours, lambda mean, std, at=at, large=large: ddpm_moments(at, large, mean, std, 0.0, 1.0))


@pytest.mark.parametrize("name", ["scaled-linear", "vp", "ve", "edm", "sub-vp"])
def test_heun_output_on_gaussian_data(name: str) -> None:
    """Karras et al. 2022, algorithm 1 in x / alpha, run on the same unit starts."""
    process = GaussianProcess(SCHEDULES[name])
    start = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * process.prior_scale()
    mean, std = MEAN.numpy(), STD.numpy()

    def x0_of(y: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        precision = 1 / std**2 + (alpha / sigma) ** 2  # the posterior of x_0: precisions add
        return (mean / std**2 + alpha / sigma**2 * y) / precision

    for n, rule in [*runs(name), (7, "karras")]:
        grid = make_grid(rule, process.schedule, n)
        *_, last = walk(gaussian_denoiser(process, MEAN, STD), process, grid, heun, torch.empty, start)
        exact = karras_heun(start.numpy(), levels(process, grid), x0_of)
        np.testing.assert_allclose(last.x.numpy(), exact, rtol=1e-9, atol=1e-9)


def test_heun_forgets_what_was_believed_in_pure_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosine table begins at sigma / alpha = 2e4. An error of a network in x_0 there must fade as alpha_s does, and
    a trapezoid from there to the second time would multiply it instead.
    """
    process = GaussianProcess(TABLES["cosine"](1000))
    start = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    denoise, grid = mixture_denoiser(process), make_grid("karras", process.schedule, 10)

    def mistaken(x_t: Tensor, t: Time) -> Prediction:
        prediction = denoise(x_t, t)
        return prediction.with_x0(prediction.x0 + 0.1 * (t == 1.0), x_t, process.noise_level(t))

    def difference() -> float:
        *_, right = walk(denoise, process, grid, heun, torch.empty, start)
        *_, wrong = walk(mistaken, process, grid, heun, torch.empty, start)
        return (right.x - wrong.x).abs().mean().item()

    assert difference() < 0.005
    monkeypatch.setattr(step_rules, "PURE_NOISE", float("inf"))
    assert difference() > 0.02


def test_ddpm_of_many_steps_has_the_variance_of_the_data() -> None:
    """T-step DDPM on N(m, s^2): for s < 1 the small variance gives less than s^2, the large more, by O(1 / T)."""
    errors = {"small": [], "large": []}
    for steps in (50, 200, 800):
        process = GaussianProcess(TABLES["zero-snr"](steps))  # x_1 is the prior's exactly
        grid = make_grid("trailing", process.schedule, steps)
        for variance, found in errors.items():
            mean, var = moments(process, grid, partial(ancestral, variance=variance))[-1]
            np.testing.assert_allclose(mean, MEAN.numpy(), atol=1e-9)
            found.append(var[2] - 0.09)
    assert all(e < 0 for e in errors["small"])
    assert all(e > 0 for e in errors["large"])
    for found in errors.values():  # four times the steps, a quarter of the error, as T grows
        assert found[0] / found[1] > 2.5
        assert 3.2 < found[1] / found[2] < 4.2


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-snr", "vp", "sub-vp", "ve", "edm", "flow"])
def test_ddim_with_eta_one_is_ddpm(name: str) -> None:
    """Step by step the same states from the same noise, on data whose denoiser is not linear."""
    process = GaussianProcess(SCHEDULES[name])
    grid = make_grid("trailing", process.schedule, 10)
    noise = [torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(11)]
    denoise = mixture_denoiser(process)
    pairs = zip(
        walk(denoise, process, grid, partial(ddim, eta=1.0), noise.__getitem__),
        walk(denoise, process, grid, ancestral, noise.__getitem__),
        strict=True,
    )
    for ours, expected in pairs:
        torch.testing.assert_close(ours.x, expected.x, rtol=1e-9, atol=1e-10)
        assert ours.t == expected.t


def mixture_x0_numpy(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x_t] for MODES by Bayes' rule, in NumPy."""
    means, weights, std = MODES["means"].numpy(), MODES["weights"].numpy(), MODES["std"]
    spread = math.hypot(alpha * std, sigma)
    likelihood = weights * stats.norm.pdf(x[..., None], alpha * means, spread)
    likelihood /= likelihood.sum(-1, keepdims=True)
    return (likelihood * (means * sigma**2 + alpha * std**2 * x[..., None]) / spread**2).sum(-1)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "sub-vp", "ve", "edm"])
def test_ddim_without_noise_is_euler(name: str) -> None:
    """eta = 0 is Euler on dy/du = eps in y = x / alpha, u = sigma / alpha (Song et al. 2021, eq. 14)."""
    process = GaussianProcess(SCHEDULES[name])
    start = process.prior_scale() * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for n, rule in runs(name):
        grid = make_grid(rule, process.schedule, n)
        *_, last = walk(mixture_denoiser(process), process, grid, ddim, torch.empty, start)
        exact = euler(start.numpy(), levels(process, grid), mixture_x0_numpy)
        np.testing.assert_allclose(last.x.numpy(), exact, rtol=1e-8, atol=1e-9)


UNLEARNED = [name for name in SAMPLERS if name != "ddpm-learned"]
STEPS: dict[str, Step] = {name: SAMPLERS[name].step for name in UNLEARNED}
STEPS["ddim-0.5"] = partial(ddim, eta=0.5)


@pytest.mark.parametrize("name", [name for name in STEPS if name != "ddpm-large"])
def test_one_process_under_any_schedule(name: str) -> None:
    """At the same log-SNRs, from the same start, VP, sub-VP, VE, EDM and flow matching visit the same x / alpha.

    The noise of a step is scaled with sigma, as the states are: all the draws are the same.
    """
    log_snr = torch.linspace(-5, 7, 9, dtype=torch.float64)
    noise = [torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(10)]
    results = []
    for schedule in (VP(), SubVP(), VE(), EDM(), FlowMatching(), cosine(50)):
        process = GaussianProcess(schedule)
        grid = torch.cat([schedule.time(log_snr), as64(0.0)])
        start = process.corrupt(torch.full((4, 2), 0.3, dtype=torch.float64), grid[0], Given(noise[0]))
        states = walk(mixture_denoiser(process), process, grid, STEPS[name], noise.__getitem__, start)
        results.append(torch.stack([state.x / schedule.noise_level(state.t).alpha for state in states]))
    for other in results[1:]:
        # time(log_snr) is off by eps |lambda| of lambda, and each step passes it on
        torch.testing.assert_close(other, results[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in STEPS if name != "ddpm-large"])
@pytest.mark.parametrize("schedule", ["linear", "zero-snr", "vp", "edm", "flow"])
def test_the_last_state_is_the_prediction_of_the_data(name: str, schedule: str) -> None:
    """At s = 0 x is the denoiser's x_0 of the state before, to the bit: no noise is left, for every N."""
    process = GaussianProcess(SCHEDULES[schedule])
    denoise = mixture_denoiser(process)
    noise = partial(lambda k: torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k)))
    for n in (1, 2, 3, 7):
        grid = make_grid("trailing", process.schedule, n)
        states = list(walk(denoise, process, grid, STEPS[name], noise))
        assert [s.t for s in states] == grid.tolist()
        assert (states[-1].x == denoise(states[-2].x, states[-2].t).x0).all()
        assert torch.equal(states[-1].x0, states[-1].x)
        assert states[0].x0 is None
        assert (states[0].x == process.prior_scale() * noise(0)).all()
        assert all(s.x.isfinite().all() for s in states)


NEEDS_NOISE = {"ddpm", "ddpm-large", "ddim-0.5"}


@pytest.mark.parametrize("name", STEPS)
def test_noise_is_asked_for_only_where_it_is_needed(name: str) -> None:
    """The start, and each step but the last of the stochastic rules: by number, once."""
    process, asked = GaussianProcess(linear(20)), []

    def noise(k: int) -> Tensor:
        asked.append(k)
        return torch.ones(2, 2)

    denoise, grid = gaussian_denoiser(process, as64(0, 0), as64(1, 1)), make_grid("trailing", process.schedule, 5)
    for start in (None, torch.zeros(2, 2)):
        asked.clear()
        list(walk(denoise, process, grid, STEPS[name], noise, start))
        assert asked == ([0] if start is None else []) + ([1, 2, 3, 4] if name in NEEDS_NOISE else [])


@pytest.mark.parametrize(("mix", "name"), [(0.0, "ddpm"), (1.0, "ddpm-large")])
def test_a_learned_variance_reaches_both_ends(mix: float, name: str) -> None:
    """ddpm-learned with the mix at 0 is ancestral, with the mix at 1 it is ddpm-large: equal to rounding."""
    process = GaussianProcess(linear(50))
    inner = gaussian_denoiser(process, as64(0.0), as64(0.5))

    def learned(x: Tensor, t: float | Tensor) -> Prediction:
        return replace(inner(x, t), v=torch.full_like(x, mix))

    grid = make_grid("trailing", process.schedule, 7)
    draws = torch.linspace(-2, 2, 8 * 3, dtype=torch.float64).view(8, 3, 1)
    ours, plain = (
        list(walk(d, process, grid, SAMPLERS[n].step, draws.__getitem__))[-1].x
        for d, n in ((learned, "ddpm-learned"), (inner, name))
    )
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mix", [0.3, 0.8])
def test_a_learned_variance_is_that_of_the_steps_taken(mix: float) -> None:
    """Between beta-tilde and beta, in logarithms, of the respaced chain, not of the table's own short steps.

    By the alpha-bars (Nichol & Dhariwal 2021, eq. 15 and section 4); noises of 1 and -1 differ by twice the scale.
    """
    table = cosine(4000)
    process = GaussianProcess(table)
    inner, grid = gaussian_denoiser(process, as64(0.0), as64(0.5)), make_grid("trailing", table, 5)

    def learned(x: Tensor, t: float | Tensor) -> Prediction:
        return replace(inner(x, t), v=torch.full_like(x, mix))

    def states(sign: float) -> list[float]:
        def noise(k: int) -> Tensor:
            return torch.tensor([[sign if k == 2 else 0.5]], dtype=torch.float64)

        return [state.x.item() for state in walk(learned, process, grid, SAMPLERS["ddpm-learned"].step, noise)]

    ahead, behind = states(1.0), states(-1.0)
    assert ahead[1] == behind[1]
    bars = np.cumprod(1 - table.betas.numpy())
    at, to = (bars[round(4000 * t) - 1] for t in grid[1:3].tolist())
    beta = 1 - at / to
    tilde = (1 - to) / (1 - at) * beta
    expected = math.exp(0.5 * (mix * math.log(beta) + (1 - mix) * math.log(tilde)))
    assert (ahead[2] - behind[2]) / 2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", UNLEARNED)
def test_evaluations_are_as_declared(name: str) -> None:
    """A sampler calls the denoiser `evaluations` times a step, but once for the last; at the state's own time."""
    process, times = GaussianProcess(SCHEDULES["edm"]), []
    inner = gaussian_denoiser(process, as64(0.0), as64(0.5))

    def denoise(x: Tensor, t: float | Tensor) -> Prediction:
        times.append(float(t))
        return inner(x, t)

    grid = make_grid(SAMPLERS[name].grid, process.schedule, 6)
    list(walk(denoise, process, grid, SAMPLERS[name].step, lambda k: torch.ones(1, 1, dtype=torch.float64)))
    assert len(times) == 6 * SAMPLERS[name].evaluations - (SAMPLERS[name].evaluations - 1)
    assert set(times) == set(grid[:-1].tolist())


def test_the_loop_is_lazy() -> None:
    """Nothing is evaluated before it is asked for: a preview or an early stop costs what it shows."""
    process, calls = GaussianProcess(linear(10)), []

    def denoise(x: Tensor, t: float | Tensor) -> Prediction:
        calls.append(t)
        return Prediction(x, x)

    grid = make_grid("trailing", process.schedule, 10)
    states = walk(denoise, process, grid, ddim, lambda k: torch.zeros(1, 1))
    next(states)
    assert calls == []
    next(states)
    assert calls == [1.0]


@pytest.mark.parametrize("name", UNLEARNED)
def test_float32_states_stay_float32(name: str) -> None:
    """float64 coefficients do not raise the precision of the state, and cost only its rounding."""
    process = GaussianProcess(SCHEDULES["vp"])
    grid = make_grid(SAMPLERS[name].grid, process.schedule, 8)
    noise = [torch.randn(4, 2, generator=torch.Generator().manual_seed(k)) for k in range(9)]
    denoise, results = mixture_denoiser(process), []
    for dtype in (torch.float32, torch.float64):

        def typed(x: Tensor, t: float | Tensor, dtype: torch.dtype = dtype) -> Prediction:
            prediction = denoise(x.double(), t)
            return Prediction(prediction.x0.to(dtype), prediction.eps.to(dtype))

        draws = [n.to(dtype) for n in noise]
        *_, last = walk(typed, process, grid, SAMPLERS[name].step, draws.__getitem__)
        assert last.x.dtype == dtype
        results.append(last.x.double())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# Randomness.


def test_normal_is_a_function_of_its_keys() -> None:
    """A key's noise is the same alone, in a batch, in any order, and again; other keys' differ in every number."""
    keys = [(7, Purpose.SAMPLE, k, 3) for k in range(20)]
    together = normal(keys, (2, 5))
    assert together.dtype == torch.float32
    assert together.shape == (20, 2, 5)
    assert (torch.cat([normal([key], (2, 5)) for key in keys]) == together).all()
    assert (normal(keys[::-1], (2, 5)).flip(0) == together).all()
    assert (normal(keys, (10,)).view(20, 2, 5) == together).all()
    assert len(together.flatten().unique()) == together.numel()
    others = normal([(8, 1, 0, 3), (7, 2, 0, 3), (7, 1, 0, 4), (2**40, 1, 0, 3), (7, 1, 2**40, 3)], (2, 5))
    assert len(torch.cat([together, others]).flatten().unique()) == 250


def test_normal_is_normal() -> None:
    """Kolmogorov's test against N(0, 1) over 400 keys of 50 numbers, and no correlation between neighbouring keys."""
    noise = normal([(1, Purpose.NOISE, k, 0) for k in range(400)], (50,)).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(noise.mean(1) * math.sqrt(50), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 4 / math.sqrt(noise.size)


def test_streams_and_torch_generators_are_functions_of_their_key() -> None:
    """Equal keys, equal draws; different keys, different draws; the global generators are not touched."""
    before = torch.random.get_rng_state()
    assert (stream(3, 4).random(5) == stream(3, 4).random(5)).all()
    assert not (stream(3, 4).random(5) == stream(4, 3).random(5)).any()
    draws = [torch.rand(5, generator=torch_generator(3, k)) for k in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert not (draws[0] == draws[2]).any()
    assert (torch.random.get_rng_state() == before).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun", "dpm++3m", "unipc"])
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_sample_k_is_the_same_alone_and_in_a_batch(name: str, kind: str) -> None:
    """The noise is the same to the bit; the network's output to the rounding of its matrix products."""
    torch.manual_seed(0)
    network = MLP(3, 3, width=16, blocks=1) if kind == "mlp" else UNet(1, 1, patch=2, channels=(8, 16), blocks=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        network = network.double()
        shape = (3,) if kind == "mlp" else (1, 6, 6)

        def heard(x: Tensor, log_snr: Tensor, condition: None) -> Tensor:
            return network(x, log_snr.double(), None)

        process = GaussianProcess(linear(50))
        denoise = Denoiser(heard, process, "v").bind(None)
        like = torch.zeros((), dtype=torch.float64)
        grid, step = make_grid(SAMPLERS[name].grid, process.schedule, 5), SAMPLERS[name].step

        def noise_of(numbers: list[int]) -> Callable[[int], Tensor]:
            draws = keyed_draws(5, numbers)
            return lambda step: draws(step).normal(like.expand(len(numbers), *shape))

        def sample(numbers: list[int]) -> Tensor:
            *_, last = walk(denoise, process, grid, step, noise_of(numbers))
            return last.x

        together = sample([0, 1, 2, 3, 17])
        for row, k in enumerate([0, 1, 2, 3, 17]):
            assert (noise_of([k])(2) == noise_of([9, k])(2)[1:]).all()
            torch.testing.assert_close(sample([k])[0], together[row], rtol=1e-9, atol=1e-10)
    assert (together[0] - together[1]).abs().max() > 1e-3
