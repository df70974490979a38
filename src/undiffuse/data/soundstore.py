"""Finished sounds in the cache: memory-mapped rows, written once and completely, opened instantly."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.clips import Clips
from undiffuse.data.soundrows import Span
from undiffuse.data.splits import SPLITS
from undiffuse.data.stored import fingerprint


@dataclass(frozen=True)
class StoredSounds:
    """Rows of both splits, those to train on first; fields as in SoundSet.

    train         how many rows are to train on
    fingerprints  of each split
    """

    rows: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    train: int
    rate: int
    classes: tuple[str, ...]
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    attributes: dict[str, tuple[str, ...]]
    licence: str
    fingerprints: dict[str, str]
    skipped: int
    remarks: tuple[str, ...]

    def part(self, split: str) -> slice:
        """The rows of a split."""
        return _part(self.train, split)


def read(folder: Path) -> StoredSounds | None:
    """What `build` left in `folder`; None if there is nothing or it is damaged, so that it is built again."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        lengths = np.load(folder / "lengths.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False) if meta["labelled"] else None
        if rows.dtype != np.int16 or list(rows.shape) != meta["shape"]:
            return None
        if any(one is not None and (one.dtype != np.int64 or len(one) != len(rows)) for one in (lengths, labels)):
            return None
        return StoredSounds(
            rows=rows,
            lengths=lengths,
            labels=labels,
            train=meta["train"],
            rate=meta["rate"],
            classes=tuple(meta["classes"]),
            names=tuple(meta["names"]),
            captions=tuple(map(tuple, meta["captions"])),
            attributes={key: tuple(values) for key, values in meta["attributes"].items()},
            licence=meta["licence"],
            fingerprints=meta["fingerprints"],
            skipped=meta["skipped"],
            remarks=tuple(meta["remarks"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finish(folder: Path, clips: Clips, spans: Sequence[Span], rate: int, train: int, facts: dict[str, Any]) -> None:
    """Completes a folder that already holds rows.npy: adds lengths, labels, fingerprints and the other facts.

    spans  of `clips`, of which the first `train` are to train on
    """
    of = [span.sound for span in spans]
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    np.save(folder / "lengths.npy", np.array([span.end - span.start for span in spans], dtype=np.int64))
    labels = None if clips.labels is None else clips.labels[of]
    if labels is not None:
        np.save(folder / "labels.npy", labels)
    captions = [clips.captions[sound] for sound in of] if clips.captions else []
    prints = {}
    for split in SPLITS:
        part = _part(train, split)
        found = fingerprint(rows[part], None if labels is None else labels[part], clips.classes, captions[part])
        prints[split] = hashlib.sha256(json.dumps([found, rate]).encode()).hexdigest()
    several = Counter(of)
    facts = {
        **facts,
        "shape": rows.shape,
        "train": train,
        "rate": rate,
        "labelled": labels is not None,
        "classes": clips.classes,
        "names": [
            clips.names[span.sound] + f", {span.start / rate:.2f} s" * (several[span.sound] > 1) for span in spans
        ],
        "captions": captions,
        "attributes": {key: [values[sound] for sound in of] for key, values in clips.attributes.items()},
        "licence": clips.licence,
        "fingerprints": prints,
    }
    (folder / "meta.json").write_text(json.dumps(facts), encoding="utf-8")


def _part(train: int, split: str) -> slice:
    return {"train": slice(train), "test": slice(train, None), "all": slice(None)}[split]
