"""The interface of every process, Gaussian or categorical: adding noise, and the laws of less noisy states."""

from typing import Any, Protocol

from torch import Tensor

from undiffuse.process.laws import Law
from undiffuse.process.schedule import Schedule, Time
from undiffuse.randomness import Draw


class Process(Protocol):
    """q for a schedule, and the family of p. Data and states are (B, ...).

    Times are floats or float64 tensors, one per batch or one per sample; always s < t.
    """

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""

    def marginal(self, x0: Tensor, t: Time) -> Law:
        """q(x_t | x_0)."""

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Law:
        """q(x_t | x_s)."""

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Law:
        """q(x_s | x_t, x_0); x_0 at s = 0."""

    def reverse(self, prediction: Any, x_t: Tensor, s: Time, t: Time, variance: Any = "small") -> Law:
        """p(x_s | x_t) for a denoiser's prediction; `variance` is for processes that leave it open."""

    def prior(self, like: Tensor) -> Law:
        """p(x_1), which sampling starts from, shaped like `like`."""

    def corrupt(self, x0: Tensor, t: Time, draw: Draw) -> Tensor:
        """x_t ~ q(x_t | x_0)."""
