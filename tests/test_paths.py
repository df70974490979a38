"""Distillation from a teacher's paths: its loss is 0 for the exact map, and the paths are the sampler's."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, ignore, run_state
from gaussian_maps import Exact, ExactPaths, process_of
from test_distill import SHORT

from undiffuse.config import preset
from undiffuse.data import load as load_data
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, sample
from undiffuse.model import load
from undiffuse.objectives.flow_map import SOFT, aim
from undiffuse.objectives.paths import paths
from undiffuse.randomness import Given, Purpose, keyed_draws
from undiffuse.sampling import make_grid, trajectory, unipc
from undiffuse.training import train
from undiffuse.training.paths import TeachersPaths, paths_of
from undiffuse.training.state import Position


@pytest.mark.parametrize("schedule", ["cosine", "edm", "flow", "linear"])
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


def paths_for(teacher: Path, student: Path, data: str, count: int, jumps: int = 1) -> TeachersPaths:
    config = load(student).config
    config = config.model_copy(
        update={"objective": config.objective.model_copy(update={"jumps": jumps, "paths": count})}
    )
    return paths_of(load(teacher), config, load_data(data), "fp32")[0]


@pytest.mark.parametrize("jumps", [1, 4])
def test_paths_are_those_of_the_sampler(whole: Path, data: str, student: Path, jumps: int) -> None:
    """Path by path, of the classes of the data, from noise that evaluation does not draw; each jump begins where the
    one before ended."""
    found = paths_for(whole, student, data, 70, jumps)
    model, process = found.model, found.model.denoiser.process
    grid, like = make_grid("jumps", process.schedule, 8), torch.empty(1, 1, 16, 16)
    assert torch.equal(found.times, grid[:: 8 // jumps])
    for k in (0, 69):
        draw = keyed_draws(0, [k], Purpose.PATHS)(0)
        start = process.prior(like).sample(draw)
        assert not torch.equal(start, process.prior(like).sample(keyed_draws(0, [k])(0)))
        asked = found.asked(np.array([k]))
        with torch.no_grad():
            walk = trajectory(Recipe().denoise(model, asked), process, grid, unipc, start, lambda _, draw=draw: draw)  # type: ignore[misc]
            path = [state.x for state in walk]
        for jump in range(jumps):
            leap = found.leaps(torch.tensor([(k * jumps + jump + 0.5) / (70 * jumps)]).double())
            begin, end = (place * 8 // jumps for place in (jump, jump + 1))
            assert (leap.t, leap.s) == (grid[begin], grid[end])
            for mine, theirs in ((leap.x_t, path[begin]), (leap.x_s, path[end])):
                torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)  # float16
            assert torch.equal(leap.condition.index, asked.index)  # type: ignore[union-attr]


def test_paths_are_asked_for_what_the_data_is(whole: Path, data: str, student: Path) -> None:
    """The classes in the data's proportions, each path always the same one, dropped as often as training says."""
    found = paths_for(whole, student, data, 2)
    labels = found.asked(np.arange(3000)).index  # type: ignore[union-attr]
    counts = np.bincount(labels, minlength=4) / 3000
    shares = np.bincount(found.data.labels, minlength=4) / len(found.data)  # type: ignore[arg-type]
    assert abs(counts - shares).max() < 4 * 0.5 / 3000**0.5
    assert torch.equal(found.asked(np.array([2900, 7])).index, labels[[2900, 7]])  # type: ignore[union-attr]
    training = found.config.training.model_copy(update={"label_dropout": 0.25})
    dropping = dataclasses.replace(found, config=found.config.model_copy(update={"training": training}))
    some = dropping.asked(np.arange(3000)).index  # type: ignore[union-attr]
    assert abs((some == 3).float().mean() - 0.25) < 0.04 and torch.equal(some[some < 3], labels[some < 3])


def test_u_chooses_every_jump_of_every_path(whole: Path, data: str, student: Path) -> None:
    found = paths_for(whole, student, data, 20, 4)
    leaps = found.leaps((torch.arange(80) + 0.5).double() / 80)
    assert torch.equal(leaps.t.view(20, 4), found.times[:4].expand(20, 4))
    ends, begins = (x.view(20, 4, -1) for x in (leaps.x_s, leaps.x_t))
    assert torch.equal(ends[:, :3], begins[:, 1:])


def test_a_student_learns_its_teachers_paths(whole: Path, data: str, tmp_path: Path) -> None:
    """Of few paths, by heart: it ends nearer to them than its teacher does in one step."""
    more = {"training.steps": 150, "objective.paths": 8, "training.learning_rate": 5e-3}
    train(settings(whole, data, **more), tmp_path / "run", report=ignore)
    teacher, student = load(whole), load(tmp_path / "run")
    leaps = paths_for(whole, tmp_path / "run", data, 8).leaps((torch.arange(8) + 0.5).double() / 8)
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


def test_how_many_there_are(whole: Path, data: str, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is seen four times; of a budget of minutes, a fifth; what a run has decided stays."""
    config = load(student).config
    assert config.objective.paths == SHORT["training.steps"] * SHORT["training.batch_size"] // 4
    monkeypatch.setattr(TeachersPaths, "pace", lambda self, clock: 0.5)
    monkeypatch.setattr(TeachersPaths, "draw", lambda self: None)
    for settings, expected in (
        ({"steps": None, "minutes": 10.0}, 0.2 * 600 / 0.5),
        ({"steps": None, "minutes": 0.01}, 1),
        ({"steps": 10**9, "minutes": None}, 100_000),
    ):
        objective = config.objective.model_copy(update={"paths": None})
        asked = config.model_copy(
            update={"objective": objective, "training": config.training.model_copy(update=settings)}
        )
        paths, decided = paths_of(load(whole), asked, load_data(data), "fp32")
        assert paths.count == decided.objective.paths == expected
    assert paths_of(load(whole), config, load_data(data), "fp32")[1] == config


def test_a_budget_is_shared_by_paths_and_steps() -> None:
    """What was gone before the first step does not shorten the run: a rate is one of steps."""
    position = Position(seconds=12.0, before=12.0)
    assert position.share(1) == 0
    position.seconds = 36.0
    assert position.share(1) == 0.5 and position.remaining(1) == 24
    position.step, position.total = 20, 80
    assert position.share(1) == 0.25 and position.remaining(1) == 72
    position.total = None
    position.seconds = 61.0
    assert position.share(1) == 1
    position.before = 90.0  # more than there was
    assert Position(seconds=91.0, before=90.0).share(1) == 1


def test_settings_of_paths(whole: Path, data: str, tmp_path: Path, student: Path, command: Command) -> None:
    code, out, err = command("distill", whole, "--minutes", 0.05, "--out", "fast")
    assert code == 0 and "trained" in out, err
    assert load("fast").config.objective.paths
    with pytest.raises(UsageError, match="is a flow map of 1 jump, and nothing else"):
        sample("fast", 2, steps=2)
    for more, reason in (
        ({"objective.draw": "low-discrepancy"}, "set objective.draw=independent"),
        ({"objective.loss": "flow-map", "objective.paths": 3}, "objective.paths is for objective.loss=paths"),
        ({"process.schedule": "linear"}, "is of another process than the student"),
    ):
        with pytest.raises(UsageError, match=reason):
            train(settings(whole, data, **more), tmp_path / "other", report=ignore)
