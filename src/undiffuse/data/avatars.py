"""Faces that are drawn, so that everything about each is known: the data set `avatars`.

DiceBear draws them in the style Personas (Draftbit, CC BY 4.0). An avatar is its attributes, which captions name, and
numbers that decide what captions do not. Drawing needs the extra `avatars`; the embedded set needs nothing.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from undiffuse.errors import UsageError
from undiffuse.names import one_of
from undiffuse.streams import stream

LICENCE = "CC BY 4.0 (Personas by Draftbit, drawn by DiceBear)"
MISSING = 'drawing avatars needs packages that are not installed: pip install "undiffuse[avatars]"'
HAIR_COLOURS = {
    "black": "#231f2b",
    "brown": "#70452f",
    "blond": "#f2c14e",
    "red": "#d8432f",
    "white": "#e4e4f0",
    "pink": "#f279b4",
    "blue": "#3c6be0",
    "green": "#46a758",
}
CLOTHING_COLOURS = {
    "blue": "#3f66f5",
    "green": "#5fb348",
    "pink": "#f57fae",
    "purple": "#7b4fc9",
    "red": "#e0333f",
    "yellow": "#f5c02f",
    "black": "#2b2b33",
}
SKINS = {"light": ("#f2c1b0", "#e7a391"), "brown": ("#d0845f", "#b8714f"), "dark": ("#7d4a38", "#623d36")}
HAIR = {
    "short": ("shortCombover", "fade"),
    "long": ("long", "extraLong"),
    "bob": ("bobCut", "bobBangs"),
    "curly": ("curly",),
    "bun": ("straightBun",),
    "pigtails": ("pigtails",),
    "mohawk": ("mohawk",),
    "bald": ("bald",),
    "cap": ("cap",),
    "beanie": ("beanie",),
}
NO_COLOUR = ("bald", "cap", "beanie")
"""Hair that does not show; its colour is "none"."""
BEARDED = ("short", "mohawk", *NO_COLOUR)
"""Who may have a beard or a moustache."""
EYES = {"none": ("open",), "glasses": ("glasses",), "sunglasses": ("sunglasses",)}
FACIAL_HAIR = {"none": (), "beard": ("beardMustache",), "moustache": ("walrus",)}
BEARD_SMILES = ("beard", "smiling")
"""A beard is drawn with a mouth of its own, over the face's: it smiles whatever the face would do."""
EXPRESSIONS = {"smiling": ("bigSmile",), "surprised": ("surprise",), "serious": ("smirk",)}
CLOTHES = {"shirt": ("rounded", "squared"), "checked shirt": ("checkered",)}
VALUES: dict[str, tuple[str, ...]] = {
    "hair": tuple(HAIR),
    "hair colour": (*HAIR_COLOURS, "none"),
    "glasses": tuple(EYES),
    "facial hair": tuple(FACIAL_HAIR),
    "expression": tuple(EXPRESSIONS),
    "clothes": tuple(CLOTHES),
    "clothing colour": tuple(CLOTHING_COLOURS),
    "skin": tuple(SKINS),
}
"""The attributes, and what each may be."""
DETAILS = ("hair", "beard colour", "skin", "clothes", "nose")
"""Further differences between avatars: each a number in [0, 1) that selects one of several drawings."""


@dataclass(frozen=True)
class Avatar:
    """A face: `attributes`, a value of each in VALUES, and `details`, a number in [0, 1) for each in DETAILS."""

    attributes: Mapping[str, str]
    details: Mapping[str, float]

    def changed(self, attribute: str, value: str) -> "Avatar":
        """The same face with one attribute changed.

        Raises UsageError for an unknown attribute or value, or one that does not go with the others.
        """
        one_of("attribute", attribute, VALUES)
        one_of(attribute, value, VALUES[attribute])
        changed = _changed(self, attribute, value)
        if changed is None:
            raise UsageError(f"{attribute} = {value} does not go with the rest of this face")
        return changed


def _changed(one: Avatar, attribute: str, value: str) -> Avatar | None:
    """The same face with one attribute changed; None if the value does not go with the others."""
    changed = replace(one, attributes={**one.attributes, attribute: value})
    return changed if _possible(changed.attributes) else None


def _possible(attributes: Mapping[str, str]) -> bool:
    """Whether the hair's colour is one that shows, a beard is where there may be one, and it smiles."""
    colourless = attributes["hair"] in NO_COLOUR
    shaven = attributes["facial hair"] == "none"
    beard, smiles = BEARD_SMILES
    return (
        colourless == (attributes["hair colour"] == "none")
        and (shaven or attributes["hair"] in BEARDED)
        and (attributes["facial hair"] != beard or attributes["expression"] == smiles)
    )


def held_out(attributes: Mapping[str, str]) -> bool:
    """Whether the avatar is of the test split: no training picture has its colours of hair and clothes together."""
    if attributes["hair colour"] == "none":
        return False
    hair = list(HAIR_COLOURS).index(attributes["hair colour"])
    return (hair + list(CLOTHING_COLOURS).index(attributes["clothing colour"])) % len(CLOTHING_COLOURS) == 0


def avatar(seed: int, number: int) -> Avatar:
    """The avatar of a number: a pure function of both. Glasses and beards are rarer than none, all else is even."""
    u = iter(_numbers(seed, number, len(VALUES) + len(DETAILS)))
    found = {name: _pick(values, next(u)) for name, values in VALUES.items()}
    if found["hair"] in NO_COLOUR:
        found["hair colour"] = "none"
    elif found["hair colour"] == "none":
        found["hair colour"] = "brown"
    if found["hair"] not in BEARDED:
        found["facial hair"] = "none"
    if found["facial hair"] == BEARD_SMILES[0]:
        found["expression"] = BEARD_SMILES[1]
    return Avatar(found, dict(zip(DETAILS, u, strict=True)))


def options(one: Avatar) -> dict[str, Any]:
    """The avatar in DiceBear's terms."""
    has, detail = one.attributes, one.details
    hair = HAIR_COLOURS.get(has["hair colour"])
    beard = hair or _pick(tuple(HAIR_COLOURS.values())[:4], detail["beard colour"])
    return {
        "hairVariant": [_pick(HAIR[has["hair"]], detail["hair"])],
        "hairColor": [hair or beard],
        "facialHairProbability": 0 if has["facial hair"] == "none" else 100,
        "facialHairVariant": list(FACIAL_HAIR[has["facial hair"]] or ("goatee",)),
        "facialHairColor": [beard],
        "eyesVariant": list(EYES[has["glasses"]]),
        "mouthVariant": list(EXPRESSIONS[has["expression"]]),
        "noseVariant": [_pick(("mediumRound", "smallRound", "wrinkles"), detail["nose"])],
        "clothesVariant": [_pick(CLOTHES[has["clothes"]], detail["clothes"])],
        "clothingColor": [CLOTHING_COLOURS[has["clothing colour"]]],
        "skinColor": [_pick(SKINS[has["skin"]], detail["skin"])],
    }


def draw(one: Avatar, size: int) -> np.ndarray:
    """The avatar on white, uint8 (size, size, 3). Raises UsageError without the extra `avatars`."""
    from PIL import Image

    try:
        import resvg_py
        from dicebear import Avatar as Drawn
    except ImportError:
        raise UsageError(MISSING) from None
    svg = Drawn(_style(), {"seed": "", "size": size, **options(one)}).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def drawn(
    seed: int, n: int, size: int, tick: Callable[[int, int], None] | None = None
) -> list[tuple[Avatar, np.ndarray]]:
    """The first n avatars of a seed whose pictures differ, with these pictures; `tick` gets (drawn, n)."""
    found: dict[bytes, tuple[Avatar, np.ndarray]] = {}
    number = 0
    while len(found) < n:
        one = avatar(seed, number)
        picture = draw(one, size)
        number += 1
        if (key := picture.tobytes()) not in found:
            found[key] = one, picture
            if tick:
                tick(len(found), n)
    return list(found.values())


def columns(avatars: Sequence[Avatar]) -> dict[str, tuple[str, ...]]:
    """Attribute -> its value for each avatar, as in `ImageSet.attributes`."""
    return {name: tuple(one.attributes[name] for one in avatars) for name in VALUES}


@cache
def _style() -> Any:
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath("personas.json").read_text("utf-8")))


def _numbers(seed: int, number: int, count: int) -> list[float]:
    draws: list[float] = stream(seed, number).random(count).tolist()
    return draws


def _pick(values: Sequence[str], u: float) -> str:
    """Evenly; but "none" first among glasses and beards takes half."""
    if values[0] == "none":
        return values[0] if u < 0.5 else values[1 + int((2 * u - 1) * (len(values) - 1))]
    return values[int(u * len(values))]


def arrays_of(found: Sequence[tuple[Avatar, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays for an .npz file: x_train, x_test (`held_out`) and the attributes of both."""
    by_split = [[pair for pair in found if held_out(pair[0].attributes) == test] for test in (False, True)]
    arrays = {
        name: np.stack([picture for _, picture in part])
        for name, part in zip(("x_train", "x_test"), by_split, strict=True)
        if part
    }
    return {**arrays, "attributes": as_json(columns([one for part in by_split for one, _ in part]))}


def as_json(value: Any) -> np.ndarray:
    """A JSON text as an array of bytes, uint8 (N,)."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def pairs(seed: int, n: int, size: int) -> dict[str, np.ndarray]:
    """n counterfactuals: pictures `before` and `after` one attribute changed, and JSON of what was so and what changed.

    Hair and clothes change colour, glasses and beards come and go, in turn.
    """
    changeable = ("hair colour", "clothing colour", "glasses", "facial hair")
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    facts: list[dict[str, Any]] = []
    number = 0
    while len(facts) < n:
        one = avatar(seed, number)
        number += 1
        attribute = changeable[len(facts) % len(changeable)]
        u = iter(_numbers(seed + 1, number, len(VALUES[attribute])))
        possible = [value for value in VALUES[attribute] if value != one.attributes[attribute]]
        values = sorted(possible, key=lambda value: next(u))
        others = filter(None, (_changed(one, attribute, value) for value in values))
        if (other := next(others, None)) is not None:
            before.append(draw(one, size))
            after.append(draw(other, size))
            value = other.attributes[attribute]
            facts.append({"attributes": one.attributes, "attribute": attribute, "value": value})
    return {"before": np.stack(before), "after": np.stack(after), "facts": as_json(facts)}
