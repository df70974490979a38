"""Labels and class names as people store them: numbers, strings, bytes or one-hot rows in, int64 indices out."""

from collections.abc import Sequence

import numpy as np

from undiffuse.errors import UsageError

LARGEST_UNNAMED_LABEL = 100_000


def plain(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels (count,), (count, 1) or one-hot (count, K), as integers or strings (count,).

    Strings may be bytes in UTF-8, integers may be stored as floats. Raises UsageError for everything else.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == count and labels.dtype.kind in "biuf":
        if not (((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all()):
            raise UsageError(
                f"{where} have shape {labels.shape}, but their rows are not one-hot (a single 1, else 0); "
                "a picture has one class: leave them out, or write one integer per picture"
            )
        labels = labels.argmax(axis=1)
    if labels.dtype.kind == "S":
        labels = texts(where, labels)
    if labels.dtype.kind == "f" and labels.ndim == 1:
        labels = labels.astype(np.float64)  # the bound below exceeds float16
        whole = np.isfinite(labels) & (labels == np.rint(labels)) & (np.abs(labels) < 2**53)
        if not whole.all():
            raise UsageError(f"{where}: {np.count_nonzero(~whole):,} of {labels.size:,} are not whole numbers")
        labels = labels.astype(np.int64)
    if labels.shape != (count,) or labels.dtype.kind not in "biuU":
        raise UsageError(f"{where} are {labels.dtype} of shape {labels.shape}, expected {count:,} integers or strings")
    return labels


def indices(
    where: str, parts: Sequence[np.ndarray], classes: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 labels of all `parts` (each from `plain`), concatenated, and the class names.

    The names are `classes` if given, else the sorted strings, else the numbers from 0 up. If numbers go beyond
    LARGEST_UNNAMED_LABEL, the classes are those that occur. Raises UsageError for labels outside the classes.
    """
    if len({part.dtype.kind == "U" for part in parts}) > 1:
        raise UsageError(f"{where} are strings in one split and numbers in another")
    labels = np.concatenate(parts)
    if labels.dtype.kind != "U":
        low, high = int(labels.min()), int(labels.max())
        limit = LARGEST_UNNAMED_LABEL if classes is None else len(classes) - 1
        if low < 0 or (high > limit and classes is not None):
            raise UsageError(f"{where} range from {low} to {high}, expected 0 to {limit}")
        if high <= limit:
            return labels.astype(np.int64), tuple(map(str, range(high + 1))) if classes is None else classes
    known, positions = np.unique(labels, return_inverse=True)
    found = tuple(map(str, known))
    if len(found) > LARGEST_UNNAMED_LABEL:
        raise UsageError(
            f"{where} have {len(found):,} different values, more than {LARGEST_UNNAMED_LABEL:,}: they are not classes"
        )
    if classes is None:
        return positions.astype(np.int64), found
    if unknown := [name for name in found if name not in classes]:
        raise UsageError(f"{where}: {unknown[0]!r} is not among the classes {', '.join(classes[:10])}")
    return np.array([classes.index(name) for name in found], dtype=np.int64)[positions], classes


def class_names(where: str, names: np.ndarray) -> tuple[str, ...]:
    """Class names from an array (K,) of strings, bytes in UTF-8 or integers. Raises UsageError for duplicates."""
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise UsageError(f"{where} are {names.dtype} of shape {names.shape}, expected one string for every class")
    return distinct(where, tuple(map(str, texts(where, names) if names.dtype.kind == "S" else names)))


def distinct(where: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names. Raises UsageError for duplicates."""
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise UsageError(f"{where}: the name {twice[0]!r} stands for two classes")
    return names


def texts(where: str, array: np.ndarray) -> np.ndarray:
    """Decodes an array of bytes to strings. Raises UsageError if they are not UTF-8."""
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} are bytes that are not UTF-8; decode them first: np.char.decode(x, ENCODING)"
        ) from error
