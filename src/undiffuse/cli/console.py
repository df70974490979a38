"""Output, errors and options that the commands share."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

from undiffuse.cli import complete
from undiffuse.errors import UsageError
from undiffuse.registry import ENGINES, GRIDS, SAMPLERS, THRESHOLDS, TOKEN_SAMPLERS

if TYPE_CHECKING:
    from undiffuse.guidance import Guidance

DEVICE: str = typer.Option(None, help="cpu, cuda, mps ... [a GPU if there is one].")
ENGINE: str = typer.Option(
    "auto",
    help=f"auto, {', '.join(ENGINES)} [onnxruntime on a CPU if installed and worth it, else torch].",
    autocompletion=complete.engines,
)
SAMPLER: str = typer.Option(
    "auto",
    help=f"auto (by the steps), {', '.join(SAMPLERS)}; of texts {', '.join(TOKEN_SAMPLERS)}.",
    autocompletion=complete.samplers,
)
ETA: float = typer.Option(0.0, help="For ddim: 0 is deterministic, 1 is DDPM.")
GRID: str = typer.Option(
    None, help=f"Spacing of the steps: {', '.join(GRIDS)} [the sampler's own].", autocompletion=complete.grids
)
THRESHOLD: str = typer.Option(
    "clip", help=f"For predicted images: {', '.join(THRESHOLDS)}.", autocompletion=complete.thresholds
)
PROMPT: list[str] = typer.Option(
    [],
    "--prompt",
    "-p",
    help='What to draw, in words; several are composed, each with a weight if it ends in ":WEIGHT".',
)
NEGATIVE: str = typer.Option(None, "--not", help="The class, or the words, to move away from.")
GUIDANCE: float = typer.Option(
    None,
    help="Guidance by the class, the prompt or --guide: 0 ignores it, 1 is none, 2 to 4 gives clearer, less varied "
    "samples [2 with a prompt, else 1].",
)
INTERVAL: str = typer.Option(
    None, "--guidance-interval", help="Guide only at noise levels sigma/alpha from LOW,HIGH, such as .19,1.61."
)
GUIDE: str = typer.Option(
    None, help="Guide by a weaker model, such as an earlier checkpoint, or a classifier [the model without a class]."
)
RESCALE: float = typer.Option(
    0.0, "--guidance-rescale", help="How far to restore the class's own contrast after guidance, 0 to 1; .7 is usual."
)
APG: str = typer.Option(
    None, help="Adaptive projected guidance: ETA[,NORM[,MOMENTUM]], such as 0,.5,-.5 [plain guidance]."
)
VOCODER: str = typer.Option(
    None,
    help="For log-mel spectrograms: the model that makes waveforms of them, or griffin-lim [griffin-lim].",
    autocompletion=complete.models,
)
FORCE: bool = typer.Option(False, "--force", help="Overwrite existing output.")


def say(message: str) -> None:
    """A line for the person, on standard output."""
    typer.echo(message)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the headings, as aligned columns: words (first and last) left, numbers right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def numbers(option: str, text: str) -> list[int]:
    """ "5,10" -> [5, 10]. Raises UsageError for anything but whole numbers from 1 on."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text}: write whole numbers from 1 on, such as 20 or 5,10,20")
    return [int(part) for part in parts]


def step_counts(text: str | None) -> list[int]:
    """The numbers of steps that --steps names; if it was not given, the usual one alone, which a student may change."""
    from undiffuse.generate import Recipe

    return [Recipe.steps] if text is None else numbers("--steps", text)


def guidance_of(
    scale: float | None, interval: str | None, rescale: float = 0.0, apg: str | None = None, usual: float = 1.0
) -> "Guidance":
    """The settings of guidance, from options as typed, `usual` being the scale if none was. Raises UsageError for
    invalid ones."""
    from undiffuse.guidance import Guidance

    levels = _floats("--guidance-interval", interval, (2, 2), "two noise levels, such as .19,1.61")
    projection = _floats("--apg", apg, (1, 3), "ETA[,NORM[,MOMENTUM]], such as 0,.5,-.5")
    scale = usual if scale is None else scale
    return Guidance(scale, (levels[0], levels[1]) if levels else None, rescale, *projection)


def check_effect(context: typer.Context, guidance: "Guidance") -> None:
    """Raises UsageError for options of guidance that were given to a command and that its scale, 1, makes idle.

    A classifier may guide at 1: towards a class that the model does not know.
    """
    idle = [name for name in ("guidance_interval", "guide", "rescale", "apg") if name in given(context)]
    if guidance.scale == 1 and idle:
        from undiffuse.classifier import CARD

        if "guide" in idle and os.path.isfile(os.path.join(context.params["guide"], CARD)):
            return
        raise UsageError(
            f"{flags(context)[idle[0]]} has no effect without guidance: give a scale too, such as --guidance 2"
        )


def _floats(option: str, text: str | None, count: tuple[int, int], wanted: str) -> list[float]:
    """ "0,.5" -> [0.0, 0.5]; None -> []. Raises UsageError unless there are `count` (least, most) numbers."""
    if text is None:
        return []
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not count[0] <= len(values) <= count[1]:
        raise UsageError(f"{option} {text}: write {wanted}")
    return values


def given(context: typer.Context) -> list[str]:
    """The names of the parameters that were given, not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]


def flags(context: typer.Context) -> dict[str, str]:
    """Name of a parameter -> how its option is written, such as "--out"."""
    return {str(one.name): one.opts[0] for one in context.command.params if one.opts[0].startswith("-")}


def check_options(context: typer.Context, taken: Sequence[str], kind: str) -> None:
    """Raises UsageError for options that were given and that `kind`, such as "models of texts", does not take."""
    names = flags(context)
    if others := [name for name in given(context) if name not in taken]:
        possible = ", ".join(names[name] for name in taken if name in names)
        raise UsageError(f"{names[others[0]]} is not for {kind}, which take {possible}")


def alone(name: str) -> None:
    """Raises UsageError in one of several processes of a torchrun, for a command that does not share its work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"undiffuse {name} runs in one process: start it without torchrun")


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message on standard error."""
    if os.environ.get("RANK", "0") == "0" or code == 1:  # every process of a torchrun finds usage errors
        typer.echo(f"undiffuse: {message}", err=True)
    sys.exit(code)
