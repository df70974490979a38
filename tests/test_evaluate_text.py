"""`evaluate --metrics text`: what captions claim, the measures on pictures whose truth is known, and errors."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, ignore
from scipy.stats import binomtest

from undiffuse.config import preset
from undiffuse.data import ImageSet, load
from undiffuse.data.avatar_captions import caption, choices, claims
from undiffuse.data.avatars import VALUES
from undiffuse.evaluation import attributes, text
from undiffuse.metrics.intervals import proportion
from undiffuse.training import train as train_model

FACE = {
    "hair": "bob",
    "hair colour": "blond",
    "glasses": "none",
    "facial hair": "none",
    "expression": "serious",
    "clothes": "shirt",
    "clothing colour": "red",
    "skin": "dark",
}


class Oracle:
    """Knows the truth without looking: the pictures are rows of indices of values, (N, 1, 1, attributes)."""

    values = VALUES
    indices = attributes.Classifier.indices

    def log_probs(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Nearly all of the probability on the picture's own value."""
        found = {}
        for column, (name, values) in enumerate(VALUES.items()):
            chosen = pictures[:, 0, 0, column]
            found[name] = np.where(np.arange(len(values)) == chosen[:, None], -0.01, -9.0)
        return found


@pytest.fixture(scope="module")
def splits() -> tuple[ImageSet, ImageSet]:
    return load("avatars", "train"), load("avatars", "test")


def encoded(images: ImageSet) -> ImageSet:
    """The attributes of each picture, in its place."""
    columns = [[VALUES[name].index(value) for value in images.attributes[name]] for name in VALUES]
    return replace(images, images=np.array(columns, np.uint8).T[:, None, None, :])


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("a woman with blonde hair in a bob in a red shirt", {"hair", "hair colour", "clothes", "clothing colour"}),
        ("blond bob, serious, dark skin", {"hair", "hair colour", "expression", "skin"}),
        ("a red top: a serious lady", {"clothes", "clothing colour", "expression"}),
        ("a person", set()),
        ("a woman with red hair", set()),  # of another face
    ],
)
def test_claims_of_a_caption(said: str, named: set[str]) -> None:
    """What is named and what is not, in sentences, tags and the phrasings held out."""
    assert claims(said, FACE) == {name: FACE[name] for name in named}


def test_a_colour_alone_does_not_say_the_cut() -> None:
    """ "red hair" may be short, long or curly."""
    face = {**FACE, "hair": "short", "hair colour": "red", "glasses": "sunglasses", "facial hair": "moustache"}
    assert claims("a guy with ginger hair and dark sunglasses", face).keys() == {"hair colour", "glasses"}
    assert claims("short red hair, mustache", face).keys() == {"hair", "hair colour", "facial hair"}


@pytest.mark.parametrize("held_out", [False, True])
def test_full_captions_name_what_they_promise(splits: tuple[ImageSet, ImageSet], held_out: bool) -> None:
    """Clothes always; hair's colour, glasses and beards of faces that have them, unless there are too many words."""
    test = splits[1]
    for row in range(300):
        face = {name: test.attributes[name][row] for name in VALUES}
        sentence = caption(face, choices(5, row)[0], held_out, full=True)
        said, due = claims(sentence, face).keys(), {"hair colour", "glasses", "facial hair"}
        due -= {name for name in due if face[name] == "none"}
        assert {"clothes", "clothing colour"} <= said <= {*due, "hair", "clothes", "clothing colour"}
        assert due <= said or len(sentence.split()) > 8, sentence  # a clause more was too long


def test_a_proportion_has_wilsons_interval() -> None:
    """As scipy's; it does not vanish at 1."""
    for right, n in ((0, 7), (3, 10), (50, 50), (420, 500)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        found = proportion(np.arange(n) < right)
        assert found.value == right / n
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def faces(asked: text.Prompts) -> np.ndarray:
    """The attributes of prompts as pictures."""
    return np.array([[VALUES[name].index(of[name]) for name in VALUES] for of in asked.attributes])[:, None, None, :]


def test_accuracies_of_what_is_named(splits: tuple[ImageSet, ImageSet]) -> None:
    """The truth gets 1; one wrong attribute counts where it is named, and against the whole."""
    asked = text.prompts(encoded(splits[1]), np.arange(100), 0)
    pictures = faces(asked)
    np.testing.assert_array_equal(pictures, asked.pictures)
    pictures[:30, 0, 0, list(VALUES).index("clothing colour")] = VALUES["clothing colour"].index("black")
    pictures[:, 0, 0, list(VALUES).index("skin")] = 0  # nobody asked
    found = {row.name: row for row in text.accuracies(Oracle(), "set", asked, pictures)}  # type: ignore[arg-type]
    black = sum(of["clothing colour"] == "black" for of in asked.attributes[:30])
    assert found["clothing colour"].generated.value == found[text.ALL_RIGHT].generated.value == (70 + black) / 100
    assert found["hair colour"].generated.value == found[text.ALL_RIGHT].real.value == 1
    assert found["glasses"].n == sum("glasses" in one for one in asked.claims) < 70
    rolled = [asked.attributes[i - 1]["clothes"] == asked.attributes[i]["clothes"] for i in range(100)]
    assert found["clothes"].shuffled.value == np.mean(rolled)
    assert not {"skin", "expression"} & found.keys()


def test_retrieval_tells_captions_that_differ_in_one_attribute(splits: tuple[ImageSet, ImageSet]) -> None:
    """The truth is found; a picture with one wrong attribute is not, for a caption that says so is among the 100."""
    train, test = map(encoded, splits)
    asked, others = text.prompts(test, np.arange(40), 0), text.pool(train, test, 0)
    pictures = faces(asked)
    column = list(VALUES).index("clothing colour")
    pictures[:10, 0, 0, column] = (pictures[:10, 0, 0, column] + 1) % len(VALUES["clothing colour"])
    row = text.retrieval(Oracle(), "set", asked, pictures, others, 0)  # type: ignore[arg-type]
    assert row.real.value == 1 and row.shuffled.value < 0.1
    assert 0.75 <= row.generated.value < 0.85


def test_the_swap_test(splits: tuple[ImageSet, ImageSet]) -> None:
    """Pictures of what is asked get 1, of the other way round 0."""
    train = encoded(splits[0])
    rows = np.arange(1, len(train), 2)

    def drawing(order: Sequence[str]) -> Any:
        def draw(said: Sequence[str], what: str) -> np.ndarray:
            pictures = np.zeros((len(said), 1, 1, len(VALUES)), np.int64)
            for picture, one in zip(pictures, said, strict=True):
                named = [
                    (a, b)
                    for a in text.BOTH
                    for b in text.BOTH
                    if a != b and {"hair colour", "clothing colour"} <= _claimed(one, a, b)
                ]
                assert len(named) == 1, one
                for name, value in zip(order, named[0], strict=True):
                    picture[0, 0, list(VALUES).index(name)] = VALUES[name].index(value)
            return pictures

        return draw

    right = ("hair colour", "clothing colour")
    for draw, expected in ((drawing(right), 1), (drawing(right[::-1]), 0)):
        row = text.swap(Oracle(), draw, train, rows, 100, 0)  # type: ignore[arg-type]
        assert row.generated.value == expected and row.real.value == 1 and row.n == 100


def _claimed(said: str, a: str, b: str) -> set[str]:
    found: set[str] = set()
    for hair in VALUES["hair"]:
        for clothes in VALUES["clothes"]:
            of = {**FACE, "hair": hair, "hair colour": a, "clothes": clothes, "clothing colour": b}
            found |= claims(said, of).keys()
    return found


def test_a_classifier_learns_colours_and_where_they_are(
    splits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 40 steps: colours of clothes of real counterfactual pairs; the same twice; of one half of the pictures."""
    monkeypatch.setattr(attributes, "STEPS", 40)
    monkeypatch.setattr(attributes, "BATCH", 64)
    judge = attributes.classifier(splits[0], VALUES, 0)
    with np.load(str(files("undiffuse.data") / "assets" / "avatar-pairs.npz")) as pairs:
        facts, after = json.loads(pairs["facts"].tobytes()), pairs["after"]
    rows, known = [], []
    for row, fact in enumerate(facts):
        of = {**fact["attributes"], fact["attribute"]: fact["value"]}
        a, b = of["hair colour"], of["clothing colour"]
        if fact["attribute"] in ("hair colour", "clothing colour") and a != b and {a, b} <= set(text.BOTH):
            rows.append(row)
            known.append(of)
    assert len(rows) > 40
    assert text.nearer(judge, after[rows], known).mean() > 0.9
    swapped = [{**of, "hair colour": of["clothing colour"], "clothing colour": of["hair colour"]} for of in known]
    assert text.nearer(judge, after[rows], swapped).mean() < 0.1
    for scores in judge.log_probs(after[:7]).values():
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)
    monkeypatch.setattr(attributes, "STEPS", 2)
    made = [attributes._train(splits[0], VALUES, half, None).eval() for half in (0, 0, 1)]
    first, again, other = (attributes.Classifier(one, VALUES, 3).log_probs(after[:7])["skin"] for one in made)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.fixture(scope="module")
def prompted(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of avatars with prompts that has hardly been trained."""
    folder = tmp_path_factory.mktemp("text") / "run"
    train_model({**tiny, "data.source": "avatars", "training.steps": 1}, folder, report=ignore)
    return folder


def test_the_command(prompted: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, and everything as JSON; guidance is 2 unless another is given."""
    monkeypatch.setattr(attributes, "STEPS", 1)
    code, out, _ = command("evaluate", prompted, "--metrics", "text", "-n", 3, "--steps", 1, "--json", "t.json")
    assert code == 0
    assert "guidance 2" in out and "3 prompts of each kind about pictures of avatars" in out
    found = json.loads(Path("t.json").read_text())
    kinds = [row["of"] for row in found["rows"] if row["name"] == text.ALL_RIGHT]
    assert kinds == ["training compositions", "held-out compositions", "held-out phrasings"]
    assert found["ceiling"].keys() == VALUES.keys() and found["conditions"]["recipe"]["guidance"]["scale"] == 2
    assert {row["n"] for row in found["rows"][-1:]} == {3} and found["rows"][-1]["shuffled"]["value"] == 0.5


def test_a_flow_map_has_its_own_guidance(
    tiny: dict[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It jumps as it has learnt to, without the guidance of prompts; to ask for one is an error."""
    monkeypatch.setattr(attributes, "STEPS", 1)
    values = preset("one-step") | tiny | {"data.source": "avatars", "training.steps": 1}
    train_model(values, "map", report=ignore)
    code, out, err = command("evaluate", "map", "--metrics", "text", "-n", 3)
    assert code == 0 and "jump, 1 step, guidance 1" in out, err
    code, _, err = command("evaluate", "map", "--metrics", "text", "-n", 3, "--guidance", 2)
    assert code == 2 and "a flow map has learnt its guidance" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "5,10"], "one number of steps"),
        (["--report", "a.html"], "--report has no effect on --metrics text"),
        (["--split", "train"], "--split has no effect on --metrics text"),
        (["--data", "emoji"], "emoji has no attributes of faces"),
    ],
)
def test_what_cannot_be_measured(prompted: Path, command: Command, options: list[str], says: str) -> None:
    """One line each, and nothing is written."""
    code, _, err = command("evaluate", prompted, "--metrics", "text", *options)
    assert code == 2 and says in err and len(err.splitlines()) == 1


def test_models_without_prompts(whole: Path, command: Command) -> None:
    """They are told so; and text is measured alone."""
    code, _, err = command("evaluate", whole, "--metrics", "text")
    assert code == 2 and "was trained without captions" in err
    code, _, err = command("evaluate", whole, "--metrics", "text,frechet")
    assert code == 2 and "use it alone" in err
