"""What commands do for sounds: `undiffuse evaluate`, and `undiffuse data show`."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli.console import alone, check_effect, check_options, guidance_of, say, step_counts, table
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.data.sounds import SoundSet
    from undiffuse.evaluation.evaluate_sounds import SoundEvaluation

OF_FILES = ("subject", "data", "metrics", "n", "json_file", "report", "force")
EVALUATE = (
    *OF_FILES,
    *("sampler", "steps", "eta", "guidance", "guidance_interval", "guide", "seed", "device", "engine", "vocoder"),
)


def is_model(name: str) -> bool | None:
    """Whether this is a model of sounds; None if it is no model."""
    from undiffuse.card import find, read_card
    from undiffuse.domains import domain_of
    from undiffuse.domains.sounds import Sounds

    try:
        return isinstance(domain_of(read_card(find(name)).data), Sounds)
    except UndiffuseError:  # files with samples, or what the command refuses by itself
        return None


def is_sound(subject: str) -> bool:
    """Whether this is a model of sounds, or samples of sounds in files."""
    from undiffuse.data.soundsamples import are_samples

    found = is_model(subject)
    return os.path.exists(subject) and are_samples(subject) if found is None else found


def evaluate(context: typer.Context, subject: str, json_file: Path | None, report: Path | None, force: bool) -> None:
    """`undiffuse evaluate` of a model of sounds, or of sounds in files."""
    from undiffuse import output
    from undiffuse.card import find
    from undiffuse.evaluation.sound_report import conditions_line, headings, rows, write_report
    from undiffuse.files import write_json
    from undiffuse.names import one_of
    from undiffuse.registry import SOUND_METRICS

    alone("evaluate")
    try:
        find(subject)
        model = True
    except UndiffuseError:
        model = False
    check_options(context, EVALUATE if model else OF_FILES, "models of sounds" if model else "sounds in files")
    metrics = [name.strip() for name in context.params["metrics"].split(",")]
    for name in metrics:
        one_of("metric of sounds", name, ("all", *SOUND_METRICS))
    found = (_of_model if model else _of_files)(context, subject, None if metrics == ["all"] else metrics)
    say(f"{found.name}: {conditions_line(found)}")
    say(table([headings(found), *rows(found)]))
    if json_file:
        say(f"{output.put(json_file, partial(write_json, value=found.to_json()), force)}: all numbers")
    what = "the samples beside real sounds, those nearest to training, and the conditions"
    if report:
        say(f"{output.put(report, partial(write_report, found), force)}: {what}")
    else:
        say(f"--report FILE.html writes a page with players: {what}")


def _of_model(context: typer.Context, subject: str, metrics: list[str] | None) -> "SoundEvaluation":
    from undiffuse.evaluation.evaluate_sounds import DEFAULT_N, evaluate_model
    from undiffuse.generate import Recipe

    options = context.params
    steps, *others = step_counts(options["steps"])
    if others:
        raise UsageError(f"--steps {options['steps']}: one number for a model of sounds")
    guidance = guidance_of(options["guidance"], options["guidance_interval"])
    check_effect(context, guidance)
    recipe = Recipe(options["sampler"], steps, options["eta"], seed=options["seed"], guidance=guidance)
    taken = {name: options[name] for name in ("guide", "device", "engine", "vocoder")}
    n = options["n"] or DEFAULT_N
    return evaluate_model(subject, options["data"], n=n, metrics=metrics, recipe=recipe, bar=bar, **taken)


def _of_files(context: typer.Context, subject: str, metrics: list[str] | None) -> "SoundEvaluation":
    from undiffuse.evaluation.evaluate_sounds import evaluate_files

    data = context.params["data"]
    if data is None:
        raise UsageError(f"{subject} holds samples: name the data to measure against with --data")
    return evaluate_files(subject, data, n=context.params["n"], metrics=metrics, bar=bar)


def remarks(data: "SoundSet") -> list[str]:
    """How long and how loud the sounds are, for people."""
    import numpy as np

    seconds = data.lengths / data.rate
    whole = float((data.lengths == data.shape[0]).mean())
    levels = np.array([_level(row[:length]) for row, length in zip(data.images, data.lengths, strict=True)])
    lows, middles, highs = zip(*(np.quantile(values, (0.05, 0.5, 0.95)) for values in (seconds, levels)), strict=True)
    return [
        f"{seconds.sum() / 60:.1f} minutes of sound; half are shorter than {middles[0]:.2f} s, 90% from {lows[0]:.2f} "
        f"to {highs[0]:.2f} s, and {whole:.0%} fill their row",
        f"loudness {middles[1]:.1f} dB of full scale, 90% from {lows[1]:.1f} to {highs[1]:.1f} dB",
    ]


def _level(samples: "np.ndarray") -> float:
    """The root mean square of int16 samples in dB of full scale; that of silence is that of one step of 16 bits."""
    import numpy as np

    return float(10 * np.log10(np.maximum(np.square(samples / 2**15).mean(), 2.0**-30)))


def page(data: "SoundSet", lines: Sequence[str], classes: "Sequence[tuple[str, int, np.ndarray]]", path: Path) -> None:
    """Writes a page with players: `lines` above, then for each of `classes` its name, its size and every other of the
    rows that stand for it."""
    from undiffuse.domains.sounds import Sounds
    from undiffuse.evaluation.page import Page, Room, clips, write_page

    domain, rooms = Sounds(data.shape, data.rate), []
    for title, _, chosen in classes:
        shown = chosen[::2]
        captions = [": ".join((data.names[row], *(data.captions[row][:1] if data.captions else ()))) for row in shown]
        if len(shown):
            rooms.append(Room(title, clips(domain, data.images[shown], captions)))
    counts = [[title, f"{count:,}"] for title, count, _ in classes if title]
    facts = {"data": data.name, "split": data.split, "fingerprint": data.fingerprint}
    write_page(Page(data.name, data.name, lines, ["class", "sounds"], counts, [], [], facts, rooms), path)
