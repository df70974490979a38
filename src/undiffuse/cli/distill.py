"""`undiffuse distill`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import command, say
from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from undiffuse.config import ObjectiveConfig

APART = 0.1
"""How often a student of a model that takes several conditions is given one alone, or none, as its teacher was."""


def distill(
    model: str = typer.Argument(
        ..., help="The teacher: a run folder, a model folder or a built-in name.", autocompletion=complete.models
    ),
    steps: int = typer.Option(
        None, min=1, help="Evaluations that a sample takes: 1, 2, 4, 8 or 16 [1; with --from the student's]."
    ),
    minutes: float = typer.Option(None, help="Train for this long [30]."),
    student: str = typer.Option(
        None, "--from", help="Go on with this student of MODEL: a critic makes its samples sharp."
    ),
    guidance: float = typer.Option(
        None, min=0, help="The teacher's scale of guidance, which the student learns [1; with --from the student's]."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="The run folder [runs/MODEL-STEPS-step]."),
    data: str = typer.Option(None, help="Another place of the teacher's data.", autocompletion=complete.data),
    resume: bool = typer.Option(False, "--resume", help="Continue the run in --out exactly where it stopped."),
    seed: int = typer.Option(None, help="Seed of everything random [0]."),
    settings: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Any setting of undiffuse train."),
) -> None:
    """Train a student of MODEL that draws in one evaluation, or in a few.

    \b
    Examples:
      undiffuse distill fashion-mnist --steps 1 --minutes 30
      undiffuse distill fashion-mnist --from runs/fashion-mnist-1-step --minutes 30
      undiffuse distill runs/emoji --steps 2 --guidance 2 --out runs/fast
      undiffuse sample runs/fashion-mnist-1-step --steps 1
    """
    import sys
    from contextlib import nullcontext

    from undiffuse.build.losses import ON_PATHS
    from undiffuse.card import find, read_card, recorded_source, student_name
    from undiffuse.config import DataConfig, over, parse_settings, preset
    from undiffuse.output import name_of
    from undiffuse.training import train
    from undiffuse.training.folders import RUNS, new_folder

    folder = find(model)
    card = read_card(folder)
    if card.config.network.kind != "unet":
        kind = card.config.network.kind
        raise UsageError(f"{model} has a {kind}, and a student is made of a U-Net: distil another model")
    network = card.config.network
    if network.head or network.fourier or network.kernel or network.values or card.config.denoiser.learned_variance:
        raise UsageError(
            f"{model} has a head for densities or a learnt variance, which a student cannot have: distil another model"
        )
    goal = _goal(student) if student else None
    jumps = steps or (goal.jumps if goal else 1)
    usual = out or RUNS / f"{name_of(model)}-{student_name(jumps)}{'-sharp' * bool(student)}"
    asked: dict[str, float | str | None] = {
        "training.minutes": minutes,
        "training.seed": seed,
        "objective.jumps": steps,
        "objective.guidance": guidance,
        "data.source": data,
    }
    values = parse_settings(settings) | {key: value for key, value in asked.items() if value is not None}
    if resume and (usual / "run.json").exists():
        _check_names(usual, model, student)
    else:
        if "imported" in card.training and data is None:
            raise UsageError(f"{model} was imported without data: name what it was trained on with --data")
        source = recorded_source(folder.parent.parent) if folder.parent.name == "checkpoints" else ""
        theirs, defaults = card.config, DataConfig()
        read = {key: value for key, value in theirs.data if value != getattr(defaults, key)}
        plain = preset("adversarial" if student else "distill")
        on_paths = values.get("objective.loss", plain["objective.loss"]) in ON_PATHS
        own = {
            **{f"data.{key}": value for key, value in read.items()},
            "data.source": source or theirs.data.source,
            "training.base": student or model,
            "network.inpaint": False,
            "training.label_dropout": APART if card.data.takes and card.data.takes.kind == "several" else None,
            "training.teacher": model if student else None,
            "training.conditional": theirs.training.conditional,
            "training.condition": theirs.training.condition,
            "training.minutes": 30.0,
            **{f"objective.{key}": getattr(theirs.objective, key) for key in ("times", "mean", "std")},
            "objective.jumps": jumps,
            "objective.guidance": goal.guidance if goal else None,
            "objective.paths": goal.paths if goal and on_paths else None,  # those that it knows are drawn
        }
        values = over(plain | {key: value for key, value in own.items() if value is not None}, values)
    with nullcontext(usual) if out or resume else new_folder(usual) as place:
        outcome = train(values, place, resume=resume, report=say, progress_bar=sys.stderr.isatty())
    if outcome.main and outcome.finished:
        say(f"trained {outcome.step} steps: {outcome.checkpoint}")
        say(f"next: {command('sample', outcome.run)}")
    elif outcome.main:
        going_on = ("--from", student) if student else ()
        say(f"next: {command('distill', model, *going_on, '--out', outcome.run, '--resume')}")
    if outcome.signal:
        raise typer.Exit(outcome.exit_code)


def _goal(student: str) -> "ObjectiveConfig":
    """The objective that a student was made for. Raises UsageError for a model that is none."""
    from undiffuse.card import find, read_card

    config = read_card(find(student)).config
    if not config.network.jumps:
        raise UsageError(f"--from {student}: that is no student, as undiffuse distill makes them of a model")
    return config.objective


def _check_names(run: Path, model: str, student: str | None) -> None:
    """Raises UsageError for a teacher or a student other than those that the run began with."""
    from undiffuse.card import read_run

    began = read_run(run).training
    teacher, base = (began.teacher, began.base) if began.teacher else (began.base, None)
    if model != teacher or student not in (None, base):
        going_on = ("--from", base) if base else ()
        right = command("distill", str(teacher), *going_on, "--out", run, "--resume")
        raise UsageError(f"{run} was begun with other models: go on with {right}")
