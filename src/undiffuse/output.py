"""The output of commands: complete or absent, and never over or among existing files without --force.

`claim` and `claim_folder` check before the work; `put` and `put_folder` write after it. If the name has been taken
meanwhile, the output gets the next free name, so that neither is lost.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.card import find
from undiffuse.domains import Domain
from undiffuse.domains.sounds import Sounds
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_file, explained, fsync, fsynced_at_the_end
from undiffuse.memory import total_memory
from undiffuse.names import counted, format_shape
from undiffuse.provenance import inscribe

if TYPE_CHECKING:
    from undiffuse.provenance import Provenance

MOST_IN_A_GRID = 4096
MOST_ON_A_PAGE = 512
SAMPLE_FILES = (".png", ".npz", ".npy")
OF_SOUNDS = {".wav": "one after another", ".html": "a page with players"}
"""The files that only samples that are sounds can be written to."""


def suffix_of(path: Path) -> str:
    """The suffix that gives the type of file: ".png" of "a.PNG", but "" of "v.1", "run.v2" and "emoji"."""
    suffix = path.suffix.lower()
    return suffix if suffix[1:2].isalpha() and not re.fullmatch(r"\.v\d+", suffix) else ""


def name_of(source: str | os.PathLike[str]) -> str:
    """The base name for files made from `source`, a path or a name: its last part, also for "." and "..", and of the
    student in the folder of a model its last two."""
    path = Path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    if re.fullmatch(r"\d+-steps?", name):
        with contextlib.suppress(UsageError):
            find(path.parent)
            name = f"{path.absolute().parent.name}-{name}"
    return name.lstrip("-") or "undiffuse"  # a leading dash would read as an option


def fresh(path: Path) -> Path:
    """`path`, or if it exists already, the first of path-2, path-3 ... that does not."""
    suffix = path.name[len(path.name) - len(suffix_of(path)) :]
    stem = path.name.removesuffix(suffix)
    others = (path.with_name(f"{stem}-{number}{suffix}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not os.path.lexists(one))


def claim(files: Mapping[str, Path | None], force: bool, kinds: Mapping[str, Sequence[str]] | None = None) -> None:
    """Checks, before the work, that files can be written: option -> its path, None if it was not given.

    Raises UsageError for a path that exists already (unless `force`) or is not a file, for one given twice and for a
    suffix that is not among `kinds` of its option; UndiffuseError for a place that cannot be written to.
    """
    taken: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        allowed = (kinds or {}).get(option)
        if allowed and path.suffix.lower() not in allowed:
            raise UsageError(f"{option} {path}: the name must end in {' or '.join(allowed)}")
        if os.path.isdir(path):
            raise UsageError(f"{option} {path} is a folder: name a file in it")
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{option} {path} is a device or a pipe, not a file")
        if os.path.lexists(path) and not force:
            raise UsageError(f"{option} {path} exists already: choose another name, or replace it with --force")
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{other} and {option} are both {path}: give each a name of its own")
        _check_place(path)


def claim_folder(option: str, path: Path, force: bool) -> None:
    """Checks, before the work, that files can be written to a folder. Raises UsageError for a file, or a folder that
    is not empty (unless `force`); UndiffuseError for a place that cannot be written to."""
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{option} {path} is a file, not a folder")
    if os.path.isdir(path) and os.listdir(path) and not force:
        raise UsageError(
            f"{option} {path} exists already and is not empty: choose another, or write into it with --force"
        )
    _check_place(path)


def _check_place(path: Path) -> None:
    with explained(path), contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # all other errors mean that no such file is possible
    place = path if os.path.isdir(path) else next(one for one in path.absolute().parents if one.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise UndiffuseError(f"cannot write {path}: {place} is not a folder that you may write to")


def put(path: Path, write: Callable[[Path], object], force: bool = False) -> Path:
    """Calls `write` with a temporary path, then moves the file to `path`; returns where it is.

    Only `force` replaces an existing file; it follows links. Raises UndiffuseError as `atomic_file`.
    """
    home = Path(os.path.realpath(path)) if force else path
    with explained(path):
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=home.parent) as folder:
            made = Path(folder, home.name)
            with fsynced_at_the_end(Path(folder)):
                write(made)
            if force:
                made.replace(home)
                fsync(home.parent)
                return path
            return _named(made, path, _link)


def put_folder(path: Path, write: Callable[[Path], object], own: re.Pattern[str], force: bool = False) -> Path:
    """Calls `write` with a temporary path, then moves the folder to `path`; returns where it is.

    A new folder appears complete. In an existing one (empty, or `force`), entries whose names match `own` are removed
    first, so that old and new parts do not mix; the rest stays. Raises UndiffuseError as `atomic_file`.
    """
    there = os.path.isdir(path)
    with explained(path):
        place = path if there else path.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place) as folder:
            made = Path(folder, "made")
            with fsynced_at_the_end(Path(folder)):
                write(made)
            older = [one for one in path.iterdir() if one != Path(folder)] if there else []
            if not there or (older and not force):
                return _named(made, path, os.rename)
            for one in older:
                if own.fullmatch(one.name) and one.is_dir() and not one.is_symlink():
                    shutil.rmtree(one)
                elif own.fullmatch(one.name):
                    one.unlink()
            for one in sorted(made.iterdir()):
                one.replace(path / one.name)
            fsync(path)
            return path


def _named(made: Path, path: Path, move: Callable[[Path, Path], None]) -> Path:
    while True:
        target = fresh(path)
        try:
            move(made, target)
        except OSError:
            if not os.path.lexists(target):
                raise
            continue  # another process was faster
        fsync(target.parent)
        return target


def _link(made: Path, target: Path) -> None:
    """A rename that never replaces, where the file system can do that."""
    try:
        os.link(made, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        made.rename(target)


def check(out: Path, count: int, force: bool = False, kind: str = ".png") -> None:
    """Checks, before the work, that `count` samples can be written to `out`. Raises UsageError for an unknown suffix,
    too large a grid or an existing path; UndiffuseError for a place that cannot be written to.

    `kind`: the suffix of the samples' domain.
    """
    suffix = "" if os.path.isdir(out) else suffix_of(out)
    others = OF_SOUNDS if kind == ".wav" else {}
    if suffix and suffix not in (*SAMPLE_FILES, *others):
        whole = "".join(f"{other} ({what}), " for other, what in others.items())
        raise UsageError(f"--out {out}: write {whole}.png (a grid), .npz, .npy, or a folder's name")
    for one, most, what in ((".png", MOST_IN_A_GRID, "grid"), (".html", MOST_ON_A_PAGE, "page")):
        if suffix == one and count > most:
            raise UsageError(f"--out {out}: a {what} holds at most {most} samples; write a folder or .npz")
    if suffix:
        claim({"--out": out}, force)
    else:
        claim_folder("--out", out, force)


def names_of_samples(suffix: str) -> re.Pattern[str]:
    """The names that `write` gives samples in a folder, with the suffix of their domain."""
    return re.compile(rf"\d{{6,}}{re.escape(suffix)}")


def write(
    out: Path,
    domain: Domain,
    rows: np.ndarray,
    labels: np.ndarray | None,
    classes: Sequence[str],
    force: bool = False,
    origin: "Provenance | None" = None,
    called: Sequence[str] = (),
) -> str:
    """Writes samples, rows of `domain`, to `out`, and returns a line that describes what was written.

    .npz holds `images` (or what the domain calls them) and, for a model with classes, `labels` and `classes`: what
    `undiffuse train` reads. In a folder, `force` replaces all older samples (000000.png ...) and nothing else. Files
    carry `origin`, the recipe that made them, if they can hold it. On a page, a sound has a caption, the one in
    `called`.
    """
    suffix = "" if os.path.isdir(out) else suffix_of(out)

    def folder(path: Path) -> None:
        path.mkdir()
        for number, row in enumerate(rows):
            file = path / f"{number:06d}{domain.suffix}"
            domain.save(row, file)
            if origin:
                inscribe(file, origin.text(number))

    def array(path: Path) -> None:
        arrays = {domain.noun: rows}
        if isinstance(domain, Sounds):
            arrays["rate"] = np.array(domain.rate)
        if labels is not None:
            arrays |= {"labels": labels, "classes": np.array(classes)}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            if suffix == ".npy":
                np.save(file, rows)
            else:
                np.savez_compressed(file, allow_pickle=False, **arrays)

    def file(path: Path) -> None:
        if suffix == ".png":
            domain.show(rows, path)
        elif isinstance(domain, Sounds) and suffix == ".html":
            _page(path, domain, rows, called or [""] * len(rows), origin)
        elif isinstance(domain, Sounds) and suffix == domain.suffix:
            domain.join(rows, path)
        else:
            array(path)
        if origin:
            inscribe(path, origin.text())

    if not suffix:
        place = put_folder(out, folder, names_of_samples(domain.suffix), force)
    else:
        place = put(out, file, force)
    size = f"{domain.seconds:g} s" if isinstance(domain, Sounds) else format_shape(rows.shape[1:3])
    return f"{counted(len(rows), 'sample')} of {size}: {place}"


def _page(path: Path, domain: Sounds, rows: np.ndarray, called: Sequence[str], origin: "Provenance | None") -> None:
    """A page with players of sounds, each with its number and what it is called."""
    from undiffuse.evaluation.page import Page, Room, clips, write_page

    captions = [f"{number}: {name}" if name else f"{number}" for number, name in enumerate(called)]
    summary = [f"{len(rows)} samples of {domain.seconds:g} s at {domain.rate:,} Hz"]
    name = f"Samples of {origin.model}" if origin else "Samples"
    facts = json.loads(origin.text()) if origin else None
    write_page(Page(name, name, summary, [], [], [], [], facts, [Room("", clips(domain, rows, captions))]), path)


def check_memory(count: int, shape: Sequence[int]) -> None:
    """Raises UsageError if `count` uint8 images of `shape`, such as (H, W, C), exceed this machine's memory."""
    if count * math.prod(shape) > total_memory():
        raise UsageError(f"-n {count}: that many images do not fit in memory; draw fewer at a time, with other seeds")
