"""Turns failures of the libraries that read files into one short line."""

import contextlib
from collections.abc import Iterator

from undiffuse.errors import UndiffuseError

SHOWN = 120  # characters of another library's message


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns any failure while reading `what` into an UndiffuseError with its reason; the package's own errors pass."""
    try:
        yield
    except UndiffuseError:
        raise
    except Exception as error:  # NumPy, zipfile, gzip and pyarrow raise a dozen kinds each on broken bytes
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UndiffuseError(f"cannot read {what}: {reason[:SHOWN]}{'...' * (len(reason) > SHOWN)}") from error
