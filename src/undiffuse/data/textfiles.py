"""Texts in files: .txt, .jsonl, .parquet, and folders of the first two; and on the hub."""

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.data.columns import is_binary
from undiffuse.data.columns import is_text as holds_text
from undiffuse.data.corpora import CORPORA
from undiffuse.data.corpus import LARGEST, Corpus, TextSource, decoded, separated
from undiffuse.data.entries import OPENERS
from undiffuse.data.loading import HUB_NAME
from undiffuse.data.reading import reading
from undiffuse.data.remarks import readable, some
from undiffuse.data.walk import SOUNDS, first_kind, holds_pictures, walk
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import parse_json
from undiffuse.names import shown

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, DataType, Schema

COLUMN = "text"
PLAIN = (".txt", ".jsonl")
SOURCES = "a .txt, .jsonl or .parquet file, a folder of .txt and .jsonl files, or owner/dataset on the hub"


def is_text(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a text: by its name or ending, a folder by the names in it, a table by its columns.

    A folder is one if it holds .txt or .jsonl files and neither pictures nor sounds, a .parquet file if it has a column
    of strings and none that could hold pictures. Reads no other content.
    """
    name = os.fspath(source)
    if name in CORPORA or name in OPENERS:
        return name in CORPORA
    path = Path(os.path.expanduser(name))
    kind = path.suffix.lower()
    if os.path.isdir(path):
        return bool(_files(path)) and first_kind(path, SOUNDS) is None
    if kind == ".parquet" and os.path.isfile(path):
        kinds = [column.type for column in _schema(path)]
        return any(map(holds_text, kinds)) and not any(map(_may_hold_pictures, kinds))
    return kind in PLAIN


def text_source(name: str) -> TextSource:
    """The text that a user names: one of `CORPORA`, or a path.

    A file .txt is one document; in .jsonl each line is one, a string or an object with one under "text" or its only
    string; in .parquet each row, in the column text or the only one of strings; in a folder all of these of its .txt
    and .jsonl files, also in folders within, in the order of their paths, part by part. owner/dataset is one on the
    hub, whose training split is read as .parquet is. Raises UsageError for another source; opening it raises
    UndiffuseError for what cannot be read.
    """
    if name in CORPORA:
        return CORPORA[name].source()
    if name != readable(name):
        raise UsageError(f"the path {readable(name)} is not plain UTF-8 text: rename it, or link to it by another name")
    path = Path(os.path.expanduser(name))
    if HUB_NAME.fullmatch(name) and path.suffix.lower() not in READERS and not os.path.exists(path.parts[0]):
        return TextSource(["hub texts", name], lambda: _from_hub(name))
    if not name or not os.path.exists(path):
        near = difflib.get_close_matches(name.lower(), CORPORA, n=1)
        raise UsageError(
            f"no text and no path is called {shown(name)}." + (f" Did you mean {near[0]}?" if near else "")
            + f" A text is one of {', '.join(CORPORA)}; {SOURCES}"
        )  # fmt: skip
    files = _files(path) if os.path.isdir(path) else [path]
    if not files or files[0].suffix.lower() not in (*PLAIN, ".parquet"):
        raise UsageError(f"cannot use {name} as a text: a text is {SOURCES}")
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    size = sum(file.stat().st_size for file in files)
    if size > LARGEST:
        raise UsageError(
            f"{name} has {size / 2**20:,.0f} MiB, and a text at most {LARGEST >> 20} MiB: take a part of it"
        )

    def opened() -> Corpus:
        documents = [document for file in files for document in READERS[file.suffix.lower()](file)]
        if len(files) == 1 and files[0].suffix.lower() == ".txt":
            return Corpus(tuple(documents))
        return Corpus(separated(documents))

    return TextSource(["texts", stamps], opened)


def _files(folder: Path) -> list[Path]:
    """The texts in a folder, sorted; none if it holds pictures, also in formats that are not read."""
    if holds_pictures(folder):
        return []
    found = [folder / file for file in walk(folder).texts if file.suffix.lower() in PLAIN]
    return [file for file in found if not file.with_name("run.json").is_file()]  # metrics


def _plain(path: Path) -> list[str]:
    return [decoded(_content(path), str(path))]


def _lines(path: Path) -> list[str]:
    """The strings of a .jsonl file, one from each line that is not empty."""
    documents, name = [], ""  # the first object decides which string of each is the text
    for number, line in enumerate(decoded(_content(path), str(path)).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UndiffuseError(f"{where} is not JSON: {error}") from error
        if isinstance(row, dict):
            name = name or _column(where, row, [key for key, value in row.items() if isinstance(value, str)])
            row = row.get(name)
        if not isinstance(row, str):
            raise UndiffuseError(f"{where} is neither a string nor an object with one under {shown(name or COLUMN)}")
        documents.append(_checked(where, row))
    return documents


def _rows(path: Path) -> list[str]:
    """The strings of a .parquet file, one from each row that is not null."""
    schema = _schema(path)
    from pyarrow import parquet

    with reading(str(path)):
        return _cells(str(path), schema, lambda name: parquet.read_table(path, columns=[name]).column(name))


def _from_hub(name: str) -> Corpus:
    from undiffuse.data.hub import fetched

    splits, licence = fetched(name)
    train = next(iter(splits)) if len(splits) == 1 else "train"
    if train not in splits:
        raise UsageError(f"{name} has no split 'train', only {some(splits)}")
    with reading(name):
        table = splits[train].data.table
        documents = separated(_cells(name, table.schema, table.column))
    others = [split for split in splits if split != train]
    return Corpus(documents, licence, (f"splits not used: {some(others)}",) if others else ())


def _cells(where: str, schema: "Schema", column: "Callable[[str], ChunkedArray]") -> list[str]:
    """The strings of a table that are not null."""
    values = column(_column(where, schema.names, [one.name for one in schema if holds_text(one.type)]))
    values.validate(full=True)
    if values.nbytes > LARGEST:
        raise UsageError(f"{where} holds more than {LARGEST >> 20} MiB of text: take a part of it")
    rows = enumerate(values.to_pylist())
    return [_checked(f"{where}, row {number}", row) for number, row in rows if row is not None]


READERS: dict[str, Callable[[Path], list[str]]] = {".txt": _plain, ".jsonl": _lines, ".parquet": _rows}


def _column(where: str, names: Iterable[str], strings: list[str]) -> str:
    """The one that holds the text, of several names of which `strings` hold strings."""
    found = [name for name in strings if name == COLUMN] or strings
    if len(found) != 1:
        raise UsageError(
            f"{where}: the text must be called {COLUMN!r} or be the only string; strings here are "
            f"{some(found) or 'none'} of {some(names)}"
        )
    return found[0]


def _checked(where: str, text: str) -> str:
    """A string from JSON or a table under the policy of `decoded`: it may hold what no file of UTF-8 text can."""
    return decoded(text.encode("utf-8", "surrogatepass"), where) if text else ""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UndiffuseError(f"cannot read {path}: {error.strerror or error}") from error


def _schema(path: Path) -> "Schema":
    from undiffuse.data.shards import needs  # it imports Pillow

    needs("pyarrow", "parquet and Arrow files")
    from pyarrow import parquet

    with reading(str(path)):
        return parquet.read_schema(path)


def _may_hold_pictures(kind: "DataType") -> bool:
    from pyarrow import types

    return is_binary(kind) or bool(types.is_struct(kind))
