"""How faithful a model is to words, as text."""

from undiffuse.evaluation.report import interval, number
from undiffuse.evaluation.text import Faithfulness
from undiffuse.names import counted

HEADINGS = ("prompts", "pictures", "generated", "95% interval", "real", "shuffled", "what is right")


def rows(found: Faithfulness) -> list[tuple[str, ...]]:
    """The figures, under HEADINGS."""
    return [
        (
            row.of,
            str(row.n),
            number(row.generated.value),
            interval(row.generated),
            number(row.real.value),
            number(row.shuffled.value),
            row.name,
        )
        for row in found.rows
    ]


def sentence(found: Faithfulness) -> str:
    """The line that says what was measured."""
    facts, recipe = found.conditions, found.conditions["recipe"]
    return (
        f"{found.name}: {facts['n']} prompts of each kind about pictures of {facts['data']['name']}; "
        f"{recipe['sampler']}, {counted(recipe['steps'], 'step')}, guidance {recipe['guidance']['scale']:g}"
    )


def ceiling(found: Faithfulness) -> str:
    """How good the classifiers are."""
    parts = ", ".join(f"{name} {number(measure.value)}" for name, measure in found.ceiling.items())
    return f"The classifiers are right on real pictures of held-out compositions: {parts}."
