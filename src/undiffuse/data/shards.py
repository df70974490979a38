"""Tables on disk: .parquet and .arrow files, folders of them as in hub repositories, and those of `save_to_disk`."""

import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from undiffuse.data.layout import role as split_of
from undiffuse.data.reading import reading
from undiffuse.data.remarks import some, warn
from undiffuse.data.source import Content, Source
from undiffuse.data.tables import Group, Table, content
from undiffuse.data.walk import NO_DATA, READ, WRITTEN_BY_A_RUN, is_run
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

SUFFIXES = (".parquet", ".arrow")
INSTALL = 'pip install "undiffuse[hub]"'
SHARD = re.compile(r"(?P<split>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})(-\w+)?")


def open_table(path: Path) -> Source:
    """Source over one .parquet or .arrow file with an image column and, where present, a class column."""
    return _source(str(path), {"": [path]})


def open_tables(folder: Path) -> Source | None:
    """Source over a folder of parquet or Arrow files, or one written by `save_to_disk`; None for a folder without any.

    A folder with pictures counts as pictures, and a remark names the tables in it. Raises UsageError if either may be
    the data, if it is unclear which files form a split, or if some of a split's files are missing.
    """
    if (folder / "dataset_dict.json").is_file():
        with reading(str(folder / "dataset_dict.json")):
            splits = [_inside(folder, name) for name in read_json(folder / "dataset_dict.json")["splits"]]
        return _source(str(folder), {split.name: _saved(split) for split in splits})
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _source(str(folder), {"": _saved(folder)})
    files, picture = _files(folder)
    if not files or not picture:
        return _source(str(folder), _by_split(folder, files)) if files else None
    if any(SHARD.fullmatch(file.stem) or _word(file.stem) for file in files):
        raise UsageError(
            f"{folder} holds tables ({some(files)}) and pictures ({some([picture])}): give the folder of one of them"
        )
    warn(f"{folder}: tables are not used where there are pictures: {some(files)}")
    return None


def needs(package: str, what: str) -> None:
    """Raises UndiffuseError with the command that installs the extra if its package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UndiffuseError(f"{what} need {package}, which is not installed: {INSTALL}")


def _source(name: str, splits: dict[str, list[Path]]) -> Source:
    def opened() -> Content:
        needs("pyarrow", "parquet and Arrow files")
        with reading(name):
            return content(name, {split: _table(files) for split, files in splits.items()})

    stamps = [
        [split, [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
        for split, files in splits.items()
    ]
    return Source(["tables", stamps], opened)


def _saved(folder: Path) -> list[Path]:
    """The files of one data set written by `save_to_disk`, in order."""
    state = folder / "state.json"
    with reading(str(state)):
        noted = read_json(state)
        if noted.get("_indices_files") or noted.get("_indices_data_files"):
            raise ValueError("it selects rows by a table of indices; save it again after flatten_indices()")
        files = [_inside(folder, one["filename"]) for one in noted["_data_files"]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UsageError(f"{folder}: files are missing: {some(missing)}")
    return files


def _inside(folder: Path, name: str) -> Path:
    if PurePosixPath(name).name != name or name == "..":
        raise ValueError(f"it names {name!r}, which is not a plain file name")
    return folder / name


def _files(root: Path) -> tuple[list[PurePosixPath], PurePosixPath | None]:
    """The tables under `root`, relative to it, sorted, and the first picture found; hidden files are left out."""
    tables, picture = [], None
    for folder, subfolders, files in os.walk(root):
        if is_run(subfolders, files):
            subfolders[:] = set(subfolders) - WRITTEN_BY_A_RUN if Path(folder) == root else []
            files = files if Path(folder) == root else []
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name.lower() not in NO_DATA]
        seen = [name for name in files if not name.startswith(".")]
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        pictures = (here / name for name in seen if PurePosixPath(name).suffix.lower() in READ)
        picture = picture or next(pictures, None)
        tables += [here / name for name in seen if name.lower().endswith(SUFFIXES)]
    return sorted(tables), picture


def _by_split(root: Path, files: Sequence[PurePosixPath]) -> dict[str, list[Path]]:
    """The files of each split, which the file name (train-00000-of-00002) or else a folder (train/) names."""
    splits: dict[str, list[PurePosixPath]] = defaultdict(list)
    for file in files:
        splits[_split_name(file)].append(file)
    for split, shards in splits.items():
        homes = {PurePosixPath(*[part for part in file.parts[:-1] if not _word(part)]) for file in shards}
        if len(homes) > 1:
            raise UsageError(f"{root} holds several data sets, in {some(sorted(map(str, homes)))}: give one of them")
        numbered = [found for file in shards if (found := SHARD.fullmatch(file.stem))]
        promised = {int(found["count"]) for found in numbered}
        if numbered and (len(promised) > 1 or {int(found["number"]) for found in numbered} != set(range(*promised))):
            raise UsageError(
                f"{root}: there are {len(numbered)} files of {split or 'the data'}, but their names promise "
                f"{' or '.join(map(str, sorted(promised)))}: {some([file.name for file in shards])}"
            )
    return {split: [root / file for file in shards] for split, shards in splits.items()}


def _split_name(file: PurePosixPath) -> str:
    """The split named by the file or else a folder; else the file name without its number ("" for data, part)."""
    stated = _word(file.stem) or next(filter(None, map(_word, reversed(file.parts[:-1]))), None)
    if stated:
        return stated
    found = SHARD.fullmatch(file.stem)
    begin = found["split"] if found else re.sub(r"[-_.]?\d+$", "", file.stem)
    return "" if begin in ("data", "part") else begin


def _word(text: str) -> str | None:
    """The one word for a split in a name, as spelled there; None if there is none or several."""
    words = [word for word in re.split("[^a-z]+", text.lower()) if split_of(word)]
    return words[0] if len(set(words)) == 1 else None


def _table(files: Sequence[Path]) -> Table:
    """One table of all files. Raises UsageError if their columns differ, UndiffuseError if one is broken."""
    parts = []
    for file in files:
        with reading(str(file)):
            parts.append((_parquet if file.suffix.lower() == ".parquet" else _arrow)(file))
    for file, part in zip(files, parts, strict=True):
        if set(part.schema.names) != set(parts[0].schema.names):
            raise UsageError(f"{file} and {files[0]} have different columns")
    return Table(parts[0].schema, tuple(group for part in parts for group in part.groups))


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    def column(group: int) -> "Callable[[str], ChunkedArray]":
        def read(name: str) -> "ChunkedArray":
            try:
                with parquet.ParquetFile(path, memory_map=True) as file:
                    values = file.read_row_group(group, columns=[name]).column(name)
                values.validate(full=True)
            except Exception as error:  # pyarrow raises a dozen kinds, and every image of the group fails with it
                raise ValueError(f"its row group cannot be read ({str(error)[:40]}...)") from error
            if len(values) != rows[group]:
                raise ValueError(f"its row group has {len(values)} of {rows[group]} values in column {name}")
            return values

        return read

    with parquet.ParquetFile(path, memory_map=True) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        groups = tuple(Group(count, column(group), path.parent) for group, count in enumerate(rows))
        return Table(file.schema_arrow, groups)


def _arrow(path: Path) -> Table:
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    begins = mapped.read(6)
    mapped.seek(0)
    table = (pyarrow.ipc.open_file if begins == b"ARROW1" else pyarrow.ipc.open_stream)(mapped).read_all()
    table.validate(full=True)
    return Table(table.schema, (Group(table.num_rows, table.column, path.parent),))
