"""The average of the weights along a run, with a power-function profile (Karras et al. 2024, EDM2, section 3.1).

Its width is a share of the run so far, so one setting fits runs of every length, and the first steps are forgotten.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def exponent(width: float) -> float:
    """gamma of the profile t^gamma whose relative standard deviation is `width` (EDM2, appendix C)."""
    squared = width**-2
    roots = np.roots([1, 7, 16 - squared, 12 - squared])
    return float(roots.real.max())


class EMA:
    """Keeps the average of `parameters` (never of buffers), in place and in one fused call per step."""

    def __init__(self, parameters: Sequence[Tensor], width: float):
        self.gamma = exponent(width)
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        """Adds the parameters after `step` steps (from 1): beta = (1 - 1/step)^(gamma + 1) (EDM2, section 3.1)."""
        beta = (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1 - beta)
