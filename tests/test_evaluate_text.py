"""`evaluate --metrics text`: what captions claim, the measures on pictures whose truth is known, and errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from undiffuse.data import ImageSet, load
from undiffuse.data.avatar_captions import caption, choices, claims
from undiffuse.data.avatars import VALUES
from undiffuse.evaluation import attributes, text
from undiffuse.metrics.intervals import proportion

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
    hits, wanted = 0, 0
    for row in range(300):
        face = {name: test.attributes[name][row] for name in VALUES}
        said = claims(caption(face, choices(5, row)[0], held_out, full=True), face)
        assert {"clothes", "clothing colour"} <= said.keys()
        due = [name for name in ("hair colour", "glasses", "facial hair") if face[name] != "none"]
        assert said.keys() <= {*due, "hair", "clothes", "clothing colour"}
        hits, wanted = hits + sum(name in said for name in due), wanted + len(due)
    assert hits > 0.97 * wanted


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
