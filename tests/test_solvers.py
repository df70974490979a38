"""Multi-step solvers and Heun: orders of convergence, exactness, and their papers' formulas in NumPy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from references import (
    FORMULAS,
    MODES,
    SCHEDULES,
    ZERO_SNR,
    as64,
    dpm_solver_pp_2m,
    levels,
    mixture_denoiser,
    mixture_flow,
    multistep,
    oracle,
    walk,
)
from torch import Tensor

from undiffuse.denoiser import Prediction
from undiffuse.process import VP, FlowMatching, GaussianProcess
from undiffuse.randomness import Given
from undiffuse.sampling import SAMPLERS, State, Step, make_grid
from undiffuse.sampling.steps import Evaluation

SOLVERS: dict[str, Step] = {
    name: SAMPLERS[name].step for name in ("ddim", "heun", "dpm++2m", "dpm++3m", "unipc", "unipc3")
}
START = torch.linspace(-2.2, 2.2, 12, dtype=torch.float64)  # at log-SNR -4; several end near the ridge of the modes


def even_grid(process: GaussianProcess, start: float, end: float, steps: int) -> Tensor:
    """Times at log-SNRs even between two finite ends."""
    return process.schedule.time(torch.linspace(start, end, steps + 1, dtype=torch.float64))


def error_of(step: Step, process: GaussianProcess, steps: int, ends: tuple[float, float], warm: int = 0) -> float:
    """Root mean square error in x_0-space at the end, against the exact flow; `warm` evaluations are given exactly."""
    grid = even_grid(process, *ends, steps)
    u = [sigma / alpha for alpha, sigma in levels(process, grid)]
    alphas = process.noise_level(grid).alpha
    denoise, y = mixture_denoiser(process), START.numpy()
    exact = torch.from_numpy(mixture_flow(y, u[0], u[-1]))
    past: tuple[Evaluation, ...] = ()
    for k in range(warm):
        x = alphas[k] * torch.from_numpy(mixture_flow(y, u[0], u[k]))
        past = (Evaluation(grid[k].item(), denoise(x, grid[k]).x0, x), *past)
    start = alphas[warm] * torch.from_numpy(mixture_flow(y, u[0], u[warm]) if warm else y)
    state = State(start, grid[warm].item(), past=past)
    for s in grid[warm + 1 :].tolist():
        state = step(state, s, denoise, process, torch.empty)
    return (state.x / alphas[-1] - exact).square().mean().sqrt().item()


def slope(errors: list[float]) -> float:
    """The order seen between the last two of a sequence of halved steps."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("schedule", ["vp", "flow", "edm"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpm++2m", 2), ("unipc", 3), ("unipc3", 4)])
def test_order_of_convergence(name: str, order: int, schedule: str) -> None:
    """Halved steps divide the error by 2^order, on two modes between log-SNR -4 and 4.

    UniC raises the order p of UniP to p + 1 (Zhao et al. 2023, theorem 3.1), but the first steps, which are of lower
    order, bound it by 3 (the corrected first step has a local error of h^3).
    """
    process = GaussianProcess(SCHEDULES[schedule])
    errors = [error_of(SOLVERS[name], process, n, (-4, 4)) for n in (80, 160, 320)]
    assert slope(errors) > min(order, 3) - 0.25
    if order < 3:
        assert slope(errors) < order + 0.35


@pytest.mark.parametrize(("name", "order"), [("dpm++2m", 2), ("dpm++3m", 3), ("unipc", 3), ("unipc3", 4)])
def test_order_once_started(name: str, order: int) -> None:
    """Given exact past evaluations, the multi-step rules have their full order."""
    process = GaussianProcess(VP())
    warm = 1 if name == "dpm++2m" else 2
    errors = [error_of(SOLVERS[name], process, n, (-4, 4), warm) for n in (80, 160, 320)]
    assert order - 0.3 < slope(errors) < order + 0.6


def test_third_order_from_far_out() -> None:
    """From noise so strong that x_0 is nearly constant (log-SNR -12) the first step of 3M costs it nothing."""
    process = GaussianProcess(FlowMatching())
    errors = [error_of(SOLVERS["dpm++3m"], process, n, (-12, 4)) for n in (100, 200, 400)]
    assert slope(errors) > 2.7
    assert errors[-1] < error_of(SOLVERS["dpm++2m"], process, 400, (-12, 4)) / 5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_constant_data_is_exact(name: str, schedule: str) -> None:
    """With E[x_0 | x_t] = c the path is x = alpha c + sigma eps, and every rule is on it after steps of any size."""
    process = GaussianProcess(SCHEDULES[schedule])
    c, eps = as64(0.3, -1.5), as64(0.7, 2.0)
    denoise = oracle(process, lambda x, alpha, sigma: c.expand_as(x))
    for n, rule in ((4, "trailing"), (7, "leading"), (5, "log-snr")):
        grid = make_grid(rule, process.schedule, n)
        start = process.corrupt(c, grid[0], Given(eps))[None]
        for state in walk(denoise, process, grid, SOLVERS[name], torch.empty, start):
            exact = process.corrupt(c, state.t, Given(eps))[None] if state.t else c[None]
            torch.testing.assert_close(state.x, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "degree"), [("dpm++3m", 2), ("unipc3", 2)])
def test_polynomials_in_the_log_snr_are_integrated_exactly(name: str, degree: int) -> None:
    """x_0 = l^2 along the path: int e^l l^2 dl = e^l (l^2 - 2 l + 2), once two evaluations are cached_by_time."""
    process = GaussianProcess(VP())
    l = as64(-1.5, -1.1, -0.4, 0.0, 0.7, 1.1)  # noqa: E741
    grid = process.schedule.time(2 * l)
    values = {t: half**degree for t, half in zip(grid.tolist(), l.tolist(), strict=True)}

    def denoise(x: Tensor, t: float | Tensor) -> Prediction:
        return Prediction(torch.full_like(x, values[float(t)]), x)

    at = levels(process, grid)

    def exact(i: int) -> float:  # with x = 0 at the third time
        integral = [math.exp(h) * (h * h - 2 * h + 2) for h in (l[2].item(), l[i].item())]
        return at[i][1] * (integral[1] - integral[0])

    past = tuple(Evaluation(grid[k].item(), as64(values[grid[k].item()]), as64(0.0)) for k in (1, 0))
    if name == "unipc3":  # its first act is to correct x at the third time from the second: begin there with what is so
        start = Evaluation(past[0].t, past[0].x0, as64(exact(1)))
        past = (start, past[1])
    state = State(as64(0.0), grid[2].item(), past=past)
    for i in (3, 4, 5):
        state = SOLVERS[name](state, grid[i].item(), denoise, process, torch.empty)
        assert state.x.item() == pytest.approx(exact(i), rel=1e-10)


def mixture_x0_numpy(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x_t] for MODES, in NumPy."""
    means, weights, std = MODES["means"].numpy(), MODES["weights"].numpy(), MODES["std"]
    variance = (alpha * std) ** 2 + sigma**2
    d = x[:, None] - alpha * means
    logits = np.log(weights) - d**2 / (2 * variance)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return (share * (means + alpha * std**2 / variance * d)).sum(1)


@pytest.mark.parametrize("schedule", ["scaled-linear", "vp", "sub-vp", "ve", "edm"])
@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "unipc", "unipc3"])
def test_solvers_are_their_papers(name: str, schedule: str) -> None:
    """Equal to the papers in NumPy (integrals by quadrature) at every N, on even and uneven grids.

    2M is Lu et al. 2022b, algorithm 2; 3M, UniP-3 and UniC integrate the polynomial through their nodes exactly.
    """
    process = GaussianProcess(SCHEDULES[schedule])
    start = START * process.prior_scale()
    grids = (1, "trailing"), (2, "trailing"), (3, "log-snr"), (5, "leading"), (10, "log-snr"), (20, "trailing")
    for n, rule in grids:
        grid = make_grid(rule, process.schedule, n)
        at = levels(process, grid)
        *_, last = walk(mixture_denoiser(process), process, grid, SOLVERS[name], torch.empty, start)
        if name == "dpm++2m":
            exact = dpm_solver_pp_2m(start.numpy(), at, mixture_x0_numpy)
        else:
            order = 3 if name.endswith(("3m", "3")) else 2
            exact = multistep(start.numpy(), at, mixture_x0_numpy, order, corrected=name.startswith("unipc"))
        np.testing.assert_allclose(last.x.numpy(), exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", sorted(ZERO_SNR))
def test_pure_noise_is_a_start_like_any(name: str, schedule: str) -> None:
    """From alpha = 0 states are finite, the first step is x_s = alpha_s E[x_0] + sigma_s x_1, and the end converges."""
    process = GaussianProcess(SCHEDULES[schedule])
    start = START
    prior_mean = (MODES["means"] * MODES["weights"]).sum()
    for n in (1, 2, 3, 10):
        grid = make_grid("trailing", process.schedule, n)
        states = list(walk(mixture_denoiser(process), process, grid, SOLVERS[name], torch.empty, start))
        assert all(state.x.isfinite().all() for state in states)
        ((alpha, sigma),) = levels(process, grid[1:2])
        torch.testing.assert_close(states[1].x, alpha * prior_mean + sigma * start, rtol=1e-12, atol=1e-12)
    if schedule == "flow":
        grid = make_grid("trailing", process.schedule, 400)
        *_, state, _ = walk(mixture_denoiser(process), process, grid, SOLVERS[name], torch.empty, start)
        ((alpha, sigma),) = levels(process, grid[-2:-1])
        # from sigma / alpha = 1e5 on x / alpha is x_1 sigma / alpha + E[x_0], to 1e-5
        exact = mixture_flow(start.numpy() * 1e5 + prior_mean.item(), 1e5, sigma / alpha)
        assert np.abs(state.x.numpy() / alpha - exact).max() < 0.02


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "unipc", "unipc3"])
def test_more_steps_than_the_first_are_better_than_ddim(name: str) -> None:
    """At 20 steps between log-SNR -6 and 6 each beats DDIM at least threefold."""
    process = GaussianProcess(VP())
    assert error_of(SOLVERS[name], process, 20, (-6, 6)) < error_of(SOLVERS["ddim"], process, 20, (-6, 6)) / 3


def test_a_truncated_grid_is_the_rest_of_a_whole_one() -> None:
    """One-step rules started from a visited state continue as they did: a step knows nothing but its interval."""
    for schedule in FORMULAS:
        process = GaussianProcess(SCHEDULES[schedule])
        grid = make_grid("trailing", process.schedule, 8)
        for name in ("ddim", "heun"):
            run = partial(walk, mixture_denoiser(process), process, step=SOLVERS[name], noise=torch.empty)
            states = list(run(grid=grid, start=START * process.prior_scale()))
            *_, last = run(grid=grid[3:], start=states[3].x)
            assert (last.x == states[-1].x).all()
