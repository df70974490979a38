"""Model and run folders that are damaged, by chance and on purpose: a model or one short error, nothing allocated."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from undiffuse import model as models
from undiffuse.build import default_network, make_network, make_process, network_shapes, networks
from undiffuse.card import BUILT_IN, built_in, checkpoints, find, label_facts, read_card, read_grids, read_run
from undiffuse.config import FIRST_KEYS, Config, keys, make_config, parse_settings, preset
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json
from undiffuse.generate import sample
from undiffuse.model import Model, load
from undiffuse.training.checkpoint import restore
from undiffuse.training.ema import EMA
from undiffuse.training.muon import make_optimizer
from undiffuse.training.state import Learner, Position

FINGERPRINTS = {
    "avatars": "fa7058372198d6298f18910a874e04063afb1114656f876c15671c2cf7f84efc",
    "avatars/1-step": "844be3f2896ee1abe543532dc86456703eb1abb29afc3de114d4736615460333",
    "emoji": "7ca7d74799d2ddb4005e5e189af902e30c1ddafae73b84fa4d69b4db9869a087",
    "fashion-mnist": "1d38f7fae502c54925c208aebd66ca4e0289b718ddcd7a2175f75ef6e599a20d",
    "fashion-mnist/1-step": "12ee21adef162b1f689da7f89c3ff5c3abd5b70b52017857fd4542ca78afc8f1",
    "fashion-mnist/2-steps": "bc146a021e3ac896f60d51fe2978f53d6fdf12f8e498a5177cb42035bfa8707e",
    "fashion-mnist-likelihood": "c8d8b806427b709c771aca83ab9ef2572eca25b6260391c8d7f8c8c92ba376b4",
    "shakespeare": "ac4b623cd8c0e7414d9b70b35371cca9a10db8f70f54d6c3198a9058ed5daecd",
    "speech": "8340285ed204d560e814e743b171c2fc84a513669a5e92cc5a0183f531d42225",
}
GRIDS = {"unipc:5": {"log_snr": [-3.0, 0.0, 3.0, 6.0], "before": 0.1, "after": 0.05, "samples": 128}}
ODD: list[Any] = [None, True, 0, -1, 1, 3, 2.0, 0.5, 10**9, 10**12, 10**400, -(10**30), 1e308, -1e308, 1e-308]
ODD += [float("nan"), float("inf"), "", "x", "3", "none", "a" * 5000, "\ud800", [], {}, [1], [[]], {"a": 1}, [0] * 3]
ODD += [["x"] * 3, [-1, -1, 1], [10**9] * 3, [1e308] * 3, {"beta_max": 1e308}, {"x": {"y": 1}}, [10**9, 10**9, 1]]


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "model"))


def _places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree of JSON."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, inner in items for place in ((*at, key), *_places(inner, (*at, key)))]


def _mutated(content: bytes, chance: random.Random) -> bytes:
    """JSON with bytes flipped, or a value dropped or replaced by an odd one."""
    if chance.random() < 0.2:
        return _flipped(content, len(content), chance)
    tree = json.loads(content)
    *way, last = chance.choice(_places(tree))
    node = tree
    for key in way:
        node = node[key]
    if chance.random() < 0.25:
        del node[last]
    else:
        node[last] = chance.choice(ODD)
    return json.dumps(tree).encode()


def _flipped(content: bytes, end: int, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 4))):
        damaged[chance.randrange(end)] = chance.choice((chance.randrange(256), ord("0") + chance.randrange(10)))
    return bytes(damaged)


def _header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _outcome(act: Callable[[], Any], folder: Path) -> Any:
    """What comes out, or None for an error as it has to be."""
    try:
        return act()
    except UndiffuseError as error:
        said = str(error)
    assert str(folder) in said and len(said) < 500, said
    return None


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_model_folder_is_a_model_or_one_short_error(folder: Path, seed: int) -> None:
    """Keys dropped, odd values, flipped bytes in both JSON files and the weights' header; what loads, samples."""
    chance, loaded = random.Random(seed), 0
    whole = {name: (folder / name).read_bytes() for name in ("model.json", "weights.safetensors")}
    whole["grids.json"] = json.dumps(GRIDS).encode()
    for _ in range(120):
        name = chance.choices(list(whole), (6, 2.5, 1.5))[0]
        damaged = dict(whole)
        if name == "weights.safetensors":
            damaged[name] = _flipped(whole[name], _header(whole[name]), chance)
        else:
            damaged[name] = _mutated(whole[name], chance)
        for file, content in damaged.items():
            (folder / file).write_bytes(content)
        if model := _outcome(lambda: load(folder, "cpu"), folder):
            loaded += 1
            assert isinstance(model, Model)
            assert sample(model, 1, steps=3).shape == (1, 16, 16, 1)
    assert 3 < loaded < 60


@pytest.mark.parametrize("name", built_in())
def test_a_mutated_card_of_a_built_in_model(name: str, tmp_path: Path) -> None:
    """As of the small one: with class names, grids or a learnt schedule and what was measured."""
    chance, whole, read = random.Random(name), (BUILT_IN / name / "model.json").read_bytes(), 0
    os.symlink(BUILT_IN / name / "weights.safetensors", tmp_path / "weights.safetensors")
    for _ in range(80):
        (tmp_path / "model.json").write_bytes(_mutated(whole, chance))
        card = _outcome(lambda: read_card(tmp_path), tmp_path)
        read += card is not None
        if card and chance.random() < 0.3:  # the weights take time
            _outcome(lambda: load(tmp_path, "cpu"), tmp_path)
    assert 0 < read < 80


@pytest.mark.parametrize("name", built_in())
def test_built_in_models_are_what_they_were(name: str) -> None:
    """Their fingerprint, under which samples and features are cached."""
    assert load(name, "cpu").fingerprint == FINGERPRINTS[name]


def _set(*way: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        node: Any = card
        for key in way[:-1]:
            node = node[key]
        node[way[-1]] = value

    return change


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "shape of words": (_set("data", "shape", value=["a", "b", "c"]), "data.shape.0 = 'a'"),
    "negative shape": (_set("data", "shape", value=[-16, 16, 1]), "data.shape.0 = -16"),
    "huge shape": (_set("data", "shape", value=[10**9, 16, 1]), "data.shape.0 = 1000000000"),
    "large image": (_set("data", "shape", value=[16_384, 16_384, 3]), "larger"),
    "two channels": (_set("data", "shape", value=[16, 16, 2]), "2 channels"),
    "odd shape": (_set("data", "shape", value=[15, 16, 1]), "network.patch"),
    "negative count": (_set("data", "count", value=-1), "data.count = -1"),
    "shares of nothing": (_set("data", "class_share", value=[0, 0, 0]), "sums to 0"),
    "too few shares": (_set("data", "class_share", value=[1]), "3 classes and 1 shares"),
    "negative share": (_set("data", "class_share", value=[-1, 1, 1]), "data.class_share.0"),
    "a fact too many": (_set("data", "colour", value="red"), "data.colour"),
    "patch": (_set("config", "network", "patch", value=10**9), "network.patch = 1000000000"),
    "channels": (_set("config", "network", "channels", value=[10**9]), "network.channels.0 = 1000000000"),
    "sigma_data": (_set("config", "denoiser", "sigma_data", value=1e308), "denoiser.sigma_data = 1e+308"),
    "small sigma_data": (_set("config", "denoiser", "sigma_data", value=1e-308), "denoiser.sigma_data = 1e-308"),
    "no sigma_data": (_set("config", "denoiser", "sigma_data", value=None), "sigma_data undecided"),
    "open network": (_set("config", "network", "channels", value=None), "network undecided"),
    "steps": (_set("config", "process", "steps", value=10**12), "process.steps = 1000000000000"),
    "true steps": (_set("config", "process", "steps", value=True), "process.steps = True"),
    "seconds": (_set("training", "seconds", value="long"), "training.seconds = 'long'"),
    "images": (_set("training", "images", value=-5), "training.images = -5"),
    "no training": (_set("training", value=None), "training"),
    "measured": (_set("measured", value={"n": 3}), "measured.bits_per_dim"),
    "format of words": (_set("format", value="one"), "format = 'one'"),
    "format of truth": (_set("format", value=True), "format = True"),
    "long word": (_set("config", "training", "precision", value="x" * 10**5), "training.precision = 'xxx"),
    "target": (_set("config", "process", "zero_terminal_snr", value=3), "zero_terminal_snr"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(folder: Path, what: str) -> None:
    """The key, and the value cut short."""
    change, said = WRONG[what]
    card = json.loads((folder / "model.json").read_text())
    change(card)
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UndiffuseError) as caught:
        load(folder, "cpu")
    assert said in str(caught.value) and str(folder / "model.json") in str(caught.value), caught.value
    assert len(str(caught.value)) < 500


def test_no_key_of_a_saved_configuration_may_be_missing(folder: Path) -> None:
    """A dropped key must not become today's default; those that came later are defaults, as for older models."""
    card = json.loads((folder / "model.json").read_text())
    first = {(section, key) for section, names in FIRST_KEYS.items() for key in names.split()}
    assert first <= {tuple(name.split(".")) for name, *_ in keys()}
    for section, key in sorted(first):
        damaged = json.loads(json.dumps(card))
        del damaged["config"][section][key]
        (folder / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(UndiffuseError, match=rf"{section}\.{key} is missing"):
            read_card(folder)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "latin-1": (b'{"format": "\xe9"}', "utf-8"),
    "NUL": (b'{"format":\x00 1}', "line 1"),
    "NaN": (b'{"format": NaN}', "format = nan"),
    "infinity": (b'{"format": -Infinity}', "format = -inf"),
    "beyond float64": (b'{"format": 1e999}', "format = inf"),
    "digits": (b'{"format": ' + b"9" * 5000 + b"}", "digits"),
    "key twice": (b'{"format": 1, "format": 1}', "'format' appears twice"),
    "deep": (b"[" * 10**6, "too deeply"),
    "deep and closed": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "too deeply"),
    "not a table": (b"[1]", "not a table"),
    "a number": (b"1", "not a table"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_cards(folder: Path, what: str) -> None:
    """Whatever the bytes of model.json are."""
    content, said = FILES[what]
    (folder / "model.json").write_bytes(content)
    with pytest.raises(UndiffuseError) as caught:
        load(folder)
    assert str(folder / "model.json") in str(caught.value) and said in str(caught.value), caught.value
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "grids",
    [
        {"unipc:5": {"log_snr": [-3.0, 0.0, 0.0, 6.0]}},
        {"unipc:5": {"log_snr": [6.0, 3.0, 0.0, -3.0]}},
        {"unipc:5": {"log_snr": [-3.0, 0.0, 3.0]}},
        {"unipc:5": {"log_snr": "1234"}},
        {"unipc": {"log_snr": [1.0]}},
        {"unipc:0": {"log_snr": []}},
        {"unipc:5": [-3.0, 0.0, 3.0, 6.0]},
    ],
)
def test_grids_that_are_none(folder: Path, grids: Any) -> None:
    """N - 1 log-SNRs for N steps, each above the one before."""
    (folder / "grids.json").write_text(json.dumps(GRIDS))
    assert read_grids(folder) == {"unipc:5": (-3.0, 0.0, 3.0, 6.0)}
    (folder / "grids.json").write_text(json.dumps(grids))
    with pytest.raises(UndiffuseError, match=r"grids\.json is damaged \(.*unipc"):
        load(folder)


def test_a_byte_order_mark_is_no_damage(folder: Path) -> None:
    """Some editors write one."""
    card = read_card(folder)
    (folder / "model.json").write_bytes(b"\xef\xbb\xbf" + (folder / "model.json").read_bytes())
    assert read_card(folder) == card


@pytest.mark.parametrize("name", ["model.json", "grids.json", "weights.safetensors"])
@pytest.mark.parametrize("what", ["folder", "loop", "broken link", "pipe", "empty"])
def test_what_stands_in_the_place_of_a_file(folder: Path, name: str, what: str) -> None:
    """A folder, a link to itself or to nothing, a pipe that nobody writes to, an empty file."""
    path = folder / name
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    else:
        path.symlink_to(path if what == "loop" else folder / "nothing")
    with pytest.raises(UndiffuseError) as caught:
        load(folder)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "."])
def test_what_may_not_be_read(folder: Path, name: str) -> None:
    """Permissions are named, not called damage or absence."""
    (folder / name).chmod(0)
    try:
        if os.access(folder / name, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UndiffuseError, match="ermission denied"):
            load(folder)
    finally:
        (folder / name).chmod(0o700)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "b/" * 3000])
def test_names_that_no_file_can_have(name: str) -> None:
    """Refused in a short line."""
    with pytest.raises(UsageError) as caught:
        find(name)
    assert len(str(caught.value)) < 500


ENORMOUS = [
    ["network.channels=" + ",".join(["8192"] * 13), "network.blocks=32"],
    ["network.channels=8192,8192,8192"],
    ["network.channels=8192", "network.kernel=63", "network.patch=64"],
    ["network.kind=unet2d", "network.channels=8192,8192", "network.blocks=32"],
]


@pytest.mark.parametrize("settings", ENORMOUS, ids=lambda settings: settings[0][8:32])
def test_an_enormous_network_is_refused_before_it_is_made(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but shapes is made of a network that no machine holds."""
    made: set[str] = set()

    def noting(network: Any) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            made.add(torch.empty(0).device.type)
            assert made == {"meta"}  # before it takes the machine's memory
            return network(*arguments, **options)

        return make

    for name in ("UNet", "PixelUNet", "UNet2D"):
        monkeypatch.setattr(networks, name, noting(getattr(networks, name)))
    config = make_config({"network.patch": 1} | parse_settings([*settings, "network.attention=[]"]))
    with pytest.raises(UsageError, match="parameters are more than"):
        make_network(config, 3, label_facts([1 / 10] * 10))
    assert made == {"meta"}


def test_weights_of_another_size_are_refused_before_the_network_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header decides."""
    card = json.loads((folder / "model.json").read_text())
    card["config"]["network"]["channels"] = [4096, 4096]
    (folder / "model.json").write_text(json.dumps(card))

    def made(*arguments: Any) -> None:
        raise AssertionError("the network was made")

    monkeypatch.setattr(models, "make_network", made)
    with pytest.raises(UndiffuseError, match="does not hold this model's weights"):
        load(folder)


@pytest.mark.parametrize("name", ["balanced", "best", "ddpm", "iddpm", "likelihood"])
def test_the_shapes_are_those_of_the_network(name: str) -> None:
    """And looking at them draws nothing from the generator that initialises it."""
    config = make_config({**preset(name), "network.width": 0.3, "denoiser.sigma_data": 0.5})
    config = config.model_copy(update={"network": default_network(config.network, (28, 28))})
    before = torch.random.get_rng_state()
    shapes = network_shapes(config, 1, label_facts([1 / 10] * 10))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert shapes == {
        key: tuple(w.shape) for key, w in make_network(config, 1, label_facts([1 / 10] * 10)).state_dict().items()
    }


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda w: w.update({"stem.weight": w["stem.weight"].int()}), "of type I32"),
        (lambda w: w["stem.bias"].fill_(float("nan")), "stem.bias holds numbers that are not finite"),
        (lambda w: w.update({"stem.bias": w["stem.bias"][:1].clone()}), "stem.bias is of shape (1,), not (8,)"),
        (lambda w: w.update({"stem.weight": w["stem.weight"].flatten(1)}), "stem.weight is of shape"),
        (lambda w: w.pop("stem.bias"), "lacks stem.bias"),
        (lambda w: w.update({"x" * 5000: torch.zeros(1)}), "has unexpected xxx"),
    ],
)
def test_weights_that_are_not_the_models(folder: Path, weights: Callable[[Any], Any], said: str) -> None:
    """The tensor is named, and what is wrong with it."""
    tensors = load_file(folder / "weights.safetensors")
    weights(tensors)
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(UndiffuseError) as caught:
        load(folder)
    assert said in str(caught.value) and str(folder / "weights.safetensors") in str(caught.value), caught.value
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(folder: Path, kind: torch.dtype) -> None:
    """As they always were: into float32."""
    tensors = {name: weight.to(kind) for name, weight in load_file(folder / "weights.safetensors").items()}
    save_file(tensors, folder / "weights.safetensors")
    state = load(folder, "cpu").network.state_dict()
    assert all(torch.equal(state[name], weight.float()) for name, weight in tensors.items())


def _learner(config: Config) -> Learner:
    network = make_network(config, 1, label_facts([1 / 3] * 3))
    return Learner(
        network, EMA(list(network.parameters()), 0.05), make_optimizer(config.training, network), None, Position()
    )


def _state(learner: Learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.network.parameters()]


@pytest.mark.parametrize("seed", range(2))
def test_a_mutated_checkpoint_is_restored_or_one_short_error(folder: Path, seed: int) -> None:
    """training.json, training.safetensors and the weights; what cannot be restored has changed nothing."""
    chance, restored = random.Random(seed), 0
    names = ("training.json", "training.safetensors", "weights.safetensors")
    whole = {name: (folder / name).read_bytes() for name in names}
    learner = _learner(read_card(folder).config)
    for _ in range(100):
        name = chance.choice(names)
        content = whole[name]
        damaged = _mutated(content, chance) if name.endswith("json") else _flipped(content, _header(content), chance)
        for file in names:
            (folder / file).write_bytes(damaged if file == name else whole[file])
        before = _state(learner)
        if not _outcome(lambda: restore(folder, learner) or "restored", folder):
            assert all(map(torch.equal, _state(learner), before))
        else:
            restored += 1
            assert learner.progress.step >= 0
            for parameter in learner.network.parameters():
                parameter.grad = torch.ones_like(parameter)
            learner.optimizer.step()
    assert 0 < restored < 60


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.update({"network.stem.bias": torch.zeros(1)}), "network.stem.bias is of shape (1,), not (8,)"),
        (lambda t: t.pop("network.stem.bias"), "no 'network.stem.bias'"),
        (lambda t: t.pop("optimizer.exp_avg.stem.bias"), "lacks some of the optimiser's state"),
        (lambda t: t.update({"optimizer.exp_avg.stem.bias": torch.zeros(9)}), "of shape (9,), not (8,)"),
        (lambda t: t["network.stem.bias"].fill_(float("inf")), "not finite"),
    ],
)
def test_a_training_state_that_does_not_fit(folder: Path, damage: Callable[[Any], Any], said: str) -> None:
    """A tensor of one number would have been spread over all."""
    tensors = load_file(folder / "training.safetensors")
    damage(tensors)
    save_file(tensors, folder / "training.safetensors")
    with pytest.raises(UndiffuseError) as caught:
        restore(folder, _learner(read_card(folder).config))
    assert said in str(caught.value) and str(folder) in str(caught.value), caught.value


def test_a_mutated_run_is_a_configuration_or_one_short_error(whole: Path, tmp_path: Path) -> None:
    """run.json, which --resume begins with."""
    chance, content = random.Random(0), (whole / "run.json").read_bytes()
    for _ in range(150):
        (tmp_path / "run.json").write_bytes(_mutated(content, chance))
        config = _outcome(lambda: read_run(tmp_path), tmp_path)
        assert config is None or isinstance(config, Config)


@pytest.mark.parametrize(
    "settings",
    [
        ["process.schedule=edm", "process.options.sigma_min=1e-300"],
        ["process.schedule=ve", "process.options.sigma_min=1e-200"],
        ["process.schedule=cosine", "process.options.offset=-1"],
        ["process.schedule=scaled-linear", "process.options.beta_min=-1"],
        ["process.schedule=log-snr", "process.log_snrs=1,1"],
        ["process.schedule=betas", "process.betas=1e-300,0.5"],
    ],
    ids=lambda settings: settings[0][17:] + settings[1][15:40],
)
def test_noise_beyond_float32_is_refused(settings: list[str]) -> None:
    """A schedule whose ends no network could tell apart, or whose numbers make no schedule."""
    with pytest.raises(UsageError, match="process"):
        make_process(make_config(parse_settings(settings)).process)


NUMBERS = [(name, kind) for name, kind, *_ in keys() if "int" in kind or "float" in kind]


@pytest.mark.parametrize(("name", "kind"), NUMBERS, ids=[name for name, _ in NUMBERS])
def test_every_number_has_bounds(name: str, kind: str) -> None:
    """Far too large, far too small and too many are refused, in a short message that names the key."""
    several, table = kind.startswith("tuple"), kind.startswith("dict")
    values: list[Any] = [10**40, -(10**40), float("inf"), "x" * 10**5]
    values += [1e307] if "float" in kind else []
    for value in values:
        given = [value] * 2 if several else {"x": value} if table else value
        with pytest.raises(UsageError, match=name.replace(".", r"\.")) as caught:
            make_config({name: given})
        assert len(str(caught.value)) < 400
    if several and "..." in kind:
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            make_config({name: [1] * 1_000_001})


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_know(folder: Path, number: str) -> None:
    """Nowhere in what is used, be it of the model, the data or the run; what was imported beside it may hold them."""
    card, path = (folder / "model.json").read_text(), folder / "model.json"
    for key in ("sigma_data", "learning_rate", "seconds", "count"):
        path.write_text(re.sub(rf'"{key}": [^,\n]+', f'"{key}": {number}', card))
        with pytest.raises(UndiffuseError, match=key):
            read_card(folder)
    path.write_text(
        card.replace('"training": {\n    "steps"', f'"training": {{"lambda_min_clipped": {number}, "steps"')
    )
    assert "lambda_min_clipped" in read_card(folder).training
    for name in ("run.json", "grids.json", "training.json"):
        (folder / name).write_text(f'{{"x": {number}}}')
        with pytest.raises(UndiffuseError, match="not a finite number"):
            read_json(folder / name, finite=True)
