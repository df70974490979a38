"""Data sets from the Hugging Face hub, through its own library."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.data.reading import reading
from undiffuse.data.shards import needs
from undiffuse.data.source import NOT_STATED, Content, Source
from undiffuse.data.tables import Group, Table, content
from undiffuse.errors import UndiffuseError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TIMEOUT = 5  # seconds for the one request whether the name exists


def open_hub(name: str, hint: str = "") -> Source:
    """Source over the data set "owner/dataset" or "owner/dataset@revision" on the Hugging Face hub.

    The identity is the name alone, so a data set that was fetched once needs no network; a revision pins its content.
    The hub is first asked whether the name exists, so that a mistyped path fails at once, with `hint` in the message.
    Code in a repository is never run.
    """

    def opened() -> Content:
        splits, licence = fetched(name, hint)
        with reading(name):
            return content(name, {str(split): _table(one) for split, one in splits.items()}, licence)

    return Source(["hub", name], opened)


def fetched(name: str, hint: str = "") -> "tuple[DatasetDict, str]":
    """The splits of a data set on the hub, as `open_hub` names it, and its licence. Raises UndiffuseError."""
    repository, _, revision = name.partition("@")
    needs("datasets", f"there is no path {name!r} here{hint}; data sets on the Hugging Face hub")
    try:
        reached = _reached(repository, revision or None)
        import datasets  # only now: importing it takes longer than a refusal by the hub

        with _offline(not reached):
            splits = datasets.load_dataset(repository, revision=revision or None)
    except Exception as error:  # no network, no such name, no permission: each has its own class
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UndiffuseError(
            f"cannot get {name!r} from the Hugging Face hub, and there is no such path here{hint}: {reason[:200]}"
        ) from error
    return splits, next(iter(splits.values())).info.license or NOT_STATED


def _reached(repository: str, revision: str | None) -> bool:
    """Asks the hub once for the name. Returns whether it answered; if not, the library's cache may have the data.

    Raises the library's errors for a name or revision that does not exist or is not public, and ConnectionError if
    the hub cannot be reached and the cache has nothing from that owner.
    """
    from huggingface_hub import HfApi, constants, errors

    try:
        HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise
    except Exception as error:  # no network, offline mode, a time-out: each has its own class
        cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
        if not any(cache.glob(f"{repository.split('/')[0]}___*")):  # the rest of the name is changed there
            raise ConnectionError(f"it cannot be reached ({error})") from error
        return False
    return True


@contextlib.contextmanager
def _offline(only_cached: bool) -> Iterator[None]:
    """Keeps the library offline if `only_cached`: otherwise it would retry for half a minute."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = (only_cached or one for one in before)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _table(split: "Dataset") -> Table:
    table = split.data.table
    return Table(table.schema, (Group(table.num_rows, table.column, Path()),))
