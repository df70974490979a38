"""Reads NumPy files without unpickling anything, and without allocating before the sizes are checked."""

import contextlib
import math
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from undiffuse.data.reading import reading
from undiffuse.errors import UsageError
from undiffuse.memory import total_memory

PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Archive:
    """The arrays of a .npz file by name, none of them read yet."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> np.ndarray:
        """The array, read-only. Raises UndiffuseError if it is broken, larger than memory, or holds Python objects."""
        with self._open(name) as (file, header):
            if header.size > total_memory():
                raise ValueError(f"it takes {header.size:,} bytes, more than the memory; a .npy file may be larger")
            raw = file.read(header.size)  # unpacks no more, and compares the checksum at the end
            return np.frombuffer(raw, header.dtype).reshape(header.shape, order=header.order)

    def shape(self, name: str) -> tuple[int, ...]:
        """The array's shape, from its header alone. Raises UndiffuseError as `read` does."""
        with self._open(name) as (_, header):
            return header.shape

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], "Header"]]:
        """The member, positioned after its header, and the header, which agrees with the member's size."""
        with reading(f"{name} of {self.path}"), zipfile.ZipFile(self.path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is compressed in a way that NumPy does not write")
            with archive.open(member) as file:
                yield file, _header(file, member.file_size, f"{name} of {self.path}")


class Header(NamedTuple):
    """The header of an array; order is "C" or "F", size is that of the values in bytes."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    size: int


def open_npy(path: Path) -> np.ndarray | Archive:
    """The array of a .npy file, memory-mapped and read-only, or the arrays of a .npz file; the content decides.

    Raises UndiffuseError naming the file if it is broken or holds Python objects.
    """
    with reading(str(path)), path.open("rb") as file:
        start = file.read(6)
        if start == b"\x93NUMPY":
            return _mapped(path)
        if start.startswith(b"PK"):
            return _archive(path)
        if start.startswith(PICKLES):
            raise ValueError("it holds Python objects (a pickle), which are never loaded; write it with np.savez")
        raise ValueError("it is empty" if not start else "it is not a file written by np.save or np.savez")


def _mapped(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        shape, order, dtype, size = _header(file, path.stat().st_size, str(path))
        if size == 0:  # cannot be mapped
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order=order)


def _archive(path: Path) -> Archive:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    names = tuple(name.removesuffix(".npy") for name in members if name.endswith(".npy"))
    if not names:
        raise ValueError(f"it is a zip file without arrays ({len(members)} files); unpack it if it holds pictures")
    if len(set(names)) < len(names):
        raise ValueError("two of its arrays have the same name")
    return Archive(path, names)


def _header(file: IO[bytes], length: int, what: str) -> Header:
    """Reads the header of the array in `file`, of `length` bytes in all; `what` names it in errors."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for field names, which pictures do not have
        raise ValueError(f"NumPy's format {version[0]}.{version[1]} is not supported")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers from Python 2 can be read
        shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UsageError(
            f"cannot read {what}: it holds Python objects, which are never unpickled; save numbers, or x.astype(str)"
        )
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"its header states shape {shape} of {dtype}")
    size, there = math.prod(shape) * dtype.itemsize, length - file.tell()
    if size != there:
        raise ValueError(f"its header promises {size:,} bytes, but {there:,} are there")
    return Header(shape, "F" if fortran else "C", dtype, size)
