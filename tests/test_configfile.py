"""Configurations in files: what is printed is read back, who comes before whom, and what is refused."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from undiffuse.card import BUILT_IN, built_in, read_card
from undiffuse.config import Config, keys, make_config, over, preset, presets
from undiffuse.configfile import as_toml, flat, read_settings
from undiffuse.errors import UsageError
from undiffuse.registry import PRESETS

_name = st.from_regex(r"\A[A-Za-z0-9_]{1,12}\Z")
_words = st.text(max_size=20).filter(lambda text: text.lower() != "none")
_scalar = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "data.source": st.text(max_size=30),
        "data.size": st.none() | st.integers(4, 4096),
        "data.channels": st.sampled_from([None, 1, 3]),
        "data.flip": st.booleans(),
        "process.schedule": st.sampled_from(["linear", "log-snr", "sub-vp"]),
        "process.betas": st.none() | st.lists(st.floats(0, 1, exclude_min=True), max_size=4),
        "process.log_snrs": st.none() | st.lists(st.floats(-100, 100), max_size=4),
        "process.options": st.dictionaries(_name, st.floats(-1e6, 1e6), max_size=3),
        "denoiser.sigma_data": st.none() | st.floats(1e-4, 1e4),
        "network.channels": st.none() | st.lists(st.integers(1, 8192), min_size=1, max_size=4),
        "network.attention": st.none() | st.lists(st.integers(0, 12), max_size=4),
        "network.fourier": st.lists(st.integers(0, 24), max_size=4),
        "network.options": st.dictionaries(_name, _scalar | _words, max_size=3),
        "training.minutes": st.none() | st.floats(0, 1e7, exclude_min=True),
        "training.learning_rate": st.floats(0, 1e30, exclude_min=True),
        "training.betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        "training.clip": st.floats(0, 1e20, exclude_min=True),
    },
)


@given(VALUES)
@example({"data.source": "\x00\x7f\x85\u2028\\\"'\n"})
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_printed_is_read_back_as_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    """As TOML and as JSON, for any configuration, over any preset; no setting is left out."""
    config = make_config(values)
    written = as_toml(config)
    (tmp_path / "config.toml").write_text(written, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    assert {f"{section}.{key}" for section, inner in tomllib.loads(written).items() for key in inner} == set(
        flat(config)
    )
    for name in ("config.toml", "config.json"):
        read = read_settings(tmp_path / name)
        assert make_config(read) == config
        assert make_config(over(preset("likelihood"), read)) == config


@pytest.mark.parametrize("name", built_in())
def test_the_configuration_of_a_model_is_read_from_its_card(name: str) -> None:
    """All of it, with what was the rule when it was saved (`optimizer`), not today's default."""
    path = BUILT_IN / name / "model.json"
    assert make_config(read_settings(path)) == read_card(path.parent).config


def test_every_preset_is_a_file_of_settings() -> None:
    """The package's own presets are read as a person's file is."""
    for name in presets():
        assert read_settings(PRESETS[name]) == preset(name)


BAD = {
    "syntax.toml": ("[training]\nsteps = \n", "line 2"),
    "syntax.json": ('{"training":\n{"steps": }}', "line 2"),
    "twice.toml": ("[training]\nsteps = 1\nsteps = 2\n", "line 3"),
    "twice.json": ('{"training": {"steps": 1, "steps": 2}}', "'steps' appears twice"),
    "nan.json": ('{"training": {"learning_rate": NaN}}', "NaN"),
    "inf.toml": ("[training]\nlearning_rate = inf\n", "training.learning_rate = inf"),
    "huge.json": ('{"training": {"learning_rate": 1e999}}', "1e999"),
    "section.toml": ("[trainig]\nsteps = 1\n", "did you mean training"),
    "top.toml": ("steps = 1\n", "no section is called steps"),
    "key.toml": ("[training]\nlearningrate = 1\n", "did you mean training.learning_rate"),
    "dotted.toml": ('[process]\n"options.s" = 1.0\n', "options = {...}"),
    "flat.toml": ("training = 3\n", "training = 3"),
    "value.toml": ("[training]\nsteps = 0\n", "training.steps = 0"),
    "truth.toml": ("[training]\nsteps = true\n", "training.steps = True"),
    "date.toml": ("[training]\nsteps = 2020-01-01\n", "training.steps"),
    "list.json": ("[1, 2]", "no table"),
    "deep.json": ("[" * 10**5, "too deeply"),
    "deep.toml": ("x = " + "[" * 10**5, "too deeply"),
    "long.toml": (f"[training]\nprecision = '{'x' * 10**5}'\n", "training.precision = 'xxx"),
    "digits.toml": (f"[training]\nsteps = {'9' * 5000}\n", "digits"),
    "empty.json": ("", "empty"),
    "record.json": ('{"config": {"training": {}}}', "config.data is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_line_or_the_key(tmp_path: Path, name: str) -> None:
    """One short message; nothing in a file is ever run."""
    text, said = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and said in str(caught.value), caught.value
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\x00 = 1", b"\xef\xbb\xbf[training]\nsteps = x"])
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    """Not UTF-8, NUL, a fault behind a byte-order mark."""
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.toml"):
        read_settings(tmp_path / "x.toml")


def test_a_byte_order_mark_and_words_for_none(tmp_path: Path) -> None:
    """What editors of Windows write is read; "none" is None where a setting may be None, and else a word."""
    (tmp_path / "x.toml").write_text('\ufeff[training]\nsteps = "None"\n[data]\nsource = "none"\n', encoding="utf-8")
    assert read_settings(tmp_path / "x.toml") == {"training.steps": None, "data.source": "none"}
    (tmp_path / "empty.toml").write_text("")
    assert read_settings(tmp_path / "empty.toml") == {}


def _resolved(command: Command, *arguments: object) -> Config:
    code, out, err = command("train", *arguments, "--dump-config")
    assert code == 0, err
    Path("dumped.toml").write_text(out, encoding="utf-8")
    return make_config(read_settings("dumped.toml"))


def test_who_comes_before_whom(command: Command, tmp_path: Path) -> None:
    """Defaults, the preset, the file, the command line: each before the ones before it, key by key."""
    (tmp_path / "mine.toml").write_text(
        "[network]\nwidth = 3.0\n[training]\nminutes = 100\nlearning_rate = 0.5\n[process]\noptions = {s = 1.0}\n"
    )
    config = _resolved(command, "--config", "mine.toml", "--set", "training.learning_rate=0.25")
    best = make_config(preset("best"))  # what 100 minutes in a file choose, as they do on the command line
    assert config.network.blocks == best.network.blocks == 2
    assert config.network.width == 3.0 and config.training.learning_rate == 0.25 and config.training.minutes == 100
    assert config.training.decay == best.training.decay
    assert _resolved(command, "--config", "mine.toml", "--preset", "fast").training.decay == 0.8
    steps = _resolved(command, "--config", "mine.toml", "--steps", 7).training
    assert (steps.steps, steps.minutes) == (7, None)  # one budget: the command line's
    option = _resolved(command, "--config", "mine.toml", "--set", "process.options.t=2").process.options
    assert option == {"s": 1.0, "t": 2.0}
    assert _resolved(command, "digits", "--config", "mine.toml").data.source == "digits"
    assert _resolved(command).data.source == "emoji"


def test_what_is_dumped_trains_the_same_run(command: Command, data: str, tiny: dict[str, Any]) -> None:
    """A run from the dumped file, from run.json and from a checkpoint's card has the first one's configuration."""
    chosen = {**tiny, "training.steps": 2, "training.preview_every": 100}
    sets = [f"--set={name}={'[]' if value == () else value}" for name, value in chosen.items()]
    code, dumped, err = command("train", *sets, "--dump-config")
    assert code == 0, err
    Path("mine.toml").write_text(dumped, encoding="utf-8")
    assert command("train", "--config", "mine.toml", "--out", "one")[0] == 0
    first = json.loads(Path("one/run.json").read_text())["config"]
    assert first["training"]["steps"] == 2 and first["data"]["source"] == data
    assert command("train", "--config", "one/run.json", "--out", "two")[0] == 0
    assert json.loads(Path("two/run.json").read_text())["config"] == first
    card = next(Path("one").glob("checkpoints/*/model.json"))
    assert make_config(read_settings(card)) == make_config(read_settings("one/run.json"))
    code, resumed, _ = command("train", "--resume", "--out", "one", "--dump-config")
    Path("resumed.toml").write_text(resumed, encoding="utf-8")
    assert code == 0 and make_config(read_settings("resumed.toml")) == make_config(read_settings("one/run.json"))


def test_every_section_is_printed_in_order() -> None:
    """As --help-config lists them."""
    unset = {"denoiser.score_scale"}  # and what else is there only if it is set
    unset |= {f"{name}.{key}" for name, section in Config() for key in section._added}
    known = [name for name, *_ in keys() if name not in unset]
    assert list(flat(Config())) == known


def test_a_table_given_later_does_not_undo_what_was_set_before_it() -> None:
    """Values are put in as they come, those of the command line in the order they were given there."""
    lower: dict[str, Any] = {"process.options": {"s": 1.0}, "data.size": 8}
    upper: dict[str, Any] = {"process.options.t": 2.0, "process.options": {"u": 3.0}}
    assert make_config(over(lower, upper)).process.options == {"u": 3.0}
    assert make_config(over(upper, lower)).process.options == {"s": 1.0}
