"""Captions of avatars: sentences and tags that say some of what is true of a face, in many words and orders.

Fixed templates teach templates, so clauses are drawn, dropped and shuffled. Colours stand beside what has them. A face
is called a man if it has short hair, a mohawk, a bald head or a beard, and a woman if it has long hair, a bob, a bun or
pigtails: a rule of this data set, so that both words mean something; people in the world look as they like.
"""

from collections.abc import Mapping, Sequence

from undiffuse.streams import stream

MOST_WORDS = 16
EACH = 8
"""Captions of one picture."""
MOST_CHOICES = 64
DROPPED = 0.3
"""The share of clauses that a caption leaves out."""
SYNONYMS = {"blond": ("blond", "blonde"), "red": ("red", "ginger"), "black": ("black", "dark")}
"""Other words for colours of hair."""
MEN, WOMEN = ("short", "mohawk", "bald"), ("long", "bob", "bun", "pigtails")
NOUNS = {
    "man": ("man", "man", "guy", "person"),
    "woman": ("woman", "woman", "lady", "person"),
    "person": ("person", "person", "face"),
}
HAIR = {
    "short": ("{} hair", "short {} hair"),
    "long": ("long {} hair", "{} hair"),
    "bob": ("a {} bob", "{} hair in a bob"),
    "curly": ("curly {} hair", "big curly {} hair", "{} curls"),
    "bun": ("a {} bun", "{} hair in a bun"),
    "pigtails": ("{} pigtails", "{} hair in pigtails"),
    "mohawk": ("a {} mohawk", "a {} mohawk"),
    "bald": ("a bald head", "no hair", "bald"),
    "cap": ("a cap", "a baseball cap"),
    "beanie": ("a beanie", "a woolly hat"),
}
GLASSES = {"glasses": ("glasses", "spectacles"), "sunglasses": ("sunglasses", "dark sunglasses")}
FACIAL_HAIR = {"beard": ("a beard", "a full beard", "bearded"), "moustache": ("a moustache", "a mustache")}
ADJECTIVES = ("bald", "bearded")
"""Features that stand before the noun: "a bald man"."""
EXPRESSIONS = {"smiling": ("smiling", "happy"), "surprised": ("surprised", "astonished"), "serious": ("serious",)}
CLOTHES = {
    "shirt": ("{} shirt", "{} shirt", "{} top"),
    "checked shirt": ("checked {} shirt", "{} checked shirt", "{} plaid shirt"),
}
SKIN = {"light": ("light skin", "pale skin"), "brown": ("brown skin", "tan skin"), "dark": ("dark skin",)}


def sex_of(attributes: Mapping[str, str]) -> str:
    """man, woman or person, by the rule above."""
    if attributes["facial hair"] != "none" or attributes["hair"] in MEN:
        return "man"
    return "woman" if attributes["hair"] in WOMEN else "person"


class _Choices:
    """Random choices of one caption, from numbers in [0, 1)."""

    def __init__(self, numbers: Sequence[float]):
        self._numbers = iter(numbers)

    def of(self, values: Sequence[str]) -> str:
        return values[int(next(self._numbers) * len(values))]

    def happens(self, share: float) -> bool:
        return next(self._numbers) < share

    def shuffled(self, values: Sequence[str]) -> list[str]:
        return [value for _, value in sorted((next(self._numbers), value) for value in values)]


def choices(*key: int, captions: int = 1) -> list[_Choices]:
    """The choices for some captions, from a key of integers."""
    numbers = stream(*key).random((captions, MOST_CHOICES))
    return [_Choices(row) for row in numbers.tolist()]


def captions_of(columns: Mapping[str, Sequence[str]], seed: int = 0, each: int = EACH) -> tuple[tuple[str, ...], ...]:
    """Training captions of avatars, `each` of one, from their attributes (as in `ImageSet.attributes`)."""
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return tuple(
        tuple(caption(row, draw) for draw in choices(seed, number, captions=each)) for number, row in enumerate(rows)
    )


def caption(attributes: Mapping[str, str], draw: _Choices, held_out: bool = False, full: bool = False) -> str:
    """A caption of an avatar, of at most MOST_WORDS words.

    Args:
        held_out: by a frame that no training caption has.
        full: names hair, glasses, beard and clothes, all that the face has; else some clauses are left out.
    """
    clauses = _clauses(attributes, draw, held_out)
    needed = ("hair", "glasses", "facial hair", "clothes") if full else ()
    kept = {
        name: words for name, words in clauses.items() if name in needed or (not full and not draw.happens(DROPPED))
    }
    if not kept or (held_out and list(kept) == ["expression"]):  # "a happy man" is a training caption
        kept["hair"] = clauses["hair"]
    frame = _held_out if held_out else _tags if draw.happens(0.3) else _sentence
    noun = draw.of(NOUNS[sex_of(attributes)])
    order = draw.shuffled(sorted(kept.keys() - {"clothes", "expression"}))
    said = frame(noun, kept, order, draw)
    for name in reversed(order):
        if len(said.split()) <= MOST_WORDS:
            break
        del kept[name]
        order.remove(name)
        said = frame(noun, kept, order, draw)
    return said


def _clauses(attributes: Mapping[str, str], draw: _Choices, held_out: bool) -> dict[str, str]:
    """A clause for each attribute; an attribute that is "none" has no clause. Held-out frames have no ADJECTIVES."""

    def of(forms: Sequence[str]) -> str:
        return draw.of([form for form in forms if not (held_out and form in ADJECTIVES)])

    colour = draw.of(SYNONYMS.get(attributes["hair colour"], (attributes["hair colour"],)))
    found = {"hair": of(HAIR[attributes["hair"]]).format(colour)}
    for name, forms in (("glasses", GLASSES), ("facial hair", FACIAL_HAIR)):
        if attributes[name] != "none":
            found[name] = of(forms[attributes[name]])
    found["clothes"] = draw.of(CLOTHES[attributes["clothes"]]).format(attributes["clothing colour"])
    found["expression"] = draw.of(EXPRESSIONS[attributes["expression"]])
    found["skin"] = draw.of(SKIN[attributes["skin"]])
    return found


def _listed(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def _sentence(noun: str, kept: Mapping[str, str], order: Sequence[str], draw: _Choices) -> str:
    """ "a smiling bearded man with red hair and glasses in a blue shirt", and its variations."""
    said = [kept[name] for name in order]
    before = [*([kept["expression"]] if "expression" in kept else []), *(word for word in said if word in ADJECTIVES)]
    subject = _article(" ".join([*before, noun]))
    after = [words for words in said if words not in ADJECTIVES]
    features = f" with {_listed(after)}" if after else ""
    clothes = ""
    if "clothes" in kept:
        clothes = f" {draw.of(('in', 'wearing', 'who wears'))} {_article(kept['clothes'])}"
    first, second = (clothes, features) if draw.happens(0.3) else (features, clothes)
    return draw.of(("", "", "a picture of ", "portrait of ")) + subject + first + second


def _tags(noun: str, kept: Mapping[str, str], order: Sequence[str], draw: _Choices) -> str:
    """ "red hair, glasses, blue shirt, smiling"."""
    tags = [kept[name].removeprefix("a ") for name in (*order, "clothes", "expression") if name in kept]
    return ", ".join(draw.shuffled([noun, *tags] if draw.happens(0.5) else tags))


def _held_out(noun: str, kept: Mapping[str, str], order: Sequence[str], draw: _Choices) -> str:
    """Frames of evaluation: features first, clothes as their owner's, the face at the end."""
    features = _listed([kept[name] for name in order])
    clothes = _article(kept["clothes"]) if "clothes" in kept else ""
    subject = _article(f"{kept['expression']} {noun}" if "expression" in kept else noun)
    if draw.happens(0.5):
        return ": ".join(filter(None, [_listed([*filter(None, [clothes, features])]), subject]))
    return " on ".join(
        filter(None, [f"{features}, {clothes}" if features and clothes else features or clothes, subject])
    )


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def claims(said: str, attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes that a caption of a face with `attributes` names, with their values.

    "red hair" says its colour and not how it is cut; what is not mentioned is not claimed to be none.
    """
    text = f" {' '.join(said.replace(',', ' ').replace(':', ' ').split())} "

    def says(forms: Sequence[str], colours: Sequence[str] = ("",)) -> bool:
        return any(f" {form.removeprefix('a ').format(colour)} " in text for form in forms for colour in colours)

    hair, colour = HAIR[attributes["hair"]], attributes["hair colour"]
    colours = SYNONYMS.get(colour, (colour,))
    clothes = says(CLOTHES[attributes["clothes"]], [attributes["clothing colour"]])
    named = {
        "hair": says([form for form in hair if form != "{} hair"], colours),
        "hair colour": colour != "none" and says(hair, colours),
        "glasses": says(GLASSES.get(attributes["glasses"], ())),
        "facial hair": says(FACIAL_HAIR.get(attributes["facial hair"], ())),
        "expression": says(EXPRESSIONS[attributes["expression"]]),
        "clothes": clothes,
        "clothing colour": clothes,
        "skin": says(SKIN[attributes["skin"]]),
    }
    return {name: attributes[name] for name, true in named.items() if true}
