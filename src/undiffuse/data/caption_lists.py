"""Lists of captions in one file: lines of a name and a caption, tables with a header, JSON lines."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from undiffuse.data.captions import caption_columns, captions_of, clean
from undiffuse.data.remarks import some
from undiffuse.errors import UsageError
from undiffuse.files import parse_json
from undiffuse.names import cut, shown

# Names of the column with the pictures' file names; the first line with a match wins.
FILE_WORDS = (
    ("file_name", "filename"),
    ("file", "file_path", "image", "image_name", "image_path", "path", "img", "picture"),
)
DELIMITERS = ("\t", "|", ",", ";")  # of a header
LONGEST_NAME = 1024  # characters, so that a long line is read in reasonable time
SEPARATORS = ("\t", "|", ",", ":", " ")  # between a name and a caption, the likeliest first
QUOTED = re.compile(r'"((?:[^"]|"")+)"\s*[\t|,:;]?(.*)')
Find = Callable[[str], PurePosixPath | None]


@dataclass(frozen=True)
class Listed:
    """The content of one file: (picture, its captions) for each entry, the entries without a picture, and remarks."""

    found: list[tuple[PurePosixPath, tuple[str, ...]]]
    lost: list[str]
    remarks: tuple[str, ...] = ()


class Row(NamedTuple):
    """The cells of a table's row, by column, and its line in the file, from 1."""

    line: int
    cells: dict[str, object]


def read_list(place: str, text: str, find: Find) -> Listed:
    """Reads the text of the file `place`, whose ending and stem say what it is; `find` looks a picture's name up.

    Raises UsageError with the line for what cannot be read.
    """
    name = PurePosixPath(place).name.lower()
    is_metadata = name.startswith("metadata.")  # it may describe something other than captions
    if name.endswith(".jsonl"):
        rows = list(_json_rows(place, text))
        return _table(place, list(dict.fromkeys(key for row in rows for key in row.cells)), rows, find, is_metadata)
    header = text.lstrip().partition("\n")[0]
    for delimiter in DELIMITERS:
        columns = [_unquoted(cell) for cell in header.split(delimiter)]
        if _file_columns(columns) and caption_columns(columns):
            return _table(place, columns, _rows(place, text, delimiter, columns), find, is_metadata)
    if is_metadata:
        return Listed([], [], (f"not used: {_unsuitable([cut(header)])}",) if header else ())
    entries = ((line, _entry(line, find)) for line in text.split("\n") if line.strip())
    found: list[tuple[PurePosixPath, tuple[str, ...]]] = []
    lost = []
    for line, (picture, caption) in entries:
        if picture:
            found.append((picture, captions_of(caption)))
        else:
            lost.append(cut(line, 40))
    return Listed(found, lost)


def _entry(line: str, find: Find) -> tuple[PurePosixPath | None, str]:
    """The picture and the caption of a line. Names may hold separators, so pictures' names decide where one ends."""
    if (quoted := QUOTED.fullmatch(line.strip())) and (picture := find(quoted[1].replace('""', '"'))):
        return picture, _unquoted(quoted[2])
    for separator in SEPARATORS:
        for end, character in enumerate(line[:LONGEST_NAME]):
            here = character == separator or (separator == " " and character.isspace())
            if here and (picture := find(line[:end])):
                return picture, _unquoted(line[end + 1 :])
    return find(line), ""


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a program may have put around it."""
    cell = cell.strip()
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _rows(place: str, text: str, delimiter: str, columns: list[str]) -> Iterator[Row]:
    """The rows below the header. More cells than columns are parts of a last column that was not quoted."""
    if delimiter in ",;":
        lines = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, strict=True)
        numbered = ((lines.line_num, cells) for cells in lines)
    else:
        numbered = (
            (number, [_unquoted(cell) for cell in line.split(delimiter)])
            for number, line in enumerate(text.lstrip().split("\n"), 1)
        )
    before = text[: len(text) - len(text.lstrip())].count("\n")
    last, number = len(columns) - 1, 1
    try:
        next(numbered)
        for number, cells in numbered:
            if any(cell.strip() for cell in cells):
                if len(cells) > len(columns) and columns[last] not in caption_columns(columns)[0]:
                    raise UsageError(
                        f"{place}, line {before + number}: {len(cells)} cells, but the header has {len(columns)}: "
                        "put cells that hold the separator in double quotes"
                    )
                cells = [*cells[:last], delimiter.join(cells[last:])]
                yield Row(before + number, dict(zip(columns, cells, strict=False)))
    except csv.Error as error:
        raise UsageError(f"{place}, line {before + number + 1}: {error}") from error


def _json_rows(place: str, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}, line {number}: it is not JSON: {cut(str(error))}") from error
        if not isinstance(row, dict):
            raise UsageError(f'{place}, line {number}: expected {{"file_name": ..., "text": ...}}, not {shown(row)}')
        yield Row(number, row)


def _table(place: str, columns: list[str], rows: Iterator[Row] | list[Row], find: Find, is_metadata: bool) -> Listed:
    files, captions = _file_columns(columns), caption_columns(columns)
    if len(files) != 1 or len(captions) != 1:
        if not columns:
            return Listed([], [])
        if not is_metadata:
            raise UsageError(f"{place}: {_unsuitable(columns)}")
        return Listed([], [], (f"not used: {_unsuitable(columns)}",))
    used = [*files, *captions[0]]
    unused = [column for column in columns if column not in used]
    found: list[tuple[PurePosixPath, tuple[str, ...]]] = []
    lost = []
    for line, cells in rows:
        name = cells.get(files[0])
        if not isinstance(name, str):
            raise UsageError(f"{place}, line {line}: {files[0]} is {shown(name)}, expected the name of a picture")
        try:
            sentences = tuple(one for column in captions[0] for one in captions_of(cells.get(column)))
        except ValueError as error:
            raise UsageError(f"{place}, line {line}: {some(captions[0])}: {error}") from error
        if picture := find(name):
            found.append((picture, sentences))
        else:
            lost.append(cut(name, 40))
    return Listed(found, lost, (f"columns not used: {some(unused)}",) if unused else ())


def _file_columns(columns: Sequence[str]) -> list[str]:
    """The columns that could name the pictures: certain only if there is exactly one."""
    ways = ([column for column in columns if clean(column).lower() in words] for words in FILE_WORDS)
    return next((way for way in ways if way), [])


def _unsuitable(columns: Sequence[str]) -> str:
    several = [some(found) for found in (_file_columns(columns), _flat(caption_columns(columns))) if len(found) > 1]
    return (
        f"expected one column with the file names (such as file_name) and one with captions (such as text), found "
        f"{' and '.join(several) or 'not both'} among {some(columns)}"
    )


def _flat(groups: Sequence[Sequence[str]]) -> list[str]:
    return [column for group in groups for column in group]
