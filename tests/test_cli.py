"""The command: help at once, exit codes, messages without tracebacks, and each subcommand once."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

import undiffuse
from undiffuse.config import keys
from undiffuse.model import built_in

COMMANDS = ["train", "sample", "evaluate", "compare", "explain", "data list", "data show", "models", "tune", "import"]
COMMANDS += ["export", "demo", "train-classifier", "distill", "edit", "show", "redo"]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["", "data", *COMMANDS])
def test_help_has_an_example_and_imports_nothing_heavy(name: str) -> None:
    """--help of every command shows how it is called, and comes without torch or NumPy."""
    code = (
        "import sys; from undiffuse.cli.app import main\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'numpy', 'matplotlib', 'datasets', 'PIL'} & set(sys.modules)))"
    )
    done = python(code, *name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert re.search(r"undiffuse " + (name.replace("list", "(list|show)") or r"\w+"), done.stdout.split("\n", 1)[1])
    if name in COMMANDS:
        assert "Example" in done.stdout
        assert f"  undiffuse {name}" in done.stdout


def test_help_config_lists_every_key_without_torch() -> None:
    """--help-config is as light, and complete."""
    code = "import sys; from undiffuse.cli.app import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = python(code, "train", "--help-config")
    assert done.returncode == 0 and done.stdout.endswith("False\n")
    for name, *_ in keys():
        assert f"\n{name} = " in "\n" + done.stdout


def test_the_command_without_arguments_says_what_there_is(command: Command) -> None:
    """`undiffuse` alone lists its subcommands; --version says the version."""
    _, out, err = command()
    assert all(name.split()[0] in out + err for name in COMMANDS)
    code, out, _ = command("--version")
    assert code == 0 and re.fullmatch(r"undiffuse \d+\.\d+\.\S+\n", out)


def test_examples_in_the_help_are_valid_commands(command: Command) -> None:
    """Every option in an example is one the command has."""
    for name in COMMANDS:
        _, out, _ = command(*name.split(), "--help")
        examples = [line for line in out.splitlines() if re.match(rf"\s+(undiffuse|torchrun .*undiffuse) {name}", line)]
        assert examples
        for option in re.findall(r" (--?[a-z][\w-]*)", " ".join(examples)):
            assert option in ("--nproc-per-node", "-m") or option in out.split("Options:")[1], (name, option)


BAD_USE = [
    "nonsense",
    "train --nonsense",
    "train emoji --set zzz=1",
    "train emoji --set training.steps=0",
    "train emoji --set process.schedule=betas",
    "train emoji --steps 5 --minutes 5",
    "train emoji --size 4000000",
    "train nothing-of-this-name",
    "train --set data.source=nothing-of-this-name",
    "train --resume --out nowhere",
    "sample nothing-of-this-name",
    "sample {run} --sampler nonsense",
    "sample {run} --steps 0",
    "sample {run} -n 0",
    "sample {run} --class nonsense",
    "sample {run} --sampler heun --eta 0.5",
    "sample {run} --seed -1",
    "sample {run} -n 1000000000000 --out x.npz",
    "evaluate {run} -n 1000000000000000",
    "evaluate {run} --report x.pdf",
    "compare {run} emoji --figure x.jpg",
    "data show digits --out x.jpg",
    "sample {run} --sampler ddpm --steps 5000",
    "sample {run} --out x.jpg",
    "sample {run} --device nonsense",
    "sample .",
    "explain nothing-of-this-name",
    "data show nothing-of-this-name",
    "data show {run}/metrics.jsonl",
    "data show digits --split nonsense",
    "data show digits --size 0",
    "demo --minutes 0",
]


@pytest.mark.parametrize("line", BAD_USE)
def test_bad_use_is_exit_code_2_and_says_why(command: Command, whole: Path, tmp_path: Path, line: str) -> None:
    """One or two lines on standard error, no traceback, nothing written."""
    code, out, err = command(*line.format(run=whole).split())
    assert code == 2, err
    assert "Traceback" not in out + err and "unexpected" not in err
    message = [text for text in err.splitlines() if text and not text.startswith(("Usage:", "Try "))]
    assert 1 <= len(message) <= 2, err
    assert not list(tmp_path.iterdir())


def test_failure_is_exit_code_1(command: Command, whole: Path, tmp_path: Path) -> None:
    """What cannot be done on this machine, now, is 1; the message names the thing."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for line in (
        f"sample {whole} -n 1 --steps 1 --out file/x.png",
        "train digits --steps 1 --out file/run",
        "train broken.npz",
        "data show broken.npz",
    ):
        code, _, err = command(*line.split())
        assert code == 1, (line, err)
        assert err.strip().startswith("undiffuse: ") and len(err.strip().splitlines()) <= 2
        assert "unexpected" not in err and ("file" in err or "broken.npz" in err)


def test_an_unexpected_error_is_one_line_and_debug_shows_it(
    command: Command, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a bug ends in one line, which says how to see more; --debug anywhere gives the traceback."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError("surprise\nand more")

    monkeypatch.setattr("undiffuse.model.load", fail)
    code, _, err = command("sample", whole)
    assert code == 1 and "surprise" in err and "--debug" in err and len(err.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        command("sample", whole, "--debug")


@pytest.mark.parametrize("arguments", [["data", "show", "nowhere", "--debug"], ["--debug", "data", "show", "nowhere"]])
def test_debug_shows_where(arguments: list[str]) -> None:
    """`python -m undiffuse` is the command; with --debug an error comes with its traceback."""
    done = subprocess.run([sys.executable, "-m", "undiffuse", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "UsageError" in done.stderr


def test_train_then_sample_then_train_on_the_samples(command: Command, data: str, tmp_path: Path) -> None:
    """A run, its samples as .npz, and a run on those: the whole circle by command."""
    small = ["--set=network.channels=[8]", "--set=training.batch_size=8", "--steps", "2"]
    code, out, err = command("train", data, "--out", "run", "--flip", *small)
    assert code == 0, err
    assert "trained 2 steps" in out and "undiffuse sample run" in out
    code, out, _ = command("sample", "run", "-n", "30", "--steps", "2", "--out", "out.npz")
    assert code == 0 and "out.npz" in out
    code, _, err = command("train", "out.npz", *small)
    assert code == 0, err
    assert (tmp_path / "runs" / "out" / "checkpoints" / "step-00000002").exists()
    code, out, _ = command("train", "out.npz", "--resume", *small)
    assert code == 0 and "already finished" in out
    code, out, err = command("train", "out.npz", *small)
    assert code == 0 and "this run is runs/out-2" in out, err


@pytest.mark.parametrize("out", [None, "x.png", "x.npy", "x.npz", "folder", "deep/er/x.png"])
def test_sample_to_every_output(command: Command, whole: Path, tmp_path: Path, out: str | None) -> None:
    """A grid, an array, a table or a folder; the same pictures in all."""
    arguments = ["sample", whole, "-n", 5, "--steps", 3, "--seed", 7, *(["--out", out] if out else [])]
    code, said, err = command(*arguments)
    assert code == 0, err
    path = tmp_path / (out or "run-samples.png")
    assert path.name in said
    expected = undiffuse.sample(whole, 5, steps=3, seed=7)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            assert np.array_equal(arrays["images"], expected)
            assert arrays["classes"].tolist() == ["dark", "grey", "bright"]
    elif path.suffix == ".npy":
        assert np.array_equal(np.load(path), expected)
    elif path.suffix == ".png":
        with Image.open(path) as grid:
            assert grid.size[0] > grid.size[1] > 0
    else:
        pictures = sorted(path.iterdir())
        assert [picture.name for picture in pictures] == [f"{k:06d}.png" for k in range(5)]
        assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in pictures]), expected[..., 0])


def test_sample_options_reach_the_recipe(command: Command, whole: Path, tmp_path: Path) -> None:
    """Sampler, steps, eta, grid, threshold, seed, class and batch size mean what they mean in Python."""
    line = "--sampler ddim --steps 4 --eta 1 --grid quadratic --threshold dynamic --seed 5 --class grey --batch-size 2"
    code, _, err = command("sample", whole, "-n", 3, *line.split(), "--out", "x.npz")
    assert code == 0, err
    expected = undiffuse.sample(
        whole, 3, sampler="ddim", steps=4, eta=1.0, grid="quadratic", threshold="dynamic", seed=5, class_name="grey"
    )
    with np.load(tmp_path / "x.npz") as arrays:
        assert np.abs(arrays["images"].astype(int) - expected).max() <= 1
        assert arrays["labels"].tolist() == [1, 1, 1]


def test_data_list_and_show(command: Command, data: str, tmp_path: Path) -> None:
    """The catalogue; and a set of one's own, counted by class, with a sheet that is not blank."""
    code, out, _ = command("data", "list")
    assert code == 0 and "emoji" in out and "digits" in out
    code, out, err = command("data", "show", data, "--out", "sheet.png", "--split", "all")
    assert code == 0, err
    assert "72 images of 16x16x1" in out
    assert re.search(r"24 dark\n.*24 grey\n.*24 bright", out)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 50


def test_models_lists_what_is_built_in(command: Command) -> None:
    """Every built-in name, and how to use one."""
    code, out, err = command("models")
    assert code == 0, err
    assert "undiffuse sample" in out and all(name in out for name in built_in())


def test_interrupted_sampling_is_exit_code_130(
    command: Command, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C where there is nothing to save: a word, no traceback, no half of a file."""

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("undiffuse.randomness.normal", interrupt)
    code, _, err = command("sample", whole, "--out", "x.png")
    assert code == 130 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_the_names_of_the_package_are_light_and_real() -> None:
    """`import undiffuse` needs no torch, and every name it promises is there."""
    done = python("import sys, undiffuse; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert all(getattr(undiffuse, name) for name in undiffuse.__all__)


def test_demo_writes_and_names_its_pictures(command: Command, tmp_path: Path) -> None:
    """In the shortest of times: every path it names is there, and every picture opens; a second time it goes on."""
    code, out, err = command("demo", "--minutes", "0.05", "--out", "demo")
    assert code == 0, err
    named = [tmp_path / line.split(":")[0] for line in out.splitlines() if line.startswith("demo/")]
    assert len(named) == 5 and all(path.exists() for path in named)
    for path in named:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert len(np.unique(np.asarray(picture))) > 50
    code, out, err = command("demo", "--minutes", "0.05", "--out", "demo")
    assert code == 0 and "already finished" in out, err
