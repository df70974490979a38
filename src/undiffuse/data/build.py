"""From Content to a finished cache folder: survey the headers, decode every image once, stream it to disk."""

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from undiffuse.cache import writing
from undiffuse.data import policy
from undiffuse.data.imageset import MixedSizes
from undiffuse.data.reading import report
from undiffuse.data.source import Content, Header
from undiffuse.data.stored import finish
from undiffuse.errors import UndiffuseError
from undiffuse.names import format_shape

CHUNK = 256
DARK = 64  # the brightest of 14-bit values stored in 16 bits; 12-bit values reach 16, masks 1
Tick = Callable[[int, int], None]
T = TypeVar("T")


def build(
    content: Content,
    chosen: np.ndarray,
    folder: Path,
    size: int | None,
    channels: int | None,
    skip_corrupt: bool,
    progress: Tick | None,
) -> None:
    """Writes the images at the positions `chosen`, int64 (n,), to the cache folder, atomically.

    If `size` or `channels` is None, it is decided from the whole content, so that both splits agree. Raises
    UndiffuseError with one report of all unreadable images in both splits, unless `skip_corrupt` leaves them out, and
    if none remain.
    """
    with quiet_pillow(), writing(folder) as temporary:
        size, channels = _decide(content, size, channels)
        good, reasons = _decode(content, chosen, temporary / "images.npy", size, channels, progress)
        skipped, remarks = len(reasons), list(content.remarks)
        reasons |= _unreadable_elsewhere(content, chosen)
        if reasons:
            message = report([(content.where(index), reason) for index, reason in reasons.items()], content.count)
            if not skip_corrupt or not good.any():
                raise UndiffuseError(message + ("" if skip_corrupt else "\nUse --skip-corrupt to leave them out."))
            remarks.append(f"{message}\nThey are left out.")
            if skipped:
                _compact(temporary / "images.npy", good)
        remarks += nearly_black(np.load(temporary / "images.npy", mmap_mode="r"))
        kept = chosen[good]
        labels = None if content.labels is None else content.labels[kept]
        if labels is not None and (labels < 0).any():
            labels = None
        captions = [content.captions[index] for index in kept] if content.captions else []
        facts = {
            "classes": () if labels is None else content.classes,
            "names": [content.names[index] for index in kept] if content.names else [],
            "captions": captions if any(captions) else [],
            "attributes": {key: [values[index] for index in kept] for key, values in content.attributes.items()},
            "licence": content.licence,
            "skipped": skipped,
            "remarks": remarks,
        }
        finish(temporary, labels, facts)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silences Pillow's warnings about odd files: all that matters here is whether it can read the picture."""
    log = logging.getLogger("PIL")
    level = log.level
    with warnings.catch_warnings():  # here, not where files are read: it is not thread-safe
        warnings.filterwarnings("ignore", module=r"PIL\b")
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


def nearly_black(images: np.ndarray) -> list[str]:
    """A remark if all of the uint8 (N, H, W, C) are so dark that their full scale cannot be 255."""
    brightest = max(int(images[start : start + CHUNK].max()) for start in range(0, len(images), CHUNK))
    if brightest > DARK:
        return []
    return [
        f"nearly black: the brightest value of all images is {brightest} of 255. If white has another value in these "
        "files (such as 1, 15 or 4095 instead of 255, or 65535 in 16 bits), scale them to that range and save them."
    ]


def of_own_size(content: Content) -> Content:
    """The content with its images kept at their stored size. Raises MixedSizes if they have different sizes."""
    found = sizes(content)
    if len(found) > 1:
        raise MixedSizes(f"images of {len(found)} sizes, from {format_shape(found[0])} to {format_shape(found[-1])}")
    return dataclasses.replace(content, keep_size=True)


def sizes(content: Content) -> list[tuple[int, int]]:
    """The distinct stored sizes (height, width) of the readable images, ascending."""
    return sorted({(header.height, header.width) for header in _survey(content) if header is not None})


def _decide(content: Content, size: int | None, channels: int | None) -> tuple[int | None, int]:
    open_size = size is None and not content.keep_size
    if not open_size and channels is not None:
        return size, channels
    headers = [header for header in _survey(content) if header is not None]
    if open_size:
        size = policy.default_size(headers)
    return size, policy.default_channels(headers) if channels is None else channels


def _survey(content: Content) -> Iterator[Header | None]:
    def attempt(index: int) -> Header | None:
        try:
            return content.header(index)
        except Exception:  # decoding reports it, with its reason
            return None

    for _, header in _in_parallel(attempt, np.arange(content.count)):
        yield header


def _decode(
    content: Content, chosen: np.ndarray, path: Path, size: int | None, channels: int, progress: Tick | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Streams the readable images to `path`; returns which rows are good, bool (n,), and why the others are not."""

    def attempt(index: int) -> np.ndarray | str:
        try:
            return policy.fit(content.read(index), size, channels)
        except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken files
            return str(error) or type(error).__name__

    good = np.zeros(len(chosen), dtype=bool)
    reasons: dict[int, str] = {}
    images = None
    for row, (index, outcome) in enumerate(_in_parallel(attempt, chosen)):
        if isinstance(outcome, str):
            reasons[index] = outcome
        else:
            if images is None:  # the first readable image sets the shape of all
                images = _create(path, (len(chosen), *outcome.shape))
            if outcome.shape == images.shape[1:]:
                images[row] = outcome
                good[row] = True
            else:  # kept at their own size, but some are rotated by EXIF
                reasons[index] = (
                    f"it is {format_shape(outcome.shape)}, but earlier images are {format_shape(images.shape[1:])}"
                )
        if progress is not None:
            progress(row + 1, len(chosen))
    if images is not None:
        images.flush()
    return good, reasons


def _unreadable_elsewhere(content: Content, chosen: np.ndarray) -> dict[int, str]:
    """Why images of the other split cannot be read: a broken folder is refused whichever split is requested."""

    def attempt(index: int) -> str | None:
        try:
            content.read(index)
        except Exception as error:
            return str(error) or type(error).__name__
        return None

    if content.keep_size:  # arrays are readable or not as a whole
        return {}
    others = np.setdiff1d(np.arange(content.count), chosen)
    return {index: reason for index, reason in _in_parallel(attempt, others) if reason is not None}


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of uint8, mapped for writing, with its disk space allocated."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk shows only later, as a bus error on writing
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _in_parallel(task: Callable[[int], T], indices: np.ndarray) -> Iterator[tuple[int, T]]:
    """Yields (index, result) in order. Pillow decodes outside the GIL; chunks bound the results held in memory."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK].tolist()
            yield from zip(chunk, pool.map(task, chunk), strict=True)


def _compact(path: Path, good: np.ndarray) -> None:
    """Rewrites the images at `path` with only the good rows."""
    images = np.load(path, mmap_mode="r")
    rows = np.flatnonzero(good)
    smaller = path.with_name("kept.npy")
    kept = _create(smaller, (len(rows), *images.shape[1:]))
    for target, row in enumerate(rows):
        kept[target] = images[row]
    kept.flush()
    smaller.replace(path)
