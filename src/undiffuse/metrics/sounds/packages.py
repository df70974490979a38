"""What packages on PyPI bring for measuring speech, found without importing them, and the rate that they listen at."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from undiffuse.errors import UsageError

RATE = 16000
"""Hz, of every model here."""


def missing(package: str, extra: str = "speech") -> UsageError:
    """The error for a package that is not installed; `extra` is the extra of undiffuse that has it."""
    return UsageError(f'this measure of sounds needs {package}, which is missing: pip install "undiffuse[{extra}]"')


def file_of(package: str, *parts: str) -> Path:
    """A file in an installed package, which is not imported: some would import more than they bring.

    Raises UsageError if the package is not installed or has no such file.
    """
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise missing(package)
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise UsageError(
            f"{package} has no file {'/'.join(parts)}, as its later versions do: pip install --upgrade {package}"
        )
    return path


def at_16_khz(rows: np.ndarray, rate: int) -> np.ndarray:
    """int16 (N, L) at `rate` Hz -> int16 (N, L') at 16 kHz; unchanged if they are. Raises UsageError without soxr."""
    rows = np.asarray(rows)
    if rate == RATE:
        return rows
    try:
        import soxr
    except ImportError:
        raise missing("soxr", "audio") from None
    return np.stack([soxr.resample(row, rate, RATE, quality="VHQ") for row in rows])
