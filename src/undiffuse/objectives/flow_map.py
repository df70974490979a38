"""Distillation of a denoiser's ODE into a flow map X_{t -> s}, which takes the ODE's state at t to that at s at once.

In Lagrangian form (Boffi et al. 2025, "Flow map matching"): the map satisfies d/ds X_{t -> s}(x) = v(X_{t -> s}(x), s),
v being the teacher's velocity. So where the map ends at l, a step of the teacher from there to s must end where the map
from t to s does. The map is DDIM's step with an x_0 of its own, `Denoiser.jump`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand
from undiffuse.randomness import Draw
from undiffuse.sampling.grids import LEVELS, make_grid
from undiffuse.sampling.steps import PURE_NOISE
from undiffuse.straight_through import within

PLAIN = 0.25
"""The share of samples on which the student learns to be the teacher's denoiser, s = t."""
SOFT = 0.03
"""The error, per square root of an element, below which the loss is quadratic."""
WIDEST = 8
"""How many levels the teacher's step spans at first; half of that from every further quarter of the training on."""

Teach = Callable[[Condition | None], Denoise]


@dataclass(frozen=True)
class Student(Denoiser):
    """A flow map of data in [-1, 1] in training: losses see the x_0 of its jumps `within` that, as samplers do."""

    @classmethod
    def of(cls, denoiser: Denoiser) -> "Student":
        """The same denoiser, as a student."""
        return cls(**{field.name: getattr(denoiser, field.name) for field in fields(denoiser)})

    def jump(self, x_t: Tensor, t: Time, s: Time, condition: Condition | None = None) -> Prediction:
        prediction = super().jump(x_t, t, s, condition)
        return prediction.with_x0(within(prediction.x0), x_t, self.process.noise_level(t))


def flow_map(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: Draw,
    *,
    teach: Teach,
    average: Denoiser,
    share: Callable[[], float],
    jumps: int = 1,
) -> Tensor:
    """The pseudo-Huber distance of x_0 as the student needs it for its jump, from that which ends at its target: (B,).

    The target is a step of Heun's of the teacher, from where the student's average ends a few levels earlier, of which
    there are fewer as training goes on. u chooses t among the `jumps` levels at which a sampler begins a jump, and s
    among the levels below; for a quarter s = t, where the target is the teacher's own x_0.

    Args:
        teach: condition -> the teacher's denoiser, guided as it will be.
        average: the student with the average of its weights; with dropout, which it shares.
        share: how much of the training is done, in [0, 1].
    """
    process, gap = denoiser.process, max(WIDEST >> int(4 * share()), 1)
    grid = levels(process)
    start, goal = _ends(u, jumps)
    t, s = grid[start], grid[goal]
    x_t = process.marginal(x0, t).at(draw.normal(x0))
    plain = start == goal
    target = torch.empty_like(x0)
    with torch.no_grad():
        if plain.any():
            target[plain] = teach(rows_of(condition, plain))(x_t[plain], t[plain]).x0
        moved = ~plain
        if moved.any():
            x, given = x_t[moved], rows_of(condition, moved)
            before, end = grid[(goal - gap).maximum(start)[moved]], s[moved]
            near = step(process, average.jump(x, t[moved], before, given).x0, x, t[moved], before)
            there = heun_step(process, teach(given), near, before, end)
            target[moved] = aim(process, there, x, t[moved], end)
    return pseudo_huber(denoiser.jump(x_t, t, s, condition).x0 - target)


def pseudo_huber(error: Tensor) -> Tensor:
    """sqrt(||e||^2 + c^2) - c of errors (B, ...): (B,). c is SOFT for each square root of an element."""
    error = error.flatten(1)
    soft = SOFT * error.shape[1] ** 0.5
    return (error.square().sum(1) + soft**2).sqrt() - soft


def step(process: GaussianProcess, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM's step (Song et al. 2021, eq. 12 with eta = 0) to s: alpha_s x_0 + sigma_s eps; times (B,)."""
    at_t, at_s = process.noise_level(t), process.noise_level(s)
    ratio = at_s.sigma / at_t.sigma
    return expand(at_s.alpha - ratio * at_t.alpha, x_t) * x0 + expand(ratio, x_t) * x_t


def aim(process: GaussianProcess, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x_0 with which `step` ends at x_s."""
    at_t, at_s = process.noise_level(t), process.noise_level(s)
    ratio = at_s.sigma / at_t.sigma
    return (x_s - expand(ratio, x_t) * x_t) / expand(at_s.alpha - ratio * at_t.alpha, x_t)


def heun_step(process: GaussianProcess, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Heun's step of the ODE in sigma / alpha (Karras et al. 2022, algorithm 1), as `undiffuse.sampling.heun`; times
    (B,), and Euler's to the data and from pure noise."""
    first = denoise(x, t)
    end = step(process, first.x0, x, t, s)
    at_t, at_s = process.noise_level(t), process.noise_level(s)
    bent = (s > 0) & (at_t.sigma <= PURE_NOISE * at_t.alpha)
    second = denoise(end, torch.where(bent, s, t))
    length = (at_s.sigma / at_s.alpha - at_t.sigma / at_t.alpha) * at_s.alpha
    return end + expand(torch.where(bent, length / 2, 0.0), x) * (second.eps - first.eps)


def levels(process: GaussianProcess) -> Tensor:
    """The LEVELS + 1 times from pure noise to the data, float64."""
    return make_grid("karras", process.schedule, LEVELS)


def _ends(u: Tensor, jumps: int) -> tuple[Tensor, Tensor]:
    """The numbers of the levels t and s, int64 (B,) each, that u (B,) in [0, 1) chooses."""
    place = u * jumps
    start = place.floor().clamp(max=jumps - 1).long() * (LEVELS // jumps)
    share = ((place % 1) - PLAIN) / (1 - PLAIN)
    goal = start + 1 + (share.clamp(min=0) * (LEVELS - start)).floor().long()
    return start, torch.where(share < 0, start, goal.clamp(max=LEVELS))


def rows_of(condition: Condition | None, rows: Tensor) -> Condition | None:
    """The condition of some samples; None of None."""
    return None if condition is None else condition[rows]
