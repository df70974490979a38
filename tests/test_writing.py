"""Texts are written: prompts and known tokens stay, the law is the model's, and the commands say what they refuse."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from exact_tokens import exact_denoiser

from undiffuse import load
from undiffuse.data.texts import load_text
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import Model
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


def test_the_law_of_an_infilled_text_is_the_conditional_law(runs: dict[str, Path]) -> None:
    """With the exact denoiser of a joint law over three tokens, by 4,000 draws: within four standard errors."""
    model = load(runs["absorbing"])
    torch.manual_seed(0)
    joint = torch.rand(3, 3, 3, dtype=torch.float64)
    joint /= joint.sum()
    process = type(model.denoiser.process)(model.denoiser.process.schedule, 3, dtype=torch.float64)
    exact = exact_denoiser(joint, process)

    data = model.data.__class__(**{**vars(model.data), "shape": (3,)})
    small = Model("exact", model.config, data, exact, {})  # type: ignore[arg-type]
    object.__setattr__(small, "taken", lambda condition, count: condition)
    known = np.array([0, 2, 0])
    free = np.array([True, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "device", torch.device("cpu"))
        found = infill(small, Writing(), range(4000), known, free)
    conditional = (joint[:, 2, :] / joint[:, 2, :].sum()).numpy()
    counts = np.zeros((3, 3))
    np.add.at(counts, (found[:, 0], found[:, 2]), 1)
    error = np.sqrt(conditional * (1 - conditional) / 4000)
    assert (abs(counts / 4000 - conditional) < 4 * error).all()


def test_commands(runs: dict[str, Path], text: Path, command: Command, tmp_path: Path) -> None:
    run = str(runs["absorbing"])
    code, out, err = command("sample", run, "--prompt", "the cat", "--length", 30)
    assert code == 0 and out.startswith("the cat") and len(out.rstrip("\n")) <= 30 and err == ""
    code, out, _ = command("edit", run, "--infill", "the ___ sat on", "-n", 2, "--out", "found.json")
    assert code == 0 and "2 texts: found.json" in out
    written = json.loads((tmp_path / "found.json").read_text())
    assert all(one.startswith("the ") and one.endswith(" sat on") and len(one) == 14 for one in written["texts"])
    assert command("show", "found.json")[1].startswith("undiffuse edit")
    (tmp_path / "one.txt").write_text("the cat sat on the mat.")
    code, out, _ = command("edit", run, "one.txt", "--strength", 0.01)
    assert code == 0 and out == "the cat sat on the mat.\n"
    code, out, _ = command("evaluate", run, "-n", 4, "--json", "found2.json")
    assert code == 0 and "bits per character, bound" in out and "infilling spans, right" in out
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
        (["sample", "--class", "a"], "--class-name is not for models of texts"),
        (["sample", "--prompt", "the cat", "--length", 5], "--length 5: the prompt alone has 7 tokens"),
        (["sample", "--prompt", "a", "--prompt", "b"], "one --prompt"),
        (["sample", "--prompt", "the ☃"], "no such character"),
        (["sample", "--sampler", "heun"], "no sampler of tokens 'heun'"),
        (["sample", "--out", "a.png"], "must end in .txt or .json"),
        (["edit", "--infill", "the cat"], "mark what is to be written with _"),
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
