"""Where samples go: one grid, a folder of pictures, or an array. Every file is whole or absent."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from undiffuse.errors import UsageError
from undiffuse.files import atomic_file
from undiffuse.plots import save_grid, save_image

MOST_IN_A_GRID = 4096


def fresh(path: Path) -> Path:
    """`path`, or where something is there already, the first of path-2, path-3 ... that is free."""
    suffix = "" if path.is_dir() else path.suffix  # a folder's name may have a dot in it
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")
    return free


def check(out: Path, count: int) -> None:
    """Refuses what cannot be written, before the work: UsageError for an unknown suffix or too large a grid."""
    suffix = "" if out.is_dir() else out.suffix.lower()
    if suffix[1:].isalpha() and suffix not in (".png", ".npz", ".npy"):
        raise UsageError(f"--out {out}: write .png (a grid), .npz, .npy, or a folder's name")
    if not suffix[1:].isalpha() and out.is_file():
        raise UsageError(f"--out {out} is a file, not a folder")
    if suffix == ".png" and count > MOST_IN_A_GRID:
        raise UsageError(f"--out {out}: a grid holds at most {MOST_IN_A_GRID} samples; write a folder or .npz")


def write(out: Path, images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> str:
    """Writes uint8 (N, H, W, C) images where `out` says, and returns a line that says what was written.

    .npz holds `images` and, for a model with classes, `labels` and `classes`: what `undiffuse train` reads.
    """
    suffix = "" if out.is_dir() else out.suffix.lower()
    what = f"{len(images)} samples of {images.shape[1]}x{images.shape[2]}"
    if suffix == ".png":
        save_grid(images, out)
    elif suffix == ".npy":
        with atomic_file(out) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    elif suffix == ".npz":
        with atomic_file(out) as temporary, temporary.open("wb") as file:
            if labels is None:
                np.savez_compressed(file, images=images)
            else:
                np.savez_compressed(file, images=images, labels=labels, classes=np.array(classes))
    else:
        for number, image in enumerate(images):
            save_image(image, out / f"{number:06d}.png")
    return f"{what}: {out}"
