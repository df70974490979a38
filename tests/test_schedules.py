"""Schedules against mpmath, their stochastic differential equations, and their own inverses."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    EPS,
    FORMULAS,
    SCHEDULES,
    TABLES,
    ZERO_SNR,
    as64,
    formula_level,
    formula_sde,
    products,
    table_betas,
)
from scipy.integrate import solve_ivp

from undiffuse.build import make_schedule
from undiffuse.config import make_config, preset
from undiffuse.process import VP, GaussianProcess, LogSNR, Table, cosine, linear, zero_terminal_snr

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_formula = pytest.mark.parametrize("name", FORMULAS)


def relative(ours: torch.Tensor, exact: list[mpmath.mpf]) -> float:
    """The largest relative error, measured in mpmath; equal zeros and infinities count as exact."""
    errors = [abs(mpmath.mpf(a) - b) / abs(b) for a, b in zip(ours.tolist(), exact, strict=True) if a != b]
    return float(max(errors, default=0))


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_published_ones(name: str, steps: int) -> None:
    """Betas, alpha_bar and 1 - alpha_bar agree with 50-digit arithmetic; rounding grows at most with the steps."""
    table = TABLES[name](steps)
    with mpmath.workdps(50):
        betas = table_betas(name, steps)
        bars = products(betas)
        # Betas that are differences of alpha_bar (cosine, zero SNR) carry the rounding of 1 - ratio: eps / beta.
        assert relative(table.betas, betas) < 4 * EPS / float(min(betas))
        tail = 1 - float(sorted(betas)[-1 if betas[-1] < 1 else -2])  # 1 - beta cancels where beta is near 1
        absolute = [abs(mpmath.mpf(a) - b) for a, b in zip(table.alpha_bar.tolist(), bars, strict=True)]
        assert float(max(absolute)) < 4 * steps * EPS / tail
        assert relative(table.noise_variance, [1 - b for b in bars]) < 8 * steps * EPS / tail


def test_linear_of_a_thousand_steps_is_ddpm() -> None:
    """beta from 1e-4 to 0.02 leaves alpha_bar_T = 4.04e-5 (Ho et al. 2020), by NumPy's own product."""
    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(linear(1000).alpha_bar[1:].numpy(), bars, rtol=1e-12)
    assert bars[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_caps_only_its_last_betas() -> None:
    """Where no beta is capped alpha_bar is f(t) / f(0) itself, f = cos^2 (Nichol & Dhariwal 2021, eq. 17)."""
    table = cosine(1000)
    assert ((table.betas == 0.999).nonzero() == 999).all()
    t = np.arange(1000) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(table.alpha_bar[:-1].numpy(), f / f[0], rtol=1e-10)


@pytest.mark.parametrize("base", ["linear", "scaled-linear", "quadratic", "sigmoid", "cosine"])
@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_zero_terminal_snr_keeps_the_first_alpha_and_empties_the_last(base: str, steps: int) -> None:
    """sqrt(alpha_bar) is shifted and scaled affinely onto [0, its first value] (Lin et al. 2024, algorithm 1)."""
    before, after = TABLES[base](steps), zero_terminal_snr(TABLES[base](steps))
    assert after.alpha_bar[-1] == 0
    assert after.betas[-1] == 1
    assert after.betas[0] == before.betas[0]
    r = np.sqrt(before.alpha_bar[1:].numpy())
    expected = (r - r[-1]) * r[0] / (r[0] - r[-1])
    np.testing.assert_allclose(np.sqrt(after.alpha_bar[1:].numpy()), expected, atol=1e-13)
    again = zero_terminal_snr(after)
    np.testing.assert_allclose(again.alpha_bar.numpy(), after.alpha_bar.numpy(), atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40))
def test_any_betas_give_their_products(betas: list[float]) -> None:
    """alpha_bar_i is the product of 1 - beta, on the nodes; between them it is linear; log-SNR falls and inverts."""
    table = Table(betas)
    bars = [math.prod([1 - b for b in betas[:i]]) for i in range(len(betas) + 1)]
    nodes = table.time_of(torch.arange(len(betas) + 1))
    np.testing.assert_allclose(table.noise_level(nodes).alpha.numpy() ** 2, bars, rtol=1e-13 * len(bars))
    middle = (nodes[1:] + nodes[:-1]) / 2
    means = np.convolve(bars, [0.5, 0.5], "valid")
    np.testing.assert_allclose(table.noise_level(middle).alpha.numpy() ** 2, means, rtol=1e-12)
    t = torch.linspace(0, 1, 4 * len(betas) + 1, dtype=torch.float64)
    assert (table.log_snr(t).diff() < 0).all()
    torch.testing.assert_close(table.time(table.log_snr(t)), t, rtol=1e-8, atol=1e-10)
    assert table.index(nodes).tolist() == list(range(len(betas) + 1))


def test_a_table_takes_lists_tuples_and_tensors_of_any_dtype() -> None:
    """The same betas in any container are the same table."""
    for betas in ([0.25, 0.5], (0.25, 0.5), torch.tensor([0.25, 0.5]), as64(0.25, 0.5)):
        assert Table(betas).alpha_bar.tolist() == pytest.approx([1, 0.75, 0.375], rel=2 * EPS)
        assert Table(betas).alpha_bar.dtype == torch.float64


@pytest.mark.parametrize(
    "betas", [[], [0.0], [-0.1, 0.5], [0.5, 1.0, 0.5], [0.1, 1.5], [0.1, math.nan], [math.inf], [[0.1, 0.2]]]
)
def test_betas_outside_the_unit_interval_are_refused(betas: list) -> None:
    """ValueError for anything that is not a list in (0, 1), but for a last 1."""
    with pytest.raises(ValueError, match="betas"):
        Table(betas)
    assert Table([0.5, 1.0]).alpha_bar.tolist() == [1, 0.5, 0]


@every_formula
def test_formulas_are_the_papers(name: str) -> None:
    """alpha, sigma and log-SNR agree with 40-digit arithmetic, down to t = 1e-6 where 1 - alpha^2 cancels."""
    schedule = FORMULAS[name]()
    times = [1e-6, 1e-3, 0.1, 0.37, 0.5, 0.9, 0.999]
    with mpmath.workdps(40):
        exact = [formula_level(name, t) for t in times]
        level = schedule.noise_level(as64(*times))
        assert relative(level.alpha, [mpmath.sqrt(a) for a, _ in exact]) < 8 * EPS
        # exp(-B) and 5000^2t multiply a relative error of their exponent, at most 17, by it
        assert relative(level.sigma, [mpmath.sqrt(s) for _, s in exact]) < 40 * EPS
        log_snr = [mpmath.log(a / s) for a, s in exact]
        errors = [abs(mpmath.mpf(a) - b) for a, b in zip(schedule.log_snr(as64(*times)).tolist(), log_snr, strict=True)]
        assert float(max(errors)) < 100 * EPS


@every_formula
def test_formulas_solve_their_stochastic_differential_equation(name: str) -> None:
    """dalpha/dt = f alpha and dsigma^2/dt = 2 f sigma^2 + g^2, integrated by DOP853 from the data."""
    f, g2 = formula_sde(name)
    times = np.array([0.05, 0.3, 0.6, 0.95])

    def slope(t: float, y: np.ndarray) -> list[float]:
        return [f(t) * y[0], 2 * f(t) * y[1] + g2(t)]

    solution = solve_ivp(slope, (0, 0.95), [1.0, 0.0], "DOP853", times, rtol=1e-12, atol=1e-14)
    level = FORMULAS[name]().noise_level(torch.from_numpy(times))
    np.testing.assert_allclose(level.alpha.numpy(), solution.y[0], rtol=1e-9)
    np.testing.assert_allclose(level.sigma.numpy() ** 2, solution.y[1], rtol=1e-9)


@every_formula
def test_derivative_of_a_formula(name: str) -> None:
    """d log-SNR / dt is mpmath's numerical derivative of the paper's log-SNR."""
    times = [1e-4, 0.02, 0.37, 0.8, 0.99]
    with mpmath.workdps(40):
        exact = [mpmath.diff(lambda u: mpmath.log(mpmath.fdiv(*formula_level(name, u))), t) for t in times]
        assert relative(FORMULAS[name]().log_snr_derivative(as64(*times)), exact) < 50 * EPS


@pytest.mark.parametrize("name", TABLES)
def test_derivative_of_a_table(name: str) -> None:
    """d log-SNR / dt of the linear interpolation of alpha_bar, by mpmath; at a node it is that of the later side."""
    table = TABLES[name](20)
    with mpmath.workdps(40):
        bars = [mpmath.mpf(a) for a in table.alpha_bar.tolist()]
        rests = [mpmath.mpf(a) for a in table.noise_variance.tolist()]

        def log_snr(t: mpmath.mpf, i: int) -> mpmath.mpf:
            w = t * 20 - i
            return mpmath.log((bars[i] + (bars[i + 1] - bars[i]) * w) / (rests[i] + (rests[i + 1] - rests[i]) * w))

        places = [(0.013, 0), (0.22, 4), (0.6, 12), (0.976, 19)]
        exact = [mpmath.diff(lambda t, i=i: log_snr(t, i), t) for t, i in places]
        assert relative(table.log_snr_derivative(as64(*[t for t, _ in places])), exact) < 1e-11
    values = table.log_snr_derivative(table.time_of(torch.arange(20)))
    assert values[0] == -math.inf
    assert (values < 0).all()


@every_formula
def test_derivative_is_that_of_log_snr(name: str) -> None:
    """Autograd through log_snr finds the same derivative, at the level of rounding."""
    t = as64(0.013, 0.22, 0.61, 0.976).requires_grad_()
    (slope,) = torch.autograd.grad(SCHEDULES[name].log_snr(t).sum(), t)
    torch.testing.assert_close(SCHEDULES[name].log_snr_derivative(t.detach()), slope, rtol=1e-11, atol=0)


NEAR_THE_ENDS = [1e-60, 1e-16, 1e-12, 1e-9, 1 - 1e-9, 1 - 1e-10, 1 - 1e-12, 1 - 1e-13, 1 - 2**-53]
EXTREMES = SCHEDULES | {
    "cosine-zero-snr": zero_terminal_snr(cosine(1000)),
    "linear-zero-snr": zero_terminal_snr(linear(1000)),
    "knots": LogSNR([13.3, 2.0, -6.0]),
    "far knots": LogSNR([40.0, -40.0]),
    "one step": Table([0.5]),
    "one step to nothing": Table([1.0]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_nothing_is_undefined_near_the_ends(name: str) -> None:
    """Every function of time and of two times is a number (or, at an end itself, its own infinity), down to the last
    float before 1; the log-SNR never rises."""
    schedule = EXTREMES[name]
    process = GaussianProcess(schedule)
    times = as64(0, *NEAR_THE_ENDS, 1)
    level = schedule.noise_level(times)
    for values in (level.alpha, level.sigma, schedule.log_snr(times), schedule.log_snr_derivative(times)):
        assert not values.isnan().any()
    inside = times[1:-1]
    assert schedule.log_snr(inside).isfinite().all() and schedule.log_snr_derivative(inside).isfinite().all()
    assert (schedule.log_snr(times).diff() <= 0).all()
    assert (schedule.snr_derivative(times[1:]) <= 0).all() and schedule.snr_derivative(times[1:]).isfinite().all()
    x = torch.ones(1, 1, dtype=torch.float64)
    for s, t in itertools.combinations(times.tolist(), 2):
        assert 0 <= process.noise_fraction(s, t) <= 1
        for normal in (process.posterior(x, x, s, t), process.transition(x, s, t)):
            assert normal.mean.isfinite().all() and normal.variance.isfinite().all()


@pytest.mark.parametrize("name", EXTREMES)
def test_derivative_of_the_signal_to_noise_ratio(name: str) -> None:
    """d (alpha^2 / sigma^2) / dt by differences, and at t = 1 by those from below, where a log-SNR may have none."""
    schedule, h = EXTREMES[name], 1e-6

    def snr(t: float) -> float:
        level = schedule.noise_level(t)
        return ((level.alpha / level.sigma) ** 2).item()

    for t in (0.01337, 0.22042, 0.61337, 0.97642):  # no steps of the tables
        slope = (snr(t + h) - snr(t - h)) / (2 * h)
        assert schedule.snr_derivative(t).item() == pytest.approx(slope, rel=1e-4, abs=1e-9)
    slope = (3 * snr(1.0) - 4 * snr(1 - h) + snr(1 - 2 * h)) / (2 * h)
    assert schedule.snr_derivative(1.0).item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


@every_schedule
def test_time_inverts_log_snr(name: str) -> None:
    """time(log_snr(t)) = t over all of [0, 1], both ends exactly, and beyond the range the nearer end."""
    schedule = SCHEDULES[name]
    t = torch.cat([as64(1e-7, 1e-5, 1e-3), torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1], as64(1 - 1e-6)])
    log_snr = schedule.log_snr(t)
    # An error eps |lambda| in lambda is that over |dlambda/dt| in t.
    bound = 16 * EPS * (1 + log_snr.abs()) / schedule.log_snr_derivative(t).abs() + 8 * EPS
    assert ((schedule.time(log_snr) - t).abs() <= bound).all()
    ends = as64(0, 1)
    assert (schedule.time(schedule.log_snr(ends)) - ends).abs().tolist() == pytest.approx([0, 0], abs=4 * EPS)
    assert schedule.time(math.inf) == 0
    assert schedule.time(-math.inf) == 1
    assert schedule.time(as64(1e4, -1e4)).tolist() == pytest.approx([0, 1], abs=1e-300)


@every_schedule
def test_log_snr_inverts_time(name: str) -> None:
    """log_snr(time(l)) = l for every l the schedule reaches, to rounding in t times the slope."""
    schedule = SCHEDULES[name]
    low = max(schedule.log_snr(1.0).item(), -25.0)
    wanted = torch.linspace(low, 25, 501, dtype=torch.float64)[1:]
    t = schedule.time(wanted)
    bound = 16 * EPS * (1 + wanted.abs() + schedule.log_snr_derivative(t).abs() * t)
    assert ((schedule.log_snr(t) - wanted).abs() <= bound).all()


@every_schedule
def test_level_is_monotone_between_exact_ends(name: str) -> None:
    """(1, 0) at t = 0 exactly; alpha never rises, sigma never falls, the log-SNR falls; it is ln(alpha^2 / sigma^2)."""
    schedule = SCHEDULES[name]
    start, end = schedule.noise_level(0.0), schedule.noise_level(1.0)
    assert (start.alpha.item(), start.sigma.item()) == (1, 0)
    assert schedule.log_snr(0.0) == math.inf
    assert (end.alpha == 0) == (name in ZERO_SNR)
    assert (schedule.log_snr(1.0) == -math.inf) == (name in ZERO_SNR)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    level = schedule.noise_level(t)
    assert (level.alpha.diff() <= 0).all()
    assert (level.sigma.diff() >= 0).all()
    assert (schedule.log_snr(t).diff() < 0).all()
    torch.testing.assert_close(schedule.log_snr(t), 2 * torch.log(level.alpha / level.sigma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(level.log_snr, schedule.log_snr(t), rtol=1e-12, atol=1e-12)
    assert schedule.noise_level(0.5).alpha.shape == ()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 49, 50, 999, 1000, 4096])
def test_index_and_time_convert_exactly_both_ways(steps: int) -> None:
    """i -> i / T -> i for every i in 0..T, with the level of the table's own entry, and back to the same float."""
    table = Table([0.01] * steps)
    i = torch.arange(steps + 1)
    t = table.time_of(i)
    assert (t == torch.tensor([k / steps for k in range(steps + 1)], dtype=torch.float64)).all()
    assert (table.index(t) == i).all()
    assert table.index(t).dtype == torch.int64
    assert (table.time_of(table.index(t)) == t).all()
    assert (table.noise_level(t).alpha == table.alpha_bar.sqrt()).all()
    assert (table.noise_level(t).sigma == table.noise_variance.sqrt()).all()
    assert table.index(table.time(table.log_snr(t))).tolist() == i.tolist()


def test_index_refuses_what_is_not_a_step() -> None:
    """Between the steps, and for a continuous schedule, there is no index."""
    with pytest.raises(ValueError, match="between the steps"):
        linear(10).index(0.55)
    for ask in (lambda: VP().index(0.5), lambda: VP().time_of(3)):
        with pytest.raises(ValueError, match="continuous"):
            ask()


def test_linear_tables_approach_the_vp_sde() -> None:
    """DDPM's table is the VP SDE of beta(t) = 0.1 + 19.9 t, with an error of order 1 / T (Song et al. 2021, app. B)."""
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    errors = [(linear(steps).log_snr(t) - VP().log_snr(t)).abs().max().item() for steps in (1000, 2000, 4000)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_the_preset_diffwave_has_the_betas_of_its_paper() -> None:
    """200 betas evenly from 1e-4 to .02 (Kong et al. 2021, section 5.2)."""
    process = make_config(preset("diffwave")).process
    t = torch.arange(1, 201, dtype=torch.float64) / 200
    expected = (1 - torch.linspace(1e-4, 0.02, 200, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(make_schedule(process).noise_level(t).alpha ** 2, expected, rtol=1e-13, atol=0)
