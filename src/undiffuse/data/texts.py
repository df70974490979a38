"""Texts as rows of tokens: `load_text` reads a source once, caches its token numbers, and makes windows of them."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.cache import folder_for, locked, writing
from undiffuse.data.corpus import TextSource, cut
from undiffuse.data.imageset import ImageSet
from undiffuse.data.remarks import readable, some, warn
from undiffuse.data.splits import SPLITS
from undiffuse.data.stored import HASH_CHUNK
from undiffuse.data.textfiles import text_source
from undiffuse.data.tokens import MOST, Characters, Tokenizer, pieces
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import one_of
from undiffuse.registry import TOKENIZERS

FORMAT = 1
Tick = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TextSet(ImageSet):
    """One split of a text; `images` are the windows, uint16 (N, length), without a copy.

    To train: a window from every position of `flat`. To test: those side by side that tile it, so that each token is
    in one, but for the last few of `flat` (len(flat) % length).

    flat         all its tokens in order, uint16 (n,), a read-only memory map
    tokenizer    what they mean
    characters   how many characters they spell, for bits per character
    fingerprint  sha256 over the tokens, the facts of the tokenizer and the length
    """

    flat: np.ndarray
    tokenizer: Tokenizer
    characters: int


def load_text(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    tokens: str = "characters",
    vocabulary: int = 1024,
    length: int = 128,
    progress: Tick | None = None,
) -> TextSet:
    """Reads a text once, caches its tokens memory-mapped, and opens them from the cache from then on.

    Args:
        source: a name (`undiffuse.data.corpora`), or a path as `undiffuse.data.textfiles.text_source` takes it.
        split: "train", "test" (the last 5% of the characters, `undiffuse.data.corpus.cut`) or "all".
        tokens: a name in `undiffuse.registry.TOKENIZERS`; the tokenizer learns from the training split alone.
        vocabulary: K for tokens="bpe", 257 to 65,536; the others have what they need.
        length: tokens in a window.
        progress: called with (characters encoded, characters in all) while the cache is built.

    Raises UsageError for an invalid source or option, and for a text in which one of the splits is shorter than a
    window; UndiffuseError for one that is missing, is not text, or cannot be cached.
    """
    one_of("split", split, SPLITS)
    TOKENIZERS.check(tokens)
    if not 1 <= length <= MOST:
        raise UsageError(f"length must be from 1 to {MOST:,} tokens, not {length}")
    name = os.fspath(source)
    opened = text_source(name)
    folder = folder_for("texts", [FORMAT, opened.identity, tokens, vocabulary if tokens == "bpe" else None])
    stored = _read(folder)
    if stored is None:
        with locked(folder):
            stored = _read(folder)  # another process may have built it meanwhile
            if stored is None:
                _build(name, opened, folder, tokens, vocabulary, progress)
                stored = _read(folder)
                assert stored is not None, "a finished text can be read"
    flat, meta = stored
    first = meta["tokens"]["train"]
    if min(first, len(flat) - first) < length:
        raise UsageError(
            f"{readable(name)} is too short: {first:,} tokens to train on and {len(flat) - first:,} held out, but a "
            f"window has {length:,}. Take shorter windows (--set data.length=N) or more text"
        )
    for remark in meta["remarks"]:
        warn(f"{readable(name)}: {remark}")
    flat = {"train": flat[:first], "test": flat[first:], "all": flat}[split]
    facts = meta["facts"]
    return TextSet(
        name=name,
        split=split,
        images=_tiles(flat, length) if split == "test" else np.lib.stride_tricks.sliding_window_view(flat, length),
        labels=None,
        classes=(),
        names=(),
        licence=meta["licence"],
        fingerprint=hashlib.sha256(json.dumps([meta["sha256"][split], tokens, facts, length]).encode()).hexdigest(),
        domain="texts",
        flat=flat,
        tokenizer=TOKENIZERS[tokens].from_facts(facts),
        characters=meta["characters"][split],
    )


def _tiles(flat: np.ndarray, length: int) -> np.ndarray:
    return flat[: len(flat) // length * length].reshape(-1, length)


def _build(name: str, opened: TextSource, folder: Path, tokens: str, vocabulary: int, progress: Tick | None) -> None:
    """Writes the tokens of the training split and then of the other one to the cache folder, atomically."""
    corpus = opened.open()
    train, test, between = cut(corpus.documents)
    if not train.strip() or not test.strip():
        raise UndiffuseError(f"{readable(name)} holds {'next to ' * bool(train.strip() or test.strip())}no text")
    remarks = list(corpus.remarks)
    if between in ("word", "character"):
        remarks.append(f"no line or sentence ends near the last 5%, so the held-out text begins after a {between}")
    tokenizer: Tokenizer = TOKENIZERS[tokens].learnt(train, vocabulary)
    if isinstance(tokenizer, Characters) and (others := tokenizer.lacks(test)):
        tokenizer = tokenizer.reaching(test)
        remarks.append(
            f"{len(others)} characters of the held-out text are not in the training text and count as one, unknown: "
            f"{some(others)}"
        )
    whole, done = len(train) + len(test), 0
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for split, text in (("train", train), ("test", test)):
        for piece in pieces(text):
            parts[split].append(tokenizer.encode(piece))
            done += len(piece)
            if progress is not None:
                progress(done, whole)
    flat = {split: np.concatenate(some_ids) for split, some_ids in parts.items()}
    flat["all"] = np.concatenate([flat["train"], flat["test"]])
    facts = {
        "tokens": {split: len(ids) for split, ids in flat.items()},
        "characters": {"train": len(train), "test": len(test), "all": whole},
        "sha256": {split: _sha256(ids) for split, ids in flat.items()},
        "facts": tokenizer.facts,
        "licence": corpus.licence,
        "remarks": remarks,
    }
    with writing(folder) as temporary:
        np.save(temporary / "tokens.npy", flat["all"])
        (temporary / "meta.json").write_text(json.dumps(facts), encoding="utf-8")


def _read(folder: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """What `_build` left in `folder`; None if there is nothing or it is damaged, so that it is built again."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        flat = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        whole = flat.dtype == np.uint16 and flat.shape == (meta["tokens"]["all"],)
        return (flat, meta) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(ids: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(ids), HASH_CHUNK):
        digest.update(ids[start : start + HASH_CHUNK].astype("<u2").tobytes())
    return digest.hexdigest()
