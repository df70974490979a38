"""Finds the image, class and caption columns of a table: by type, then by name, never by guessing."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undiffuse.data import captions
from undiffuse.data.remarks import some
from undiffuse.errors import UsageError
from undiffuse.names import cut

if TYPE_CHECKING:
    from pyarrow import DataType, Field, Schema

# Names of class columns, used if no type decides; the first line with a match wins.
CLASS_WORDS = (
    ("label", "labels", "class", "classes", "category", "target", "targets", "y"),
    ("class_id", "label_id", "category_id", "cls", "class_name", "label_name", "class_label", "categories"),
)


def image_column(name: str, schema: "Schema") -> str:
    """The one image column: by its type, else one that stores encoded files (bytes, or bytes with a path).

    A bytes column named as in CLASS_WORDS or as captions are holds those if another column can be the images.
    """
    from pyarrow import types

    def storable(kind: "DataType") -> bool:
        if types.is_struct(kind):
            return any(
                part.name == "bytes" and is_binary(part.type) for part in map(kind.field, range(kind.num_fields))
            )
        return is_binary(kind)

    if twice := sorted({column for column in schema.names if schema.names.count(column) > 1}):
        raise UsageError(f"{name}: several columns are called {some(twice)}; rename them")
    stored = [column.name for column in schema if storable(column.type)]
    typed = [column for column, feature in features(schema).items() if feature.get("_type") == "Image"]
    texts = [column for column in stored if any(column.lower() in words for words in CLASS_WORDS)]
    texts += filter(captions.is_caption_name, stored)
    others = [column for column in stored if column not in texts]
    found = [column for column in stored if column in typed] or others or stored
    if len(found) != 1:
        columns = [f"{column.name} ({cut(str(column.type), 24)})" for column in schema]
        raise UsageError(
            f"{name}: expected one image column (encoded files: binary, or a struct of bytes and path), found "
            f"{some(found) or 'none'} among the columns {some(columns)}. "
            "Paths, base64 and lists of numbers are not read: write the files' bytes."
        )
    return found[0]


def is_binary(kind: "DataType") -> bool:
    """Whether an Arrow type is variable-length bytes."""
    from pyarrow import types

    return any(is_one(kind) for is_one in (types.is_binary, types.is_large_binary, types.is_binary_view))


def is_text(kind: "DataType") -> bool:
    """Whether an Arrow type is strings."""
    from pyarrow import types

    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view))


def class_columns(schema: "Schema", image: str) -> list[str]:
    """The columns, other than `image`, that could hold the classes: certain only if there is exactly one.

    They are the columns of type ClassLabel, else those named like classes, else the categorical ones not named like
    captions.
    """
    from pyarrow import types

    def usable(column: str) -> bool:
        kind = schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        kinds = (types.is_integer, types.is_floating, types.is_boolean, is_text, is_binary)
        return column != image and any(is_one(kind) for is_one in kinds)

    def called(words: Sequence[str]) -> list[str]:
        return [column for column in schema.names if column.lower() in words and usable(column)]

    def is_categorical(column: "Field") -> bool:
        return bool(types.is_dictionary(column.type)) and not captions.is_caption_name(column.name)

    ways = (
        [column for column in class_names(schema) if column in schema.names and usable(column)],
        *map(called, CLASS_WORDS),
        [column.name for column in schema if is_categorical(column) and usable(column.name)],
    )
    return next((way for way in ways if way), [])


def caption_columns(schema: "Schema", image: str) -> list[list[str]]:
    """Groups of columns of strings or lists of strings that could be the captions: as `captions.caption_columns`."""
    from pyarrow import types

    def usable(kind: "DataType") -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return is_text(kind.value_type) if is_list(kind) else is_text(kind) or is_binary(kind)

    return captions.caption_columns(column.name for column in schema if column.name != image and usable(column.type))


def is_list(kind: "DataType") -> bool:
    """Whether an Arrow type is lists, of any length each or of one."""
    from pyarrow import types

    ways = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_one(kind) for is_one in ways)


def features(schema: "Schema") -> dict[str, dict[str, Any]]:
    """The column features in Hugging Face metadata, {} if there are none or they cannot be read."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: feature for column, feature in noted.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def class_names(schema: "Schema") -> dict[str, tuple[str, ...]]:
    """The class names of each column of type ClassLabel."""
    labels = {column: one for column, one in features(schema).items() if one.get("_type") == "ClassLabel"}
    return {
        column: tuple(one["names"])
        for column, one in labels.items()
        if isinstance(one.get("names"), list) and all(isinstance(name, str) for name in one["names"])
    }
