"""Distillation from a teacher's paths: its loss is 0 for the exact map, and the paths are the sampler's."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, ignore, run_state
from test_distill import SHORT
from test_flow_map import MEAN, SCHEDULES, STD, Exact, mapped, process_of
from torch import Tensor

from undiffuse.config import preset
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, sample
from undiffuse.model import load
from undiffuse.objectives.flow_map import SOFT, aim
from undiffuse.objectives.paths import Leaps, paths
from undiffuse.process import GaussianProcess, expand
from undiffuse.randomness import Given, keyed_draws
from undiffuse.sampling import make_grid, trajectory, unipc
from undiffuse.training import train
from undiffuse.training.paths import drawn_paths, noise


@dataclass(frozen=True)
class ExactPaths:
    """Those of N(MEAN, STD^2), from levels to others below."""

    process: GaussianProcess
    t: Tensor
    s: Tensor

    def leaps(self, u: Tensor) -> Leaps:
        t, s = self.t[: len(u)], self.s[: len(u)]
        numbers = torch.randn(2, len(u), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        level = self.process.noise_level(t)
        x = expand(level.alpha, numbers[0]) * (MEAN + STD * numbers[0]) + expand(level.sigma, numbers[0]) * numbers[1]
        return Leaps(x, t, mapped(self.process, x, t, s), s, None)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_exact_map_loses_nothing(schedule: str) -> None:
    """And another as much as its x_0 is away: sqrt(|e|^2 + c^2) - c."""
    process = process_of(schedule)
    t, s = torch.tensor([1.0, 1.0, 0.8, 0.5, 0.3]).double(), torch.tensor([0.0, 0.4, 0.1, 0.0, 0.2]).double()
    drawn, x = ExactPaths(process, t, s), torch.zeros(5, 3, dtype=torch.float64)
    for wrong in (1.0, 1.1):
        student: Any = Exact(process, wrong)
        losses = paths(student, x, None, torch.zeros(5).double(), Given(x), paths=drawn)
        leap = drawn.leaps(t)
        error = (wrong - 1) * aim(process, leap.x_s, leap.x_t, t, s)
        soft = SOFT * 3**0.5
        expected = (error.square().sum(1) + soft**2).sqrt() - soft
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


def settings(teacher: Path, data: str, **more: Any) -> dict[str, Any]:
    return {**preset("distill"), "data.source": data, "training.base": str(teacher), **SHORT, **more}


@pytest.fixture(scope="module")
def student(whole: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("student") / "run"
    train(settings(whole, data), run, report=ignore)
    return run


@pytest.mark.parametrize("jumps", [1, 4])
def test_paths_are_those_of_the_sampler(whole: Path, data: str, student: Path, own_cache: None, jumps: int) -> None:
    """Path by path, from noise that evaluation does not draw; each jump begins where the one before ended."""
    model, config = load(whole), load(student).config
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"jumps": jumps, "paths": 70})})
    found = drawn_paths(model, config, "fp32")
    assert found.states.shape == (70, jumps, 1, 16, 16)
    grid = make_grid("jumps", model.denoiser.process.schedule, 8)
    assert torch.equal(found.times, grid[:: 8 // jumps])
    for k in (0, 69):
        draw = noise(np.array([k]))
        start = model.denoiser.process.prior(torch.empty(1, 1, 16, 16)).sample(draw)
        other = model.denoiser.process.prior(torch.empty(1, 1, 16, 16)).sample(keyed_draws(0, [k])(0))
        assert not torch.equal(start, other)
        denoise = Recipe().denoise(model, model.condition([k]))
        with torch.no_grad():
            walk = trajectory(denoise, model.denoiser.process, grid, unipc, start, lambda _, draw=draw: draw)  # type: ignore[misc]
            path = [state.x for state in walk]
        for jump in range(jumps):
            u = torch.tensor([(k * jumps + jump + 0.5) / (70 * jumps)]).double()
            leap = found.leaps(u)
            assert leap.t == grid[jump * 8 // jumps] and leap.s == grid[(jump + 1) * 8 // jumps]
            for mine, theirs in ((leap.x_t, path[jump * 8 // jumps]), (leap.x_s, path[(jump + 1) * 8 // jumps])):
                torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)  # float16
            assert torch.equal(leap.condition.index, model.condition([k]).index)  # type: ignore[union-attr]
    everything = found.leaps((torch.arange(70 * jumps) + 0.5).double() / (70 * jumps))
    assert np.array_equal(everything.x_s.numpy().astype(np.float16).reshape(found.states.shape), found.states)


def test_a_student_learns_its_teachers_paths(whole: Path, data: str, tmp_path: Path) -> None:
    """Of few paths, by heart: it ends nearer to them than its teacher does in one step."""
    more = {
        "training.steps": 150,
        "objective.paths": 8,
        "training.learning_rate": 5e-3,
        "training.checkpoint_every": 150,
    }
    train(settings(whole, data, **more), tmp_path / "run", report=ignore)
    teacher, student = load(whole), load(tmp_path / "run")
    leaps = drawn_paths(teacher, student.config, "fp32").leaps((torch.arange(8) + 0.5).double() / 8)
    errors = [
        (one.denoiser.jump(leaps.x_t, 1.0, 0.0, leaps.condition).x0 - leaps.x_s).square().mean().sqrt()
        for one in (teacher, student)
    ]
    assert errors[1] < 0.3 * errors[0], errors


def test_a_run_resumes_as_if_nothing_had_happened(student: Path, tmp_path: Path, own_cache: None) -> None:
    """Its paths are drawn again."""
    shutil.copytree(student, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    train({}, tmp_path / "run", resume=True, report=ignore)
    assert run_state(tmp_path / "run") == run_state(student)


def test_a_budget_includes_the_paths(whole: Path, data: str, tmp_path: Path, student: Path, command: Command) -> None:
    code, out, err = command("distill", whole, "--minutes", 0.05, "--out", "fast", "--set", "objective.paths=2000")
    assert code == 0 and "trained" in out, err
    assert load("fast").config.objective.paths == 2000
    assert load("fast").training["seconds"] >= 3
    assert load(student).config.objective.paths == 6 * 16 // 4
    assert sample("fast", 2).shape == (2, 16, 16, 1)
    with pytest.raises(UsageError, match="is a flow map of 1 jump, and nothing else"):
        sample("fast", 2, steps=2)
