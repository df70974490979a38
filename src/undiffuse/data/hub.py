"""Data sets of the Hugging Face hub, through its own library."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.data.shards import needs
from undiffuse.data.source import NOT_STATED, Content, Source
from undiffuse.data.tables import Group, Table, content
from undiffuse.errors import UndiffuseError

if TYPE_CHECKING:
    from datasets import Dataset

TIMEOUT = 5  # seconds to ask the hub whether it has the name, once


def open_hub(name: str, hint: str = "") -> Source:
    """Source over the data set "owner/dataset" or "owner/dataset@revision" of the Hugging Face hub.

    The identity is the name alone, so that a data set once fetched needs no network; a revision pins what it means.
    The hub is asked for the name once before anything else: a path that is mistyped fails at once, and the message
    then says what `hint` does. Code in a repository is never run.
    """
    repository, _, revision = name.partition("@")

    def opened() -> Content:
        needs("datasets", f"there is no path {name!r} here{hint}; names of the Hugging Face hub")
        import datasets

        try:
            with _asked_once(repository, revision or None):
                splits = datasets.load_dataset(repository, revision=revision or None)
        except Exception as error:  # no network, no such name, no permission: each has its own class there
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UndiffuseError(
                f"cannot get {name!r} from the Hugging Face hub, and there is no such path here{hint}: {reason[:200]}"
            ) from error
        licence = next(iter(splits.values())).info.license or NOT_STATED
        return content(name, {str(split): _table(one) for split, one in splits.items()}, licence)

    return Source(["hub", name], opened)


@contextlib.contextmanager
def _asked_once(repository: str, revision: str | None) -> Iterator[None]:
    """Asks the hub for the name. Where it cannot be reached, only what its library has in its cache is used inside.

    Raises what the library does for a name or revision that is not there, or is not for everyone.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, errors

    online = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise
    except Exception as error:
        logging.getLogger("undiffuse").info("the hub cannot be reached: %s", error)
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = online


def _table(split: "Dataset") -> Table:
    table = split.data.table
    return Table(table.schema, (Group(table.num_rows, table.column, Path()),))
