"""A folder of images of any mode, size and depth; its subfolders are splits and classes, its text files captions."""

from pathlib import Path

import numpy as np

from undiffuse.data import policy
from undiffuse.data.caption_files import find_captions, read_captions
from undiffuse.data.layout import arrange
from undiffuse.data.remarks import kinds, readable, some, warn
from undiffuse.data.source import Content, Source
from undiffuse.data.walk import READ, walk
from undiffuse.errors import UsageError


def open_folder(root: Path) -> Source:
    """Source over every image under `root`, with the splits and classes that `layout.arrange` finds, and captions.

    Raises UsageError when there is no image, or when splits or classes are unclear; logs what is left out.
    """
    found = walk(root)
    place = readable(str(root))
    for remark in found.remarks:
        warn(remark)
    if not found.pictures:
        unread = f": {kinds(found.unread)} cannot be read; convert them to PNG" if found.unread else ""
        raise UsageError(f"no images in {place}{unread} (looked for {' '.join(sorted(READ))})")
    layout = arrange(root, found)
    texts = find_captions(root, found)
    for remark in (*layout.remarks, *texts.remarks):
        warn(remark)
    files = layout.files
    classes = class_names(place, {name for name in layout.classes if name is not None})

    def opened() -> Content:
        names = sorted(classes.values())
        labels = {text: label for label, text in enumerate(names)}
        position = {raw: labels[text] for raw, text in classes.items()} | {None: -1}
        captions, remarks = read_captions(root, found.pictures, files, texts)
        return Content(
            count=len(files),
            read=lambda index: policy.decode(root / files[index]),
            header=lambda index: policy.header(root / files[index]),
            where=lambda index: readable(str(files[index])),
            labels=np.array([position[name] for name in layout.classes], dtype=np.int64) if names else None,
            classes=tuple(names),
            names=tuple(readable(str(file)) for file in files),
            captions=captions,
            test=None if layout.test is None else np.array(layout.test),
            remarks=remarks,
        )

    stamps = [[str(file), *stamp(root / file)] for file in (*files, *texts.paths())]
    return Source(["folder", str(root.resolve()), stamps, layout.classes, layout.test], opened)


def class_names(place: str, names: set[str]) -> dict[str, str]:
    """Folder names -> class names. Raises UsageError if two become equal."""
    texts = {name: readable(name) for name in names}
    if len(set(texts.values())) < len(texts):
        raise UsageError(f"{place}: two class folders are both written {some(sorted(texts.values()))}; rename one")
    if odd := sorted(text for name, text in texts.items() if name != text):
        warn(f"{place}: class folders whose names are not plain UTF-8 text; their classes are written {some(odd)}")
    return texts


def stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:  # a broken link: reading it raises the error
        return 0, 0
    return facts.st_size, facts.st_mtime_ns
