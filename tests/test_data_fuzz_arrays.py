"""Broken bytes in every array and table format: a data set, or one short error; never anything else."""

import gzip
import io
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from undiffuse import data
from undiffuse.data import idx
from undiffuse.errors import UndiffuseError

MUTANTS = 150
LONGEST_MESSAGE = 500
MOST_MEMORY = 1 << 26


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, _images())
    return file.getvalue()


def _npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, images=_images(), labels=np.array([b"a", b"b"] * 2), other=np.array([None]))
    return file.getvalue()


def _idx() -> bytes:
    return idx.UBYTE_IMAGES + np.array((4, 5, 6), ">u4").tobytes() + _images().tobytes()


def _table() -> pyarrow.Table:
    files = []
    for image in _images():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        files.append({"bytes": file.getvalue(), "path": None})
    return pyarrow.table({"image": files, "label": ["a", "b"] * 2, "id": [1, 2, 3, 4]})


def _parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(_table(), file, row_group_size=3)
    return file.getvalue()


def _arrow() -> bytes:
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, _table().schema) as writer:
        writer.write_table(_table())
    return file.getvalue()


FORMATS = {
    "x.npy": _npy,
    "x.npz": lambda: _npz(np.savez),
    "zipped.npz": lambda: _npz(np.savez_compressed),
    "set/train-images-idx3-ubyte": _idx,
    "zipped/train-images-idx3-ubyte.gz": lambda: gzip.compress(_idx()),
    "x.parquet": _parquet,
    "x.arrow": _arrow,
}


def mutant(original: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, moved, or a number among them made another, near either end more often than not."""
    raw = bytearray(original)

    def place() -> int:
        near = rng.randrange(min(len(raw), 200))
        return rng.choice((near, len(raw) - 1 - near, rng.randrange(len(raw))))

    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(5):
            case 0:
                raw[place()] ^= 1 << rng.randrange(8)
            case 1:
                raw[place()] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                del raw[max(1, place()) :]
            case 3:
                source, target = place(), place()
                raw[target : target + 16] = raw[source : source + 16]
            case 4:
                at = place()
                raw[at : at + 4] = rng.randrange(1 << 32).to_bytes(4, rng.choice(("little", "big")))
    return bytes(raw)


@pytest.mark.parametrize("name", FORMATS)
def test_mutants_are_read_or_refused_in_one_short_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    original, path = FORMATS[name](), tmp_path / name
    path.parent.mkdir(exist_ok=True)
    rng, errors = random.Random(name), []
    tracemalloc.start()
    try:
        for raw in (original, *(mutant(original, rng) for _ in range(MUTANTS))):
            path.write_bytes(raw)
            try:
                data.load(path.parent if "ubyte" in name else path, "all")
            except UndiffuseError as error:
                errors.append((raw == original, str(error)))
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert MUTANTS / 10 < len(errors) < MUTANTS
    assert [(broken, text) for broken, text in errors if broken or not 10 < len(text) < LONGEST_MESSAGE] == []
    assert pyarrow.default_memory_pool().max_memory() < MOST_MEMORY


SHAPE = b"'shape': (4, 5, 6), "


@pytest.mark.parametrize(
    "shape", [(4_000_000_000, 5, 6), (1 << 62, 5, 6), (1 << 70, 5, 6), (4, 5, 5), (-4, 5, 6), (4, 5, 7)]
)
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "zipped.npz"])
def test_a_header_that_promises_more_than_there_is(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header keeps its length: it is padded to a multiple of 64 bytes."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("numpy.lib.format.open_memmap", lambda *_, **__: pytest.fail("allocated"))
    new = f"'shape': {shape}, ".encode()
    header = _npy()[:128]
    changed = header.replace(SHAPE, new).replace(b" " * (len(new) - len(SHAPE)) + b"\n", b"\n")[:127] + b"\n"
    assert len(changed) == 128 and new in changed
    array = changed + _npy()[128:]
    if name == "x.npy":
        (tmp_path / name).write_bytes(array)
    else:
        kind = zipfile.ZIP_DEFLATED if "zipped" in name else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            archive.writestr("images.npy", array)
    with pytest.raises(UndiffuseError, match=r"promises|states"):
        data.load(tmp_path / name)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_an_idx_header_that_promises_more_than_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    raw = idx.UBYTE_IMAGES + b"\xff" * 12 + _images().tobytes()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(UndiffuseError, match="too short for the 79,228,162,458,924,105,385,300,197,375 bytes"):
        data.load(tmp_path)
