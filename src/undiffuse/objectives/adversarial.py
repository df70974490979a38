"""A student's samples, made sharp by a critic that sees data, while the teacher's paths keep them where they belong.

A regression on paths blurs what one evaluation cannot resolve; a critic alone forgets what is rare. Here the pairs of
noise and sample guard the recall (as in DMD, Yin et al. 2024, section 4.2), and the critic, on the teacher's features
of noisy data (LADD, Sauer et al. 2024), adds what the regression lacks. Nothing pretrained on other data is used.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.flow_map import aim, pseudo_huber, rows_of
from undiffuse.objectives.paths import Paths
from undiffuse.randomness import KeyedDraw

GUARD, ADVERSARY = 0.3, 3.0
"""The weights of the paths and of the critic."""


class Judge(Protocol):
    """What is trained beside a student (`undiffuse.training.companions`)."""

    def scores(
        self, x: Tensor, condition: Condition | None, x0: Tensor, given: Condition | None, draw: KeyedDraw
    ) -> Tensor:
        """The critic's scores (B,) of samples, which have a gradient in x alone. It will learn from them, and from x_0
        (B, ...) of the data with its own condition."""


class Ends(NamedTuple):
    """A student's samples x (B, ...) of their conditions, and as many rows x_0 of the data with theirs."""

    x: Tensor
    condition: Condition | None
    x0: Tensor
    given: Condition | None
    draw: KeyedDraw


def adversarial(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: KeyedDraw,
    *,
    paths: Paths,
    companions: Judge,
) -> Tensor:
    """The distance from the teacher's path, as in `undiffuse.objectives.paths`, less what the critic says of the jumps
    that end in data: (B,)."""
    return guarded(denoiser, x0, condition, u, draw, paths, lambda ends: -ADVERSARY * companions.scores(*ends))


def guarded(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: KeyedDraw,
    paths: Paths,
    loss_of: Callable[[Ends], Tensor],
) -> Tensor:
    """The loss of jumps that end in data, and GUARD times the distance of all from the teacher's paths: (B,)."""
    x_t, t, x_s, s, given = paths.leaps(u)
    found = denoiser.jump(x_t, t, s, given).x0
    loss = GUARD * pseudo_huber(found - aim(denoiser.process, x_s, x_t, t, s))
    last = s == 0
    if last.any():
        ends = Ends(found[last], rows_of(given, last), x0[last], rows_of(condition, last), draw[last])
        loss[last] = loss[last] + loss_of(ends)
    return loss
