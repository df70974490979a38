"""Interrupted runs: killed or signalled, and resumed, they end as the uninterrupted one, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import checkpoint_state, ignore, in_child, metrics, run_state, write_data
from safetensors.torch import load_file

from undiffuse import plots
from undiffuse.cli.app import main
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import checkpoints, load
from undiffuse.training import batches, checkpoint, listeners, run, train

Values = dict[str, Any]


def _die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before_step(number: int, act: Callable[[], None] = _die) -> None:
    make = batches.make_batch

    def make_or_act(config: Any, data: Any, step: int, positions: slice) -> Any:
        if step == number:
            act()
        return make(config, data, step, positions)

    batches.make_batch = make_or_act


def _in_first_step() -> None:
    _before_step(0)


def _between_checkpoints() -> None:
    _before_step(7)


def _right_after_a_checkpoint() -> None:
    _before_step(6)


def _before_the_last_step() -> None:
    _before_step(11)


def _half_the_weights_written() -> None:
    write, calls = checkpoint.save_file, iter(range(9))

    def write_half(tensors: Any, path: Path) -> None:
        if next(calls) == 1:
            path.write_bytes(b"\0" * 1000)
            _die()
        write(tensors, path)

    checkpoint.save_file = write_half


def _before_the_rename() -> None:
    rename = Path.replace

    def rename_or_die(self: Path, target: Path) -> Path:
        if Path(target).name == "step-00000006":
            _die()
        return rename(self, target)

    Path.replace = rename_or_die  # type: ignore[method-assign, assignment]


def _before_pruning() -> None:
    prune = checkpoint.shutil.rmtree
    checkpoint.shutil.rmtree = lambda path, *a, **k: _die() if ".tmp-step" in path.name else prune(path, *a, **k)


def _amid_pruning() -> None:
    prune = checkpoint.shutil.rmtree

    def prune_half(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.startswith(".tmp-step"):
            (path / "weights.safetensors").unlink()
            _die()
        prune(path, *args, **kwargs)

    checkpoint.shutil.rmtree = prune_half  # type: ignore[assignment]


def _amid_a_metrics_row() -> None:
    log = listeners.Listeners.log

    def log_half(self: Any, step: Any, losses: list[float]) -> None:
        if step.number == 8:
            self._metrics.write('{"step": 8, "ima')
            self._metrics.flush()
            _die()
        log(self, step, losses)

    listeners.Listeners.log = log_half  # type: ignore[method-assign]


def _amid_a_preview() -> None:
    plots.save_grid = _die


def _before_the_last_preview() -> None:
    preview = listeners.Listeners.preview
    listeners.Listeners.preview = lambda self, step: _die() if step == 12 else preview(self, step)  # type: ignore


MOMENTS = {
    moment.__name__: moment
    for moment in (
        _in_first_step,
        _between_checkpoints,
        _right_after_a_checkpoint,
        _before_the_last_step,
        _half_the_weights_written,
        _before_the_rename,
        _before_pruning,
        _amid_pruning,
        _amid_a_metrics_row,
        _amid_a_preview,
        _before_the_last_preview,
    )
}


def train_in_child(prepare: str | None, values: Values, out: Path, resume: bool = False) -> None:
    """Trains with a hook of MOMENTS in place; a whole process for whoever starts it."""
    torch.set_num_threads(1)
    if prepare:
        MOMENTS[prepare]()
    train(values, out, resume=resume, report=ignore)


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_at_any_moment_then_resume_is_the_uninterrupted_run(
    tiny: Values, whole: Path, tmp_path: Path, moment: str
) -> None:
    """kill -9, --resume, and weights, optimiser, metrics and previews are those of a run never touched."""
    assert in_child(train_in_child, moment, tiny, tmp_path) == -signal.SIGKILL
    train({}, tmp_path, resume=True, report=ignore)
    assert run_state(tmp_path) == run_state(whole)


def test_killed_and_resumed_twice(tiny: Values, whole: Path, tmp_path: Path) -> None:
    """Two kills are no worse than one."""
    assert in_child(train_in_child, "_between_checkpoints", tiny, tmp_path) == -signal.SIGKILL
    assert in_child(train_in_child, "_before_the_last_step", {}, tmp_path, True) == -signal.SIGKILL
    assert in_child(train_in_child, None, {}, tmp_path, True) == 0
    assert run_state(tmp_path) == run_state(whole)


def test_what_a_killed_run_leaves_is_swept(tiny: Values, tmp_path: Path) -> None:
    """The half-written checkpoint of a killed run neither counts as one nor stays on the disk for ever."""
    in_child(train_in_child, "_before_the_rename", tiny, tmp_path)
    assert list((tmp_path / "checkpoints").glob(".tmp-*"))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000003"]
    train({}, tmp_path, resume=True, report=ignore)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_same_seed_same_run_and_another_seed_another(tiny: Values, whole: Path, tmp_path: Path) -> None:
    """A run is a function of its settings: of the seed, too."""
    train(tiny, tmp_path / "same", report=ignore)
    train({**tiny, "training.seed": 1}, tmp_path / "other", report=ignore)
    assert run_state(tmp_path / "same") == run_state(whole)
    assert checkpoint_state(checkpoints(tmp_path / "other")[-1])["weights"] != _end(whole)["weights"]


@pytest.mark.parametrize("extra", [{"network.dropout": 0.3}, {"data.flip": True, "data.shift": 1}])
def test_dropout_and_augmentation_resume_exactly(tiny: Values, tmp_path: Path, extra: Values) -> None:
    """What is drawn by torch and for the images is drawn again after a resume."""
    values = {**tiny, **extra, "training.steps": 8}
    train(values, tmp_path / "whole", report=ignore)
    in_child(train_in_child, "_between_checkpoints", values, tmp_path / "killed")
    train({}, tmp_path / "killed", resume=True, report=ignore)
    assert run_state(tmp_path / "killed") == run_state(tmp_path / "whole")


def _end(folder: Path) -> dict[str, Any]:
    return checkpoint_state(checkpoints(folder)[-1])


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    """--resume of a finished run says so and leaves every byte."""
    before, lines = run_state(whole), []
    outcome = train({}, whole, resume=True, report=lines.append)
    assert outcome.finished and outcome.step == 12
    assert "already finished at step 12" in lines[-1]
    assert run_state(whole) == before


def test_a_new_run_does_not_go_into_an_old_folder(tiny: Values, whole: Path) -> None:
    """Without --resume a run folder is never touched."""
    before = run_state(whole)
    with pytest.raises(UsageError, match="--resume"):
        train(tiny, whole, report=ignore)
    assert run_state(whole) == before


def test_resume_of_nothing(tmp_path: Path) -> None:
    """--resume of a folder without a run says what is missing."""
    with pytest.raises(UsageError, match="nothing to resume"):
        train({}, tmp_path / "none", resume=True, report=ignore)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.steps", 24),
        ("training.seed", 1),
        ("training.learning_rate", 5e-4),
        ("network.channels", (8, 8)),
        ("process.schedule", "linear"),
        ("process.options.s", 0.01),
        ("data.flip", True),
        ("training.minutes", 1.0),
    ],
)
def test_a_resumed_run_keeps_its_settings(whole: Path, name: str, value: Any) -> None:
    """What decides the outcome cannot change on the way, and the message names it."""
    with pytest.raises(UsageError, match=name.removesuffix(".s")):
        train({name: value}, whole, resume=True, report=ignore)


def test_a_resumed_run_may_repeat_its_settings_and_change_the_machine(tiny: Values, tmp_path: Path) -> None:
    """The same command line with --resume goes on; logging and checkpoints may change."""
    in_child(train_in_child, "_between_checkpoints", tiny, tmp_path)
    machine = {"log_every": 1, "checkpoint_every": 2, "keep": 3, "preview_every": 5}
    train({**tiny, **{f"training.{key}": value for key, value in machine.items()}}, tmp_path, resume=True)
    assert [folder.name[-2:] for folder in checkpoints(tmp_path)] == ["08", "10", "12"]
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6, *range(7, 13)]


def test_changed_data_is_refused(tmp_path: Path) -> None:
    """Data with other content under the same name are not what the run learnt."""
    source = write_data(tmp_path / "data.npz")
    values = {"data.source": str(source), "network.channels": (8,), "training.batch_size": 4, "training.steps": 2}
    train(values, tmp_path / "run", report=ignore)
    write_data(source, seed=1)
    with pytest.raises(UndiffuseError, match="changed"):
        train({}, tmp_path / "run", resume=True, report=ignore)


@pytest.mark.parametrize(
    ("file", "content"),
    [("training.safetensors", b""), ("weights.safetensors", b"{}"), ("training.json", b"{"), ("model.json", b"{}")],
)
def test_a_damaged_checkpoint_is_named(tiny: Values, tmp_path: Path, file: str, content: bytes) -> None:
    """A checkpoint that is no longer whole is an error that says which; without it, the one before is gone on from."""
    in_child(train_in_child, "_before_the_last_step", tiny, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    (newest / file).write_bytes(content)
    with pytest.raises(UndiffuseError, match=newest.name):
        train({}, tmp_path, resume=True, report=ignore)


def test_damaged_rows_of_the_metrics_are_left_out_with_a_warning(
    tiny: Values, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no text, and JSON that is no row; the others stay, and the run ends as the uninterrupted one."""
    train({**tiny, "training.steps": 12}, tmp_path, report=ignore)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000012")
    path = tmp_path / "metrics.jsonl"
    rows = path.read_bytes().splitlines()
    damaged = [b'{"step": 1, "loss": \xff}', b"[1]", b'{"step": "1"}', b'{"loss": 1.0}', b"", b"[" * 100_000]
    path.write_bytes(b"\n".join([rows[0], *damaged, *rows[1:]]) + b'\n{"st\xff')
    train({}, tmp_path, resume=True, report=ignore)
    assert metrics(tmp_path) == metrics(whole)
    assert "metrics.jsonl: 6 damaged rows are left out" in caplog.text


def test_the_checkpoint_before_a_removed_one_gives_the_same_end(tiny: Values, whole: Path, tmp_path: Path) -> None:
    """Any kept checkpoint leads to the same end."""
    in_child(train_in_child, "_before_the_last_step", tiny, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    train({}, tmp_path, resume=True, report=ignore)
    assert run_state(tmp_path) == run_state(whole)


# Signals.


def command_in_child(number: int, step: int, arguments: list[str], output: Path) -> None:
    """The command with a signal that arrives during `step`."""
    torch.set_num_threads(1)
    _before_step(step - 1, lambda: os.kill(os.getpid(), number))
    sys.argv = ["undiffuse", *arguments]
    with output.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        main()


def _arguments(values: Values, out: Path) -> list[str]:
    settings = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    return ["train", "--out", str(out), *settings]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint_of_that_step(
    tiny: Values, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM and SIGINT: 128 + the signal, a message, a checkpoint of the very step; the resumed end is the same."""
    out = tmp_path / "run"
    assert in_child(command_in_child, number, 8, _arguments(tiny, out), tmp_path / "said") == 128 + number
    said = (tmp_path / "said").read_text()
    assert number.name in said and "step 8" in said and "--resume" in said and "Traceback" not in said
    assert checkpoints(out)[-1].name == "step-00000008"
    train({}, out, resume=True, report=ignore)
    assert _end(out) == _end(whole)


def test_a_signal_in_the_last_step_is_exit_code_0(tiny: Values, whole: Path, tmp_path: Path) -> None:
    """A run that is finished anyway was not interrupted."""
    out = tmp_path / "run"
    assert in_child(command_in_child, signal.SIGINT, 12, _arguments(tiny, out), tmp_path / "said") == 0
    assert "trained 12 steps" in (tmp_path / "said").read_text()
    assert run_state(out) == run_state(whole)


def test_an_interrupted_demo_is_no_success(tmp_path: Path) -> None:
    """`demo` stops as `train` does, and says how to go on; no picture is of a run that is not finished."""
    arguments = ["demo", "--minutes", "4", "--out", str(tmp_path / "a demo")]
    assert in_child(command_in_child, signal.SIGINT, 2, arguments, tmp_path / "said") == 130
    assert f"undiffuse demo --minutes 4 --out '{tmp_path / 'a demo'}'" in (tmp_path / "said").read_text()
    assert [path.name for path in (tmp_path / "a demo").iterdir()] == ["run"]


def test_a_second_signal_does_not_wait(tiny: Values, tmp_path: Path) -> None:
    """Who asks twice is obeyed at once, and the last checkpoint is whole."""
    code = in_child(twice_in_child, tiny, tmp_path)
    assert code == -signal.SIGTERM
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000003", "step-00000006"]
    load(tmp_path)


def twice_in_child(values: Values, out: Path) -> None:
    """A run that is asked to stop twice within one step."""
    _before_step(7, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)] and None)
    train_in_child(None, values, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_itself_stops_cleanly(tiny: Values, tmp_path: Path, number: signal.Signals) -> None:
    """A signal from outside to `undiffuse train`, at whatever moment of the run it arrives."""
    values = {**tiny, "training.steps": 100_000, "training.checkpoint_every": 1000, "training.preview_every": 100_000}
    arguments = [sys.executable, "-m", "undiffuse", *_arguments(values, tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + number, said
    assert number.name in said and "Traceback" not in said
    step = checkpoints(tmp_path)[-1].name.removeprefix("step-").lstrip("0")
    assert f"step {step} " in said


# A wall-clock budget, with a clock that the test owns: 0.1 s per step.

BUDGET = {"training.minutes": 0.04, "training.steps": None, "training.log_every": 4, "training.decay": 0.4}


def tick() -> None:
    """Replaces the run's clock by one that is 0.1 s later at every look."""
    looks = iter(range(1_000_000))
    run.clock_of = lambda config: lambda: next(looks) / 10


def budget_in_child(step: int | None, values: Values, out: Path, resume: bool = False) -> None:
    """A run on the clock of `tick`, killed before `step`."""
    tick()
    if step is not None:
        _before_step(step)
    train_in_child(None, values, out, resume)


@pytest.fixture(scope="module")
def budgeted(tiny: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2.4 s on the clock of `tick`, which nothing interrupted."""
    out = tmp_path_factory.mktemp("budget") / "run"
    assert in_child(budget_in_child, None, {**tiny, **BUDGET}, out) == 0
    return out


def test_a_budget_scales_the_schedule_to_the_clock(budgeted: Path) -> None:
    """At 0.1 s a step, 2.4 s are 24 steps, planned when 60 % are over; the rate ends near 0."""
    assert checkpoints(budgeted)[-1].name == "step-00000024"
    assert _end(budgeted)["progress"] == {"step": 24, "total": 24, "scaler": None, "pending": [], "before": 0.0}
    rates = [row["learning_rate"] for row in metrics(budgeted)]
    assert rates[:3] == [1e-3] * 3
    assert rates[-1] == pytest.approx(1e-3 / (0.4 * 24))


@pytest.mark.parametrize("step", [3, 13, 15, 21])
def test_a_killed_budget_resumes_to_the_same_end(budgeted: Path, tiny: Values, tmp_path: Path, step: int) -> None:
    """Killed before the plan or after it: the clock and the plan are those of the uninterrupted run."""
    assert in_child(budget_in_child, step, {**tiny, **BUDGET}, tmp_path) == -signal.SIGKILL
    assert in_child(budget_in_child, None, {}, tmp_path, True) == 0
    mine, theirs = (load_file(checkpoints(run)[-1] / "training.safetensors") for run in (tmp_path, budgeted))
    assert _end(tmp_path)["progress"] == _end(budgeted)["progress"]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("log_every", [1, 3, 5])
def test_a_plan_may_fall_on_a_logged_step(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """TrainingStep 15 is planned, logged and saved; nothing of it stands in the way of the rest."""
    monkeypatch.setattr(run, "clock_of", run.clock_of)
    tick()
    outcome = train({**tiny, **BUDGET, "training.log_every": log_every}, tmp_path, report=ignore)
    assert outcome.finished and outcome.step == 24
    assert [row["step"] for row in metrics(tmp_path)] == sorted({*range(log_every, 25, log_every), 24})


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_budget_with_no_or_only_decay(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    """The ends of training.decay: planned at the end, or at once."""
    monkeypatch.setattr(run, "clock_of", run.clock_of)
    tick()
    outcome = train({**tiny, **BUDGET, "training.decay": decay}, tmp_path, report=ignore)
    assert outcome.finished
    assert 24 <= outcome.step <= 25


def test_a_budget_on_the_real_clock(tiny: Values, tmp_path: Path) -> None:
    """--minutes with the machine's own clock: finished, planned, and finished for --resume, too."""
    values = {**tiny, "training.minutes": 0.02, "training.steps": None, "training.log_every": 7}
    outcome = train(values, tmp_path, report=ignore)
    assert outcome.finished
    assert _end(tmp_path)["progress"]["total"] == outcome.step
    if outcome.step > 10:  # a machine that takes fewer has hardly a schedule
        assert metrics(tmp_path)[-1]["learning_rate"] < 0.3e-3
    assert train({}, tmp_path, resume=True, report=ignore).step == outcome.step
