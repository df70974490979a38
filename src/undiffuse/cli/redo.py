"""`undiffuse redo`."""

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from undiffuse.cli.console import say
from undiffuse.cli.recorded import EXPECTED
from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from undiffuse.provenance import Provenance

COMMANDS = ("sample", "edit")
"""The commands that are run again: they write nothing but their --out."""
SAMPLE = re.compile(r"\d{6,}\.\w+")


def redo(
    file: Path = typer.Argument(
        ..., help="A file that undiffuse has written (.png, .npz, .wav, .html, .json), or a folder of samples."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="What to write [FILE-redone]."),
    force: bool = typer.Option(
        False, "--force", help="Run even if the model or the images have changed, and overwrite existing output."
    ),
) -> None:
    """Run the command that made FILE again, into a new file, and say whether it is the same.

    Look at the command first with `undiffuse show`: it takes as long as it took. The model and the images must be those
    it was made from. Exit code 1 if the result is another picture.

    \b
    Examples:
      undiffuse redo fashion-mnist-samples.png
      undiffuse redo edited.png --out again.png
    """
    from undiffuse import output
    from undiffuse.data.remarks import readable
    from undiffuse.names import cut
    from undiffuse.provenance import kind_of, read_provenance

    recorded = read_provenance(file)
    suffix = "" if file.is_dir() else kind_of(file)
    out = out or output.fresh(Path(f"{output.name_of(file.with_suffix(''))}-redone{suffix}"))
    if suffix:
        output.claim({"--out": out}, force, {"--out": [suffix]})
    else:
        output.claim_folder("--out", out, force)
    context = _context(file, recorded, force)
    say(f"running {readable(cut(recorded.command, 500))}")
    with tempfile.TemporaryDirectory(prefix="undiffuse-") as folder:
        made = _made(context, Path(folder), recorded, suffix)
        verdict, same = _compared(file, made, recorded)
        if suffix:
            place = output.put(out, partial(shutil.copyfile, made), force)
        else:
            place = output.put_folder(out, partial(shutil.copytree, made), SAMPLE, force)
    say(f"{place}: {verdict}")
    if not same:
        raise typer.Exit(1)


def _context(file: Path, recorded: "Provenance", force: bool) -> typer.Context:
    """The recorded command, parsed by its own options. Raises UsageError for a command that is not run again."""
    from undiffuse.cli.app import app
    from undiffuse.data.remarks import readable
    from undiffuse.names import cut

    words = shlex.split(recorded.command)
    if words[:1] != ["undiffuse"] or not {*words[1:2]} & {*COMMANDS}:
        what = readable(cut(recorded.command))
        raise UsageError(f"{file} was made by {what!r}: only undiffuse {' and '.join(COMMANDS)} are run again")
    if not force:
        for path in recorded.sources:
            if not os.path.isfile(path):
                raise UsageError(f"{readable(path)} is not here: run redo in the folder of the first command")
    commands: Any = typer.main.get_command(app)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of --help
            context: typer.Context = commands.commands[words[1]].make_context(words[1], words[2:])
    except Exception as error:  # the parser's own
        reason = getattr(error, "message", None) or "it asks for help"
        raise UsageError(f"the command of {file} cannot be run: {readable(cut(str(reason), 200))}") from None
    if not force:
        context.meta[EXPECTED] = recorded
        context.params |= {key: recorded.machine.get(key) for key in ("engine", "device")}
    return context


def _made(context: typer.Context, folder: Path, recorded: "Provenance", suffix: str) -> Path:
    """Runs the command, and returns its output under a temporary name: a file, or a folder if there is no suffix."""
    import torch

    threads = recorded.machine.get("threads", "")
    if threads.isdecimal() and 1 <= int(threads) <= (os.cpu_count() or 1):
        torch.set_num_threads(int(threads))
    target = folder / ("made" if recorded.sample is not None else f"made{suffix}")
    context.params |= {"out": target, "force": False}
    with contextlib.redirect_stdout(io.StringIO()), context:
        context.command.invoke(context)
    if recorded.sample is None or not suffix:
        return target
    one = target / f"{recorded.sample:06d}{suffix}"
    if not one.is_file():
        raise UsageError(f"its command makes no sample {recorded.sample}")
    return one


def _compared(file: Path, made: Path, recorded: "Provenance") -> tuple[str, bool]:
    """How `made` differs from `file`, and whether it shows the same."""
    from undiffuse.provenance import read_provenance

    before, after = _files(file), _files(made)
    if before.keys() == after.keys() and all(before[name].read_bytes() == after[name].read_bytes() for name in after):
        return f"the same bytes as {file}", True
    differences = ", ".join(recorded.differences(read_provenance(made)))
    if before.keys() == after.keys() and all(_shows_the_same(before[name], after[name]) for name in after):
        return f"shows the same as {file}, in other bytes: {differences or 'another program has saved it'}", True
    return f"differs from {file}: {differences or 'another program has changed it'}", False


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    return {one.name: one for one in path.iterdir() if SAMPLE.fullmatch(one.name) and one.is_file()}


def _shows_the_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same pixels or arrays."""
    import numpy as np

    from undiffuse.data import policy
    from undiffuse.data.npy import Archive, open_npy
    from undiffuse.errors import UndiffuseError
    from undiffuse.files import read_json
    from undiffuse.provenance import kind_of

    try:
        if kind_of(one) == ".png":
            return np.array_equal(np.asarray(policy.decode(one)), np.asarray(policy.decode(other)))
        if kind_of(one) == ".json":
            return bool(read_json(one)["texts"] == read_json(other)["texts"])
        a, b = open_npy(one), open_npy(other)
        assert isinstance(a, Archive) and isinstance(b, Archive)
        return a.names == b.names and all(np.array_equal(a.read(name), b.read(name)) for name in a.names)
    except (UndiffuseError, ValueError, KeyError):
        return False
