"""The prediction of a denoiser for a state of a Gaussian process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from undiffuse.process.laws import expand
from undiffuse.process.schedule import NoiseLevel, Time, float64_device


@dataclass(frozen=True)
class Prediction:
    """The prediction of a denoiser at x_t, shaped like it.

    Attributes:
        x0: the expected data, E[x_0 | x_t].
        eps: the corresponding noise, (x_t - alpha_t x0) / sigma_t.
        v: where the log-variance of p(x_s | x_t) lies between the posterior's (0) and the transition's (1): v of
            Nichol & Dhariwal 2021, eq. 15, not clipped, as there; None if it was not learned.
        logits: for the target "categorical", ln p(x_0 = v | x_t) per element and value, up to a constant per
            element: (B, C, ..., values).
        unguided: of a guided denoiser, the x_0 that guidance moves away from (`undiffuse.guidance.difference`).
    """

    x0: Tensor
    eps: Tensor
    v: Tensor | None = None
    logits: Tensor | None = None
    unguided: Tensor | None = None

    def with_x0(self, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> "Prediction":
        """This prediction with another x_0 and the corresponding eps."""
        eps = (x_t - expand(level.alpha, x_t) * x0) / expand(level.sigma, x_t)
        return Prediction(x0, eps, self.v, self.logits, self.unguided)

    def rows(self, rows: Tensor | slice) -> "Prediction":
        """The prediction of some samples."""
        v, logits, unguided = (None if z is None else z[rows] for z in (self.v, self.logits, self.unguided))
        return Prediction(self.x0[rows], self.eps[rows], v, logits, unguided)

    def split(self, count: int) -> list["Prediction"]:
        """The predictions of `count` batches of one size that were evaluated as one, in order."""
        size = len(self.x0) // count
        return [self.rows(slice(first, first + size)) for first in range(0, len(self.x0), size)]

    def double(self) -> "Prediction":
        """What the `reverse` of a process needs, in float64: all but the logits."""
        x0, eps = (float64_device(z).double() for z in (self.x0, self.eps))
        return Prediction(x0, eps, None if self.v is None else float64_device(self.v).double())


Denoise = Callable[[Tensor, Time], Any]
"""(x_t, t) -> the prediction that the process's `reverse` takes (`Prediction`, or a `Categorical` over x_0): a denoiser
with its condition bound, which is all that samplers and guidance need."""
