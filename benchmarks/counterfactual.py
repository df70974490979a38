"""Edits by words where the truth is known: faces of which one attribute was changed, and nothing else.

    python benchmarks/counterfactual.py avatars docs/lecture/counterfactual.json [--figure FILE.png]

The 400 embedded pairs: a picture, the same face drawn with one attribute changed, and which. Each way is given the
first picture and a few words for the change ("red hair"; captions have none for glasses and beards that go, so those
pairs are left out). Beside editing: the input copied, and the prompt drawn anew. Reported: the root mean square
error, on [-1, 1], where the two pictures of a pair are the same (kept) and where they differ (against the second), and
how often a classifier trained on real pictures sees the new value, and all other attributes as they were.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.conditions import Condition, Sentences
from undiffuse.conditions.sentences import text_of
from undiffuse.data import load
from undiffuse.data.avatars import VALUES
from undiffuse.data.builtin import AVATARS
from undiffuse.devices import conditions
from undiffuse.editing.rows import edit, regenerate
from undiffuse.evaluation.attributes import classifier
from undiffuse.files import write_json
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.model import Model
from undiffuse.model import load as load_model
from undiffuse.plots import strips
from undiffuse.text import PROMPTED

Way = Callable[[np.ndarray, Condition], np.ndarray]


def words(attribute: str, value: str) -> str:
    """What is asked for; "" for a change that captions have no words for."""
    if value == "none":
        return ""
    return {"hair colour": f"{value} hair", "clothing colour": f"a {value} shirt", "facial hair": f"a {value}"}.get(
        attribute, value
    )


def ways(model: Model) -> dict[str, Way]:
    """Name -> (pictures, condition) -> edited pictures."""
    recipe = Recipe(steps=20, guidance=Guidance(PROMPTED))

    def friendly(strength: float) -> Way:
        return lambda rows, asked: regenerate(
            model, rows, recipe, model.unconditional(len(rows)), asked, method="friendly", strength=strength
        )

    def sdedit(strength: float) -> Way:
        return lambda rows, asked: edit(model, rows, recipe, asked, strength=strength)

    def anew(rows: np.ndarray, asked: Condition) -> np.ndarray:
        return np.concatenate(list(generate(model, recipe, range(len(rows)), asked)))

    return {
        "the input, copied": lambda rows, asked: rows,
        "SDEdit, strength .6": sdedit(0.6),
        "SDEdit, strength .75": sdedit(0.75),
        "friendly inversion to .7": friendly(0.7),
        "friendly inversion to .85": friendly(0.85),
        "drawn anew": anew,
    }


def main() -> None:
    """Measures every way, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    model, train = load_model(options.model), load("avatars")
    pairs = np.load(AVATARS.with_name("avatar-pairs.npz"))
    facts = json.loads(pairs["facts"].tobytes())
    asked = [words(fact["attribute"], fact["value"]) for fact in facts]
    kept = [row for row, prompt in enumerate(asked) if prompt]
    before, after = pairs["before"][kept], pairs["after"][kept]
    facts, asked = [facts[row] for row in kept], [asked[row] for row in kept]
    judge = classifier(train, VALUES, 0)
    assert model.data.condition is not None
    sentences = Sentences.of(asked, text_of(model.data.condition.facts)).to(model.device)
    same = (before == after).all(3)

    def measured(rows: np.ndarray) -> dict[str, Any]:
        def error(truth: np.ndarray, where: np.ndarray) -> float:
            return float(np.sqrt(np.mean(((rows.astype(float) - truth) / 127.5)[where] ** 2)))

        logits = judge.log_probs(rows)
        seen = {name: [VALUES[name][index] for index in value.argmax(1).tolist()] for name, value in logits.items()}
        there = [seen[fact["attribute"]][row] == fact["value"] for row, fact in enumerate(facts)]
        others = [
            np.mean([seen[name][row] == fact["attributes"][name] for name in VALUES if name != fact["attribute"]])
            for row, fact in enumerate(facts)
        ]
        of_each = {
            name: float(np.mean([hit for hit, fact in zip(there, facts, strict=True) if fact["attribute"] == name]))
            for name in sorted({fact["attribute"] for fact in facts})
        }
        return {
            "kept_error": error(before, same),
            "changed_error": error(after, ~same),
            "changed": float(np.mean(there)),
            "changed_by_attribute": of_each,
            "others_as_they_were": float(np.mean(others)),
        }

    found, pictures = {"the true change": measured(after)}, [("before", before[:10])]
    for name, way in ways(model).items():
        rows = way(before, sentences)
        found[name] = measured(rows)
        pictures.append((name, rows[:10]))
        print(name, found[name], flush=True)
    write_json(
        options.json, {"model": options.model, "pairs": len(kept), "guidance": PROMPTED, **conditions(), "ways": found}
    )
    if options.figure:
        headings = [prompt.replace(" ", "\n") for prompt in asked[:10]]
        strips([*pictures, ("the true change", after[:10])], headings, "one attribute changed by words", options.figure)


if __name__ == "__main__":
    main()
