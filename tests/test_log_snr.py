"""A schedule that is its own log-SNR: between its knots and before them, its inverse, and how it is configured."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import EPS, as64
from scipy import special
from torch import Tensor

from undiffuse.build import make_process
from undiffuse.config import Config, ProcessConfig
from undiffuse.errors import UsageError
from undiffuse.process import GaussianProcess, LogSNR

KNOTS = [9.0, 8.5, 1.0, -1.0, -6.0]
T_MIN = 0.04
SCHEDULE = LogSNR(KNOTS, T_MIN)
AT = np.linspace(T_MIN, 1, 5)


def test_it_is_linear_between_even_knots() -> None:
    """NumPy's interpolation from t_min to 1; alpha^2 and sigma^2 are the sigmoids of it, one another's rest."""
    t = np.linspace(T_MIN, 1, 1001)
    expected = np.interp(t, AT, KNOTS)
    times = torch.from_numpy(t)
    # a time's rounding, times the steepest slope 31
    np.testing.assert_allclose(SCHEDULE.log_snr(times).numpy(), expected, rtol=0, atol=64 * EPS)
    level = SCHEDULE.noise_level(times)
    np.testing.assert_allclose(level.alpha.numpy() ** 2, special.expit(expected), rtol=1e-13)
    np.testing.assert_allclose(level.sigma.numpy() ** 2, special.expit(-expected), rtol=1e-13)
    assert SCHEDULE.log_snr(as64(T_MIN, 1.0)).tolist() == [KNOTS[0], KNOTS[-1]]
    for time, value in ((0.3, 1.0), (0.7, -3.0)):
        assert SCHEDULE.log_snr(time).item() == SCHEDULE.log_snr(as64(time)).item()
        assert SCHEDULE.log_snr(time).item() == pytest.approx(np.interp(time, AT, KNOTS)), value


def test_before_the_first_knot_noise_is_proportional_to_time() -> None:
    """sigma / alpha is t / t_min of what it is at t_min, continuous there; at t = 0 it is the data, exactly."""
    t = as64(1e-9, 1e-4, 0.01, T_MIN - 1e-9, T_MIN)
    level = SCHEDULE.noise_level(t)
    expected = math.exp(-KNOTS[0] / 2) * t / T_MIN
    torch.testing.assert_close(level.sigma / level.alpha, expected, rtol=1e-13, atol=0)
    at = SCHEDULE.noise_level(0.0)
    assert (at.alpha.item(), at.sigma.item()) == (1, 0)
    assert SCHEDULE.log_snr(0.0).item() == math.inf
    assert SCHEDULE.steps is None and SCHEDULE.t_min == T_MIN and LogSNR(KNOTS).t_min == 1e-3


def test_the_derivative_is_that_of_log_snr() -> None:
    """Autograd's through log_snr, before t_min and in every segment; a central difference agrees."""
    t = torch.cat([as64(1e-5, 0.01, 0.039), torch.linspace(0.0407, 0.9993, 40, dtype=torch.float64)]).requires_grad_()
    (slope,) = torch.autograd.grad(SCHEDULE.log_snr(t).sum(), t)
    t = t.detach()
    torch.testing.assert_close(SCHEDULE.log_snr_derivative(t), slope, rtol=1e-12, atol=0)
    h = 1e-3 * t.clamp(max=0.5)
    smooth = torch.bucketize(t - h, torch.from_numpy(AT)) == torch.bucketize(t + h, torch.from_numpy(AT))
    difference = (SCHEDULE.log_snr(t + h) - SCHEDULE.log_snr(t - h)) / (2 * h)
    torch.testing.assert_close(difference[smooth], slope[smooth], rtol=1e-6, atol=0)
    assert smooth.sum() > 35
    ends = SCHEDULE.log_snr_derivative(as64(T_MIN, 1.0)).tolist()
    assert ends == pytest.approx([(KNOTS[1] - KNOTS[0]) / 0.24, (KNOTS[-1] - KNOTS[-2]) / 0.24], rel=1e-12)


falling = st.tuples(st.floats(-15, 15), st.lists(st.floats(1e-3, 8), min_size=1, max_size=12)).map(
    lambda parts: (parts[0] - np.cumsum([0.0, *parts[1]])).tolist()
)


@settings(max_examples=60, deadline=None)
@given(falling, st.floats(1e-4, 0.9))
def test_time_and_log_snr_are_inverse(knots: list[float], t_min: float) -> None:
    """Either way, for any knots: log-SNR falls strictly, and its inverse gives the time, early ones too."""
    schedule = LogSNR(knots, t_min)
    early = t_min * torch.logspace(-6, -0.001, 20, dtype=torch.float64)
    t = torch.cat([early, torch.linspace(t_min, 1, 8 * len(knots) + 1, dtype=torch.float64)])
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    # eps of a log-SNR up to 100, over a slope of 1e-3 for each segment at least
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=1e-10, atol=1e-10)
    wanted = torch.linspace(knots[0] + 8, knots[-1], 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(schedule.time(wanted)), wanted, rtol=0, atol=1e-9)


def test_log_snrs_out_of_range_go_to_the_ends() -> None:
    """+inf is the data, and all below the last knot is t = 1; the knots' own times are even."""
    assert SCHEDULE.time(as64(math.inf, -6.0, -7.0, -math.inf)).tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(SCHEDULE.time(as64(*KNOTS)).numpy(), AT, rtol=4 * EPS)


@pytest.mark.parametrize(
    "knots",
    [[], [1.0], [0.0, 1.0], [1.0, 1.0], [3.0, 2.0, 2.0], [3.0, math.nan, 1.0], [math.inf, 1.0], [1.0, -math.inf]],
)
def test_what_does_not_fall_is_refused(knots: list[float]) -> None:
    """ValueError saying what is needed, for too few numbers too, and for those that are none."""
    with pytest.raises(ValueError, match="at least two numbers, strictly decreasing"):
        LogSNR(knots)


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_the_first_time_lies_inside(t_min: float) -> None:
    """0 < t_min < 1."""
    with pytest.raises(ValueError, match="0 < t_min < 1"):
        LogSNR(KNOTS, t_min)


def test_the_straight_one_is_its_own_process() -> None:
    """Steps of it compose as those of any other: q(x_t | x_s) from q(x_s | x_0) is q(x_t | x_0), early steps too."""
    process = GaussianProcess(SCHEDULE)
    x0: Tensor = as64(0.7, -0.2)[:, None]
    for s, t in ((0.01, 0.02), (0.02, 0.5), (0.5, 1.0)):
        at_s, at_t = process.marginal(x0, s), process.marginal(x0, t)
        step = process.transition(at_s.mean, s, t)
        ratio = (process.noise_level(t).alpha / process.noise_level(s).alpha) ** 2
        torch.testing.assert_close(step.mean, at_t.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(ratio * at_s.variance + step.variance, at_t.variance, rtol=1e-13, atol=0)


def test_a_configuration_is_the_schedule() -> None:
    """process.schedule=log-snr with its numbers, through JSON and back, every digit kept."""
    given = {"schedule": "log-snr", "log_snrs": (13.3, 1 / 3, -2e-17, -6.0), "options": {"t_min": 0.02}}
    config = Config(process=ProcessConfig.model_validate(given))
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config
    schedule = make_process(again.process).schedule
    assert isinstance(schedule, LogSNR)
    assert schedule.log_snrs.tolist() == [13.3, 1 / 3, -2e-17, -6.0] and schedule.t_min == 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "log-snr"}, r"schedule=log-snr and process.log_snrs=\[...\] belong together: give both"),
        ({"log_snrs": (1.0, 0.0)}, r"schedule=log-snr and process.log_snrs=\[...\] belong together: give both"),
        ({"schedule": "log-snr", "log_snrs": (0.0, 1.0)}, "process: log_snrs must be at least two numbers, strictly"),
        ({"schedule": "log-snr", "log_snrs": (1.0,)}, "process: log_snrs must be at least two numbers"),
        ({"options": {"t_min": 0.0}}, "process: needs 0 < t_min < 1"),
        ({"options": {"beta_max": 1.0}}, "process.options: the schedule log-snr has no such number .*beta_max"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr rescales a table of betas, and log-snr is not one"),
        ({"betas": (0.1, 0.2)}, r"schedule=betas and process.betas=\[...\] belong together"),
    ],
)
def test_settings_that_do_not_belong_together(given: dict[str, Any], message: str) -> None:
    """One UsageError that names the setting and says what is wrong with it."""
    whole = given if {"schedule", "log_snrs"} & set(given) else {"schedule": "log-snr", "log_snrs": (1.0, 0.0)} | given
    with pytest.raises(UsageError, match=message):
        make_process(ProcessConfig.model_validate(whole))
