"""The ODE likelihood: closed forms of Gaussian data and mixtures, determinants by differences, orders, round trips."""

import math
import sys

import pytest
import torch
from references import SCHEDULES, as64, gaussian_denoiser, mixture_denoiser, oracle
from torch import Tensor

from undiffuse.denoiser import Denoise, Denoiser, Prediction
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.likelihood import solver as solver_module
from undiffuse.likelihood.ode import MOST_EXACT, decode, encode, log_likelihood
from undiffuse.likelihood.solver import Solver
from undiffuse.networks import MLP, UNet
from undiffuse.process import EDM, VE, VP, FlowMatching, GaussianProcess, Schedule, SubVP, Time

pytest.importorskip("torchdiffeq")

FINE = Solver("dopri8", rtol=1e-7, atol=1e-7)  # results are then within 1e-7 or so
MEAN, STD = as64(0.0, -0.4, 0.7, 2.0), as64(1.0, 0.05, 0.3, 1.7)
X = MEAN + STD * as64(-1.5, 0.2, 3.0, 0.9) * as64(1.0, -0.7, 0.1)[:, None]

NO_SIGNAL: dict[str, Schedule] = {
    "zero-snr": SCHEDULES["zero-snr"],
    "flow": FlowMatching(),
    "vp": VP(beta_max=80.0),
    "sub-vp": SubVP(beta_max=80.0),
    "ve": VE(sigma_max=1e8),
    "edm": EDM(sigma_max=1e8),
}
"""Schedules with an SNR of 1e-16 or less at t = 1: x_1 has the prior's law, but for 1e-7 nats in the far tail."""

MODES = torch.tensor([[-0.8, 0.3], [0.9, 0.5], [0.1, -0.6]], dtype=torch.float64)
SHARES, SPREADS = as64(0.5, 0.3, 0.2), as64(0.15, 0.4, 0.25)
POINTS = torch.tensor([[-0.8, 0.3], [0.2, 0.1], [1.5, -1.0], [0.0, 3.0]], dtype=torch.float64)


def terms(x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of three round modes in the plane, noised: the log-density of each (B, 3), the distances and the variances."""
    variance = alpha**2 * SPREADS**2 + sigma**2
    away = x[:, None] - alpha * MODES
    density = SHARES.log() - away.square().sum(-1) / (2 * variance) - (2 * math.pi * variance).log()
    return density, away, variance


def plane_x0(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] of the three modes; its Jacobian is full."""
    density, away, variance = terms(x, alpha, sigma)
    gain = alpha * SPREADS**2 / variance
    return (density.softmax(1)[..., None] * (MODES + gain[:, None] * away)).sum(1)


def plane(schedule: Schedule) -> tuple[Denoise, GaussianProcess]:
    process = GaussianProcess(schedule)
    return oracle(process, plane_x0), process


@pytest.mark.parametrize("name", [name for name, one in SCHEDULES.items() if one.t_min > 0])  # where the flow begins
def test_gaussian_data(name: str) -> None:
    """Density and latent in closed form, whatever SNR is left at the end.

    At unit scale the flow keeps (y - alpha mean) / std, with alpha and std those of y; so the elements do not mix, the
    Jacobian is diagonal and one draw of signs is exact.
    """
    process = GaussianProcess(SCHEDULES[name])
    found = log_likelihood(gaussian_denoiser(process, MEAN, STD), process, X, solver=FINE)
    first, last = process.noise_level(process.schedule.t_min), process.noise_level(1.0)
    s_first, s_last = ((level.alpha**2 * STD**2 + level.sigma**2).sqrt() for level in (first, last))
    latent = last.alpha * MEAN + s_last * (X - first.alpha * MEAN) / s_first
    prior = torch.distributions.Normal(0, process.prior_scale()).log_prob(latent).sum(1)
    torch.testing.assert_close(found.latent, latent, rtol=0, atol=5e-7 * process.prior_scale().item())
    torch.testing.assert_close(found.prior_log_prob, prior, rtol=0, atol=5e-7)
    torch.testing.assert_close(found.log_prob, prior + (s_last / s_first).log().sum(), rtol=0, atol=5e-7)


@pytest.mark.parametrize(("name", "log_snr"), [*((name, None) for name in NO_SIGNAL), ("flow", 3.0), ("ve", -1.0)])
def test_a_mixture(name: str, log_snr: float | None) -> None:
    """Where no signal is left at t = 1, ln p is the noised data's own, at t_min and at any other level."""
    denoise, process = plane(NO_SIGNAL[name])
    schedule = process.schedule
    found = log_likelihood(denoise, process, POINTS, divergence="exact", solver=FINE, log_snr_max=log_snr)
    level = process.noise_level(schedule.t_min if log_snr is None else schedule.time(log_snr).item())
    expected = terms(POINTS, level.alpha, level.sigma)[0].logsumexp(1)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-6)
    assert expected.min() < -4  # in a tail too


def test_the_determinant_of_a_network_by_differences() -> None:
    """ln p(x) - ln p(x_1) is ln |det dx_1/dx|, here of a network, with dx_1/dx from central differences of `encode`."""
    torch.manual_seed(0)
    network = MLP(3, 3, width=16, blocks=1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    process = GaussianProcess(EDM())
    denoise = Denoiser(lambda x, log_snr, _: network(x, log_snr.double(), None), process).bind(None)
    x, h = as64(0.3, -0.5, 0.8)[None], 1e-3
    found = log_likelihood(denoise, process, x, divergence="exact", solver=FINE)
    shifts = h * torch.eye(3, dtype=torch.float64)
    ahead, behind = encode(denoise, process, torch.cat([x + shifts, x - shifts]), FINE).chunk(2)
    log_det = ((ahead - behind) / (2 * h)).det().abs().log()
    # differences see h^2 of the third derivative; the solver's error is the same on both sides
    assert (found.log_prob - found.prior_log_prob - log_det).abs().item() < 1e-5
    torch.testing.assert_close(found.latent, encode(denoise, process, x, FINE), rtol=0, atol=1e-4)


@pytest.mark.parametrize("divergence", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(divergence: str) -> None:
    """With the same fixed steps the mean over draws is the exact one: within four standard errors, for 1000 draws.

    And four probes have half the standard deviation of one: measured to 1 / sqrt(2000) of it, twice.
    """
    denoise, process = plane(FlowMatching())
    x, solver = POINTS[1:2].expand(1000, -1), Solver("rk4", steps=15)
    exact = log_likelihood(denoise, process, x[:1], divergence="exact", solver=solver).log_prob
    one, four = (
        log_likelihood(denoise, process, x, divergence=divergence, probes=probes, seed=3, solver=solver).log_prob
        for probes in (1, 4)
    )
    for found in (one, four):
        assert 0.01 < found.std() < 10
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(1000)
    assert (one.std() / four.std()).item() == pytest.approx(2, rel=0.15)


def test_a_network_of_images() -> None:
    """A U-Net with norms and attention: probes estimate its exact divergence; image -> latent -> image is itself."""
    torch.manual_seed(0)
    network = UNet(1, 1, patch=1, channels=(16,), attention=(0,)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    process = GaussianProcess(FlowMatching())
    denoise, x = Denoiser(network, process).bind(None), 0.5 * torch.randn(1, 1, 6, 6, dtype=torch.float64)
    few = Solver("rk4", steps=4)
    exact = log_likelihood(denoise, process, x, divergence="exact", solver=few).log_prob
    many = log_likelihood(denoise, process, x.expand(100, -1, -1, -1), solver=few).log_prob
    assert many.std() > 0.01
    assert abs(many.mean() - exact) < 4 * many.std() / 10
    latent = encode(denoise, process, x, FINE)
    assert (latent - x).abs().mean() > 0.1
    torch.testing.assert_close(decode(denoise, process, latent, FINE), x, rtol=0, atol=1e-5)


def test_one_draw_of_signs_is_exact_for_a_diagonal_jacobian() -> None:
    """Elements that do not mix: every seed gives the exact divergence, of which normal draws are noisy estimates."""
    process = GaussianProcess(VP())
    x, solver = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3), Solver("rk4", steps=10)

    def log_prob(divergence: str, seed: int = 0) -> Tensor:
        denoise = mixture_denoiser(process)
        return log_likelihood(denoise, process, x, divergence=divergence, seed=seed, solver=solver).log_prob

    exact = log_prob("exact")
    for seed in (1, 2):
        torch.testing.assert_close(log_prob("rademacher", seed), exact, rtol=1e-12, atol=1e-12)
        assert (log_prob("gaussian", seed) - exact).abs().min() > 1e-3


@pytest.mark.parametrize("name", ["ve", "zero-snr"])
def test_there_and_back(name: str) -> None:
    """x -> latent -> x and latent -> x -> latent, for data whose denoiser is not linear."""
    denoise, process = plane(SCHEDULES[name])
    latent = encode(denoise, process, POINTS, FINE)
    torch.testing.assert_close(decode(denoise, process, latent, FINE), POINTS, rtol=0, atol=1e-6)
    start, scale = process.prior_scale() * POINTS.flip(0), process.prior_scale().item()
    x = decode(denoise, process, start, FINE, log_snr_max=5.0)
    again = encode(denoise, process, x, FINE, log_snr_max=5.0)
    torch.testing.assert_close(again, start, rtol=0, atol=1e-6 * scale)
    assert (latent / scale - POINTS).abs().min() > 0.01


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_order_of_fixed_steps(method: str, order: int) -> None:
    """Twice the steps divide the error of density and latent by 2^order, here to a tenth of the exponent."""
    denoise, process = plane(FlowMatching())
    x, steps = POINTS[1:3], {"euler": 100, "midpoint": 50, "rk4": 60}[method]

    def found(solver: Solver) -> Tensor:
        result = log_likelihood(denoise, process, x, divergence="exact", solver=solver, log_snr_max=6.0)
        return torch.cat([result.log_prob, result.latent.flatten()])

    exact = found(Solver("dopri8", rtol=1e-9, atol=1e-9))
    errors = [(found(Solver(method, steps=n)) - exact).norm() for n in (steps, 2 * steps)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, rel=0.1)


def test_tolerances_and_evaluations() -> None:
    """A hundredth of the tolerance: a tenth of the error or less, for more evaluations, which are the denoiser's calls.

    The error of the result is a small multiple of the tolerance: steps add up.
    """
    inner, process = plane(FlowMatching())
    times: list[Time] = []

    def denoise(x: Tensor, t: Time) -> Prediction:
        times.append(t)
        return inner(x, t)

    level = process.noise_level(process.schedule.t_min)
    exact = terms(POINTS, level.alpha, level.sigma)[0].logsumexp(1)
    last = math.inf
    evaluations = 0
    for tolerance in (1e-3, 1e-5, 1e-7):
        times.clear()
        solver = Solver(rtol=tolerance, atol=tolerance)
        found = log_likelihood(denoise, process, POINTS, divergence="exact", solver=solver)
        error = (found.log_prob - exact).abs().max().item()
        assert error < min(100 * tolerance, 0.1 * last)
        assert found.evaluations == len(times) > evaluations
        assert all(isinstance(t, float) and process.schedule.t_min - 1e-12 <= t <= 1 for t in times)
        last, evaluations = error, found.evaluations


def test_fixed_steps_make_a_sample_its_own() -> None:
    """Alone, in a batch and in another order: the same numbers from the same draws, which belong to the sample."""
    denoise, process = plane(EDM())
    solver = Solver("rk4", steps=12)
    together = log_likelihood(denoise, process, POINTS, samples=[7, 8, 9, 4], probes=2, seed=1, solver=solver)
    assert together.evaluations == 48
    for row, number in enumerate([7, 8, 9, 4]):
        alone = log_likelihood(denoise, process, POINTS[[row]], samples=[number], probes=2, seed=1, solver=solver)
        torch.testing.assert_close(alone.log_prob, together.log_prob[[row]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.latent, together.latent[[row]], rtol=1e-12, atol=1e-12)
    other = log_likelihood(denoise, process, POINTS, samples=[7, 8, 9, 5], probes=2, seed=1, solver=solver)
    assert ((other.log_prob - together.log_prob).abs() > 1e-6).tolist() == [False, False, False, True]


def test_no_sample_hides_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard sample among 300 that have nothing to do: as exact as alone, which the batch's root mean square is not."""
    process = GaussianProcess(FlowMatching())
    hard, easy = gaussian_denoiser(process, as64(0.0), as64(0.01)), gaussian_denoiser(process, as64(0.0), as64(1.0))

    def denoise(x: Tensor, t: Time) -> Prediction:
        return Prediction(torch.cat([hard(x[:1], t).x0, easy(x[1:], t).x0]), x)

    x = torch.cat([as64(0.015), torch.zeros(300, dtype=torch.float64)])[:, None]
    level = process.noise_level(process.schedule.t_min)
    std = (level.alpha**2 * 1e-4 + level.sigma**2).sqrt()
    exact = torch.distributions.Normal(0.0, std).log_prob(x[:1])

    def rms(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.flatten() for part in parts]).square().mean().sqrt()

    def error() -> float:
        found = log_likelihood(denoise, process, x, divergence="exact", solver=Solver(rtol=1e-6, atol=1e-6))
        return (found.log_prob[0] - exact).abs().item()

    assert error() < 1e-4
    monkeypatch.setattr(solver_module, "largest_norm", rms)
    assert error() > 5e-4


def test_float32_data_are_given_to_the_network_and_nothing_else_is() -> None:
    """The denoiser gets and returns float32 and the latent is float32; the density is float64."""
    inner, process = plane(FlowMatching())

    def denoise(x: Tensor, t: Time) -> Prediction:
        assert x.dtype == torch.float32
        x0 = inner(x.double(), t).x0.float()
        return Prediction(x0, x0)

    found = log_likelihood(denoise, process, POINTS.float(), divergence="exact")
    assert found.log_prob.dtype == found.prior_log_prob.dtype == torch.float64
    assert found.latent.dtype == torch.float32
    level = process.noise_level(process.schedule.t_min)
    expected = terms(POINTS, level.alpha, level.sigma)[0].logsumexp(1)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-3)  # 1e-5 a step, and x to 1e-7
    back = decode(denoise, process, found.latent)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), POINTS, rtol=0, atol=1e-3)


def test_gradients_are_kept_where_they_are_needed() -> None:
    """Only the divergence builds a graph; nothing that is returned has one; in inference mode all is the same."""
    inner, process = plane(FlowMatching())
    weight, modes = torch.ones((), dtype=torch.float64, requires_grad=True), set()

    def denoise(x: Tensor, t: Time) -> Prediction:
        modes.add(torch.is_grad_enabled())
        return Prediction(weight * inner(x, t).x0, x)

    latent = encode(denoise, process, POINTS)
    assert modes == {False}
    modes.clear()
    found = log_likelihood(denoise, process, POINTS, divergence="exact")
    assert modes == {True}
    assert not any(value.requires_grad for value in (latent, found.latent, found.log_prob))
    assert weight.grad is None
    with torch.inference_mode():
        again = log_likelihood(denoise, process, POINTS.clone(), divergence="exact")
    assert (again.log_prob == found.log_prob).all()


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line that says what to do; nothing comes back that is not finite."""
    denoise, process = plane(FlowMatching())
    for settings, message in (
        ({"method": "rk5"}, "choose from dopri5"),
        ({"method": "rk4"}, "needs a number of steps"),
        ({"method": "rk4", "steps": 0}, "needs a number of steps"),
        ({"steps": 10}, "chooses its own steps"),
        ({"rtol": 0.0}, "tolerances"),
    ):
        with pytest.raises(UsageError, match=message):
            Solver(**settings)
    for options, message in (
        ({"divergence": "skilling"}, "choose from rademacher"),
        ({"probes": 0}, "at least one probe"),
        ({"log_snr_max": math.inf}, "log_snr_max must be finite"),
    ):
        with pytest.raises(UsageError, match=message):
            log_likelihood(denoise, process, POINTS, **options)
    with pytest.raises(UsageError, match="at most 256 elements, not 257"):
        log_likelihood(denoise, process, torch.zeros(1, MOST_EXACT + 1), divergence="exact")
    with pytest.raises(UsageError, match="cannot be differentiated"):
        log_likelihood(lambda x, t: Prediction(x.detach(), x), process, POINTS)
    for solver in (Solver(), Solver("rk4", steps=3)):
        with pytest.raises(UndiffuseError, match="no solution"):
            encode(lambda x, t: Prediction(x / 0, x), process, POINTS, solver)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UsageError, match=r'pip install "undiffuse\[likelihood\]"'):
        encode(denoise, process, POINTS)
