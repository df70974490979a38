"""Training where something goes wrong, or is asked for wrongly: what a run leaves, and what it says."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import checkpoint_state, ignore, in_child
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file

from undiffuse import plots
from undiffuse.config import Config
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import checkpoints, load
from undiffuse.training import checkpoint, listeners, loop, train

Values = dict[str, Any]


def assert_sound(run: Path) -> None:
    """Every checkpoint is whole, finite and can be loaded; nothing half-written is beside them."""
    assert not list(run.rglob(".tmp-*"))
    for folder in (run / "checkpoints").iterdir():
        for file in ("weights.safetensors", "training.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(folder / file).values()), folder
        load(folder)


@pytest.mark.parametrize(
    "values", [{"training.learning_rate": 1e30}, {"training.learning_rate": 1e30, "training.warmup": 30}]
)
def test_a_loss_that_is_not_finite_stops_the_run(tiny: Values, tmp_path: Path, values: Values) -> None:
    """The error names the step and the last good checkpoint, which is one; none with broken weights is written."""
    values = {**tiny, "training.checkpoint_every": 1, **values}
    with pytest.raises(UndiffuseError, match=r"(nan|inf) at step \d+; (the last good|there is no)") as caught:
        train(values, tmp_path, report=ignore)
    saved = checkpoints(tmp_path)
    assert str(saved[-1]) in str(caught.value) if saved else "no checkpoint" in str(caught.value)
    assert_sound(tmp_path)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss with a gradient that is NaN (step 6, which is saved) must not end in broken weights on disk."""
    make, calls = loop.make_objective, iter(range(1000))

    def poisoned(config: Config) -> Callable[..., torch.Tensor]:
        objective = make(config)

        def loss(denoiser: Any, *args: Any) -> torch.Tensor:
            losses = objective(denoiser, *args)
            if next(calls) == 5:  # sqrt(0) has an infinite slope
                losses = losses + sum(p.sum() * 0 for p in denoiser.network.parameters()).sqrt()
            return losses

        return loss

    monkeypatch.setattr(loop, "make_objective", poisoned)
    with pytest.raises(UndiffuseError, match=r"last good checkpoint is .*step-00000003"):
        train(tiny, tmp_path, report=ignore)
    assert_sound(tmp_path)


FULL = OSError(errno.ENOSPC, "No space left on device")
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _raise_from(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception) -> None:
    """`owner.name` raises `error` from its `call`-th call (from 0) on."""
    function, calls = getattr(owner, name), iter(range(10_000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= call:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("error", [FULL, RUST], ids=["OSError", "SafetensorError"])
def test_a_full_disk_costs_nothing_but_the_new_checkpoint(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """One error in words that names the last good checkpoint; from there the run goes on once there is room."""
    with monkeypatch.context() as patch:
        _raise_from(patch, checkpoint, "save_file", 1, error)
        with pytest.raises(UndiffuseError, match=r"No space left.*last good checkpoint is .*step-00000003") as caught:
            train(tiny, tmp_path, report=ignore)
    assert len(str(caught.value).splitlines()) <= 2
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000003"]
    assert_sound(tmp_path)
    assert train({}, tmp_path, resume=True, report=ignore).finished


def test_a_full_disk_beside_the_checkpoints(tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that cannot be written end the run as a failed checkpoint does: in words, resumable."""
    with monkeypatch.context() as patch:
        _raise_from(patch, listeners.Listeners, "log", 2, FULL)
        with pytest.raises(UndiffuseError, match=r"No space left"):
            train(tiny, tmp_path, report=ignore)
    assert checkpoints(tmp_path)
    assert train({}, tmp_path, resume=True, report=ignore).finished


@pytest.mark.parametrize("error", [UndiffuseError("no space left"), RuntimeError("out of memory")], ids=["disk", "any"])
def test_a_preview_that_fails_costs_neither_run_nor_checkpoint(
    tiny: Values, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception
) -> None:
    """Whatever it fails of: one warning however many fail, and the checkpoints of a run whose previews did not."""
    _raise_from(monkeypatch, plots, "save_grid", 0, error)
    assert train({**tiny, "training.preview_every": 1}, tmp_path, report=ignore).finished
    assert [str(error) in record.message for record in caplog.records if record.name == "undiffuse"] == [True]
    for folder in checkpoints(tmp_path):
        mine, theirs = (checkpoint_state(run / "checkpoints" / folder.name) for run in (tmp_path, whole))
        assert (mine["weights"], mine["training"]) == (theirs["weights"], theirs["training"])


def limited_in_child(values: Values, run: Path, said: Path) -> None:
    """A run on a system that refuses files of more than 100 kB once the first checkpoint is there."""
    torch.set_num_threads(1)
    save = checkpoint.save

    def save_and_limit(*args: Any) -> Path:
        folder = save(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return folder

    checkpoint.save = save_and_limit
    try:
        train(values, run, report=ignore)
    except UndiffuseError as error:
        said.write_text(str(error))


def test_a_system_that_refuses_to_write(tiny: Values, tmp_path: Path) -> None:
    """The same with a real refusal by the operating system, in the middle of a file."""
    assert in_child(limited_in_child, tiny, tmp_path / "run", tmp_path / "said") == 0
    said = (tmp_path / "said").read_text()
    assert "step-00000003" in said and len(said.splitlines()) <= 2
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert_sound(tmp_path / "run")


def test_a_run_folder_that_cannot_be(tiny: Values, tmp_path: Path) -> None:
    """A path below a file is one error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UndiffuseError, match=r"cannot write .*file.*writable"):
        train(tiny, tmp_path / "file" / "run", report=ignore)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tiny: Values, tmp_path: Path) -> None:
    """A folder without permission is one error that names it."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UndiffuseError, match="cannot write"):
            train(tiny, tmp_path / "run", report=ignore)
    finally:
        tmp_path.chmod(0o700)


def test_a_run_folder_that_becomes_read_only(tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission lost in the middle: the message, the last checkpoint, and no half of a new one."""
    from undiffuse import files

    make, calls = files.tempfile.mkdtemp, iter(range(99))

    def refuse(*args: Any, **kwargs: Any) -> str:
        if next(calls):
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkdtemp", refuse)
        with pytest.raises(UndiffuseError, match=r"Permission denied.*step-00000003"):
            train(tiny, tmp_path, report=ignore)
    assert checkpoint_state(checkpoints(tmp_path)[-1])["progress"]["step"] == 3


def test_two_processes_do_not_share_a_run(tiny: Values, tmp_path: Path) -> None:
    """A run folder belongs to one process at a time; the second is told so, and the first loses nothing."""
    with FileLock(tmp_path / ".lock"), pytest.raises(UndiffuseError, match="another process is training"):
        train(tiny, tmp_path, report=ignore)
    assert train(tiny, tmp_path, report=ignore).finished


def test_checkpoints_of_others_are_left_alone(tiny: Values, tmp_path: Path) -> None:
    """A folder with checkpoints that are not ours is refused, and nothing in it is swept."""
    other = tmp_path / "checkpoints" / "step-1000" / "pytorch_model.bin"
    other.parent.mkdir(parents=True)
    other.write_text("not ours")
    with pytest.raises(UsageError, match="choose another --out"):
        train(tiny, tmp_path, report=ignore)
    assert other.read_text() == "not ours"


def test_training_leaves_the_callers_generator_alone(tiny: Values, tmp_path: Path) -> None:
    """torch's global generator is where it was."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny, tmp_path, report=ignore)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_that_does_not_divide_is_refused(tiny: Values, tmp_path: Path) -> None:
    """16 images cannot be 3 equal micro-batches; nothing is written."""
    with pytest.raises(UsageError, match=r"training\.batch_size.*multiple of 3"):
        train({**tiny, "training.accumulation": 3}, tmp_path / "run", report=ignore)
    assert not (tmp_path / "run").exists()


def test_a_shift_beyond_the_image_is_refused(tiny: Values, tmp_path: Path) -> None:
    """Nothing of a picture would be left but its edge; and thousands of pixels of it are gigabytes."""
    for shift in (16, 4000):
        with pytest.raises(UsageError, match=r"data\.shift = \d+.*16x16"):
            train({**tiny, "data.shift": shift}, tmp_path / "run", report=ignore)
    assert not (tmp_path / "run").exists()


def test_steps_and_minutes_exclude_each_other(tiny: Values, tmp_path: Path) -> None:
    """A run has one length."""
    with pytest.raises(UsageError, match="exclude each other"):
        train({**tiny, "training.minutes": 1.0}, tmp_path, report=ignore)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_a_precision_that_the_device_lacks_is_bad_use(tiny: Values, tmp_path: Path) -> None:
    """fp16 on a CPU is refused in words, naming the setting."""
    with pytest.raises(UsageError, match=r"training\.precision|fp16"):
        train({**tiny, "training.precision": "fp16"}, tmp_path, report=ignore)
