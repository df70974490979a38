"""`undiffuse distill`."""

from pathlib import Path

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import say
from undiffuse.names import command


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

    from undiffuse.card import student_name
    from undiffuse.config import parse_settings
    from undiffuse.distilling import check_teacher, goal_of
    from undiffuse.distilling import distill as train_student
    from undiffuse.output import name_of
    from undiffuse.training.folders import RUNS, new_folder

    check_teacher(model)
    jumps = steps or (goal_of(student).jumps if student else 1)
    usual = out or RUNS / f"{name_of(model)}-{student_name(jumps)}{'-sharp' * bool(student)}"
    asked: dict[str, float | str | None] = {
        "training.minutes": minutes,
        "training.seed": seed,
        "objective.jumps": steps,
        "objective.guidance": guidance,
        "data.source": data,
    }
    values = parse_settings(settings) | {key: value for key, value in asked.items() if value is not None}
    with nullcontext(usual) if out or resume else new_folder(usual) as place:
        outcome = train_student(
            model,
            place,
            student=student,
            settings=values,
            resume=resume,
            report=say,
            progress_bar=sys.stderr.isatty(),
        )
    if outcome.main and outcome.finished:
        say(f"trained {outcome.step} steps: {outcome.checkpoint}")
        say(f"next: {command('sample', outcome.run)}")
    elif outcome.main:
        going_on = ("--from", student) if student else ()
        say(f"next: {command('distill', model, *going_on, '--out', outcome.run, '--resume')}")
    if outcome.signal:
        raise typer.Exit(outcome.exit_code)
