"""Parquet files and hub names, through Hugging Face datasets. Columns are found by their type, not their name."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from undiffuse.data import policy
from undiffuse.data.cache import cache_dir
from undiffuse.data.source import NOT_STATED, Content, Source
from undiffuse.errors import UndiffuseError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

TEST_SPLITS = ("test", "validation", "valid", "val")


def open_parquet(path: Path) -> Source:
    """Source over one parquet file with an image column and, where present, a class column."""
    facts = path.stat()

    def opened() -> Content:
        from datasets import Dataset

        try:
            table = Dataset.from_parquet(str(path), cache_dir=str(cache_dir() / "huggingface"))
        except Exception as error:  # datasets wraps pyarrow's many errors in its own many errors
            raise UndiffuseError(f"cannot read {path}: {error}") from error
        return _content(str(path), [table], has_test=False)

    return Source(["parquet", str(path.resolve()), facts.st_size, facts.st_mtime_ns], opened)


def open_hub(name: str) -> Source:
    """Source over the data set "owner/dataset" or "owner/dataset@revision" of the Hugging Face hub.

    The identity is the name alone, so that a data set once fetched needs no network; a revision pins what it means.
    """
    repository, _, revision = name.partition("@")

    def opened() -> Content:
        from datasets import load_dataset

        try:
            splits = load_dataset(repository, revision=revision or None)
        except Exception as error:  # no network, no such name, no permission: each has its own class there
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UndiffuseError(
                f"cannot get {name!r} from the Hugging Face hub, and there is no such path here: {reason}"
            ) from error
        if "train" not in splits:
            raise UsageError(f"{name} has no split 'train', only {', '.join(splits)}")
        held_out = next((split for split in TEST_SPLITS if split in splits), None)
        tables = [splits["train"]] + ([splits[held_out]] if held_out else [])
        return _content(name, tables, has_test=held_out is not None)

    return Source(["hub", name], opened)


def _content(name: str, tables: "list[Dataset]", has_test: bool) -> Content:
    from datasets import Image, concatenate_datasets

    licence = tables[0].info.license or NOT_STATED
    table = concatenate_datasets(tables)
    image, label = _image_column(name, table), _label_column(table)
    classes = tuple(map(str, table.features[label].names)) if label else ()
    labels = np.asarray(table[label][:], dtype=np.int64) if label else None
    if labels is not None and (labels < 0).any():  # the convention for a test split without labels
        labels, classes = None, ()
    table = table.cast_column(image, Image(decode=False)).select_columns([image])
    return Content(
        count=len(table),
        read=lambda index: policy.decode(_file(table[index][image])),
        header=lambda index: policy.header(_file(table[index][image])),
        where=lambda index: f"row {index}",
        labels=labels,
        classes=classes,
        test=np.arange(len(table)) >= len(tables[0]) if has_test else None,
        licence=licence,
    )


def _image_column(name: str, table: "Dataset") -> str:
    """The one image column: by its type, else one that stores encoded files (bytes, or bytes with a path)."""
    from datasets import Image, Value

    features = table.features
    found = [column for column, kind in features.items() if isinstance(kind, Image)] or [
        column
        for column, kind in features.items()
        if (isinstance(kind, dict) and set(kind) == {"bytes", "path"})
        or (isinstance(kind, Value) and kind.dtype in ("binary", "large_binary"))
    ]
    if len(found) != 1:
        columns = ", ".join(features)
        raise UsageError(f"{name}: expected one image column, found {len(found)} among the columns {columns}")
    return found[0]


def _label_column(table: "Dataset") -> str | None:
    """The class column, or None when there is none or more than one and the choice would be a guess."""
    from datasets import ClassLabel

    found = [column for column, kind in table.features.items() if isinstance(kind, ClassLabel)]
    return found[0] if len(found) == 1 else None


def _file(value: dict[str, Any] | None) -> Path | BinaryIO:
    if value is None:
        raise ValueError("no image in this row")
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    return Path(value["path"])
