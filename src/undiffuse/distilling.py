"""Students of models: what they are trained with, and `distill`, which trains one (docs/distillation.md)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.build import takes
from undiffuse.card import Card, find, read_card, read_run, recorded_source
from undiffuse.config import DataConfig, ObjectiveConfig, over, preset
from undiffuse.errors import UsageError
from undiffuse.names import command

if TYPE_CHECKING:
    from undiffuse.training import Outcome

APART = 0.1
"""How often a student of a model that takes several conditions is given one alone, or none, as its teacher was."""


def distill(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    student: str | os.PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    report: Callable[[str], None] = print,
    progress_bar: bool = False,
) -> "Outcome":
    """Trains a student of `model` in the run folder `out`, or with a critic goes on with `student`.

    Args:
        settings: by dotted name, as for `undiffuse.train`, over those of `student_settings`: such as
            {"objective.jumps": 2, "objective.guidance": 2.0, "training.minutes": 30.0}.
        resume: go on with the run in `out`, with its own settings, if there is one.

    Raises as `undiffuse.train`, and UsageError for a model that cannot have a student, or is not that of the run.
    """
    from undiffuse.training import train

    values = settings or {}
    if resume and (Path(out) / "run.json").exists():
        _check_names(Path(out), str(model), None if student is None else str(student))
    else:
        values = over(student_settings(model, student, values), values)
    return train(values, out, resume=resume, report=report, progress_bar=progress_bar)


def student_settings(
    model: str | os.PathLike[str],
    student: str | os.PathLike[str] | None = None,
    asked: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings of a student of `model`, or of going on with `student`, by dotted name, where `asked` leaves them
    open: the data, the condition and the times of its teacher, half an hour.

    Raises UsageError for a model that cannot have a student, and for a student that is none.
    """
    folder, card, asked = find(model), check_teacher(str(model)), asked or {}
    if "imported" in card.training and asked.get("data.source") is None:
        raise UsageError(f"{model} was imported without data: name what it was trained on with --data")
    goal = goal_of(student) if student else None
    source = recorded_source(folder.parent.parent) if folder.parent.name == "checkpoints" else ""
    theirs, defaults = card.config, DataConfig()
    read = {key: value for key, value in theirs.data if value != getattr(defaults, key)}
    plain = preset("adversarial" if student else "distill")
    on_paths = takes(asked.get("objective.loss", plain["objective.loss"]), "paths")
    own = {
        **{f"data.{key}": value for key, value in read.items()},
        "data.source": source or theirs.data.source,
        "training.base": str(student or model),
        "network.inpaint": False,
        "training.label_dropout": APART if card.data.takes and card.data.takes.kind == "several" else None,
        "training.teacher": str(model) if student else None,
        "training.conditional": theirs.training.conditional,
        "training.condition": theirs.training.condition,
        "training.minutes": 30.0,
        **{f"objective.{key}": getattr(theirs.objective, key) for key in ("times", "mean", "std")},
        "objective.jumps": goal.jumps if goal else 1,
        "objective.guidance": goal.guidance if goal else None,
        "objective.paths": goal.paths if goal and on_paths else None,  # those that it knows are drawn
    }
    return plain | {key: value for key, value in own.items() if value is not None}


def check_teacher(model: str) -> Card:
    """The card of a model that can have a student. Raises UsageError for another."""
    card = read_card(find(model))
    network = card.config.network
    if network.kind != "unet":
        raise UsageError(f"{model} has a {network.kind}, and a student is made of a U-Net: distil another model")
    if network.head or network.fourier or network.kernel or network.values or card.config.denoiser.learned_variance:
        raise UsageError(
            f"{model} has a head for densities or a learnt variance, which a student cannot have: distil another model"
        )
    return card


def goal_of(student: str | os.PathLike[str]) -> ObjectiveConfig:
    """The objective that a student was made for. Raises UsageError for a model that is none."""
    config = read_card(find(student)).config
    if not config.network.jumps:
        raise UsageError(f"--from {student}: that is no student, as undiffuse distill makes them of a model")
    return config.objective


def _check_names(run: Path, model: str, student: str | None) -> None:
    """Raises UsageError for a teacher or a student other than those that the run began with."""
    began = read_run(run).training
    teacher, base = (began.teacher, began.base) if began.teacher else (began.base, None)
    if model != teacher or student not in (None, base):
        going_on = ("--from", base) if base else ()
        right = command("distill", str(teacher), *going_on, "--out", run, "--resume")
        raise UsageError(f"{run} was begun with other models: go on with {right}")
