"""Apache Arrow tables (parquet, save_to_disk, the hub) as images with classes and captions.

Rows are read when needed, a row group at a time; pyarrow only moves columns, nothing in a file is executed.
"""

import bisect
import functools
import io
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from undiffuse.data import labels, policy
from undiffuse.data.captions import captions_of, coverage, distinct
from undiffuse.data.columns import caption_columns, class_columns, class_names, image_column, is_binary, is_text
from undiffuse.data.layout import role as split_of
from undiffuse.data.remarks import some
from undiffuse.data.source import NOT_STATED, Content
from undiffuse.errors import UsageError

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Schema


@dataclass(frozen=True)
class Group:
    """Rows that are read together: `column(name)` returns the `rows` values of a column.

    Relative paths among them are relative to `folder`.
    """

    rows: int
    column: "Callable[[str], ChunkedArray]"
    folder: Path


@dataclass(frozen=True)
class Table:
    """One split of a data set as consecutive groups of rows, all with the columns of `schema`."""

    schema: "Schema"
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def content(name: str, tables: Mapping[str, Table], licence: str = NOT_STATED) -> Content:
    """The images, classes and captions of `tables` (split name -> table).

    Takes the split train (a single one may have any name) and one to hold out: test, else validation, but preferably
    one whose images all have classes. Remarks name the unused splits and columns. Raises UsageError if there is no
    train, not exactly one image column, or a split without it.
    """
    train, *held_out = _roles(name, tables)
    schema, remarks = tables[train].schema, []
    if not split_of(train) and train:
        remarks.append(f"the only split, {train}, is used for training")
    image = image_column(name, schema)
    label, why_not = _class_column(name, tables[train], image)
    remarks += why_not
    texts = caption_columns(schema, image)
    if len(texts) > 1:
        columns = some(column for group in texts for column in group)
        remarks.append(f"no captions: {columns} could each be the captions; leave only one in the data")
    described = texts[0] if len(texts) == 1 else []
    for split in held_out:
        if missing := [column for column in (image, label) if column and column not in tables[split].schema.names]:
            raise UsageError(f"{name}: {split} has no column {missing[0]}, which {train} has")
    known = {split: _known(name, tables[split], label) for split in (train, *held_out)} if label else {}
    chosen = [train, *sorted(held_out, key=lambda split: label is not None and not known[split].has.all())[:1]]
    if unused := [f"{split} ({tables[split].rows:,} rows)" for split in tables if split not in chosen]:
        remarks.append(f"splits not used: {some(unused)}")
    if unused := [column for column in schema.names if column not in (image, label, *described)]:
        remarks.append(f"columns not used: {some(unused)}")
    found: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if label:
        parts = [known[split] for split in chosen]
        found, classes = _classes(f"{name}: column {label}", parts, class_names(schema).get(label))
    images = _images([tables[split] for split in chosen], image)
    captions = [one for split in chosen for one in _captions(name, tables[split], described)] if described else []
    return replace(
        images,
        labels=found,
        classes=classes,
        captions=tuple(captions) if any(captions) else (),
        licence=licence,
        remarks=(*remarks, *coverage(captions)),
    )


def _roles(name: str, tables: Mapping[str, Table]) -> list[str]:
    """The split to train on, then those that may be held out, in order of preference."""
    train = [split for split in tables if split_of(split) == "train"]
    if len(tables) == 1 and not train:
        train = list(tables)
    if len(train) != 1:
        raise UsageError(f"{name} has no split 'train', only {some(list(tables))}" if not train
                         else f"{name} has several splits to train on: {some(train)}")  # fmt: skip
    if not tables[train[0]].rows:
        raise UsageError(f"{name}: the split to train on has no rows")
    return train + [one for role in ("test", "val") for one in tables if split_of(one) == role and tables[one].rows]


class Known(NamedTuple):
    """Which rows have a class, bool (rows,), and the classes of those, integers or strings."""

    has: np.ndarray
    values: np.ndarray


def _class_column(name: str, train: Table, image: str) -> tuple[str | None, list[str]]:
    """The class column, if there is one candidate and every row has a class; else None, with remarks on why."""
    found = class_columns(train.schema, image)
    if len(found) > 1:
        return None, [f"no classes: {some(found)} could each be the class column; leave only one in the data"]
    if not found:
        return None, []
    values = _values(name, train, found[0])
    if values.dtype.kind == "f" and (np.isfinite(values) & (values != np.rint(values))).any():
        return None, [f"no classes: column {found[0]} holds fractions"]
    without = np.count_nonzero(~_known(name, train, found[0]).has)
    if without:
        return None, [f"no classes: {without:,} of {train.rows:,} rows are null or below 0 in column {found[0]}"]
    return found[0], []


def _values(name: str, table: Table, column: str) -> np.ndarray:
    """The values of a column, (rows,), with dictionaries (pandas' categories) decoded; None or NaN for nulls.

    Bytes become strings. Raises UsageError if they are not UTF-8, or if one file has strings and another numbers.
    """
    import pyarrow
    from pyarrow import types

    chunks = [chunk for group in table.groups for chunk in group.column(column).chunks]
    chunks = [chunk.dictionary_decode() if types.is_dictionary(chunk.type) else chunk for chunk in chunks]
    try:
        chunks = [chunk.cast(pyarrow.large_string()) if is_binary(chunk.type) else chunk for chunk in chunks]
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{name}: column {column} holds bytes that are not UTF-8; decode them first") from error
    if len({is_text(chunk.type) for chunk in chunks}) > 1:
        raise UsageError(f"{name}: column {column} holds strings in one file and numbers in another")
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _captions(name: str, table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The captions of each row: those of all these columns, none where the split has no such column."""
    stored = [_values(name, table, column) for column in columns if column in table.schema.names]
    cells = zip(*stored, strict=True) if stored else [()] * table.rows
    try:
        return [distinct(one for cell in row for one in captions_of(_plain(cell))) for row in cells]
    except ValueError as error:
        raise UsageError(f"{name}: a caption in {some(columns)} cannot be used: {error}") from error


def _plain(cell: object) -> object:
    return cell.tolist() if isinstance(cell, np.ndarray) else cell


def _known(name: str, table: Table, column: str) -> Known:
    """Rows that are null, NaN or negative have no class (-1 is the convention for test splits without labels)."""
    stored = _values(name, table, column)
    texts = stored.dtype == object
    has = np.array([value is not None for value in stored]) if texts else np.isfinite(stored)
    values = np.array(stored[has].tolist()) if texts else stored[has]
    values = labels.plain(f"{name}: column {column}", values, len(values))
    if values.dtype.kind == "i":
        has[has] = values >= 0
        values = values[values >= 0]
    return Known(has, values)


def _classes(where: str, parts: Sequence[Known], names: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of the rows of all parts, int64, -1 for rows without one, and the class names."""
    given = None if names is None else labels.distinct(where, names)
    filled = [part.values for part in parts if part.has.any()]
    indices, classes = labels.indices(where, filled, given)
    has = np.concatenate([part.has for part in parts])
    found = np.full(len(has), -1, dtype=np.int64)
    found[has] = indices
    return found, classes


def _images(tables: Sequence[Table], image: str) -> Content:
    """Content over an image column, the second table being the test split; keeps two groups in memory at a time."""
    groups = [group for table in tables for group in table.groups if group.rows]
    ends = list(itertools.accumulate(group.rows for group in groups))
    stored, lock = functools.lru_cache(maxsize=2)(lambda number: groups[number].column(image)), threading.Lock()

    def file(index: int) -> Path | BinaryIO:
        number = bisect.bisect_right(ends, index)
        group = groups[number]
        with lock:  # the decoding threads request the same group at the same time
            column = stored(number)
        return _file(column[index - (ends[number] - group.rows)].as_py(), group.folder)

    return Content(
        count=ends[-1],
        read=lambda index: policy.decode(file(index)),
        header=lambda index: policy.header(file(index)),
        where=lambda index: f"row {index}",
        test=np.arange(ends[-1]) >= tables[0].rows if len(tables) > 1 else None,
    )


def _file(value: bytes | dict[str, Any] | None, folder: Path) -> Path | BinaryIO:
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if value and value.get("bytes") is not None:
        return io.BytesIO(value["bytes"])
    if value and value.get("path"):
        return folder / value["path"]
    raise ValueError("no image in this row")
