"""Non-leaking augmentation of pictures (Karras et al. 2022, appendix F.2).

Training pictures are moved at random, and the network gets the parameters of the moves as a condition. A sample is
drawn with all of them 0, so it looks like an unmoved picture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from undiffuse.randomness import BatchDraw

LABELS = 9
"""How many numbers describe a move."""
SCALE = STRETCH = 0.2  # standard deviation in octaves
SHIFT = 1 / 8  # standard deviation as a share of the side


@dataclass(frozen=True)
class Moves:
    """The moves of N pictures in the order in which they are applied, float64 (N,) each. 0 everywhere is no move.

    Attributes:
        mirror: 1 swaps left and right.
        flip: 1 swaps top and bottom.
        scale: enlarges by 2^(0.2 scale).
        angle: rotates counter-clockwise, in radians.
        stretch: enlarges by 2^(0.2 stretch) along `direction` and shrinks by as much across it.
        direction: counter-clockwise from the horizontal, in radians.
        right, down: shift, in eighths of the width and of the height.
    """

    mirror: np.ndarray
    flip: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    stretch: np.ndarray
    direction: np.ndarray
    right: np.ndarray
    down: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """What the network gets, float32 (N, LABELS): 0 for a picture that is not moved (table 6).

        The stretch is given by twice its direction: -stretch along a direction is stretch across it, and the paper's
        stretch (cos, sin) of the direction itself is the same for two different moves.
        """
        columns = (
            self.mirror,
            self.flip,
            self.scale,
            np.cos(self.angle) - 1,
            np.sin(self.angle),
            self.stretch * np.cos(2 * self.direction),
            self.stretch * np.sin(2 * self.direction),
            self.right,
            self.down,
        )
        return np.stack(columns, 1).astype(np.float32)

    def matrices(self, height: int, width: int) -> np.ndarray:
        """The maps from input to output pixels, float64 (N, 3, 3); x to the right, y down, 0 in the centre."""
        still, turn = np.zeros_like(self.angle), _rotation(self.direction)
        along = _diagonal(2 ** (STRETCH * self.stretch), 2 ** (-STRETCH * self.stretch))
        moves = _diagonal(1 - 2 * self.mirror, 1 - 2 * self.flip)
        moves = _diagonal(2 ** (SCALE * self.scale), 2 ** (SCALE * self.scale)) @ moves
        moves = turn @ along @ turn.swapaxes(1, 2) @ _rotation(self.angle) @ moves
        shift = _diagonal(still + 1, still + 1)
        shift[:, 0, 2], shift[:, 1, 2] = SHIFT * width * self.right, SHIFT * height * self.down
        result: np.ndarray = shift @ moves
        return result


def draw_moves(probability: float, draw: BatchDraw) -> Moves:
    """Each of the six moves with this probability, independently; the sizes as in table 6."""

    def either(values: np.ndarray) -> np.ndarray:
        return np.where(draw.uniform() < probability, values, 0.0)

    mirror, flip = (either((draw.uniform() < 0.5).astype(float)) for _ in range(2))
    scale = either(draw.normal())
    angle = either((2 * draw.uniform() - 1) * np.pi)
    stretch, direction = either(draw.normal()), (2 * draw.uniform() - 1) * np.pi
    right, down = np.where(draw.uniform() < probability, draw.normal(2).T, 0.0)
    return Moves(mirror, flip, scale, angle, stretch, direction, right, down)


def moved(rows: np.ndarray, moves: Moves) -> np.ndarray:
    """uint8 (N, H, W, C) -> the same, moved: bicubic, the pictures continued by reflection at their edges.

    Exact where pixels come to lie on pixels: flips, quarter turns of squares, shifts by whole pixels.
    """
    changed = moves.labels.any(1)
    if not changed.any():
        return rows
    height, width = rows.shape[1:3]
    pixels = np.diag([width / 2, height / 2, 1.0])  # grid_sample has the edges of the picture at -1 and 1
    inverse = np.linalg.inv(pixels) @ np.linalg.inv(moves.matrices(height, width)[changed]) @ pixels
    x = torch.from_numpy(np.ascontiguousarray(rows[changed].transpose(0, 3, 1, 2))).float()
    grid = functional.affine_grid(torch.from_numpy(inverse[:, :2]).float(), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, "bicubic", padding_mode="reflection", align_corners=False)
    result = rows.copy()
    result[changed] = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return result


def _diagonal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    matrix = np.zeros((len(x), 3, 3))
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = x, y, 1
    return matrix


def _rotation(angle: np.ndarray) -> np.ndarray:
    """Counter-clockwise where y points down."""
    matrix = _diagonal(np.cos(angle), np.cos(angle))
    matrix[:, 0, 1], matrix[:, 1, 0] = np.sin(angle), -np.sin(angle)
    return matrix
