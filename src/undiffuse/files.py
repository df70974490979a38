"""Reading files, and writing them so that a crash, a full disk or another reader never leaves or sees half of one."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from undiffuse.errors import UndiffuseError
from undiffuse.names import shown

LARGEST_TEXT = 64 << 20  # bytes; a hundred thousand classes take a tenth of it


class WriteError(UndiffuseError):
    """A path that cannot be written, and the OSError that is the reason."""

    def __init__(self, path: Path, reason: OSError):
        super().__init__(
            f"cannot write {path}: {reason.strerror or reason}. Free some space or choose a writable folder."
        )
        self.reason = reason


_later: ContextVar[Path | None] = ContextVar("later", default=None)


def fsync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk; of a folder that is `fsynced_at_the_end`, then."""
    if (later := _later.get()) and path.is_relative_to(later):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def fsynced_at_the_end(folder: Path) -> Iterator[None]:
    """Flushes all that is in a folder once, at the end, instead of each file when it is written."""
    token = _later.set(folder)
    try:
        yield
    finally:
        _later.reset(token)
    for written in folder.rglob("*"):
        fsync(written)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError into an UndiffuseError that names `path` instead of a temporary path."""
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

    A folder already at `path` is replaced. Raises UndiffuseError as `atomic_file` does; nothing half-written remains.
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

    Raises UndiffuseError, before anything is written, for text that UTF-8 cannot encode: the surrogates that Python
    substitutes for invalid bytes in file names.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        line = text.splitlines()[text.count("\n", 0, error.start)].strip(" ,")
        raise UndiffuseError(f"cannot write {path}: {line!a:.200} is not UTF-8; rename the file or folder") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def read_text(path: str | Path) -> str:
    """The text of a file, UTF-8 with or without a byte-order mark.

    Raises UndiffuseError naming the file if it cannot be read, is not a file, or is larger than `LARGEST_TEXT`.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device might never end
            raise UndiffuseError(f"cannot read {path}: it is not a file")
        if path.stat().st_size > LARGEST_TEXT:
            raise UndiffuseError(f"cannot read {path}: it is larger than {LARGEST_TEXT >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UndiffuseError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UndiffuseError(f"cannot read {path}: {error}") from error


def read_json(path: str | Path, *, finite: bool = False) -> Any:
    """Reads a JSON file; raises UndiffuseError naming the file if it is missing or malformed, or repeats a key.

    `finite`: rejects NaN and infinities too, which Python writes but JSON does not have, and numbers beyond float64.
    """
    try:
        text = read_text(path)
        value = parse_json(text, finite=finite)
        if "\\u" in text:  # half of a surrogate pair is valid JSON but not valid text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise UndiffuseError(f"cannot read {path}: it is nested too deeply") from None
    except ValueError as error:
        raise UndiffuseError(f"cannot read {path}: {error}") from error


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Parses JSON as `read_json` does. Raises ValueError, with the line, or RecursionError."""
    if not text.strip():
        raise ValueError("it is empty")
    number = _finite if finite else float
    return json.loads(text, object_pairs_hook=_once, parse_constant=number, parse_float=number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} appears twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is not a finite number")
    return number
