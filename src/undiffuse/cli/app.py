"""`undiffuse`: assembles the subcommands, and turns errors into one line and an exit code."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from undiffuse.cli import (
    compare,
    data,
    demo,
    distill,
    edit,
    evaluate,
    explain,
    export,
    import_,
    merge,
    models,
    redo,
    sample,
    show,
    train,
    train_classifier,
    tune,
)
from undiffuse.cli.console import fail
from undiffuse.cli.early import EarlyCommand
from undiffuse.errors import UndiffuseError
from undiffuse.memory import keep_freed_memory

app = typer.Typer(
    name="undiffuse",
    help="Train, sample and understand diffusion models, on the machine you have.",
    epilog="Add --debug to any command for a traceback. Try: undiffuse sample fashion-mnist",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("train-classifier")(train_classifier.train_classifier)
app.command("distill", cls=EarlyCommand)(distill.distill)
app.command("sample", cls=EarlyCommand)(sample.sample)
app.command("edit", cls=EarlyCommand)(edit.edit)
app.command("show")(show.show)
app.command("redo")(redo.redo)
app.command("evaluate", cls=EarlyCommand)(evaluate.evaluate)
app.command("compare", cls=EarlyCommand)(compare.compare)
app.command("explain", cls=EarlyCommand)(explain.explain)
app.add_typer(data.app, name="data")
app.command("models")(models.models)
app.command("tune", cls=EarlyCommand)(tune.tune)
app.command("demo")(demo.demo)
app.command("import")(import_.import_)
app.command("merge", cls=EarlyCommand)(merge.merge)
app.command("export", cls=EarlyCommand)(export.export)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from undiffuse import __version__

        typer.echo(f"undiffuse {__version__}")
        raise typer.Exit


def main() -> None:
    """The console script. Exit codes: 0 done, 1 failed, 2 an invalid request, 130 interrupted, 143 terminated."""
    keep_freed_memory()
    warnings.showwarning = _one_line(warnings.showwarning)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="undiffuse")  # also for python -m undiffuse, which has no shell completion
    except Exception as error:
        if debug:
            raise
        if isinstance(error, UndiffuseError):
            fail(str(error), error.exit_code)
        reason = str(error).strip().splitlines() or ["no message"]
        fail(f"{type(error).__name__}: {reason[0]} (unexpected: --debug shows where)", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    finally:
        _leave_group()


def _one_line(usual: Callable[..., None]) -> Callable[..., None]:
    """`warnings.showwarning` that says the warnings of undiffuse in one line, and all others as `usual`."""
    here = os.path.dirname(os.path.dirname(__file__))

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and filename.startswith(here):
            typer.echo(f"undiffuse: {message}", err=True)
        else:
            usual(message, category, filename, *rest)

    return show


def _leave_group() -> None:
    """Ends the threads that talk to the other processes of a torchrun; alive at exit, they may abort the process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
