"""The kernel distance: an unbiased squared maximum mean discrepancy; with Inception features, KID."""

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.blocks import blocks
from undiffuse.metrics.intervals import Measure


def _sums(a: np.ndarray, b: np.ndarray, same: bool) -> tuple[Tensor, Tensor]:
    """Sums of k(a_i, b_j) = (a_i . b_j / D + 1)^3 over j (N,) and over i (M,); if `same`, a is b and i = j left out."""
    over_b, over_a = (torch.zeros(len(z), dtype=torch.float64) for z in (a, b))
    for rows, x in blocks(a):
        for columns, y in blocks(b):
            k = (x @ y.T / x.shape[1] + 1) ** 3
            if same and rows == columns:
                k.fill_diagonal_(0)
            over_b[rows] += k.sum(1)
            over_a[columns] += k.sum(0)
    return over_b, over_a


def measure_kernel(samples: np.ndarray, reference: np.ndarray) -> dict[str, Measure]:
    """MMD^2 with the cubic kernel (Binkowski et al. 2018, section 4), over all pairs instead of random subsets.

    The interval is 1.96 jackknife standard errors: every sample and every reference item is left out once, exactly,
    using its row sums. The estimate is unbiased, so it may be negative. samples (N, D), reference (M, D), N and M at
    least 2; with fewer than 3, none can be left out and there is no interval.
    """
    n, m = len(samples), len(reference)
    xx, yy = (_sums(z, z, same=True)[0] for z in (samples, reference))
    xy, yx = _sums(samples, reference, same=False)
    within_x, within_y, between = xx.sum(), yy.sum(), xy.sum()

    def estimate(within_x: Tensor, n: int, within_y: Tensor, m: int, between: Tensor) -> Tensor:
        return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)

    value = float(estimate(within_x, n, within_y, m, between))
    if min(n, m) < 3:
        return {"kernel": Measure(value)}
    without_x = estimate(within_x - 2 * xx, n - 1, within_y, m, between - xy)
    without_y = estimate(within_x, n, within_y - 2 * yy, m - 1, between - yx)
    variance = sum((len(z) - 1) * float(z.var(correction=0)) for z in (without_x, without_y))
    error = 1.96 * variance**0.5
    return {"kernel": Measure(value, value - error, value + error)}
