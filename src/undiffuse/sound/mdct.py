"""The modified discrete cosine transform of a finite clip, as an orthogonal matrix.

The transform with M bands (Princen and Bradley 1986; Princen, Johnson and Bradley 1987) is

    X_k(t) = sqrt(2 / M) sum_n w(n) x(t M - M / 2 + n) cos(pi / M (n + 1/2 + M / 2) (k + 1/2)),  n = 0 .. 2 M - 1

with the sine window w(n) = sin(pi (n + 1/2) / (2 M)). It is computed as a rotation of each pair of samples that lie
symmetrically about a border between blocks, and then the cosines of each block of M alone. Both are orthogonal. The two
ends of a clip have no neighbour, so there is no rotation there: the window is 1 up to the edge. The whole is therefore
an orthogonal L x L matrix, every coefficient is local in time (had the ends been joined to a circle, the first would
hear the last sample), and the density of a clip is that of its coefficients.
"""

import math

import torch
from torch import Tensor


def mdct(x: Tensor, bands: int) -> Tensor:
    """Waveforms (B, L) -> coefficients (B, M, L / M): an orthogonal map.

    `bands` is M, even, and divides L; else raises ValueError. Float32 or float64, on any device.
    """
    if bands < 2 or bands % 2 or x.shape[1] % bands:
        raise ValueError(f"{bands} bands: must be an even number that divides the length of the clips, {x.shape[1]}")
    blocks = _rotated(x.unflatten(1, (-1, bands)), 1)
    return _basis(blocks) @ blocks.transpose(1, 2)


def inverse_mdct(coefficients: Tensor) -> Tensor:
    """Coefficients (B, M, K) -> waveforms (B, K M): the transpose of `mdct`, and so its inverse."""
    blocks = coefficients.transpose(1, 2)
    return _rotated(blocks @ _basis(blocks), -1).flatten(1)


def _basis(blocks: Tensor) -> Tensor:
    """The cosines within a block of M samples, orthonormal (M, M); like `blocks` (B, K, M).

    One product with it is 3 times faster than an FFT for M of 64 and 128, and takes half of the usual 2 M x M basis.
    """
    bands = blocks.shape[2]
    k, n = (torch.arange(bands, dtype=torch.float64) + 0.5 for _ in range(2))
    basis = math.sqrt(2 / bands) * torch.cos(math.pi / bands * torch.outer(k, n + bands))
    return basis.to(blocks)


def _rotated(blocks: Tensor, direction: int) -> Tensor:
    """The pairs about every border between blocks (B, K, M), rotated by the window, or back for a `direction` of -1."""
    half = blocks.shape[2] // 2
    angle = math.pi / (4 * half) * (torch.arange(half, dtype=torch.float64) + 0.5 + half)
    near, far = angle.sin().to(blocks), direction * angle.cos().to(blocks)  # w(M / 2 + j) and w(M / 2 - 1 - j)
    before, after = blocks[:, :-1, half:].flip(2), blocks[:, 1:, :half]  # j samples before and after a border
    rotated = blocks.clone()
    rotated[:, :-1, half:] = (near * before + far * after).flip(2)
    rotated[:, 1:, :half] = near * after - far * before
    return rotated
