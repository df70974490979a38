"""Where runs live and how they find their data: its content decides, whatever it is called and wherever it lies."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Command, checkpoint_state, ignore, in_child, write_data
from PIL import Image
from test_resume import command_in_child

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.explain import _data
from undiffuse.model import checkpoints, load
from undiffuse.training import Outcome, batches, train
from undiffuse.training.folders import new_folder, usual_folder

SMALL = {**TINY, "network.channels": (8,), "training.batch_size": 4, "training.steps": 3, "training.preview_every": 9}
OPTIONS = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]


def pictures(folder: Path, seed: int = 0, classes: tuple[str, ...] = ()) -> Path:
    """12 colour pictures of 8x8, loose or in class folders."""
    random = np.random.default_rng(seed)
    for number in range(12):
        place = folder / classes[number % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number:02d}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and home with the folder `pics` in it, and the empty folder `elsewhere` beside that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "pics")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


class _EndedError(Exception):
    pass


def begin(source: str, run: str = "run", step: int = 2, **values: Any) -> None:
    """A run that ends in the step after `step`, with a checkpoint of every step before."""
    make = batches.make_batch

    def make_or_end(config: Any, data: Any, number: int, positions: slice) -> Any:
        if number == step:
            raise _EndedError
        return make(config, data, number, positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "make_batch", make_or_end)
        with pytest.raises(_EndedError):
            train({**SMALL, "training.checkpoint_every": 1, "data.source": source, **values}, run, report=ignore)


def moved(home: Path) -> str:
    (home / "pics").rename(home / "elsewhere" / "photos")
    return "elsewhere/photos"


def linked(home: Path) -> str:
    (home / "link").symlink_to("pics")
    return "link"


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "slash": lambda home: "pics/",
    "dot": lambda home: "./pics",
    "detour": lambda home: "elsewhere/../pics",
    "absolute": lambda home: str(home / "pics"),
    "home": lambda home: "~/pics",
    "link": linked,
    "moved": moved,
    "directory": lambda home: os.chdir("elsewhere") or "../pics",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_run_goes_on_with_the_same_content_however_it_is_spelled(home: Path, spelling: str) -> None:
    """The weights are those of the run that nothing interrupted; the next resume finds the data without being told."""
    train({**SMALL, "data.source": "pics"}, "whole", report=ignore)
    begin("pics")
    run = home / "run"
    source = SPELLINGS[spelling](home)
    assert train({"data.source": source}, run, resume=True, report=ignore).finished
    mine, theirs = (checkpoint_state(checkpoints(at)[-1]) for at in (run, home / "whole"))
    assert (mine["weights"], mine["training"]) == (theirs["weights"], theirs["training"])
    os.chdir("/")
    assert train({}, run, resume=True, report=ignore).finished
    assert load(run).config.data.source == source


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_and_its_model_find_the_data_from_another_directory(home: Path, command: Command, kind: str) -> None:
    """Resume, evaluate and explain, without being told where a relative name began; hub and built-in names stay."""
    name = "pics" if kind == "folder" else "./tiny.npz"
    write_data(home / "tiny.npz")
    begin(name)
    os.chdir(home / "elsewhere")
    assert train({}, home / "run", resume=True, report=ignore).finished
    model = load(home / "run")
    assert _data(model) is not None
    bound = ["--metrics", "bpd", "--split", "train", "-n", 10, "--bound", "2", "--draws", "1"]
    code, said, err = command("evaluate", home / "run", *bound)
    assert code == 0 and "bits per dim" in said, err


def test_a_checkpoint_does_not_tell_where_its_data_lay(home: Path) -> None:
    """What is shipped has the name as it was written, and nothing of this machine; the run's record has the path."""
    train({**SMALL, "data.source": "pics"}, "run", report=ignore)
    for file in Path("run/checkpoints").rglob("*"):
        assert file.is_dir() or str(home).encode() not in file.read_bytes(), file
    assert json.loads(Path("run/run.json").read_text())["data"]["source"] == str(home / "pics")
    assert load("run").learnt.source == str(home / "pics")
    checkpoints(Path("run"))[-1].rename("shipped")
    assert load("shipped").learnt.source == "pics"
    assert load("emoji").learnt.source == "emoji"


def test_where_the_data_lies_is_no_part_of_a_models_fingerprint(home: Path) -> None:
    train({**SMALL, "data.source": "pics"}, "run", report=ignore)
    inside = load("run").fingerprint
    checkpoints(Path("run"))[-1].rename("shipped")
    assert load("shipped").fingerprint == inside


@pytest.mark.parametrize("step", [0, 2])
def test_other_content_is_refused_under_any_name(home: Path, step: int) -> None:
    """Killed before its first checkpoint or after one: another data set, or another content of the same, is refused."""
    begin("pics", step=step)
    assert bool(checkpoints(home / "run")) == bool(step)
    pictures(home / "other", seed=1)
    with pytest.raises(UsageError, match=r"begun with data\.source = pics.*other.*another --out"):
        train({"data.source": "other"}, "run", resume=True, report=ignore)
    pictures(home / "pics", seed=2)
    with pytest.raises(UndiffuseError, match="pics has changed"):
        train({}, "run", resume=True, report=ignore)
    pictures(home / "pics")
    assert train({}, "run", resume=True, report=ignore).finished


def test_a_project_that_moves_with_its_data_goes_on(home: Path) -> None:
    """Where nothing is left at the recorded place, the name is looked for where the command is given."""
    (home / "project").mkdir()
    (home / "pics").rename("project/pics")
    os.chdir("project")
    begin("pics")
    os.chdir("..")
    Path("project").rename("renamed")
    os.chdir("renamed")
    assert train({}, "run", resume=True, report=ignore).finished
    assert load("run").learnt.source == str(home / "renamed" / "pics")


def test_data_that_is_gone_is_asked_for(home: Path) -> None:
    """The message names the place and the command; a folder's name is not looked for on the hub."""
    pictures(home / "some" / "pics")
    begin("some/pics", "my run")
    (home / "some").rename("gone")
    with pytest.raises(UsageError, match=r"some/pics: say where .* undiffuse train DATA --resume --out 'my run'"):
        train({}, "my run", resume=True, report=ignore)


def test_records_of_earlier_versions_go_on(home: Path) -> None:
    """run.json once held neither the data's place nor its fingerprint."""
    begin("pics", step=0)
    record = json.loads(Path("run/run.json").read_text())
    del record["data"]
    Path("run/run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="another --out"):
        train({"data.source": "./pics"}, "run", resume=True, report=ignore)
    assert train({}, "run", resume=True, report=ignore).finished


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": 1}', '{"config": {"training": {"steps": -1}}}'])
def test_a_damaged_record_is_named(home: Path, content: str) -> None:
    train({**SMALL, "data.source": "pics"}, "run", report=ignore)
    Path("run/run.json").write_text(content)
    with pytest.raises(UndiffuseError, match=r"run\.json"):
        train({}, "run", resume=True, report=ignore)


def test_training_in_the_folder_that_is_the_data(command: Command, tmp_path: Path) -> None:
    """`train .` writes its run under the data, and does not take its own previews for data when it is resumed."""
    pictures(tmp_path, classes=("cat", "dog"))
    begin(".", f"runs/{tmp_path.name}", **{"training.preview_every": 1})
    code, said, err = command("train", ".", "--resume")
    assert code == 0 and "trained 3 steps" in said, err
    assert load(f"runs/{tmp_path.name}").data.classes == ("cat", "dog")
    code, said, err = command("train", ".", "--out", "again", *OPTIONS)
    assert code == 0 and "2 classes" in said, err


# The run's folder, where --out does not say.


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("emoji", "emoji"),
        ("pics", "pics"),
        ("pics/", "pics"),
        ("./pics/.", "pics"),
        ("~/pics", "pics"),
        ("v.1", "v.1"),
        ("v.1.npz", "v.1"),
        ("my pictures", "my pictures"),
        ("link", "link"),
        ("pics/..", None),
        (".", None),
        ("/", "data"),
        ("owner/name", "name"),
        ("owner/name@main", "name@main"),
        ("owner/name.v2@refs/convert/parquet", "name.v2@refs-convert-parquet"),
        ("x" * 300, "x" * 300),
        ("~nobody/pics", "pics"),
    ],
)
def test_a_run_is_called_as_its_data(home: Path, source: str, name: str | None) -> None:
    """The whole name of a folder, a file's without its suffix, a hub name's without its owner."""
    for folder in ("v.1", "my pictures", "emoji"):
        (home / folder).mkdir()
    (home / "v.1.npz").touch()
    linked(home)
    assert usual_folder(source) == Path("runs") / (name or home.name)


def test_a_second_run_gets_a_folder_of_its_own(command: Command, home: Path) -> None:
    """Another data set of the same name, and the same once more; each is found again by its data."""
    pictures(home / "a" / "v.1")
    pictures(home / "b" / "v.1", seed=1)
    for number, source in enumerate(("a/v.1", "b/v.1", "pics"), 1):
        code, said, err = command("train", source, *OPTIONS)
        assert code == 0, err
        assert ("runs/v.1 exists already" in said) == (number == 2)
    assert sorted(os.listdir("runs")) == ["pics", "v.1", "v.1-2"]
    code, said, _ = command("train", "b/v.1/", "--resume")
    assert code == 0 and "resumed from runs/v.1-2/" in said
    code, said, _ = command("train", "a/v.1", *OPTIONS)
    assert code == 0 and "this run is runs/v.1-3" in said
    code, _, err = command("train", "./a/v.1", "--resume")
    assert code == 2 and "2 runs are on ./a/v.1" in err and "runs/v.1, runs/v.1-3" in err
    code, said, _ = command("train", "emoji", "--resume", "--out", "runs/pics")
    assert code == 2


def test_runs_that_begin_together_have_a_folder_each(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before either has written anything; what stays empty goes. The processes of one torchrun share theirs."""
    usual = Path("runs/x")
    with new_folder(usual) as one, new_folder(usual) as other:
        assert (one, other) == (usual, Path("runs/x-2"))
        (other / "run.json").touch()
    assert os.listdir("runs") == ["x-2"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with new_folder(usual) as one, new_folder(usual) as other:
        assert one == other == usual and not usual.exists()


def test_a_run_that_cannot_begin_leaves_no_folder(command: Command, home: Path) -> None:
    """Be it refused for its data or because nothing can be written; the latter names the folder."""
    (home / "broken.npz").write_bytes(b"PK nothing")
    assert command("train", "broken.npz", *OPTIONS)[0] != 0
    assert not (home / "runs").exists()
    (home / "runs").touch()
    code, _, err = command("train", "pics", *OPTIONS)
    assert code == 1 and "cannot write runs/pics" in err


def test_the_next_command_can_be_pasted(command: Command, home: Path) -> None:
    """A name with spaces is quoted, for a run that finished and for one that was interrupted."""
    pictures(home / "my pictures")
    code, said, err = command("train", "my pictures", *OPTIONS)
    assert code == 0 and said.endswith("next: undiffuse sample 'runs/my pictures'\n"), err
    assert in_child(interrupted_in_child, str(home), ["train", "pics", "--out", "o'clock", *OPTIONS], "said") == 130
    assert Path("said").read_text().endswith("next: undiffuse train --out 'o'\"'\"'clock' --resume\n")


def interrupted_in_child(folder: str, arguments: list[str], said: str) -> None:
    """The command in `folder`, with Ctrl-C in its second step."""
    os.chdir(folder)
    command_in_child(signal.SIGINT, 2, arguments, Path(said))


@pytest.mark.parametrize("there", ["cat.png", "previews/step-1.png", "metrics.jsonl"])
def test_a_run_does_not_go_among_other_things(home: Path, there: str) -> None:
    """--out with something in it is refused and stays as it is; a log that the shell began to write is no hindrance."""
    (home / "run" / there).parent.mkdir(parents=True)
    (home / "run" / there).write_text("mine")
    with pytest.raises(UsageError, match=r"run is not a run of undiffuse, but holds .*another --out"):
        train({**SMALL, "data.source": "pics"}, "run", report=ignore)
    with pytest.raises(UsageError, match=r"pics is not a run of undiffuse.*another --out"):
        train({**SMALL, "data.source": "pics"}, "pics", report=ignore)
    assert [path.read_text() for path in Path("run").rglob("*") if path.is_file()] == ["mine"]
    (home / "logs").mkdir()
    (home / "logs" / "job.log").touch()
    assert train({**SMALL, "data.source": "pics"}, "logs", report=ignore).finished


@pytest.mark.parametrize("given", [True, False])
def test_a_demo_does_not_go_among_other_things(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """`demo` in a folder called so that is none: refused if asked for, another name if not."""
    (home / "demo").mkdir()
    (home / "demo" / "data.png").write_text("mine")
    runs: list[Path] = []

    def stopped(values: Any, run: Path, **options: Any) -> Outcome:
        runs.append(run)
        return Outcome(run, run, 1, False, signal=2)

    monkeypatch.setattr("undiffuse.training.train", stopped)
    code, _, err = command("demo", *(["--out", "demo"] if given else []))
    assert (code, runs) == ((2, []) if given else (130, [Path("demo-2/run")])), err
    assert Path("demo/data.png").read_text() == "mine"


def test_a_class_that_is_no_text_fails_before_the_first_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record with the classes is written first: bytes that are not UTF-8 are found then, and nothing is left."""
    from undiffuse.training import run

    write_data(home / "tiny.npz")
    monkeypatch.setattr(run, "make_data", _with_classes(run.make_data, ("dark", "gr\udcffy", "bright")))
    with pytest.raises(UndiffuseError, match=r"run\.json.*gr\\udcffy.*not UTF-8"):
        train({**SMALL, "data.source": "tiny.npz"}, "run", report=ignore)
    assert not Path("run").exists()


def _with_classes(make_data: Callable[..., Any], classes: tuple[str, ...]) -> Callable[..., Any]:
    return lambda *args, **kwargs: dataclasses.replace(make_data(*args, **kwargs), classes=classes)
