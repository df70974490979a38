"""A flow map learnt from the paths of its teacher: X_{t -> s}(x) is where a sampler that passed x at t was at s.

For one jump these are pairs of noise and sample, and the loss is knowledge distillation (Luhman & Luhman 2021). A path
is as exact as its sampler, where `undiffuse.objectives.flow_map` learns from ends of its own.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.flow_map import aim, pseudo_huber
from undiffuse.randomness import Draw


class Leaps(NamedTuple):
    """Parts of paths: states (B, ...) at t and at s < t, times float64 (B,), and the condition of each path."""

    x_t: Tensor
    t: Tensor
    x_s: Tensor
    s: Tensor
    condition: Condition | None


class Paths(Protocol):
    """The paths of a teacher (`undiffuse.training.paths`)."""

    def leaps(self, u: Tensor) -> Leaps:
        """Those that u (B,) in [0, 1) chooses."""


def paths(
    denoiser: Denoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw, *, paths: Paths
) -> Tensor:
    """The pseudo-Huber distance of x_0 as the student needs it for its jump, from that which ends where the teacher's
    path does: (B,). The data itself is not asked for."""
    x_t, t, x_s, s, given = paths.leaps(u)
    target = aim(denoiser.process, x_s, x_t, t, s)
    return pseudo_huber(denoiser.jump(x_t, t, s, given).x0 - target)
