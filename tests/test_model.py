"""Model folders: loading, damage, names, other processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import sample
from undiffuse.model import BUILT_IN, DataFacts, built_in, checkpoints, load, with_process
from undiffuse.writing import Writing, texts_only, write


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model folder of one's own, to be damaged."""
    return Path(shutil.copytree(checkpoints(whole)[-1], tmp_path / "model"))


def _card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / "model.json").read_text())
        change(card)
        (folder / "model.json").write_text(json.dumps(card))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")

    return damage


def _cut(name: str, size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return damage


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut json": _cut("model.json", 100),
    "empty json": _cut("model.json", 0),
    "json of something else": lambda folder: (folder / "model.json").write_text("[1, 2]"),
    "no configuration": _card(lambda card: card.pop("config")),
    "no data": _card(lambda card: card.pop("data")),
    "unknown fact": _card(lambda card: card["data"].update(colour="red")),
    "unknown setting": _card(lambda card: card["config"]["network"].update(depth=3)),
    "wrong type": _card(lambda card: card["config"]["network"].update(channels="wide")),
    "short shape": _card(lambda card: card["data"].update(shape=[16])),
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
    "empty weights": _cut("weights.safetensors", 0),
    "cut weights": _cut("weights.safetensors", 5000),
    "weights of another network": _card(lambda card: card["config"]["network"].update(channels=[8, 24])),
    "a weight missing": _weights(lambda weights: weights.pop("stem.weight")),
    "a weight too many": _weights(lambda weights: weights.update(more=torch.zeros(1))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_an_error_that_names_the_folder(folder: Path, damage: Callable[[Path], Any]) -> None:
    """Whatever is broken in a model folder, the message is short and says where."""
    damage(folder)
    with pytest.raises(UndiffuseError, match="model") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_another_format_says_upgrade(folder: Path) -> None:
    """A model of a later version is not called damaged."""
    _card(lambda card: card.update(format=99))(folder)
    with pytest.raises(UndiffuseError, match=r"format 99.*Upgrade"):
        load(folder)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    """An empty folder, and a run that has no checkpoint yet."""
    with pytest.raises(UsageError, match="without a model"):
        load(tmp_path)


def test_unknown_names_get_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest built-in name, or all of them."""
    monkeypatch.setattr("undiffuse.card.built_in", lambda: ["emoji", "fashion-mnist"])
    with pytest.raises(UsageError, match="did you mean fashion-mnist"):
        load("fashion-mnst")
    with pytest.raises(UsageError, match="emoji, fashion-mnist"):
        load("qqqq")


def test_a_run_is_its_newest_checkpoint(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By run folder, checkpoint folder, string or relative path: the same weights, for evaluation only."""
    newest = checkpoints(whole)[-1]
    monkeypatch.chdir(whole.parent)
    models = [load(name) for name in (whole, str(whole), newest, "run")]
    for model in models:
        assert not model.network.training
        assert not any(p.requires_grad for p in model.network.parameters())
        for name, weight in load_file(newest / "weights.safetensors").items():
            assert torch.equal(model.network.state_dict()[name], weight)
    assert models[0].training["steps"] == 12
    assert models[0].parameters == sum(w.numel() for w in load_file(newest / "weights.safetensors").values())


def test_a_model_folder_is_all_it_takes(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Weights and model.json, moved anywhere, sample as they did at home."""
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in ("weights.safetensors", "model.json"):
        shutil.move(folder / name, alone / name)
    assert np.array_equal(sample(alone, 3, steps=3), sample(whole, 3, steps=3))


def test_what_the_model_knows_of_its_data(whole: Path) -> None:
    """Shape, count, classes and their share are those of the training split."""
    facts = load(whole).data
    assert isinstance(facts, DataFacts)
    assert facts.shape == (16, 16, 1) and facts.count == 65 and facts.classes == ("dark", "grey", "bright")
    assert sum(facts.class_share) == pytest.approx(1)
    assert facts.fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "vp"},
        {"schedule": "ve"},
        {"schedule": "edm"},
        {"schedule": "flow"},
        {"schedule": "linear", "steps": 50},
        {"schedule": "linear", "zero_terminal_snr": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_model_on_another_process(whole: Path, settings: dict[str, Any]) -> None:
    """What it was trained on is no limit: it samples on any schedule, and is itself not changed."""
    model = load(whole)
    other = with_process(model, **settings)
    images = sample(other, 2, steps=4)
    assert images.shape == (2, 16, 16, 1) and len(np.unique(images)) > 2
    assert not np.array_equal(images, sample(model, 2, steps=4))
    assert model.denoiser.process.schedule.steps == 1000


def test_a_process_that_the_target_forbids(whole: Path) -> None:
    """The settings of a process are checked as in a run."""
    with pytest.raises(UsageError, match=r"process\.schedule"):
        with_process(load(whole), schedule="cubic")


@pytest.mark.parametrize("name", built_in())
def test_built_in_models_are_whole(name: str) -> None:
    """Every model in the package loads, says what it is, and draws finite pictures of its size."""
    model = load(name)
    assert model.data.licence and model.training["images"] > 0
    assert len(model.data.classes) == len(model.data.class_share)
    files = [path for path in (BUILT_IN / name).iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    if model.data.domain == "texts":
        texts = write(model, Writing("ancestral", 2), range(2), np.zeros(0, int), 16)
        assert texts.shape == (2, 16) and all(texts_only(model).decode(row).strip() for row in texts)
        return
    images = sample(model, 2, steps=model.config.objective.jumps if model.config.network.jumps else 2)
    assert images.shape == (2, *model.data.shape)
    assert images.std() > 5
