"""Masks for models that learn to inpaint: what is hidden of each training picture."""

import numpy as np

from undiffuse.randomness import BatchDraw

ALL, INSIDE, OUTSIDE = 0.4, 0.7, 0.85
"""Cumulative shares: everything is hidden, the inside of a rectangle, its outside; else what brush strokes cover."""
STROKES = 4


def draw_masks(size: tuple[int, int], draw: BatchDraw) -> np.ndarray:
    """bool (B, 1, H, W), true where the picture is hidden.

    Rectangles have sides from a fifth to all of the picture's and may lie at its edge; brush strokes are segments with
    round ends, up to a fifth of the picture wide.
    """
    y, x = ((np.arange(side) + 0.5) / side for side in size)
    kind = draw.uniform()[:, None, None]
    sides, corners = 0.2 + 0.8 * draw.uniform(2), draw.uniform(2)
    low = corners * (1 - sides)
    in_rows, in_columns = (
        (place[None] >= low[:, axis, None]) & (place[None] < (low + sides)[:, axis, None])
        for axis, place in enumerate((y, x))
    )
    rectangle = in_rows[:, :, None] & in_columns[:, None, :]
    start, end, radius = draw.uniform(STROKES, 2), draw.uniform(STROKES, 2), 0.03 + 0.07 * draw.uniform(STROKES)
    places = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[None, None]  # (1, 1, H, W, 2)
    along = (end - start)[:, :, None, None]
    share = ((places - start[:, :, None, None]) * along).sum(-1) / (along**2).sum(-1).clip(1e-9)
    nearest = start[:, :, None, None] + share.clip(0, 1)[..., None] * along
    strokes = (((places - nearest) ** 2).sum(-1) < radius[:, :, None, None] ** 2).any(1)
    hidden = np.where(kind < INSIDE, rectangle, np.where(kind < OUTSIDE, ~rectangle, strokes)) | (kind < ALL)
    return hidden[:, None]
