"""Flow maps of laws whose maps are not linear in x, or not the same in every direction.

In one dimension the map is F_s^-1 o F_t, F_t being the distribution function of x_t: the ODE keeps the order of points.
Of N(mu, C) it is alpha_s mu + sqrt(V_s / V_t) (x - alpha_t mu) along every eigenvector of C, V = alpha^2 c + sigma^2.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from gaussian_maps import process_of
from torch import Tensor

from undiffuse.objectives.flow_map import aim, flow_map, heun_step
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time
from undiffuse.randomness import Given


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Two normal laws on a line."""

    weights, means, deviations = f64(0.35, 0.65), f64(-0.6, 0.5), f64(0.15, 0.25)

    def sample(self, count: int) -> Tensor:
        random = torch.Generator().manual_seed(0)
        part = torch.multinomial(self.weights, count, replacement=True, generator=random)
        return (self.means[part] + self.deviations[part] * torch.randn(count, generator=random))[:, None].double()

    def parts(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """Means and deviations of x_t in each part, (B, 2)."""
        level = process.noise_level(t)
        alpha, sigma = (value.reshape(-1, 1) for value in (level.alpha, level.sigma))
        return alpha * self.means, ((alpha * self.deviations) ** 2 + sigma**2).sqrt()

    def x0(self, process: GaussianProcess, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t]."""
        mean, deviation = self.parts(process, t)
        share = (self.weights.log() - deviation.log() - ((x - mean) / deviation) ** 2 / 2).softmax(1)
        alpha = process.noise_level(t).alpha.reshape(-1, 1)
        each = self.means + alpha * self.deviations**2 / deviation**2 * (x - mean)
        return (share * each).sum(1, keepdim=True)

    def below(self, process: GaussianProcess, x: Tensor, t: Time) -> Tensor:
        """F_t(x), (B, 1)."""
        mean, deviation = self.parts(process, t)
        return (self.weights * torch.special.ndtr((x - mean) / deviation)).sum(1, keepdim=True)

    def mapped(self, process: GaussianProcess, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        share = self.below(process, x, t)
        low, high = torch.full_like(x, -1000), torch.full_like(x, 1000)
        for _ in range(70):
            middle = (low + high) / 2
            under = self.below(process, middle, s) < share
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class Normal:
    """A normal law: its mean, the roots of its covariance's eigenvalues, and the eigenvectors in columns."""

    mean: Tensor
    roots: Tensor
    turn: Tensor

    def sample(self, count: int) -> Tensor:
        random = torch.Generator().manual_seed(0)
        z = torch.randn(count, 3, dtype=torch.float64, generator=random)
        return self.mean + (z * self.roots) @ self.turn.T

    def variances(self, process: GaussianProcess, t: Time) -> Tensor:
        """Of x_t along each eigenvector, (B, 3)."""
        level = process.noise_level(t)
        return (level.alpha.reshape(-1, 1) * self.roots) ** 2 + level.sigma.reshape(-1, 1) ** 2

    def x0(self, process: GaussianProcess, x: Tensor, t: Time) -> Tensor:
        alpha = process.noise_level(t).alpha.reshape(-1, 1)
        gain = alpha * self.roots**2 / self.variances(process, t)
        return self.mean + (gain * ((x - alpha * self.mean) @ self.turn)) @ self.turn.T

    def mapped(self, process: GaussianProcess, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        at_t, at_s = (process.noise_level(time).alpha.reshape(-1, 1) for time in (t, s))
        scale = (self.variances(process, s) / self.variances(process, t)).sqrt()
        return at_s * self.mean + (scale * ((x - at_t * self.mean) @ self.turn)) @ self.turn.T


Law = Mixture | Normal
TURN = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
NORMAL = Normal(f64(0.3, -0.2, 0.1), f64(0.6, 0.3, 0.1), TURN)
LAWS = pytest.mark.parametrize("law", [Mixture(), NORMAL], ids=["mixture", "normal"])
SCHEDULES = pytest.mark.parametrize("schedule", ["cosine", "edm", "flow"])


def exact(law: Law, process: GaussianProcess) -> Denoise:
    def denoise(x: Tensor, t: Time) -> Prediction:
        x0 = law.x0(process, x, t)
        return Prediction(x0, x0).with_x0(x0, x, process.noise_level(t))

    return denoise


def times_at(process: GaussianProcess, *log_snrs: float) -> list[Tensor]:
    return list(process.schedule.time(f64(*log_snrs)))


def states(law: Law, process: GaussianProcess, t: Tensor, count: int = 64) -> Tensor:
    x0 = law.sample(count)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return process.marginal(x0, t.expand(count)).at(noise)


@LAWS
@SCHEDULES
def test_steps_of_the_teacher_approach_the_map(law: Law, schedule: str) -> None:
    """With an error of second order: the ODE of the exact denoiser is the one whose map is known."""
    process, errors = process_of(schedule), []
    for count in (40, 80, 160):
        times = times_at(process, *torch.linspace(-3, 4, count + 1).tolist())
        x = first = states(law, process, times[0])
        for t, s in pairwise(times):
            x = heun_step(process, exact(law, process), x, t.expand(len(x)), s.expand(len(x)))
        there = law.mapped(process, first, times[0].expand(len(x)), times[-1].expand(len(x)))
        errors.append((x - there).abs().max().item())
    assert errors[2] < 2e-3
    assert 3 < errors[0] / errors[1] < 5 and 3 < errors[1] / errors[2] < 5


@LAWS
@SCHEDULES
def test_maps_are_a_semigroup_with_the_teachers_velocity(law: Law, schedule: str) -> None:
    """X_{s -> r} o X_{t -> s} = X_{t -> r}, and d/ds X_{t -> s} = v(X_{t -> s}, s), v by short steps of the package."""
    process = process_of(schedule)
    t, s, r = (time.expand(64) for time in times_at(process, -2.0, 0.5, 3.0))
    x = states(law, process, t[0])
    halfway = law.mapped(process, x, t, s)
    torch.testing.assert_close(law.mapped(process, halfway, s, r), law.mapped(process, x, t, r), rtol=1e-9, atol=1e-9)
    errors = []
    for gap in (2e-2, 1e-2):
        after = times_at(process, 0.5 + gap)[0].expand(64)
        moved = heun_step(process, exact(law, process), halfway, s, after)
        errors.append(((moved - law.mapped(process, x, t, after)) / gap).abs().max().item())
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3  # third order in a step, second in the velocity


class Student:
    """A map of some law, where the teacher's is another."""

    def __init__(self, law: Law, teacher: Law, process: GaussianProcess):
        self.law, self.teacher, self.process = law, teacher, process

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
        x0 = self.teacher.x0(self.process, x, t)
        moved = s < t
        if moved.any():
            there = self.law.mapped(self.process, x[moved], t[moved], s[moved])
            x0[moved] = aim(self.process, there, x[moved], t[moved], s[moved])
        return Prediction(x0, x0).with_x0(x0, x, self.process.noise_level(t))


@LAWS
def test_only_the_right_map_is_a_fixed_point(law: Law) -> None:
    """One of the same mean and variance is not: linear for the mixture, the same in all directions for the normal."""
    process, count = process_of("edm"), 4000
    x0 = law.sample(count)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    spread = x0.std(0).square().mean().sqrt().expand(x0.shape[1])
    alike = Normal(x0.mean(0), spread, torch.eye(x0.shape[1], dtype=torch.float64))
    losses = []
    for known in (law, alike):
        student: Any = Student(known, law, process)
        parts = {"teach": lambda condition: exact(law, process), "average": student, "share": lambda: 1.0}
        found = flow_map(student, x0, None, u, Given(noise), **parts)
        losses.append(found.mean().item())
    assert losses[0] < 2e-3 and losses[1] > 10 * losses[0] and math.isfinite(losses[1])
