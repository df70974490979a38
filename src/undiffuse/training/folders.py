"""The default folder of a run under runs/, and the lock that holds it for one process."""

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
    """runs/NAME for a run on `source`: the data's own name, without its folder or the suffix of a file.

    owner/name@revision becomes name@revision, with dashes for slashes in the revision.
    """
    path = Path(os.path.expanduser(source))
    if source in OPENERS or not os.path.exists(path):
        name, at, revision = source.partition("@")
        return RUNS / (name.rstrip("/").rpartition("/")[2] + at + revision.replace("/", "-") or "data")
    name = os.path.basename(os.path.abspath(path))  # also for "."; a link keeps its own name
    if path.is_file() and path.suffix.lower() in FILES:
        name = name.removesuffix(path.suffix)
    return RUNS / (name or "data")


@contextlib.contextmanager
def new_folder(usual: Path) -> Iterator[Path]:
    """`usual`, or the first free one of usual-2, usual-3 ..., for a new run.

    It is created at once, so that runs that begin together get different folders, and removed if it stays empty. Not so
    in a torchrun, where every process has to find the same one: `train` creates it when all are there. Raises
    UndiffuseError if it cannot be written.
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
    """The folder of the run trained on `source`, or runs/NAME if there is none. UsageError if there are several."""
    ours = sorted(path.parent for path in RUNS.glob("*/run.json") if _learns(path.parent, source))
    if len(ours) > 1:
        raise UsageError(f"{len(ours)} runs are on {source}: choose one with --out: {', '.join(map(str, ours))}")
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
