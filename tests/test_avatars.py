"""Avatars: the captions are true, the held-out compositions are held out, and the pictures show what is said."""

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from undiffuse.data import avatars, builtin, load
from undiffuse.data.avatar_captions import caption, captions_of, choices
from undiffuse.errors import UsageError
from undiffuse.text.words import words_of

HAIR_WORDS = {"black": "black", "dark": "black", "brown": "brown", "blond": "blond", "blonde": "blond", "red": "red"}
HAIR_WORDS |= {"ginger": "red", **{colour: colour for colour in ("white", "pink", "blue", "green")}}
SHIRT_WORDS = "blue|green|pink|purple|red|yellow|black"
PLAIN_HAIR = r"\b(?P<long>big curly |curly |short |long )?(?P<colour>" + "|".join(HAIR_WORDS) + ") "
GRAMMAR = {
    "hair": re.compile(
        r"(?:\ba )?" + PLAIN_HAIR + r"(?P<noun>hair in a bob|hair in a bun|hair in pigtails|hair|bob|curls|bun|"
        r"pigtails|mohawk)\b|(?P<other>\b(?:a )?bald head|\bbald\b|\bno hair|\b(?:a )?(?:baseball )?cap\b|"
        r"\b(?:a )?beanie|\b(?:a )?woolly hat)"
    ),
    "clothes": re.compile(
        rf"(?:\ba )?\b(?P<a>checked )?(?P<colour>{SHIRT_WORDS}) (?P<b>checked |plaid )?(?:shirt|top)\b"
    ),
    "sunglasses": re.compile(r"\b(?:dark )?sunglasses\b"),
    "glasses": re.compile(r"\b(?:glasses|spectacles)\b"),
    "beard": re.compile(r"\b(?:a )?(?:full )?beard\b|\bbearded\b"),
    "moustache": re.compile(r"\b(?:a )?m(?:o)?ustache\b"),
    "skin": re.compile(r"\b(?P<colour>light|pale|brown|tan|dark) skin\b"),
    "expression": re.compile(r"\b(?P<word>smiling|happy|surprised|astonished|serious)\b"),
    "noun": re.compile(r"\b(?P<word>man|guy|woman|lady|person|face)\b"),
}
"""What a caption can say, in an order in which nothing is taken for something else."""
SIGNS = {"clothes": "C", "expression": "E", "noun": "N"}
"""In a frame; the rest are features, X."""
FRAME_WORDS = {*"a an and in of on picture portrait wearing who wears with X C E N".split()}  # noqa: SIM905


def parsed(text: str) -> tuple[dict[str, set[str]], str]:
    """What a caption claims, attribute -> values it allows, and its frame: the caption with signs for what it names."""
    claims: dict[str, set[str]] = {}

    def claim(attribute: str, *values: str) -> None:
        claims[attribute] = claims.get(attribute, set(values)) & set(values)

    for kind, pattern in GRAMMAR.items():
        for found in pattern.finditer(text):
            word = found.groupdict()
            if kind == "hair" and word["other"]:
                last = word["other"].split()[-1]
                claim("hair", {"cap": "cap", "beanie": "beanie", "hat": "beanie"}.get(last, "bald"))
            elif kind == "hair":
                shape = " ".join([word["long"] or "", word["noun"]])
                styles = ("long", "short", "bob", "bun", "pigtails", "mohawk", "cur")
                claim("hair colour", HAIR_WORDS[word["colour"]])
                for style in styles:
                    if style in shape:
                        claim("hair", "curly" if style == "cur" else style)
            elif kind == "clothes":
                claim("clothes", "checked shirt" if word["a"] or word["b"] else "shirt")
                claim("clothing colour", word["colour"])
            elif kind in ("glasses", "sunglasses"):
                claim("glasses", kind)
            elif kind in ("beard", "moustache"):
                claim("facial hair", kind)
            elif kind == "skin":
                claim("skin", {"pale": "light", "tan": "brown"}.get(word["colour"], word["colour"]))
            elif kind == "expression":
                claim("expression", {"happy": "smiling", "astonished": "surprised"}.get(word["word"], word["word"]))
            else:
                claim("sex", {"guy": "man", "lady": "woman"}.get(word["word"], word["word"]))
        text = pattern.sub(SIGNS.get(kind, "X"), text)
    frame = re.sub(r"\ban? (?=[CEN]\b)", "", text)
    return claims, re.sub(r"X(, X)*( and X)?", "X", frame)


def is_true(text: str, attributes: Mapping[str, str]) -> bool:
    """Whether a caption says nothing but what is so, and no word of it is left over."""
    claims, frame = parsed(text)
    sexes = {"person", "face"}
    if attributes["facial hair"] != "none" or attributes["hair"] in ("short", "mohawk", "bald"):
        sexes.add("man")
    elif attributes["hair"] in ("long", "bob", "bun", "pigtails"):
        sexes.add("woman")
    so = all(attributes[name] in values for name, values in claims.items() if name != "sex")
    return so and claims.get("sex", sexes) <= sexes and set(re.findall(r"\w+", frame)) <= FRAME_WORDS


@pytest.fixture(scope="module")
def embedded() -> dict[str, Any]:
    arrays = dict(np.load(builtin.AVATARS))
    return {**arrays, "attributes": json.loads(arrays["attributes"].tobytes())}


def rows(columns: Mapping[str, Any], start: int, stop: int) -> Iterator[dict[str, str]]:
    for values in islice(zip(*columns.values(), strict=True), start, stop):
        yield dict(zip(columns, values, strict=True))


def test_a_false_caption_is_found() -> None:
    """The parse of these tests itself, on sentences written by hand."""
    face = dict(zip(avatars.VALUES, ("pigtails", "red", "glasses", "none", "smiling", "shirt", "blue", "dark")))  # noqa: B905
    for text in ("a happy lady with ginger pigtails and spectacles in a blue top", "dark skin, blue shirt, person"):
        assert is_true(text, face)
    bearded = {**face, "hair": "bald", "hair colour": "none", "facial hair": "beard"}
    assert is_true("a smiling bald bearded man in a blue shirt", bearded)
    false = ("a man", "a woman with blue pigtails", "a red shirt", "dark hair", "a bun of red hair", "sunglasses")
    for text in (
        *false,
        "a woman with a beard",
        "long red hair",
        "checked blue shirt",
        "tan skin",
        "a tall woman",
        "bald",
    ):
        assert not is_true(text, face), text


def test_captions_are_true_short_and_various(embedded: dict[str, Any]) -> None:
    columns = {name: values[:500] for name, values in embedded["attributes"].items()}
    captions = captions_of(columns)
    for attributes, texts in zip(rows(columns, 0, 500), captions, strict=True):
        assert len(texts) == 8
        for text in texts:
            assert is_true(text, attributes), (text, attributes)
            assert 0 < len(words_of(text)) <= 16
    assert captions == captions_of(columns) != captions_of(columns, seed=1)
    assert captions[:10] == captions_of({name: values[:10] for name, values in columns.items()})
    assert np.mean([len(set(texts)) for texts in captions]) > 7.5


@pytest.mark.parametrize("full", [False, True])
def test_held_out_frames_are_true_and_never_among_the_captions(embedded: dict[str, Any], full: bool) -> None:
    columns = {name: values[-400:] for name, values in embedded["attributes"].items()}
    trained = {parsed(text)[1] for texts in captions_of(columns) for text in texts}
    assert 10 < len(trained) < 500
    held_out = set()
    for number, attributes in enumerate(rows(columns, 0, 400)):
        for draw in choices(5, number, captions=4):
            text = caption(attributes, draw, held_out=True, full=full)
            assert is_true(text, attributes) and len(words_of(text)) <= 16
            claims, frame = parsed(text)
            held_out.add(frame)
            if full:
                named = {"hair", "clothes", "clothing colour"} | {
                    name for name in ("glasses", "facial hair") if attributes[name] != "none"
                }
                assert named <= claims.keys() | ({"hair"} if "hair colour" in claims else set()), text
    assert held_out and not held_out & trained
    assert not any(":" in frame or " on " in frame for frame in trained)


def test_the_test_split_is_colours_that_training_never_joins(embedded: dict[str, Any]) -> None:
    split = len(embedded["x_train"])
    joined = [
        {(one["hair colour"], one["clothing colour"]) for one in rows(embedded["attributes"], *part)}
        for part in ((0, split), (split, None))
    ]
    assert len(embedded["x_test"]) > 1000 and not joined[0] & joined[1]
    assert joined[1] and "none" not in {hair for hair, _ in joined[1]}
    for axis in (0, 1):  # each colour by itself is trained on
        assert {pair[axis] for pair in joined[1]} <= {pair[axis] for pair in joined[0]}
    assert len(joined[0] | joined[1]) == 9 * 7


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_pictures_show_their_attributes(embedded: dict[str, Any]) -> None:
    """Pixels that lie within the clothes, an ear and the hair in every drawing have the colours that are said."""
    pictures = np.concatenate([embedded["x_train"], embedded["x_test"]]).astype(int)
    assert pictures.shape == (12_000, 32, 32, 3) and (pictures[:, 0, 0] == 255).all()
    places = {"long": (20, 8), "bob": (20, 8), "bun": (3, 15), "pigtails": (5, 8), "mohawk": (5, 15)}
    for picture, one in zip(pictures, rows(embedded["attributes"], 0, 12_000), strict=True):
        assert abs(picture[29, 8] - rgb(avatars.CLOTHING_COLOURS[one["clothing colour"]])).max() <= 8
        assert min(abs(picture[16, 8] - rgb(skin)).max() for skin in avatars.SKINS[one["skin"]]) <= 8
        if one["hair"] in places:
            assert abs(picture[places[one["hair"]]] - rgb(avatars.HAIR_COLOURS[one["hair colour"]])).max() <= 8


def test_embedded_pairs_are_those_of_their_seed() -> None:
    """Whatever order sets of strings have in this process."""
    pytest.importorskip("dicebear")
    embedded = np.load(builtin.AVATARS.with_name("avatar-pairs.npz"))
    again = avatars.pairs(1, 12, 32)
    assert json.loads(again["facts"].tobytes()) == json.loads(embedded["facts"].tobytes())[:12]
    for name in ("before", "after"):
        assert np.array_equal(again[name], embedded[name][:12])


def test_counterfactual_pairs_differ_where_they_should() -> None:
    pairs = np.load(builtin.AVATARS.with_name("avatar-pairs.npz"))
    boxes = {"clothing colour": (24, 32), "glasses": (12, 17), "facial hair": (14, 25), "hair colour": (2, 28)}
    facts = json.loads(pairs["facts"].tobytes())
    assert len(facts) == 400
    for before, after, fact in zip(pairs["before"], pairs["after"], facts, strict=True):
        changed = np.flatnonzero((before != after).any((1, 2)))
        low, high = boxes[fact["attribute"]]
        assert len(changed) and low <= changed[0] and changed[-1] < high
        one = fact["attributes"]
        assert one[fact["attribute"]] != fact["value"]
        if fact["attribute"] == "hair colour" and one["hair"] == "short" and one["facial hair"] == "none":
            assert changed[-1] < 16
        if fact["attribute"] == "clothing colour":
            for picture, value in ((before, one["clothing colour"]), (after, fact["value"])):
                assert abs(picture[29, 8].astype(int) - rgb(avatars.CLOTHING_COLOURS[value])).max() <= 8


def test_avatars_are_functions_of_their_numbers_and_change_one_attribute() -> None:
    one = avatars.avatar(0, 3)
    assert one == avatars.avatar(0, 3) != avatars.avatar(0, 4) and one != avatars.avatar(1, 3)
    for number in range(300):
        has = avatars.avatar(2, number).attributes
        assert all(has[name] in values for name, values in avatars.VALUES.items())
        assert (has["hair colour"] == "none") == (has["hair"] in ("bald", "cap", "beanie"))
        assert has["facial hair"] == "none" or has["hair"] in ("short", "mohawk", "bald", "cap", "beanie")
    bun = avatars.Avatar({**one.attributes, "hair": "bun", "hair colour": "red", "facial hair": "none"}, one.details)
    green = bun.changed("hair colour", "green")
    assert asdict(green) == {"attributes": {**bun.attributes, "hair colour": "green"}, "details": bun.details}
    for attribute, value, message in (
        ("hair color", "red", "no attribute 'hair color': did you mean hair colour"),
        ("hair colour", "gren", "no hair colour 'gren': did you mean green"),
        ("facial hair", "beard", "facial hair = beard does not go with"),
        ("hair colour", "none", "does not go with"),
        ("hair", "bald", "does not go with"),
    ):
        with pytest.raises(UsageError, match=message):
            bun.changed(attribute, value)


def test_embedded_pictures_are_what_is_drawn(embedded: dict[str, Any]) -> None:
    pytest.importorskip("dicebear")
    found = avatars.drawn(0, 20, 32)
    test = [avatars.held_out(one.attributes) for one, _ in found]
    assert 0 < sum(test) < 20
    pictures, starts = (embedded["x_train"], embedded["x_test"]), (0, len(embedded["x_train"]))
    for split in (0, 1):
        for number, (one, picture) in enumerate(pair for pair, held in zip(found, test, strict=True) if held == split):
            assert np.array_equal(picture, pictures[split][number])
            place = starts[split] + number
            assert one.attributes == next(rows(embedded["attributes"], place, place + 1))


def test_make_writes_a_set_that_loads_with_captions(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("dicebear")
    made = ("data", "make", "avatars", "-n", 40, "--size", 24, "--seed", 3, "--out")
    code, out, err = command(*made, "a.npz")
    assert (code, err) == (0, "") and "pictures of 24x24x3, to train and to test: a.npz" in out
    assert command(*made, "b.npz")[0] == 0
    written = (tmp_path / "a.npz").read_bytes()
    assert written == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    train, test = load(tmp_path / "a.npz", "train"), load(tmp_path / "a.npz", "test")
    found = avatars.drawn(3, 40, 24)
    assert len(train) + len(test) == 40 and len(test) == sum(avatars.held_out(one.attributes) for one, _ in found) > 0
    for split, held in ((train, False), (test, True)):
        part = [(one, picture) for one, picture in found if avatars.held_out(one.attributes) == held]
        assert np.array_equal(split.images, [picture for _, picture in part])
        for number, (one, _) in enumerate(part):
            assert {name: values[number] for name, values in split.attributes.items()} == one.attributes
            assert len(split.captions[number]) == 8
            assert all(is_true(text, one.attributes) for text in split.captions[number])
    code, _, err = command(*made, "a.npz")
    assert code == 2 and "a.npz exists already" in err and (tmp_path / "a.npz").read_bytes() == written
    assert command("data", "make", "avatars", "-n", 30, "--size", 24, "-o", "a.npz", "--force")[0] == 0
    assert (tmp_path / "a.npz").read_bytes() != written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emoji"], "no data set to make 'emoji': choose from avatars"),
        (["avatars", "--out", "a.png"], "must end in .npz"),
        (["avatars", "-n", 1], "-n 1: one of the splits"),
        (["avatars", "-n", 0], "-n"),
        (["avatars", "--size", 4], "--size"),
        (["avatars", "--seed", -1], "--seed"),
    ],
)
def test_make_refuses_what_cannot_be_made(command: Command, tmp_path: Path, arguments: list[Any], message: str) -> None:
    pytest.importorskip("dicebear")
    code, out, err = command("data", "make", *arguments)
    assert code == 2 and out == "" and message in err and not list(tmp_path.iterdir())


def test_make_says_what_is_missing(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    code, _, err = command("data", "make", "avatars")
    assert code == 2 and 'pip install "undiffuse[avatars]"' in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
