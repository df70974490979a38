"""Multi-step solvers of the probability-flow ODE, in l = ln(alpha / sigma), half the log-SNR, with h = l_s - l_t:

    x_s = sigma_s / sigma_t x_t + sigma_s int_{l_t}^{l_s} e^l x_0(l) dl.

The rules differ in how they extrapolate x_0(l) from earlier evaluations. All begin and end at order 1 (in the step to
the data h is infinite and x_s = x_0). An evaluation at pure noise without signal, l = -inf, is not used, and a step to
it (upwards) gives x_s = sigma_s eps.
"""

import math

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess
from undiffuse.randomness import Draw
from undiffuse.sampling.steps import Evaluation, State


def dpm_solver_pp(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: Draw,
    order: int = 2,
) -> State:
    """DPM-Solver++ multistep of order 2 (2M) or 3 (3M) (Lu et al. 2022b, algorithm 2 and appendix).

    The last coefficient of 3M is the exact integral; widely used code has half of it, which is only of order 2. The
    first two steps are of lower order, which shows at large N: their share of the error falls as N^-2.
    """
    x0 = denoise(state.x, state.t).x0
    past = (Evaluation(state.t, x0, state.x), *state.past)[:order]
    if s == 0:
        return State(x0, s, x0, past)
    h = _half_log_snr(process, s) - _half_log_snr(process, state.t)
    if h == -math.inf:
        return State(_pure_noise(process, past[0], s), s, x0, past)
    differences = _differences(process, past, h)
    phi = math.expm1(-h)
    direction = -phi * x0
    if len(differences) == 1:
        direction = direction - 0.5 * phi * differences[0]
    elif len(differences) == 2:
        direction = direction + (1 + phi / h) * differences[0] + (1 - 2 * (phi + h) / h**2) * differences[1]
    at_t, at_s = process.noise_level(state.t), process.noise_level(s)
    return State(at_s.sigma / at_t.sigma * state.x + at_s.alpha * direction, s, x0, past)


def unipc(
    state: State,
    s: float,
    denoise: Denoise,
    process: GaussianProcess,
    draw: Draw,
    order: int = 2,
) -> State:
    """UniPC of order 2 or 3, predicting x_0, with B(h) = e^-h - 1 (Zhao et al. 2023, algorithms 1-2, appendix).

    The evaluation at the predicted x_t first corrects x_t itself (UniC), at no extra cost, then predicts x_s (UniP).
    """
    x0 = denoise(state.x, state.t).x0
    if s == 0:
        return State(x0, s, x0)
    x, before = state.x, _usable(process, state.past)
    if before:
        x = _unified_update(process, before, state.t, corrector=x0)
    past = (Evaluation(state.t, x0, x), *state.past)[:order]
    return State(_unified_update(process, _usable(process, past) or past, s), s, x0, past)


def _half_log_snr(process: GaussianProcess, t: float) -> float:
    return 0.5 * process.schedule.log_snr(t).item()


def _pure_noise(process: GaussianProcess, at: Evaluation, s: float) -> Tensor:
    """x_s where no signal is left: sigma_s eps, with the eps of an evaluation."""
    level = process.noise_level(at.t)
    return process.noise_level(s).sigma / level.sigma * (at.x - level.alpha * at.x0)


def _usable(process: GaussianProcess, past: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
    return tuple(e for e in past if math.isfinite(_half_log_snr(process, e.t)))


def _differences(process: GaussianProcess, past: tuple[Evaluation, ...], h: float) -> list[Tensor]:
    """h x_0' and h^2 x_0'' / 2 at the newest of up to three evaluations, by divided differences; [] for only one."""
    if len(past := _usable(process, past)) < 2:
        return []
    l = [_half_log_snr(process, e.t) for e in past]  # noqa: E741
    r0 = (l[0] - l[1]) / h
    first = (past[0].x0 - past[1].x0) / r0
    if len(past) < 3:
        return [first]
    r1 = (l[1] - l[2]) / h
    second = (first - (past[1].x0 - past[2].x0) / r1) / (r0 + r1)
    return [first + r0 * second, second]


def _unified_update(
    process: GaussianProcess, past: tuple[Evaluation, ...], s: float, corrector: Tensor | None = None
) -> Tensor:
    """x_s from the newest of `past`: UniP, or UniC when `corrector` is x_0 as evaluated at s."""
    base, *older = past
    at_t, at_s = process.noise_level(base.t), process.noise_level(s)
    h = _half_log_snr(process, s) - _half_log_snr(process, base.t)
    if h == -math.inf:
        return _pure_noise(process, base, s)
    nodes = [((_half_log_snr(process, e.t) - _half_log_snr(process, base.t)) / h, e.x0) for e in older]
    if corrector is not None:
        nodes.append((1.0, corrector))
    direction = base.x0
    for weight, (ratio, x0) in zip(_weights([ratio for ratio, _ in nodes], h), nodes, strict=True):
        direction = direction + weight / ratio * (x0 - base.x0)
    return at_s.sigma / at_t.sigma * base.x - at_s.alpha * math.expm1(-h) * direction


def _weights(ratios: list[float], h: float) -> list[float]:
    """a_m with sum_m a_m r_m^(n-1) = n! h^n phi_{n+1}(-h) / B(h), n = 1..p (Zhao et al. 2023, section 3).

    One node needs no system: any a_1 = 1/2 + O(h) has order 2, and 1/2 is the paper's.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    orders = range(1, len(ratios) + 1)
    phi, right = math.expm1(-h), []
    for n in orders:
        phi = phi / -h - 1 / math.factorial(n)
        right.append(math.factorial(n) * phi / math.expm1(-h))
    matrix = [[ratio ** (n - 1) for ratio in ratios] for n in orders]
    return torch.linalg.solve(
        torch.tensor(matrix, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    ).tolist()
