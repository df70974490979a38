"""`undiffuse evaluate`."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import (
    DEVICE,
    ENGINE,
    FORCE,
    GUIDANCE,
    GUIDE,
    INTERVAL,
    VOCODER,
    alone,
    check_effect,
    given,
    guidance_of,
    say,
    step_counts,
    table,
)
from undiffuse.progress import bar
from undiffuse.registry import DENSITIES, FEATURES, METRICS, TEXT

SPLIT_HELP = "The split to measure against: test or train (the other gives the floor); with bpd and ode also all."
FEATURES_HELP = f"auto, {', '.join(FEATURES)}, inception:FILE or package.module:function."
N_HELP = (
    "Number of samples [2000; for files: all]; with bpd and ode, number of images of the data [1000; 100]; with text, "
    "prompts of each kind [500]; of sounds [500]."
)
METRICS_HELP = (
    f"all (for samples), or some of {', '.join(METRICS)}; or one of {', '.join(DENSITIES)} (density), {TEXT} (prompts)."
)
BOUND_HELP = "For bpd: continuous, or a number of steps T [the model's own; if it has none, continuous]."
SIZE_HELP = "Side in pixels to which samples in files, and the data, are resized [the samples' own]."
REPORT_KINDS = {"--json": (".json",), "--report": (".html", ".htm")}
VARIANCE_HELP = "For bpd in steps: small, large, learned or optimal [learned if the model learned it, else small]."

OF_RECIPE = ("sampler", "steps", "eta", "engine", "guidance", "guidance_interval", "guide")
OF_BOUND = ("bound", "variance", "draws")
OF_ODE = ("dequantiser",)
USED = {  # options that only some metrics use
    "samples": (*OF_RECIPE, "features", "size", "split", "report"),
    "bpd": (*OF_BOUND, "split", "report"),
    "ode": (*OF_ODE, "split", "report"),
    TEXT: OF_RECIPE,
}


def evaluate(
    context: typer.Context,
    subject: str = typer.Argument(
        ...,
        metavar="MODEL|FOLDER|NPZ",
        help="A model, or samples: a folder (of .wav too), .npz or .npy.",
        autocompletion=complete.models,
    ),
    data: str = typer.Option(
        None, help="The data set to measure against [the model's own].", autocompletion=complete.data
    ),
    split: str = typer.Option("test", help=SPLIT_HELP, autocompletion=complete.splits),
    n: int = typer.Option(None, "-n", min=2, help=N_HELP),
    metrics: str = typer.Option("all", help=METRICS_HELP, autocompletion=complete.metrics),
    features: str = typer.Option("auto", help=FEATURES_HELP, autocompletion=complete.features),
    sampler: str = typer.Option("auto", help="As for `undiffuse sample`.", autocompletion=complete.samplers),
    steps: str = typer.Option(
        None, help="Steps, or several as 5,10,20: a curve in the report [20; of a student, its own]."
    ),
    eta: float = typer.Option(0.0, help="For ddim: 0 is deterministic, 1 is DDPM."),
    guidance: float = GUIDANCE,
    guidance_interval: str = INTERVAL,
    guide: str = GUIDE,
    seed: int = typer.Option(0, help="Seed of the samples, or of a bound's noise."),
    bound: str = typer.Option("auto", help=BOUND_HELP),
    variance: str = typer.Option("auto", help=VARIANCE_HELP),
    dequantiser: str = typer.Option("uniform", help="For ode: uniform, or learned (first fitted to training images)."),
    draws: int = typer.Option(None, min=1, help="For bpd: evaluations per image; T for one at every step [20]."),
    json_file: Path = typer.Option(None, "--json", help="Write everything measured as JSON."),
    report: Path = typer.Option(None, help="Write a page of figures (.html)."),
    size: int = typer.Option(None, min=1, help=SIZE_HELP),
    device: str = DEVICE,
    engine: str = ENGINE,
    vocoder: str = VOCODER,
    force: bool = FORCE,
) -> None:
    """Measure quality, diversity and copying of a model or of samples, with intervals and the floor real images reach.

    With --metrics bpd or ode, measure how probable images are under a model, in bits per dimension: by the variational
    bound, or by the probability-flow ODE. With --metrics text, measure whether pictures show what their prompts say.
    Models of texts, and of sounds, have metrics of their own.

    \b
    Examples:
      undiffuse evaluate fashion-mnist --report evaluation.html
      undiffuse evaluate fashion-mnist --sampler ddim --steps 5,10,20,50 --json ddim.json
      undiffuse evaluate samples.npz --data fashion-mnist
      undiffuse evaluate fashion-mnist-likelihood --metrics bpd -n 10000
      undiffuse evaluate fashion-mnist --metrics bpd --bound 100 --variance optimal
      undiffuse evaluate fashion-mnist --metrics ode -n 100
      undiffuse evaluate avatars --metrics text --json text.json
      undiffuse evaluate shakespeare --metrics bpd,infill,fluency
      undiffuse evaluate runs/digits-spoken --metrics frechet,classes --report sounds.html
      undiffuse evaluate runs/emoji -n 5000 --features inception:pt_inception-2015-12-05-6726825d.pth
      torchrun --nproc-per-node 2 -m undiffuse evaluate fashion-mnist -n 10000
    """
    from undiffuse import output
    from undiffuse.cli import sounds, texts
    from undiffuse.errors import UsageError
    from undiffuse.evaluation import evaluate as measured
    from undiffuse.evaluation.report import conditions_line, headings, notes, rows, write_report
    from undiffuse.files import write_json
    from undiffuse.generate import Recipe
    from undiffuse.metrics.measure import parse_groups

    output.claim({"--json": json_file, "--report": report}, force, REPORT_KINDS)
    if texts.is_text(subject):
        texts.evaluate(context, subject, json_file, force)
        return
    if sounds.is_sound(subject):
        sounds.evaluate(context, subject, json_file, report, force)
        return
    if vocoder is not None:
        raise UsageError("--vocoder is for models of sounds")
    groups = [name.strip() for name in metrics.split(",") if name.strip()]
    if separate := [name for name in groups if name in (*DENSITIES, TEXT)]:
        if len(groups) > 1:
            what = "how a model follows words" if separate[0] == TEXT else "how probable data is"
            raise UsageError(f"--metrics {separate[0]} measures {what}: use it alone, and the others separately")
        _refuse(context, separate[0])
        options = {name: value for name, value in context.params.items() if value is not None}
        if separate[0] == TEXT:
            _text(options)
        else:
            _density(separate[0], options)
        return
    parse_groups(metrics)
    _refuse(context, metrics)
    settings = guidance_of(guidance, guidance_interval)
    check_effect(context, settings)
    recipes = [Recipe(sampler, count, eta, seed=seed, guidance=settings) for count in step_counts(steps)]
    done = []
    for evaluation in measured(
        subject,
        data,
        split=split,
        n=n,
        metrics=metrics,
        features=features,
        recipes=recipes,
        size=size,
        guide=guide,
        device=device,
        engine=engine,
        bar=bar,
    ):
        done.append(evaluation)
        say(f"{evaluation.name}: {conditions_line(evaluation)}")
        say(table([headings(evaluation), *rows(evaluation)]))
        for note in notes(evaluation):
            say(note)
        if json_file:  # after each of several, for the last may be hours away
            numbers_so_far = [one.to_json() for one in done] if len(recipes) > 1 else evaluation.to_json()
            json_file = output.put(json_file, partial(write_json, value=numbers_so_far), force or len(done) > 1)
    if done and json_file:
        say(f"{json_file}: all numbers")
    if done:
        _report(report, partial(write_report, done), "the samples, their nearest neighbours and the conditions", force)


def _report(report: Path | None, write: Callable[[Path], None], what: str, force: bool) -> None:
    """Writes the page of figures if one was requested, else says how to get one."""
    from undiffuse import output

    if report:
        say(f"{output.put(report, write, force)}: {what}")
    else:
        say(f"--report FILE.html writes a page of figures: {what}")


def _refuse(context: typer.Context, metrics: str) -> None:
    """Raises UsageError for an option that was given but that these metrics do not use."""
    from undiffuse.errors import UsageError

    used, chosen = USED.get(metrics, USED["samples"]), given(context)
    for name in (name for names in USED.values() for name in names if name not in used):
        if name in chosen:
            raise UsageError(f"--{name.replace('_', '-')} has no effect on --metrics {metrics}: leave it out")


def _density(metric: str, given: dict[str, Any]) -> None:
    """Bits per dimension: a table, and a page with the terms over time. `given`: the options that have a value."""
    from undiffuse import output
    from undiffuse.evaluation import density, ode_density
    from undiffuse.evaluation.density_report import HEADINGS, rows, sentence, write_report
    from undiffuse.files import write_json
    from undiffuse.model import load

    if given["bound"].isdecimal():
        given["bound"] = int(given["bound"])
    measure, names = (density, OF_BOUND) if metric == "bpd" else (ode_density, OF_ODE)
    options = {name: given[name] for name in ("data", "split", "n", "seed", *names) if name in given}
    measured = measure(load(given["subject"], given.get("device")), **options, bar=bar)
    if os.environ.get("RANK", "0") != "0":  # another process of a torchrun reports
        return
    say(sentence(measured))
    say(table([HEADINGS, *rows(measured)]))
    if "json_file" in given:
        written = output.put(given["json_file"], partial(write_json, value=measured.to_json()), given["force"])
        say(f"{written}: all numbers")
    what = "the parts, the images of fewest and most bits, the conditions"
    _report(given.get("report"), partial(write_report, measured), what, given["force"])


def _text(given: dict[str, Any]) -> None:
    """Whether pictures show what prompts say: a table. `given`: the options that have a value."""
    from undiffuse import output
    from undiffuse.errors import UsageError
    from undiffuse.evaluation.text import faithfulness
    from undiffuse.evaluation.text_report import HEADINGS, ceiling, rows, sentence
    from undiffuse.files import write_json
    from undiffuse.generate import Recipe
    from undiffuse.guide import with_guide
    from undiffuse.model import load
    from undiffuse.text import prompted_scale

    alone(f"evaluate --metrics {TEXT}")
    steps = step_counts(given.get("steps"))
    if len(steps) > 1:
        raise UsageError(f"--steps {given['steps']}: --metrics {TEXT} takes one number of steps")
    model = load(given["subject"], given.get("device"))
    usual = prompted_scale(model.config)
    guidance = guidance_of(given.get("guidance"), given.get("guidance_interval"), usual=usual)
    recipe = Recipe(given["sampler"], steps[0], given["eta"], seed=given["seed"], guidance=guidance)
    if "guide" in given:
        model = with_guide(model, given["guide"])
    options = {name: given[name] for name in ("data", "n", "engine") if name in given}
    found = faithfulness(model, recipe=recipe, bar=bar, **options)
    say(sentence(found))
    say(table([HEADINGS, *rows(found)]))
    say(ceiling(found))
    if "json_file" in given:
        written = output.put(given["json_file"], partial(write_json, value=found.to_json()), given["force"])
        say(f"{written}: all numbers")
