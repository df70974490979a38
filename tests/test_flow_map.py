"""Flow maps: on Gaussian data every map is known, and distillation has it as its fixed point."""

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from gaussian_maps import MEAN, STD, Exact, exact, mapped, process_of, samples
from torch import Tensor

from undiffuse.denoiser import Denoiser
from undiffuse.objectives.flow_map import LEVELS, PLAIN, Student, aim, flow_map, heun_step, levels, step
from undiffuse.process import Denoise, GaussianProcess, Prediction
from undiffuse.randomness import Given

module = import_module("undiffuse.objectives.flow_map")  # its function has the same name in the package
SCHEDULES = ["cosine", "edm", "flow", "linear"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_aim_is_the_inverse_of_a_step(schedule: str) -> None:
    process = process_of(schedule)
    grid = levels(process)
    t, s = grid[[0, 0, 5, 20]], grid[[1, 32, 30, 32]]
    x, x0 = samples(process, t), torch.rand(4, 3, dtype=torch.float64)
    torch.testing.assert_close(aim(process, step(process, x0, x, t, s), x, t, s), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step(process, x0, x, t, t), x, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_of_the_teacher_is_of_second_order(schedule: str) -> None:
    """Halving steps between two levels divides the error of Heun's ODE by 4."""
    process = process_of(schedule)
    start, end = process.schedule.time(torch.tensor([-2.0, 3.0], dtype=torch.float64))
    errors = []
    for count in (8, 16, 32):
        log_snr = torch.linspace(-2.0, 3.0, count + 1, dtype=torch.float64)
        times = process.schedule.time(log_snr)
        x = first = samples(process, start.expand(4))
        for t, s in pairwise(times):
            x = heun_step(process, exact(process), x, t.expand(4), s.expand(4))
        errors.append((x - mapped(process, first, start.expand(4), end.expand(4))).abs().max().item())
    assert 3.5 < errors[0] / errors[1] < 4.6 and 3.5 < errors[1] / errors[2] < 4.6


def test_the_average_velocity_is_that_of_the_map() -> None:
    """(x - X_{t -> s}) / (t - s) is the mean of v = eps - x_0 along the path (MeanFlow, Geng et al. 2025, eq. 3), for
    the straight process, where v is dx/dt."""
    process, t, s = process_of("flow"), 0.9, 0.2
    start, end = (torch.full((4,), time, dtype=torch.float64) for time in (t, s))
    x = samples(process, start)
    student: Any = Exact(process)
    reached = step(process, student.jump(x, start, end).x0, x, start, end)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    mean = torch.zeros_like(x)
    for node, weight in zip(nodes, weights / 2, strict=True):
        time = torch.full((4,), s + (t - s) * (node + 1) / 2, dtype=torch.float64)
        found = exact(process)(mapped(process, x, start, time), time)
        mean += weight * (found.eps - found.x0)
    torch.testing.assert_close((x - reached) / (t - s), mean, rtol=1e-10, atol=1e-10)


def loss_of(
    process: GaussianProcess,
    wrong: float = 1.0,
    jumps: int = 1,
    count: int = 4000,
    share: float = 1.0,
    average: float | None = None,
) -> Tensor:
    """The loss of the exact map times `wrong`, and of an average times `average`, which is the same unless told."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x0 = MEAN + STD * torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student, averaged = (Exact(process, factor) for factor in (wrong, wrong if average is None else average))
    parts: dict[str, Any] = {"teach": lambda condition: exact(process), "average": averaged, "share": lambda: share}
    return flow_map(cast(Any, student), x0, None, u, Given(noise), **parts, jumps=jumps)


@pytest.mark.parametrize("schedule", ["cosine", "edm", "flow"])
@pytest.mark.parametrize("jumps", [1, 4])
def test_the_exact_map_is_a_fixed_point(schedule: str, jumps: int) -> None:
    """But for the teacher's one step, whose error is of third order; a map that is 2% off is not."""
    process = process_of(schedule)
    loss = loss_of(process, jumps=jumps)
    assert loss.max() < 3e-3 and loss.mean() < 1e-4
    assert loss_of(process, 1.02, jumps).mean() > 10 * loss.mean()


def test_finer_levels_bring_the_fixed_point_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is quadratic in the error of one step, h^3, relative to the length of the jump."""
    process, means = process_of("edm"), []
    for count in (32, 64):
        monkeypatch.setattr(module, "LEVELS", count)
        means.append(loss_of(process).mean().item())
    assert means[0] / means[1] > 8


def test_the_step_narrows_to_one_level() -> None:
    """Of the exact map, for which the target is off by the error of one step: h^3, squared by the loss."""
    process = process_of("edm")
    means = [loss_of(process, share=share).mean().item() for share in (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)]
    assert means[0] == means[1] and means[4] == means[5]
    assert all(wide > 8 * narrow for wide, narrow in pairwise(means[1:5]))


def test_targets_are_of_the_average() -> None:
    """Only beside the exact average does the exact map lose little; a wrong one loses more than beside its own."""
    process = process_of("edm")
    right = loss_of(process).mean()
    assert loss_of(process, average=1.02).mean() > 10 * right
    assert loss_of(process, wrong=1.02, average=1.0).mean() > loss_of(process, wrong=1.02).mean()


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_first_levels_are_the_teachers_own(share: float) -> None:
    """Where the step is longer than the jump, it begins at x_t itself, whatever the average says."""
    process, wild = process_of("cosine"), Exact(process_of("cosine"), 7.0)
    gap, grid, middle = module.WIDEST >> int(4 * share), levels(process), LEVELS // 2
    x0, noise = (torch.full((1, 3), value, dtype=torch.float64) for value in (0.1, 0.7))
    u = torch.tensor([(1 + PLAIN + (1 - PLAIN) * (gap // 2 - 0.5) / middle) / 2], dtype=torch.float64)
    start, end = grid[[middle]], grid[[middle + gap // 2]]
    x_t = process.marginal(x0, start).at(noise)
    there = heun_step(process, exact(process), x_t, start, end)
    found: list[Tensor] = []

    class Seen(Exact):
        def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
            found.append(s)
            goal = aim(process, there, x, t, s)
            return Prediction(goal, goal)

    parts: dict[str, Any] = {"teach": lambda condition: exact(process), "average": wild, "share": lambda: share}
    loss = flow_map(cast(Any, Seen(process)), x0, None, u, Given(noise), **parts, jumps=2)
    assert torch.equal(found[0], end) and loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("jumps", [1, 2, 4])
def test_which_levels_are_chosen(jumps: int) -> None:
    """Every start of a jump as often, a quarter of each at rest, and all ends below it as often."""
    count = 400_000
    start, goal = module._ends((torch.arange(count, dtype=torch.float64) + 0.5) / count, jumps)
    assert sorted(set(start.tolist())) == [LEVELS // jumps * k for k in range(jumps)]
    for first in set(start.tolist()):
        here = goal[start == first]
        assert len(here) == pytest.approx(count / jumps, rel=1e-3)
        assert (here == first).double().mean() == pytest.approx(PLAIN, abs=1e-3)
        shares = torch.bincount(here, minlength=LEVELS + 1)[first + 1 :].double() / len(here)
        assert shares == pytest.approx((1 - PLAIN) / (LEVELS - first), rel=0.02)


def test_gradients_reach_the_student_alone() -> None:
    """The target is a constant, although the average makes it, which is the student itself here."""
    process = process_of("edm")
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Scaled(Exact):
        def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
            x0 = super().jump(x, t, s).x0 * weight
            return Prediction(x0, x0).with_x0(x0, x, self.process.noise_level(t))

    student: Any = Scaled(process)
    x0, noise = torch.zeros(8, 3, dtype=torch.float64), torch.ones(8, 3, dtype=torch.float64)
    u = (torch.arange(8, dtype=torch.float64) + 0.5) / 8

    def loss(teach: Callable[[Any], Denoise]) -> Tensor:
        return flow_map(student, x0, None, u, Given(noise), teach=teach, average=student, share=lambda: 1.0).sum()

    (gradient,) = torch.autograd.grad(loss(lambda condition: exact(process)), weight)
    with torch.no_grad():  # the same target, with the student's own part held
        small = 1e-6
        kept = Exact(process)
        original = Scaled.jump
        weight += small

        def held(self: Any, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
            return original(self, x, t, s) if len(x) == 8 else kept.jump(x, t, s)

        Scaled.jump = held  # type: ignore[method-assign]
        more = loss(lambda condition: exact(process))
        weight -= small
        less = loss(lambda condition: exact(process))
    assert gradient.item() == pytest.approx(((more - less) / small).item(), rel=1e-3, abs=1e-6)


def test_a_student_is_judged_in_the_range_of_its_data() -> None:
    """As samplers keep it, and of the same denoiser; what is cut off has a gradient where that leads back inside."""

    def network(x: Tensor, log_snr: Tensor, condition: object) -> Tensor:
        return weight * x

    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    plain = Denoiser(network, process_of("cosine"), target="x0", least_log_snr=-5.6)
    plain.coefficients(1.0)  # and what is kept of it
    student = Student.of(plain)
    x = torch.tensor([[-3.0, 0.4, 2.0]], dtype=torch.float64)
    scale = plain.c_in(0.9)
    found = student.jump(x, 0.9, 0.0)
    assert torch.equal(found.x0, plain.jump(x, 0.9, 0.0).x0.clamp(-1, 1)) and found.x0.abs().max() == 1
    level = plain.process.noise_level(0.9)
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x, rtol=1e-12, atol=0)
    goal = torch.tensor([[-1.0, 0.1, 0.5]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((0.5 * (found.x0 - goal).square()).sum(), weight)
    expected = ((found.x0 - goal) * scale * x).sum()
    assert found.x0[0, 0] == goal[0, 0], "so the first has none"
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=0)
