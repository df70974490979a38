"""Linear maps of pictures (B, C, H, W), in any floating dtype, each with its exact adjoint."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Separable:
    """y = sum_c K[d, c] A x_c B^T: one matrix for each axis. A `LinearMap`.

    Attributes:
        channels: K (C', C), float64.
        rows: A (H', H), float64.
        columns: B (W', W), float64.
    """

    channels: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.channels.shape[1], self.rows.shape[1], self.columns.shape[1]

    @property
    def observed(self) -> tuple[int, ...]:
        """(C', H', W')."""
        return self.channels.shape[0], self.rows.shape[0], self.columns.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """H x."""
        k, a, b = (matrix.to(x) for matrix in (self.channels, self.rows, self.columns))
        return torch.einsum("dc,bchw->bdhw", k, a @ x @ b.T)

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y."""
        k, a, b = (matrix.to(y) for matrix in (self.channels, self.rows, self.columns))
        return a.T @ torch.einsum("dc,bdhw->bchw", k, y) @ b


@dataclass(frozen=True)
class Masked:
    """y is the pixels that are known, all their channels, row by row. A `LinearMap`.

    Attributes:
        shape: (C, H, W).
        known: bool (H, W).
    """

    shape: tuple[int, ...]
    known: Tensor

    @property
    def observed(self) -> tuple[int, ...]:
        """(C, K): K pixels are known."""
        return self.shape[0], int(self.known.sum())

    def forward(self, x: Tensor) -> Tensor:
        """H x."""
        return x[:, :, self.known.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y: 0 where nothing is known."""
        x = y.new_zeros(len(y), *self.shape)
        x[:, :, self.known.to(y.device)] = y
        return x


@dataclass(frozen=True)
class Matrix:
    """y = M x, x the picture as NumPy has it, (H, W, C) row by row. A `LinearMap`.

    Attributes:
        shape: (C, H, W).
        matrix: M (K, H W C), float64, dense or sparse.
    """

    shape: tuple[int, ...]
    matrix: Tensor

    @property
    def observed(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.matrix.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        """H x."""
        return (self.matrix.to(x) @ x.permute(0, 2, 3, 1).flatten(1).T).T

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y."""
        channels, height, width = self.shape
        return (self.matrix.to(y).T @ y.T).T.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
