"""A flow map from data, without a teacher: what it says of two points of one noise must agree.

The pair (x_0, eps) is a straight path of which the ODE is the mean. From x_t the map must end where it ends from x_l, a
little nearer to the data (SoFlow's solution consistency, Luo et al. 2025; for s = 0 consistency training, Song et al.
2023, with the falling gap of ECT, Geng et al. 2025). As the gap falls, the mean of x_l given x_t becomes a step of the
ODE. No derivative along the path is taken, and the map from t to t is a denoiser, trained as one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.flow_map import PLAIN, aim, pseudo_huber, rows_of, step
from undiffuse.objectives.times import TimeSampler, log_normal
from undiffuse.process import GaussianProcess, float64
from undiffuse.randomness import KeyedDraw
from undiffuse.sampling.steps import PURE_NOISE

WIDEST, HALVINGS = 0.5, 7
"""The gap at first, as a share of the way from t to s in sigma / alpha; how often it is halved until the end."""


def solution(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: KeyedDraw,
    *,
    share: Callable[[], float],
    to_data: float,
    times: TimeSampler = log_normal,
) -> Tensor:
    """The pseudo-Huber distance of x_0 as the map needs it from t to s, from that which ends where the map from l to s
    does; for a quarter s = t, where the target is x_0 itself: (B,).

    u chooses s and the kind of jump, a second number from `draw` the time t.

    Args:
        share: how much of the training is done, in [0, 1].
        to_data: the share of jumps that end at the data; 1 is consistency training, as ECT has it.
    """
    process = denoiser.process
    t = times(process.schedule, draw.fold(1).uniform(torch.empty(len(x0), 1))[:, 0])
    t, s, between = ends(process, t, u, WIDEST * 0.5 ** (HALVINGS * share()), to_data)
    noise = draw.normal(x0)
    x_t, x_l = (process.marginal(x0, time).at(noise) for time in (t, between))
    target = x0.clone()
    moved = s < t
    if moved.any():
        given = rows_of(condition, moved)
        target[moved] = aimed(denoiser, x_t[moved], t[moved], x_l[moved], between[moved], s[moved], given)
    return pseudo_huber(denoiser.jump(x_t, t, s, condition).x0 - target)


@torch.no_grad()
def aimed(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, x_l: Tensor, between: Tensor, s: Tensor, condition: Condition | None
) -> Tensor:
    """The x_0 with which the map from x_t would end at s where it ends from x_l; times (B,), s <= l < t."""
    process = denoiser.process
    there = step(process, denoiser.jump(x_l, between, s, condition).x0, x_l, between, s)
    return aim(process, there, x_t, t, s)


def ends(process: GaussianProcess, t: Tensor, u: Tensor, gap: float, to_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where jumps from times t (B,) begin and end, and the time l between: float64 (B,) each.

    u < PLAIN: s = l = t. Else s = 0 for a share of `to_data`, and for the rest sigma / alpha there is a uniform share
    of that at t; l lies `gap` of the way from t to s. From PURE_NOISE on, t is 1, where samplers begin.
    """
    schedule = process.schedule
    ratio = (-0.5 * schedule.log_snr(t)).exp().clamp(max=PURE_NOISE)
    place = ((u - PLAIN) / (1 - PLAIN)).clamp(min=0)
    last = place < to_data
    there = torch.where(last, 0.0, ratio * (place - to_data) / max(1 - to_data, 1e-12))
    between = ratio + gap * (there - ratio)
    s = torch.where(last, float64(0.0), schedule.time(-2 * there.clamp(min=1e-30).log()))
    plain = u < PLAIN
    start = torch.where(ratio < PURE_NOISE, schedule.time(-2 * ratio.log()), 1.0)
    return start, torch.where(plain, start, s), torch.where(plain, start, schedule.time(-2 * between.log()))
