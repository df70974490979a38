"""Which folder under runs/ a run lives in, where nobody has said; and how it is held for one process."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from undiffuse.card import recorded_source
from undiffuse.data.entries import OPENERS
from undiffuse.data.loading import FILES
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import explained
from undiffuse.output import fresh
from undiffuse.training.checkpoint import last_good
from undiffuse.training.record import located, read_record

RUNS = Path("runs")


def usual_folder(source: str) -> Path:
    """runs/NAME of a run that learns `source`: the data's own name, without its folder or the suffix of a file.

    owner/name@revision is name@revision, and a slash in the revision a dash.
    """
    path = Path(os.path.expanduser(source))
    if source in OPENERS or not os.path.exists(path):
        name, at, revision = source.partition("@")
        return RUNS / (name.rstrip("/").rpartition("/")[2] + at + revision.replace("/", "-") or "data")
    name = os.path.basename(os.path.abspath(path))  # that of ".", too; a link keeps its own
    if path.is_file() and path.suffix.lower() in FILES:
        name = name.removesuffix(path.suffix)
    return RUNS / (name or "data")


@contextlib.contextmanager
def new_folder(usual: Path) -> Iterator[Path]:
    """`usual`, or the first free one of usual-2, usual-3 ..., for a run that begins.

    It is made at once, so that of runs that begin together each has its own, and is removed if nothing comes into it.
    Not so in a torchrun, where every process has to find the same one: `train` makes it when all are there. Raises
    UndiffuseError where there is no writing.
    """
    first = not usual.parent.exists()
    while True:
        folder = fresh(usual)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            break
        with explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another was faster
                folder.mkdir()
                break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            if first:
                folder.parent.rmdir()


def folder_to_resume(source: str) -> Path:
    """The folder of the run that learns `source`, or runs/NAME if none does. Raises UsageError if several do."""
    ours = sorted(path.parent for path in RUNS.glob("*/run.json") if _learns(path.parent, source))
    if len(ours) > 1:
        raise UsageError(f"{len(ours)} runs learn {source}: say which with --out: {', '.join(map(str, ours))}")
    return ours[0] if ours else usual_folder(source)


def _learns(run: Path, source: str) -> bool:
    try:
        record = read_record(run)
    except UndiffuseError:
        return False
    known, wanted = recorded_source(run), located(source)
    if known and os.path.isabs(wanted):
        return os.path.samefile(known, wanted)
    return record is not None and record["config"]["data"]["source"] == source


@contextlib.contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Holds the run folder for this process. Raises UndiffuseError when another is training in it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with FileLock(run / ".lock", blocking=False):
            try:
                yield
            finally:
                (run / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # a run that could not even begin leaves nothing
                    run.rmdir()
    except Timeout:
        raise UndiffuseError(f"another process is training in {run}: wait for it, or choose another --out") from None
    except OSError as error:
        raise UndiffuseError(
            f"cannot write to {run}: {error.strerror or error}; {last_good(run)}. "
            "Free some space or choose a writable folder."
        ) from error
