"""The one rule of outputs: never over or among what is there without --force; whole or absent."""

import errno
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

import undiffuse
from undiffuse import names, output
from undiffuse.cli import complete
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import write_json
from undiffuse.plots import save_image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder `cat` of ten grey pictures."""
    for k, image in enumerate(np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)):
        save_image(image, tmp_path / "cat" / f"{k}.png")
    return tmp_path / "cat"


@pytest.mark.parametrize(
    ("name", "second"),
    [("a.png", "a-2.png"), ("a b", "a b-2"), ("v.1", "v.1-2"), ("run.v2", "run.v2-2"), ("A.PNG", "A-2.PNG")],
)
def test_a_fresh_name_counts_on_and_keeps_the_suffix(tmp_path: Path, name: str, second: str) -> None:
    """What is there is a file, a folder or a link to nothing; what follows a dot in a version is no suffix."""
    assert output.fresh(tmp_path / name) == tmp_path / name
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    assert output.fresh(tmp_path / name) == tmp_path / second
    (tmp_path / second).mkdir()
    assert output.fresh(tmp_path / name).name == second.replace("-2", "-3")


def test_many_that_want_one_name_all_get_one(tmp_path: Path) -> None:
    """Sixteen writers at once: sixteen files (and folders), each as one of them wrote it, none lost."""

    def file(number: int) -> Path:
        return output.put(tmp_path / "x.json", lambda path: write_json(path, number))

    def folder(number: int) -> Path:
        return output.put_folder(
            tmp_path / "x", lambda path: write_json(path / "n.json", number), output.names_of_samples(".png")
        )

    with ThreadPoolExecutor(16) as pool:
        files, folders = list(pool.map(file, range(16))), list(pool.map(folder, range(16)))
    assert [json.loads(path.read_text()) for path in files] == list(range(16))
    assert [json.loads((path / "n.json").read_text()) for path in folders] == list(range(16))
    assert len({*files}) == len({*folders}) == 16
    assert len(list(tmp_path.iterdir())) == 32


def test_what_came_meanwhile_is_not_lost(tmp_path: Path) -> None:
    """The name was free when the work began; at its end both are there. With force, the newer one alone."""
    path = tmp_path / "x.json"
    output.claim({"--json": path}, force=False)
    path.write_text("the user's")
    assert output.put(path, lambda place: write_json(place, 1)) == tmp_path / "x-2.json"
    assert path.read_text() == "the user's"
    assert output.put(path, lambda place: write_json(place, 2), force=True) == path
    assert json.loads(path.read_text()) == 2


def test_force_writes_through_a_link(tmp_path: Path) -> None:
    """The link stays one, and what it links to is replaced."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.json").write_text("0")
    (tmp_path / "link.json").symlink_to("there/real.json")
    output.put(tmp_path / "link.json", lambda place: write_json(place, 5), force=True)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "there" / "real.json").read_text()) == 5


def test_a_full_disk_leaves_nothing_and_names_the_output(tmp_path: Path) -> None:
    """Of a file and of a folder; what was there is as it was."""

    def full(path: Path) -> None:
        save_image(np.zeros((2, 2, 1), np.uint8), path / "000000.png" if path.suffix == "" else path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "000001.png").write_text("mine")
    folder = partial(output.put_folder, own=output.names_of_samples(".png"))
    for put, name in ((output.put, "x.png"), (folder, "new"), (folder, "old")):
        with pytest.raises(UndiffuseError, match=rf"{name}: No space left") as raised:
            put(tmp_path / name, full, force=True)
        assert ".tmp-" not in str(raised.value)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old", "old/000001.png"]
    assert (tmp_path / "old" / "000001.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("there.json", "--force"),
        ("folder", "is a folder"),
        ("dangling.json", "--force"),
        ("pipe.json", "not a file"),
        ("x.pdf", "must end in .json"),
        ("x" * 300 + ".json", "too long"),
        ("there.json/x.json", "there.json"),
    ],
)
def test_files_that_cannot_be_are_refused_before_the_work(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.json").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.json")
    kinds = {} if name == "folder" else {"--json": [".json"]}
    with pytest.raises(UndiffuseError, match=why):
        output.claim({"--json": tmp_path / name, "--report": None}, False, kinds)
    if why != "--force":
        with pytest.raises(UndiffuseError, match=why):
            output.claim({"--json": tmp_path / name}, True, kinds)
    else:
        output.claim({"--json": tmp_path / name}, True, kinds)


def test_two_outputs_of_one_name_and_read_only_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--json and --report are both"):
        output.claim({"--json": tmp_path / "x", "--report": tmp_path / "." / "x"}, True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for anyone but root in a folder of someone else
    with pytest.raises(UndiffuseError, match="may write to"):
        output.claim({"--json": tmp_path / "x"}, False)
    with pytest.raises(UndiffuseError, match="may write to"):
        output.claim_folder("--out", tmp_path / "x" / "y", False)


def test_samples_of_two_models_are_never_mixed(command: Command, whole: Path, tmp_path: Path) -> None:
    """A folder with anything in it is refused; --force replaces all older samples, and leaves what is not one."""
    words = ["sample", whole, "--steps", 2, "-o", "out"]
    (tmp_path / "out").mkdir()
    assert command(*words, "-n", 5)[0] == 0  # empty: nothing to lose
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code, _, err = command(*words, "-n", 3, "--seed", 1)
    assert code == 2 and "--force" in err and len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert command(*words, "-n", 3, "--seed", 1, "--force")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{k:06d}.png" for k in range(3)),
        "notes.txt",
    ]
    drawn = [np.asarray(Image.open(tmp_path / "out" / f"{k:06d}.png")) for k in range(3)]
    assert np.array_equal(np.stack(drawn), undiffuse.sample(whole, 3, steps=2, seed=1)[..., 0])


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.npy"])
def test_a_named_file_is_replaced_by_force_alone(command: Command, whole: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    code, _, err = command("sample", whole, "-n", 1, "--steps", 1, "-o", name)
    assert code == 2 and "--force" in err and (tmp_path / name).read_text() == "mine"
    assert command("sample", whole, "-n", 1, "--steps", 1, "-o", name, "--force")[0] == 0
    assert (tmp_path / name).read_bytes() != b"mine"


def test_a_name_of_ones_own_for_every_run(command: Command, whole: Path, tmp_path: Path) -> None:
    for name in ("run-samples.png", "run-samples-2.png", "run-samples-3.png"):
        code, out, err = command("sample", whole, "-n", 1, "--steps", 1)
        assert code == 0 and f": {name} " in out, err
    assert len(list(tmp_path.iterdir())) == 3


def test_data_show_spares_what_is_there(
    command: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of the user's that has the sheet's name; and no sheet among the pictures it shows."""
    (tmp_path / "cat.png").write_text("mine")
    for name in ("cat-2.png", "cat-3.png"):
        code, out, err = command("data", "show", "cat")
        assert code == 0 and f"contact sheet: {name}" in out, err
    assert (tmp_path / "cat.png").read_text() == "mine"
    code, _, err = command("data", "show", "cat", "-o", "cat/sheet.png", "--force")
    assert code == 2 and "inside" in err
    monkeypatch.chdir(pictures)
    code, out, _ = command("data", "show", ".")
    assert code == 0 and "no contact sheet" in out
    assert len(list(pictures.iterdir())) == 10


def test_explain_has_a_folder_of_its_own(
    command: Command, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or absent: interrupted between its pictures, it leaves none."""

    def two(model: object, out: Path, *_: object) -> list[tuple[Path, str]]:
        save_image(np.zeros((2, 2, 1), np.uint8), out / "1-forward.png")
        if stopped:
            raise KeyboardInterrupt
        return [(out / "1-forward.png", "The forward process.")]

    monkeypatch.setattr("undiffuse.explain.draw", two)
    stopped: list[int] = []
    for name in ("explain-run", "explain-run-2"):
        code, out, err = command("explain", whole)
        assert code == 0 and out.splitlines()[0] == f"{name}/1-forward.png", err
        assert (tmp_path / name / "1-forward.png").exists()
    code, _, err = command("explain", whole, "--out", "explain-run")
    assert code == 2 and "--force" in err
    stopped.append(1)
    assert command("explain", whole, "--out", "third")[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explain-run", "explain-run-2"]


def test_a_demo_is_no_place_for_another(command: Command, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "data.png").write_text("mine")
    code, _, err = command("demo", "--out", "demo")
    assert code == 2 and "--force" in err and (tmp_path / "demo" / "data.png").read_text() == "mine"


def test_a_built_in_model_that_is_read_only_is_not_searched_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = command("tune", "fashion-mnist")
    assert code == 2 and "copy" in err and len(err.splitlines()) == 1


def test_suggested_commands_can_be_pasted() -> None:
    """Into a POSIX shell: what it takes them apart into is what was meant."""
    import subprocess

    name = 'it\'s a "run" $HOME/é *'
    suggested = names.command("sample", Path(name), "--class", "Animals & Nature")
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {suggested}"], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["undiffuse", "sample", name, "--class", "Animals & Nature"]
    assert names.command("sample", "runs/emoji") == "undiffuse sample runs/emoji"
    assert names.command("sample", Path("-x")) == "undiffuse sample ./-x"


def test_completions_are_the_names_there_are() -> None:
    """Of the registry; the data sets are written out, so that Tab loads nothing heavy."""
    from undiffuse.data.entries import OPENERS
    from undiffuse.data.speech import SPEECH
    from undiffuse.metrics.measure import GROUPS
    from undiffuse.model import built_in
    from undiffuse.registry import GRIDS, SAMPLERS, SOUND_METRICS

    assert set(complete.samplers("")) == {"auto", *SAMPLERS} and complete.samplers("he") == ["heun"]
    assert set(complete.grids("")) == set(GRIDS)
    assert set(complete.metrics("")) == {"all", *GROUPS, "bpd", "ode", "text", *SOUND_METRICS}
    assert set(complete.data("")) == {*OPENERS, *SPEECH}
    assert set(built_in()) <= set(complete.models(""))


def test_tab_completes_in_the_shell_and_loads_nothing_heavy(tmp_path: Path) -> None:
    """As bash asks: subcommands, models, runs, samplers, data; nothing where files are meant."""
    import subprocess

    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    code = (
        "import sys; from undiffuse.cli.app import main\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )

    def completed(line: str) -> list[str]:
        asked = {
            "_UNDIFFUSE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, text=True
        )
        *names, heavy = done.stdout.splitlines()
        assert heavy == "heavy: []", done.stderr
        return [name for name in names if name]

    assert completed("undiffuse sa") == ["sample"]
    assert completed("undiffuse sample fashion-mnist-") == ["fashion-mnist-likelihood"]
    assert completed("undiffuse sample runs/") == ["runs/mine"]
    assert completed("undiffuse sample emoji --sampler dpm") == ["dpm++2m", "dpm++3m"]
    assert completed("undiffuse data show dig") == ["digits", "digits-spoken"]
    assert completed("undiffuse sample ./somewhere") == []


def test_completion_can_be_installed(command: Command) -> None:
    _, out, _ = command("--help")
    assert "--install-completion" in out
