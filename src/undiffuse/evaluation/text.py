"""Whether pictures show what sentences say, by classifiers of attributes: avatars, of which everything is known.

Beside each figure of generated pictures stand those of real pictures of the same sentences, the ceiling of the
classifiers, and of the generated pictures with each other's sentences, which is chance.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undiffuse.build import make_data_of
from undiffuse.config import DataConfig
from undiffuse.data import ImageSet
from undiffuse.data.avatar_captions import caption, choices, claims
from undiffuse.data.avatars import CLOTHING_COLOURS, HAIR_COLOURS, VALUES
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.evaluation.attributes import HALVES, Classifier, classifier
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.metrics.intervals import Measure, proportion
from undiffuse.model import Model
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose, stream
from undiffuse.text import prompted_scale

DEFAULT_N = 500
CANDIDATES = 100
BOTH = tuple(name for name in HAIR_COLOURS if name in CLOTHING_COLOURS)
"""Colours that hair and clothes can have."""
ALL_RIGHT = "all named right"
Attributes = Mapping[str, str]
Draw = Callable[[Sequence[str], str], np.ndarray]
"""(sentences, what they are for) -> a picture of each, uint8 (N, H, W, C)."""


@dataclass(frozen=True)
class Prompts:
    """N sentences about faces that exist: those faces' attributes, and real pictures of them, uint8 (N, H, W, C)."""

    sentences: list[str]
    attributes: Sequence[Attributes]
    pictures: np.ndarray

    @property
    def claims(self) -> list[dict[str, str]]:
        """What each sentence says."""
        return [claims(said, of) for said, of in zip(self.sentences, self.attributes, strict=True)]


@dataclass(frozen=True)
class Row:
    """One figure: of what (`of`), which (`name`), from `n` pictures; of generated and real pictures, and chance."""

    of: str
    name: str
    n: int
    generated: Measure
    real: Measure
    shuffled: Measure


@dataclass(frozen=True)
class Faithfulness:
    """What was measured.

    Attributes:
        rows: the figures.
        ceiling: attribute -> the accuracy of its classifier on all real pictures of the test split.
        conditions: model, data, sampling: JSON.
    """

    name: str
    rows: list[Row]
    ceiling: dict[str, Measure]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return dataclasses.asdict(self)


def faithfulness(
    model: Model,
    data: str | None = None,
    *,
    n: int = DEFAULT_N,
    recipe: Recipe | None = None,
    engine: str = "auto",
    bar: Bar = no_bar,
) -> Faithfulness:
    """Draws n pictures (at most as many as the data has) for each of four sets of prompts, and looks at them.

    Args:
        data: avatars with attributes; None: the model's own.
        recipe: None: 20 steps, with the guidance of prompts; of a flow map, its own.

    Raises UsageError for a model without prompts, for a recipe that it cannot have, and for data without the attributes
    of avatars.
    """
    model.of_prompt("hair", 1)  # raises for a model without captions
    recipe = (recipe or Recipe(guidance=Guidance(prompted_scale(model.config)))).for_model(model)
    recipe.check(model)
    train, test = (_images(model, data, split, bar) for split in ("train", "test"))
    n = min(n, len(test), len(train) // HALVES)
    model = with_engine(model, engine, 4 * n * recipe.evaluations, bar)

    def draw(sentences: Sequence[str], what: str) -> np.ndarray:
        first, *others = (model.of_prompt(sentence, 1) for sentence in sentences)
        with bar(f"drawing {what}", len(sentences) * recipe.steps) as tick:
            return np.concatenate(list(generate(model, recipe, range(n), first.joined(*others), tick=tick)))

    rows, ceiling = measured(draw, train, test, n, recipe.seed, bar)
    conditions = {
        "n": n,
        "model_fingerprint": model.fingerprint,
        "data": {"name": train.name, "train": train.fingerprint, "test": test.fingerprint},
        "recipe": dataclasses.asdict(recipe),
        "engine": model.engine,
        "candidates": CANDIDATES,
    }
    return Faithfulness(model.name, rows, ceiling, conditions)


def measured(
    draw: Draw, train: ImageSet, test: ImageSet, n: int, seed: int = 0, bar: Bar = no_bar
) -> tuple[list[Row], dict[str, Measure]]:
    """The figures for anything that draws n pictures of sentences, and the ceiling of each attribute."""
    judges = []
    for half in range(HALVES):
        with bar("training the classifiers of attributes", 0) as tick:
            judges.append(classifier(train, VALUES, half, tick))
    judge, scorer = judges
    unseen = np.arange(1, len(train), HALVES)  # by the judge
    learnt = unseen[stream(seed, Purpose.CHOICE, 0).permutation(len(unseen))[:n]]
    new = stream(seed, Purpose.CHOICE, 1).permutation(len(test))[:n]
    sets = {
        "training compositions": prompts(train, learnt, seed),
        "held-out compositions": prompts(test, new, seed),
        "held-out phrasings": prompts(train, learnt, seed, held_out=True),
    }
    rows = []
    for name, asked in sets.items():
        pictures = draw(asked.sentences, name)
        rows += accuracies(judge, name, asked, pictures)
        if name == "held-out compositions":
            rows.append(retrieval(scorer, name, asked, pictures, pool(train, test, seed), seed))
    rows.append(swap(judge, draw, train, unseen, n, seed))
    log_probs = judge.log_probs(test.images)
    ceiling = {
        name: proportion(log_probs[name].argmax(1) == judge.indices(name, test.attributes[name])) for name in VALUES
    }
    return rows, ceiling


def prompts(images: ImageSet, rows: np.ndarray, seed: int, held_out: bool = False) -> Prompts:
    """A full caption of each of these rows of a data set, new ones of the same grammar, or in phrasings held out."""
    known = [{name: images.attributes[name][row] for name in VALUES} for row in rows]
    said = [
        caption(of, choices(seed, Purpose.CHOICE, int(row), int(held_out))[0], held_out, full=True)
        for row, of in zip(rows, known, strict=True)
    ]
    return Prompts(said, known, images.images[rows])


def accuracies(judge: Classifier, name: str, asked: Prompts, pictures: np.ndarray) -> list[Row]:
    """For each attribute how many pictures have what their sentence names, and how many have all of it."""
    claimed = asked.claims
    others = np.roll(pictures, 1, axis=0)
    right = [_right(judge, which, claimed) for which in (pictures, asked.pictures, others)]
    found = []
    for attribute in VALUES:
        having = [attribute in one for one in claimed]
        if any(having):
            shares = (proportion(one[attribute][having]) for one in right)
            found.append(Row(name, attribute, sum(having), *shares))
    wholes = (proportion(np.all(list(one.values()), axis=0)) for one in right)
    return [*found, Row(name, ALL_RIGHT, len(claimed), *wholes)]


def _right(judge: Classifier, pictures: np.ndarray, claimed: Sequence[Attributes]) -> dict[str, np.ndarray]:
    """Attribute -> bool (N,): each picture has the value that is claimed, if one is."""
    log_probs = judge.log_probs(pictures)
    return {
        name: np.array([one.get(name, seen) == seen for one, seen in zip(claimed, _seen(name, log_probs), strict=True)])
        for name in VALUES
    }


def _seen(name: str, log_probs: Mapping[str, np.ndarray]) -> list[str]:
    return [VALUES[name][index] for index in log_probs[name].argmax(1)]


def swap(judge: Classifier, draw: Draw, images: ImageSet, rows: np.ndarray, n: int, seed: int) -> Row:
    """How many pictures of "a hair, b clothes" and of "b hair, a clothes" are nearer to their own sentence.

    Both sentences have the same other words, so whatever does not know which colour belongs where gets one half. The
    faces are those of `rows` that have two of the colours BOTH.
    """
    random = stream(seed, Purpose.CHOICE, 2)
    colours = [(images.attributes["hair colour"][row], images.attributes["clothing colour"][row]) for row in rows]
    rows = rows[[a != b and a in BOTH and b in BOTH for a, b in colours]]
    real = [{name: images.attributes[name][row] for name in VALUES} for row in rows[:n]]
    known: list[Attributes] = []
    for number in range(n):
        if number % 2 == 0:
            a, b = random.permutation(BOTH)[:2].tolist()
        shaven = {**real[number // 2 % len(real)], "glasses": "none", "facial hair": "none"}  # says both colours
        known.append({**shaven, "hair colour": a, "clothing colour": b})
        a, b = b, a
    said = [caption(of, choices(seed, Purpose.CHOICE, 2, i // 2)[0], full=True) for i, of in enumerate(known)]
    generated = nearer(judge, draw(said, "swapped colours"), known)
    truth = nearer(judge, images.images[rows[:n]], real)
    return Row("swap of colours", "nearer to its own", n, proportion(generated), proportion(truth), Measure(0.5))


def nearer(judge: Classifier, pictures: np.ndarray, known: Sequence[Attributes]) -> np.ndarray:
    """bool (N,): hair and clothes of each picture look more like their colours than like each other's."""
    hair, clothes = (judge.log_probs(pictures)[name] for name in ("hair colour", "clothing colour"))
    rows = np.arange(len(pictures))
    a, b = ([of[name] for of in known] for name in ("hair colour", "clothing colour"))

    def score(hair_is: list[str], clothes_are: list[str]) -> np.ndarray:
        of_hair, of_clothes = judge.indices("hair colour", hair_is), judge.indices("clothing colour", clothes_are)
        total: np.ndarray = hair[rows, of_hair] + clothes[rows, of_clothes]
        return total

    return score(a, b) > score(b, a)


def pool(train: ImageSet, test: ImageSet, seed: int) -> list[dict[str, str]]:
    """What full captions of all pictures say, each once."""
    found = [one for images in (train, test) for one in prompts(images, np.arange(len(images)), seed).claims]
    return [dict(one) for one in dict.fromkeys(tuple(one.items()) for one in found)]


def retrieval(
    scorer: Classifier, name: str, asked: Prompts, pictures: np.ndarray, others: list[dict[str, str]], seed: int
) -> Row:
    """How often the sentence of a picture has the highest score among 100: recall at 1.

    The other 99 name the same attributes, and differ in as few of them as there are such captions; a score is the sum
    of the log-probabilities of what is named.
    """
    claimed, random = asked.claims, stream(seed, Purpose.CHOICE, 3)
    sets = []
    for own in claimed:
        alike = [one for one in others if one.keys() == own.keys() and one != own]
        apart = np.array([sum(one[key] != own[key] for key in own) for one in alike])
        order = np.lexsort((random.random(len(alike)), apart))[: CANDIDATES - 1]
        sets.append([own, *(alike[index] for index in order)])

    def first(images: np.ndarray) -> np.ndarray:
        log_probs = scorer.log_probs(images)
        wins = []
        for row, candidates in enumerate(sets):
            scores = [
                sum(log_probs[key][row, VALUES[key].index(value)] for key, value in one.items()) for one in candidates
            ]
            wins.append(scores[0] > max(scores[1:], default=-np.inf))
        return np.array(wins)

    shares = (proportion(first(images)) for images in (pictures, asked.pictures, np.roll(pictures, 1, axis=0)))
    return Row(name, f"retrieval, first of {CANDIDATES}", len(claimed), *shares)


def _images(model: Model, data: str | None, split: str, bar: Bar) -> ImageSet:
    config = model.learnt
    if data is not None:
        config = DataConfig.model_validate({"source": data, "channels": model.data.shape[2]})
    if config is None:
        raise UsageError(f"{model.name} was imported without data: name avatars to measure against with --data")
    images = make_data_of(model.data.shape, config, split, bar)
    if any(
        name not in images.attributes or not set(images.attributes[name]) <= set(values)
        for name, values in VALUES.items()
    ):
        raise UsageError(
            f"{images.name} has no attributes of faces, which --metrics text asks for and looks at: "
            "use --data avatars, or data made by undiffuse data make avatars"
        )
    return images
