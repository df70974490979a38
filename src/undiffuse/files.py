"""Writing files so that a crash, a full disk or a second reader never meets half of one."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undiffuse.errors import UndiffuseError


class WriteError(UndiffuseError):
    """A path that cannot be written, and the OSError that is the reason."""

    def __init__(self, path: Path, reason: OSError):
        super().__init__(
            f"cannot write {path}: {reason.strerror or reason}. Free some space or choose a writable folder."
        )
        self.reason = reason


def fsync(path: Path) -> None:
    """Has the disk keep a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError into an UndiffuseError that names `path`, and not the temporary one it was met at."""
    try:
        yield
    except (OSError, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise WriteError(path, reason) from reason


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed onto `path`, else removed.

    Raises UndiffuseError naming `path` when the folder is read-only or the disk is full; an existing file survives.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            fsync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success its files are fsynced and it is renamed to `path`.

    A folder already at `path` is replaced. Raises UndiffuseError as `atomic_file` does; nothing half-written stays.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                fsync(file)
            temporary.chmod(0o777 & ~_umask())
            fsync(temporary)
            if path.exists():
                path.replace(aside := temporary.with_name(temporary.name + "-old"))
            temporary.replace(path)
            fsync(path.parent)
        finally:
            for left in (temporary, aside):
                shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises UndiffuseError, before anything is written, for text that UTF-8 cannot hold: the surrogates that Python puts
    into a file name for bytes that are none.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        line = text.splitlines()[text.count("\n", 0, error.start)].strip(" ,")
        raise UndiffuseError(f"cannot write {path}: {line!a:.200} is not UTF-8; rename what is called so") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; raises UndiffuseError naming the file when it is missing or malformed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # half of a surrogate pair is JSON, but no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UndiffuseError(f"cannot read {path}: {error}") from error
