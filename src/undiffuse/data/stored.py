"""Finished data sets in the cache: memory-mapped uint8 images, written once and completely, opened instantly."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 3
HASH_CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """A finished data set in the cache; fields as in ImageSet, and remarks to be logged whenever it is loaded."""

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    attributes: dict[str, tuple[str, ...]]
    licence: str
    fingerprint: str
    skipped: int
    remarks: tuple[str, ...]


def finish(folder: Path, labels: np.ndarray | None, facts: dict[str, Any]) -> None:
    """Completes a folder that already holds images.npy: adds the labels, the fingerprint and the other facts."""
    if labels is not None:
        np.save(folder / "labels.npy", labels.astype(np.int64))
    images = np.load(folder / "images.npy", mmap_mode="r")
    facts = {
        **facts,
        "shape": images.shape,
        "labelled": labels is not None,
        "fingerprint": fingerprint(images, labels, facts["classes"], facts["captions"]),
    }
    (folder / "meta.json").write_text(json.dumps(facts), encoding="utf-8")


def read(folder: Path) -> Stored | None:
    """The data set that `finish` left in `folder`; None if there is none or it is damaged, so that it is rebuilt."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False) if meta["labelled"] else None
        if images.dtype != np.uint8 or list(images.shape) != meta["shape"]:
            return None
        if labels is not None and (labels.dtype != np.int64 or labels.shape != (len(images),)):
            return None
        return Stored(
            images=images,
            labels=labels,
            classes=tuple(meta["classes"]),
            names=tuple(meta["names"]),
            captions=tuple(map(tuple, meta["captions"])),
            attributes={key: tuple(values) for key, values in meta["attributes"].items()},
            licence=meta["licence"],
            fingerprint=meta["fingerprint"],
            skipped=meta["skipped"],
            remarks=tuple(meta["remarks"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint(
    images: np.ndarray,
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    captions: Sequence[Sequence[str]] = (),
) -> str:
    """sha256 over shape, rows (little-endian), labels, class names and captions, hexadecimal; the same on every
    machine."""
    digest = hashlib.sha256(json.dumps([list(images.shape), list(classes)]).encode())
    flat = images.reshape(-1)
    for start in range(0, len(flat), HASH_CHUNK):
        chunk = flat[start : start + HASH_CHUNK]
        digest.update(chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    if captions:
        digest.update(json.dumps(captions, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
