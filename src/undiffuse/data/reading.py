"""Turns failures of the libraries that read files into one short line, and many of them into one report."""

import contextlib
from collections.abc import Iterator, Sequence

from undiffuse.errors import UndiffuseError

SHOWN = 120  # characters of another library's message
LISTED = 10


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


def report(reasons: Sequence[tuple[str, str]], total: int, noun: str = "images") -> str:
    """What cannot be read, of `total` files, and why: the first ten by name, and how many more there are."""
    lines = [f"{len(reasons)} of {total} {noun} cannot be read:"]
    lines += [f"  {where}: {reason}" for where, reason in reasons[:LISTED]]
    if len(reasons) > LISTED:
        lines.append(f"  ... and {len(reasons) - LISTED} more")
    return "\n".join(lines)
