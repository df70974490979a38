"""The cache folder. Each entry is built once, by one process, and is either complete or absent."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_folder


def cache_dir() -> Path:
    """$UNDIFFUSE_CACHE, else the system's cache: ~/.cache/undiffuse or $XDG_CACHE_HOME/undiffuse on Linux,
    ~/Library/Caches/undiffuse on macOS. It need not exist yet."""
    if chosen := os.environ.get("UNDIFFUSE_CACHE"):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("undiffuse", appauthor=False)


def folder_for(kind: str, identity: Any) -> Path:
    """The cache folder for content of a `kind`; `identity` is a JSON value of everything it depends on."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / kind / key


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time build `folder`: one rank of a run builds, the others read."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` on success; UndiffuseError names $UNDIFFUSE_CACHE on a full disk."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except UndiffuseError as error:
        if isinstance(error.__cause__, OSError):
            raise _unwritable(error.__cause__) from error.__cause__
        raise


def _unwritable(error: OSError) -> UndiffuseError:
    return UndiffuseError(
        f"cannot write to the cache {cache_dir()}: {error.strerror or error}. "
        "Free some space, or set $UNDIFFUSE_CACHE to a writable folder."
    )
