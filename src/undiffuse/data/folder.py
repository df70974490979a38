"""A folder of images: any mode, size and depth; the first level of subfolders names the classes."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from undiffuse.data import policy
from undiffuse.data.source import Content, Source
from undiffuse.errors import UsageError

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico", ".apng"),
)
TEST_FOLDERS = ("test", "val", "valid", "validation")


def open_folder(root: Path) -> Source:
    """Source over every image under `root`; raises UsageError when there is none, or when classes are unclear.

    train/ beside test/ (or val/, valid/, validation/) are the splits, and anything else beside them is not used.
    """
    files = sorted(_images(root))
    if not files:
        raise UsageError(f"no images in {root} (looked for {' '.join(EXTENSIONS)})")
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    held_out = next((name for name in TEST_FOLDERS if name in tops), None)
    own_split = "train" in tops and held_out is not None
    if own_split:
        files = [file for file in files if len(file.parts) > 1 and file.parts[0] in ("train", held_out)]
    names = _classes(root, files, depth=1 if own_split else 0)

    def opened() -> Content:
        classes = tuple(sorted(set(names)))
        position = {name: label for label, name in enumerate(classes)}
        return Content(
            count=len(files),
            read=lambda index: policy.decode(root / files[index]),
            header=lambda index: policy.header(root / files[index]),
            where=lambda index: str(files[index]),
            labels=np.array([position[name] for name in names], dtype=np.int64) if names else None,
            classes=classes,
            names=tuple(map(str, files)),
            test=np.array([file.parts[0] == held_out for file in files]) if own_split else None,
        )

    identity = ["folder", str(root.resolve()), [[str(file), *_stamp(root / file)] for file in files]]
    return Source(identity, opened)


def _images(root: Path) -> Iterator[PurePosixPath]:
    """Image files under `root`, relative to it; hidden ones are left out, links are followed, loops are not."""
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield PurePosixPath(Path(folder, name).relative_to(root).as_posix())


def _classes(root: Path, files: list[PurePosixPath], depth: int) -> list[str]:
    """The class name of each file, or [] when none has one."""
    loose = [file for file in files if len(file.parts) == depth + 1]
    if len(loose) == len(files):
        return []
    if loose:
        raise UsageError(
            f"{root}: {len(loose)} images lie beside class folders (the first is {loose[0]}). "
            "Move them into a class folder, or all images into one folder for a set without classes."
        )
    return [file.parts[depth] for file in files]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:  # a dangling link: reading it will say so
        return 0, 0
    return facts.st_size, facts.st_mtime_ns
