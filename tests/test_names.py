"""Names that people give, and how errors quote what they gave."""

import pytest

from undiffuse.errors import UsageError
from undiffuse.names import choose, cut, did_you_mean, listed, shown


@pytest.mark.parametrize(
    ("name", "names", "index"),
    [
        ("A", ["a", "A"], 1),
        ("a", ["a", "A"], 0),
        ("a", ["A", "a"], 1),
        ("a", ["A", "b"], 0),
        ("STRASSE", ["straße", "x"], 0),
        ("e\u0301", ["x", "\u00e9"], 1),  # macOS takes names of folders apart
        ("3", ["3", "1", "2", "0"], 0),
        ("3", ["a", "b", "c", "d"], 3),
        (3, ["3", "1", "2", "0"], 3),
        ("1", ["x", "x"], 1),
        (" a", ["a", " a"], 1),
        ("", ["x", ""], 1),
    ],
)
def test_a_name_is_chosen_as_it_is_written(name: str | int, names: list[str], index: int) -> None:
    """Exactly first, in another case only where that is one alone, as a number only where none is called so."""
    assert choose(name, names) == index


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("a", ["A", "x", "ä", "Á", "A"], ["'A' (number 0)", "'A' (number 4)"]),
        ("cat", ["Cat", "CAT", "dog"], ["'Cat' (number 0)", "'CAT' (number 1)"]),
        ("x", ["x", "y", "x"], ["number 0", "number 2"]),
        ("sneker", ["Boot", "Sneaker"], ["did you mean Sneaker"]),
        ("qqqq", ["a", "b"], ["there are a, b"]),
        ("2", ["a", "b"], ["0 to 1"]),
        (-1, ["a", "b"], ["0 to 1"]),
        ("-1", ["a", "b"], ["there are a, b"]),
        ("²", ["a", "b", "c"], ["there are"]),
        ("9" * 5000, ["a", "b"], ["there are"]),
        ("q" * 5000, [f"{k:03}" * 30 for k in range(1000)], ["(1,000 in all)"]),
        ("q", ["A" * 999 + str(k) for k in range(1000)], ["(1,000 in all)"]),
    ],
    ids=range(12),
)
def test_a_name_that_means_none_or_several_is_refused(name: str | int, names: list[str], said: list[str]) -> None:
    """With the candidates, the nearest or the first of all; the message is short however long the names are."""
    with pytest.raises(UsageError) as caught:
        choose(name, names)
    assert all(part in str(caught.value) for part in said), caught.value
    assert len(str(caught.value)) < 600


LONG: dict[str, object] = {
    "text": "a" * 10**6,
    "list": ["b" * 100] * 100,
    "table": {"k" * 999: {"x": [[[[[1]]]]]}},
    "number": 10**9999,
    "surrogate": "\ud800\n",
    "bytes": b"x" * 999,
    "set": {1, 2},
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_values_are_quoted_short_and_in_one_line(value: object) -> None:
    """Whatever it is, up to 80 characters, all of which can be printed."""
    text = shown(value)
    assert 0 < len(text) <= 80 and "\n" not in text
    text.encode()


def test_short_values_are_quoted_whole() -> None:
    """As Python writes them."""
    for value in (1, "x", 0.5, [1, 2], None, {"a": 1}):
        assert shown(value) == repr(value)
    assert cut("a\n  b") == "a b" and cut("abcdefgh", 6) == "abc..."
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""


def test_the_nearest_name() -> None:
    """One that is like it, or else what there is to say."""
    assert did_you_mean("fashon", ["fashion", "emoji"], "no") == "did you mean fashion?"
    assert did_you_mean("zzz", ["fashion", "emoji"], "no") == "no"
