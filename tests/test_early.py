"""What is said before torch is loaded: lists, help, and that something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command

from undiffuse.cli.early import CHOICES
from undiffuse.engines import ENGINES
from undiffuse.generate import THRESHOLDS
from undiffuse.registry import TOKEN_SAMPLERS
from undiffuse.sampling import GRIDS, SAMPLERS

CODE = """
import contextlib, io, shlex, sys
from undiffuse.cli.app import main
for line in sys.argv[1:]:
    sys.argv = ["undiffuse", *shlex.split(line)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    heavy = [name for name in ("torch", "accelerate", "matplotlib", "datasets") if name in sys.modules]
    print(code, line, heavy, "Traceback" in said.getvalue(), said.getvalue().replace(chr(10), " ")[:60], sep="|")
"""
DONE = ["models", "data list", "--version", "--help", "train --help", "train --help-config", "train --dump-config"]
REFUSED = [
    "sample nothing-here",
    "sample emoji --sampler dimm",
    "sample emoji --grid even",
    "sample emoji --threshold hard",
    "sample emoji --engine steam",
    "sample damaged",
    "evaluate nothing-here",
    "evaluate nothing-here.npz",
    "evaluate emoji --sampler dimm",
    "compare emoji nothing-here@ddim:5",
    "explain nothing-here",
    "show nothing-here",
    "redo nothing-here",
    "tune nothing-here",
    "tune emoji --sampler dimm",
    "export nothing-here --out x",
    "export emoji --format pickle --out x",
    "train nothing-here",
    "train nothing-here.npz",
    "train emoji --set training.steps=0",
    "train emoji --set training.stepps=1",
    "train emoji --preset quick",
    "train --config nothing-here.toml",
    "data show nothing-here",
]


def _say(lines: list[str], folder: Path) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *lines], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    return [line.split("|") for line in done.stdout.splitlines()]


def test_no_torch_for_what_needs_none(tmp_path: Path) -> None:
    """Cards, catalogues, help and configurations are read without it, all in one process that never loads it."""
    for code, line, heavy, traceback, said in _say(DONE, tmp_path):
        assert (code, heavy, traceback) == ("0", "[]", "False"), line
        assert said.strip(), line


def test_no_torch_to_find_that_something_is_wrong(tmp_path: Path) -> None:
    """A model, a file, a sampler or a setting that there is not, and a damaged card."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.json").write_text('{"format": 1}')
    results = _say(REFUSED, tmp_path)
    assert [line for _, line, *_ in results] == REFUSED
    for code, line, heavy, traceback, said in results:
        assert (code, traceback) == ("1" if "damaged" in line else "2", "False"), (line, said)
        assert "torch" not in heavy and "accelerate" not in heavy, line
        assert said.startswith("undiffuse: "), said


def test_the_names_are_those_there_are() -> None:
    """In order."""
    assert CHOICES["sampler"]() == ("auto", *SAMPLERS, *TOKEN_SAMPLERS)
    assert tuple(CHOICES["grid"]()) == tuple(GRIDS)
    assert tuple(CHOICES["threshold"]()) == tuple(THRESHOLDS)
    assert CHOICES["engine"]() == ("auto", *ENGINES)


@pytest.mark.parametrize(
    ("line", "said"), [("sample fashion-mnst", "did you mean fashion-mnist"), ("sample emoji --sampler dimm", "ddim")]
)
def test_the_nearest_is_named(command: Command, line: str, said: str) -> None:
    """A slip of the finger costs no time."""
    code, _, err = command(*line.split())
    assert code == 2 and said in err
