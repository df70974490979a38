"""benchmarks/text/compressors.py counts what the held-out part adds, and runs."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from undiffuse.errors import UndiffuseError
from undiffuse.files import read_json
from undiffuse.randomness import stream

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "text"))

import compressors


def letters(length: int, seed: int, kinds: int = 16) -> str:
    """Independent, equally probable letters: log2(kinds) bits each, whatever is known."""
    return "".join(chr(97 + k) for k in stream(seed).integers(0, kinds, length))


@pytest.mark.parametrize("name", ["xz", "PPMd", "zpaq"])
def test_noise_costs_its_entropy_and_what_was_read_before_costs_nothing(name):
    if name != "xz" and not shutil.which(compressors.PROGRAMS[name][0]):
        pytest.skip(f"{name} is not on this machine")
    size = compressors.compressors()[name]
    text = letters(60_000, seed=1)
    assert compressors.given(size, text, letters(20_000, seed=2)) == pytest.approx(4, abs=0.25)
    assert compressors.given(size, text, text[10_000:30_000]) < 0.6


def test_characters_are_counted_and_not_bytes():
    assert compressors.given(len, "é", "éé") == 16


def test_a_program_that_fails_says_so(tmp_path):
    with pytest.raises(UndiffuseError, match="sh failed: no room"):
        compressors.program("sh", "-c", "echo no room >&2; exit 3", "OUT", "IN")(b"text")


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compressors, "PROGRAMS", {"zpaq": ("no-such-program",)})
    text, out = tmp_path / "noise.txt", tmp_path / "out.json"
    text.write_text(letters(60_000, seed=3))
    monkeypatch.setattr(sys, "argv", ["compressors.py", "--out", str(out), "--texts", str(text)])
    compressors.main()
    printed = capsys.readouterr().out
    assert "zpaq is left out: no-such-program is not on this machine" in printed
    (found,) = read_json(out)["texts"].values()
    assert found["characters"] == {"train": 57_000, "test": 3_000} and found["values"] == 16
    one = found["bits per character"]["1-gram"]
    assert abs(one["value"] - 4) < 4 * one["error"] + 0.01
    for kind in ("characters", "spans"):
        score = found["infilling"][kind]
        assert score["bits"]["value"] > 3.95  # nothing to learn
        assert score["accuracy"]["value"] == pytest.approx(1 / 16, abs=0.05)
    assert np.isfinite(found["bits per character"]["8-gram"]["value"])
    assert f"{one['value']:.3f} ± {one['error']:.3f}" in printed
