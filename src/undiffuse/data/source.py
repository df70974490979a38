"""What every reader (folder, arrays, IDX, hub, built-in) returns: a Source, opened as Content when needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

NOT_STATED = "not stated"


class Header(NamedTuple):
    """What is known about an image without decoding it; the size is as stored, before any EXIF rotation."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class Content:
    """All images of a source, of both splits, none of them read yet.

    read and header take an index and raise any exception for an image that cannot be read.
    labels are -1 where an image has none; a split with such images is unlabelled.
    test marks the images of the test split, bool (count,); None lets `splits.held_out` choose them.
    remarks are for the user, such as which parts of the source are not used: logged whenever it is loaded.
    captions and attributes are as in ImageSet, for all images.
    keep_size: unless a size is requested, images stay as they are (arrays); else `policy.default_size` decides.
    """

    count: int
    read: Callable[[int], "Image.Image | np.ndarray"]
    header: Callable[[int], Header]
    where: Callable[[int], str] = field(default=lambda index: f"image {index}")
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test: np.ndarray | None = None
    keep_size: bool = False
    licence: str = NOT_STATED
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where images come from. Equal identities (JSON values) promise equal content, so `open` runs once per cache."""

    identity: Any
    open: Callable[[], Content]


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    test: np.ndarray | None = None,
    licence: str = NOT_STATED,
) -> Content:
    """Content over ready images: uint8 (N, H, W, C) with C in {1, 3}."""
    height, width, channels = images.shape[1:]
    header = Header(width, height, grey=channels == 1)
    return Content(
        count=len(images),
        read=lambda index: images[index],
        header=lambda index: header,
        labels=labels,
        classes=classes,
        names=names,
        test=test,
        keep_size=True,
        licence=licence,
    )
