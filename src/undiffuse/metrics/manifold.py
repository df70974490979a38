"""Quality and diversity as separate metrics, by nearest neighbours in feature space; copying, by those in pixels."""

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.blocks import blocks
from undiffuse.metrics.intervals import Measure, mean

PRECISION_RECALL_NEIGHBOURS = 3  # Kynkaanniemi et al. 2019, section 3.1
DENSITY_COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020, section 3.2


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 of (N, D) and (M, D): (N, M). Values at rounding level become 0, so equal items have distance 0."""
    norms = a.square().sum(1, keepdim=True) + b.square().sum(1)
    distances = norms - 2 * a @ b.T
    return distances.masked_fill_(distances < 8 * torch.finfo(a.dtype).eps * norms, 0)


def _radii(features: np.ndarray, centre: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Squared distances from each row to its k-th nearest other row, for every k in `neighbours`; inf without one."""
    most = max(neighbours)
    radii = torch.full((len(features), most), torch.inf, dtype=torch.float64)
    for rows, x in blocks(features):
        nearest = torch.empty(len(x), 0, dtype=torch.float64)
        for columns, y in blocks(features):
            distances = _squared_distances(x - centre, y - centre)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            together = torch.cat([nearest, distances], dim=1)
            nearest = together.topk(min(most, together.shape[1]), largest=False).values
        radii[rows, : nearest.shape[1]] = nearest
    # The same distance may be rounded differently in another block, and must still count as within.
    return [radii[:, k - 1] * (1 + 1e-9) for k in neighbours]


def measure_manifold(samples: np.ndarray, reference: np.ndarray) -> dict[str, Measure]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-2); density and coverage (Naeem et al. 2020).

    A manifold is the union of balls around items, out to their k-th nearest neighbour. Intervals resample the items
    averaged over, with the manifold fixed. samples (N, D), reference (M, D): if either has too few rows for a k-th
    neighbour, its balls are infinite and the values meaningless.
    """
    k = DENSITY_COVERAGE_NEIGHBOURS
    # Shifting both changes no distance, only its rounding.
    centre = sum((y.sum(0) for _, y in blocks(reference)), torch.zeros(1)) / len(reference)
    (reach_of_fake,) = _radii(samples, centre, (PRECISION_RECALL_NEIGHBOURS,))
    reach_of_real, wide = _radii(reference, centre, (PRECISION_RECALL_NEIGHBOURS, k))
    precise, dense = torch.zeros(len(samples), dtype=torch.bool), torch.zeros(len(samples))
    recalled, covered = torch.zeros(2, len(reference), dtype=torch.bool)
    for rows, x in blocks(samples):
        for columns, y in blocks(reference):
            distances = _squared_distances(x - centre, y - centre)
            precise[rows] |= (distances <= reach_of_real[columns]).any(1)
            recalled[columns] |= (distances <= reach_of_fake[rows, None]).any(0)
            near = distances <= wide[columns]
            dense[rows] += near.sum(1) / k
            covered[columns] |= near.any(0)
    return {
        "precision": mean(precise.numpy()),
        "recall": mean(recalled.numpy()),
        "density": mean(dense.numpy()),
        "coverage": mean(covered.numpy()),
    }


def nearest(queries: np.ndarray, items: np.ndarray, scale: float = 255) -> tuple[np.ndarray, np.ndarray]:
    """The nearest item of each query, such as uint8 (N, H, W, C): its distance and its index.

    Returns float64 (N,), the root mean square difference of numbers divided by `scale`, such as pixels in [0, 1], and
    int64 (N,), the item's index. The search is in float32; the distances of the items found are exact.
    """
    index = torch.zeros(len(queries), dtype=torch.int64)
    best = torch.full((len(queries),), torch.inf)
    for columns, y in blocks(items):
        y = (y / (scale / 2) - 1).float()
        for rows, x in blocks(queries):
            found, where = _squared_distances((x / (scale / 2) - 1).float(), y).min(1)
            closer = found < best[rows]
            best[rows] = torch.where(closer, found, best[rows])
            index[rows] = torch.where(closer, where + columns.start, index[rows])
    distance = np.empty(len(queries))
    for rows, x in blocks(queries):
        found = torch.from_numpy(np.array(items[index[rows].numpy()], dtype=np.float64)).flatten(1)
        distance[rows] = ((x - found) / scale).square().mean(1).sqrt().numpy()
    return distance, index.numpy()


def measure_copying(samples: np.ndarray, held_out: np.ndarray) -> dict[str, Measure]:
    """Whether samples are nearer to training images than images never trained on are, from their `nearest` distances.

    `nearer`: how often a sample is the nearer one of the two, ties counting half: 0.5 without copying, towards 1 with
    it (the U statistic of Meehan et al. 2020). `copies`: the share of samples nearer than all but 1% of the held-out
    images are: 0.01 without copying.
    """
    ordered = np.sort(held_out)
    below = np.stack([np.searchsorted(ordered, samples, side) for side in ("left", "right")]).mean(0)
    return {"nearer": mean(1 - below / len(ordered)), "copies": mean(samples < np.quantile(ordered, 0.01))}
