"""The results of an evaluation of sounds: a table, and a page where they can be seen and heard."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from undiffuse.evaluation.evaluate_sounds import SoundEvaluation
from undiffuse.evaluation.page import Page, Room, clips, write_page
from undiffuse.evaluation.report import how_drawn, interval, number, unlearnt
from undiffuse.metrics.blocks import pick
from undiffuse.metrics.manifold import nearest
from undiffuse.metrics.sounds.spectrogram import spectrograms

COLUMNS = 4
MOST_CLASSES = 12
CLOSEST = 8


def headings(evaluation: SoundEvaluation) -> tuple[str, str, str, str, str]:
    """The headings of `rows`."""
    return "measure", f"{len(evaluation.samples):,} samples", "95% interval", "real", "what it is"


def rows(evaluation: SoundEvaluation) -> list[tuple[str, str, str, str, str]]:
    """For every figure: its name, value, interval, that of real sounds, and what it is."""
    return [
        (
            row.measure,
            number(row.value.value),
            interval(row.value),
            number(row.real.value) if row.real else "",
            row.what,
        )
        for row in evaluation.rows
    ]


def conditions_line(evaluation: SoundEvaluation) -> str:
    """How the numbers were measured, in a sentence."""
    facts = evaluation.conditions
    parts = [
        f"reference: {facts['sounds']:,} sounds of {facts['data']} ({facts['split']})",
        f"{evaluation.domain.seconds:g} s at {evaluation.domain.rate:,} Hz",
    ]
    learnt = facts.get("model", {}).get("learnt_this_data", True)
    return "; ".join([*parts, *how_drawn(facts), *unlearnt(evaluation.name, learnt)])


def write_report(evaluation: SoundEvaluation, path: Path) -> None:
    """Writes the page: numbers, samples beside real sounds of their class, the nearest in training, conditions."""
    page = Page(
        title=f"{evaluation.name}: evaluation",
        heading=f"{evaluation.name} against {evaluation.train.name}",
        summary=[conditions_line(evaluation)],
        headings=headings(evaluation),
        rows=rows(evaluation),
        notes=[],
        figures=[],
        conditions=evaluation.to_json(),
        rooms=[*_side_by_side(evaluation), _nearest(evaluation)],
    )
    write_page(page, path)


def _side_by_side(evaluation: SoundEvaluation) -> Iterator[Room]:
    """A room for each class that was asked for, or one for all: a line of samples above a line of real sounds."""
    samples, real, requested = evaluation.samples, evaluation.real, evaluation.requested
    of_samples, of_real = np.zeros(len(samples), int), np.zeros(len(real), int)
    titles = [""]
    if requested is not None and real.labels is not None:
        of_samples, of_real, titles = requested, np.asarray(real.labels), list(evaluation.train.classes)
    for label, title in enumerate(titles[:MOST_CLASSES]):
        ours, theirs = (pick(np.flatnonzero(of == label), COLUMNS) for of in (of_samples, of_real))
        if not len(ours) or not len(theirs):
            continue
        shown = np.concatenate([samples[ours], real.images[theirs]])
        captions = [f"sample {one}" for one in ours] + [f"real, test {one}" for one in theirs]
        heading = f"Samples above real sounds: {title}" if title else "Samples above real sounds"
        yield Room(heading, clips(evaluation.domain, shown, captions), max(len(ours), len(theirs)))


def _nearest(evaluation: SoundEvaluation) -> Room:
    """The samples nearest to a training sound, each above it: what copies would sound like."""
    samples, train = evaluation.samples, evaluation.train
    seen = [spectrograms(rows, train.rate) for rows in (samples, train.images)]
    distances, index = nearest(seen[0], seen[1], scale=2)
    closest = np.argsort(distances)[:CLOSEST]
    shown, captions = [], []
    for line in np.split(closest, range(COLUMNS, len(closest), COLUMNS)):
        shown += [samples[line], train.images[index[line]]]
        captions += [f"sample {one}" for one in line]
        captions += [f"training {index[one]}, {distances[one]:.3f} away" for one in line]
    heading = "The samples nearest to a training sound, above it: what copying would sound like"
    return Room(heading, clips(evaluation.domain, np.concatenate(shown), captions), min(COLUMNS, len(closest)))
