"""The configuration: parsing, types, hints, and what does not go together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.build import default_network, make_denoiser, make_network, make_objective, make_process
from undiffuse.card import ConditionFacts, label_facts
from undiffuse.config import (
    MACHINE_KEYS,
    Config,
    NetworkConfig,
    keys,
    make_config,
    parse_settings,
    preset,
    preset_for,
    presets,
    read_config,
)
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.training import train


def configure(*settings: str) -> Config:
    return make_config(parse_settings(settings))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.batch_size=64", 64),
        ("training.learning_rate=3e-4", 3e-4),
        ("training.minutes=none", None),
        ("training.minutes=None", None),
        ("training.betas=0.8,0.9", (0.8, 0.9)),
        ("training.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("training.compile=true", True),
        ("data.flip=True", True),
        ("network.channels=8,16", (8, 16)),
        ("network.channels=8, 16, 24", (8, 16, 24)),
        ("network.channels=[8]", (8,)),
        ("network.channels=8", (8,)),
        ("network.attention=[]", ()),
        ("process.schedule=linear", "linear"),
        ("process.schedule= linear ", "linear"),
        ("data.source=a=b", "a=b"),
        ("data.source=a,b", "a,b"),
        ("data.source=2024", "2024"),
        ('process.options={"beta_max": 10}', {"beta_max": 10.0}),
    ],
)
def test_values_are_what_they_look_like(setting: str, value: Any) -> None:
    """Numbers, lists, none, words and tables, as a person writes them on a command line."""
    config: Any = configure(setting)
    for part in setting.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_options_one_by_one() -> None:
    """process.options.NAME sets one number of the schedule and keeps the others."""
    config = configure("process.schedule=vp", "process.options.beta_max=10", "process.options.beta_min=0.2")
    assert config.process.options == {"beta_max": 10.0, "beta_min": 0.2}
    make_process(config.process)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("training.batchsize=3", "training.batch_size"),
        ("batch_size=3", "training.batch_size"),
        ("trainin.steps=3", "training.steps"),
        ("process.shedule=vp", "process.schedule"),
        ("zzz=3", "--help-config"),
        ("training.steps", "section.key=value"),
        ("training=3", "--help-config|training"),
    ],
)
def test_unknown_keys_get_the_nearest(setting: str, hint: str) -> None:
    """A key that is not there is refused, with the one that was probably meant."""
    with pytest.raises(UsageError, match=hint):
        parse_settings([setting])


@pytest.mark.parametrize(
    "setting",
    [
        "training.steps=0",
        "training.steps=many",
        "training.steps=1.5",
        "training.minutes=0",
        "training.minutes=NaN",
        "training.batch_size=none",
        "training.betas=0.9",
        "training.betas=1,2,3",
        "training.decay=1.5",
        "training.ema=0.5",
        "training.label_dropout=1",
        "training.precision=fp8",
        "network.channels=wide",
        "network.channels=0,8",
        "network.channels=[]",
        "network.attention=5,x",
        "data.channels=2",
        "process.schedule=cubic",
        "process.options.a.b=1",
        "process.options=3",
        "process.options.beta_max=big",
    ],
)
def test_values_that_do_not_fit_name_their_key(setting: str) -> None:
    """A wrong value is a UsageError in one or two lines that begins with the key."""
    name = setting.partition("=")[0]
    with pytest.raises(UsageError, match=".".join(name.split(".")[:2])) as caught:
        configure(setting)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("name", ["training.bogus", "bogus.steps", "steps", "training", "training.steps.more"])
def test_unknown_keys_from_python(name: str, tmp_path: Path) -> None:
    """undiffuse.train refuses unknown settings as the command does."""
    with pytest.raises(UsageError, match=name.split(".")[-1]):
        train({name: 1}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "default"), [(name, default) for name, _, default, _ in keys()])
def test_every_key_can_be_set_to_its_default(name: str, default: Any) -> None:
    """What --help-config prints behind a key can be given to --set, and is the default; so is its JSON."""
    for text in (str(default), json.dumps(default)):
        if text != "null":
            assert configure(f"{name}={text}") == Config(), text


def test_every_key_is_described_and_the_machines_exist() -> None:
    """No key without a description; the keys that a resumed run may change are keys."""
    described = {name: description for name, _, _, description in keys()}
    assert all(len(text) > 5 for text in described.values())
    assert set(described) >= MACHINE_KEYS


def test_a_configuration_survives_json() -> None:
    """What a run saves is what it reads."""
    config = configure("network.channels=8,16", "process.options.s=0.01", "training.minutes=3", "data.channels=1")
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


def test_no_torch_for_a_configuration() -> None:
    """Reading settings imports nothing heavy."""
    code = "import sys, undiffuse.config; assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def build(config: Config) -> Denoiser:
    """The denoiser of a network that says 1 everywhere."""
    denoiser = config.denoiser.model_copy(update={"sigma_data": 0.5})
    config = config.model_copy(update={"denoiser": denoiser})
    make_objective(config)
    return make_denoiser(config, lambda x, *_: torch.ones_like(x))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["process.schedule=betas"], r"process\.betas"),
        (["process.betas=0.1,0.2"], r"process\.schedule=betas"),
        (["process.schedule=betas", "process.betas=0.1,1.5"], "process"),
        (["process.schedule=betas", "process.betas=[]"], "process"),
        (["process.schedule=linear", "process.options.beta_maximum=3"], r"process\.options.*linear"),
        (["process.schedule=vp", "process.options.bogus=3"], r"process\.options.*vp"),
        (["process.schedule=vp", "process.zero_terminal_snr=true"], "zero_terminal_snr.*vp"),
        (["denoiser.target=eps", "process.zero_terminal_snr=true"], "eps.*(v|x0)"),
        (["denoiser.target=score", "process.zero_terminal_snr=true"], "score"),
        (["denoiser.target=eps", "process.schedule=flow"], "eps.*flow|flow.*eps"),
        (["denoiser.learned_variance=true"], "learned_variance"),
        (["objective.loss=bound", "objective.variance=learned"], "learned_variance"),
        (["denoiser.learned_variance=true", "objective.variance=learned"], "loss=bound"),
        (["denoiser.target=categorical", "network.head=8"], "categorical needs a bound"),
        (["denoiser.target=categorical", "objective.loss=continuous-bound"], "needs network.head"),
    ],
)
def test_what_does_not_go_together(settings: list[str], message: str) -> None:
    """Each impossible combination is refused before the run, naming the settings."""
    with pytest.raises(UsageError, match=message) as caught:
        build(configure(*settings))
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("target", ["x0", "v", "flow", "edm"])
def test_targets_that_live_without_signal(target: str) -> None:
    """Zero terminal SNR is no trouble for targets that still say something of the data there."""
    denoiser = build(configure(f"denoiser.target={target}", "process.zero_terminal_snr=true"))
    assert denoiser.process.noise_level(1.0).alpha == 0
    said = {"x0": 1.0, "v": -1.0, "flow": 3.0 - 1.0, "edm": 0.5}[target]  # of x_t = 3, an output of 1
    torch.testing.assert_close(denoiser(torch.full((1, 1, 2, 2), 3.0), 1.0).x0, torch.full((1, 1, 2, 2), said))


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (NetworkConfig(patch=3), (16, 16), "patch"),
        (NetworkConfig(channels=(8, 8, 8, 8, 8)), (8, 8), "stages"),
        (NetworkConfig(patch=2), (15, 15), "patch"),
        (NetworkConfig(channels=(8, 8), attention=(5,)), (16, 16), "attention"),
        (NetworkConfig(kernel=4), (16, 16), "odd"),
        (NetworkConfig(kind="unet2d", head=8), (16, 16), "leave them out"),
        (NetworkConfig(kind="unet2d", values=True), (16, 16), "leave them out"),
    ],
)
def test_networks_that_do_not_fit(network: NetworkConfig, size: tuple[int, int], message: str) -> None:
    """A network too deep or folded for the images is refused by name."""
    with pytest.raises(UsageError, match=message):
        default_network(network, size)


@pytest.mark.parametrize("side", [4, 7, 8, 15, 16, 28, 32, 64, 65])
def test_defaults_are_decided_for_every_size(side: int) -> None:
    """Nothing is left undecided, and what is decided is accepted again, as a resumed run does."""
    decided = default_network(NetworkConfig(), (side, side))
    assert decided.patch and decided.channels and decided.attention is not None
    assert side % decided.patch == 0
    assert default_network(decided, (side, side)) == decided


def test_errors_are_both_usage_and_value_errors() -> None:
    """Callers may catch what fits them."""
    assert issubclass(UsageError, UndiffuseError) and issubclass(UsageError, ValueError)
    assert (UndiffuseError.exit_code, UsageError.exit_code) == (1, 2)


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_configuration_that_fits_together(name: str) -> None:
    """Every key is known, every value valid, the whole buildable; and "balanced" alone is what there is without."""
    config = make_config(preset(name) | ({"training.base": "emoji"} if name in ("distill", "adversarial") else {}))
    assert (config == Config()) == (name == "balanced")
    text, vocoder = name == "text", name == "vocoder"
    size = {"text": (), "vocoder": (64, 160), "diffwave": (10_240,)}.get(name, (28, 28))
    network = default_network(config.network, size)
    denoiser = config.denoiser.model_copy(
        update={"sigma_data": 1.0, "target": "categorical" if text else config.denoiser.target}
    )
    config = config.model_copy(update={"network": network, "denoiser": denoiser})
    config = config.model_copy(update={"data": config.data.model_copy(update={"vocabulary": 80 if text else None})})
    takes = ConditionFacts("spectra", {"bands": 64}) if vocoder else label_facts([1 / 10] * 10)
    make_denoiser(config, make_network(config, 1, takes, len(size) or 2)), make_objective(config)


def test_wider_presets_are_wider() -> None:
    """The width multiplies the channels that the image size suggests."""
    widths = [
        default_network(make_config(preset(name)).network, (28, 28)).channels for name in ("fast", "balanced", "best")
    ]
    assert widths == [(48, 96), (64, 128), (96, 192)]


@pytest.mark.parametrize(
    ("minutes", "name"), [(None, "balanced"), (1, "fast"), (15, "fast"), (60, "balanced"), (91, "best")]
)
def test_the_budget_chooses_the_preset(minutes: float | None, name: str) -> None:
    """As docs/recipes.md says."""
    assert preset_for(minutes) == name


def test_an_unknown_preset_is_named() -> None:
    """With those there are."""
    with pytest.raises(
        UsageError, match="no preset 'quick': choose from adversarial, balanced, best, ddpm, diffwave, distill, fast"
    ):
        preset("quick")


def test_the_first_name_of_the_categorical_target_still_reads() -> None:
    saved = Config().model_dump(mode="json")
    saved["denoiser"]["target"] = "levels"
    for read in (make_config({"denoiser.target": "levels"}), read_config(saved)):
        assert read.denoiser.target == "categorical"
