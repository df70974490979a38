"""Every figure the tool draws. Images are uint8 (N, H, W, C) arrays; figures are PNG files, written atomically."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from undiffuse.files import atomic_file

MARGIN = 2


def grid_of(images: np.ndarray, columns: int | None = None, background: int = 255) -> np.ndarray:
    """The images as one, row by row: uint8 (H', W', C). `columns` None: as square as can be."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, channels), background, np.uint8
    )
    for index, image in enumerate(images):
        y, x = (MARGIN + place * (side + MARGIN) for place, side in zip(divmod(index, columns), (height, width), strict=True))
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_image(image: np.ndarray, path: str | Path, scale: int = 1) -> None:
    """One uint8 (H, W, C) image as PNG, each pixel `scale` pixels to a side."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")


def save_grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """The images as one PNG, small ones enlarged so that they can be seen."""
    save_image(grid_of(images, columns), path, scale=max(1, round(64 / images.shape[1])))
