"""Distribution matching: a student's samples are moved until the teacher cannot tell their law from the data's.

The gradient of KL(student || teacher) at a noise level is the difference of two denoisers' x_0, that of the student's
own samples, which is trained beside it, and the teacher's (Luo et al. 2023; Yin et al. 2024, DMD, eq. 7).
A critic that sees data adds what a teacher does not know (DMD2, Yin et al. 2024b, section 4.3), and the teacher's paths
guard the recall (DMD, section 4.2), both as in `undiffuse.objectives.adversarial`.
"""

from typing import Protocol

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.adversarial import ADVERSARY, Ends, Judge, guarded
from undiffuse.objectives.flow_map import Teach, levels
from undiffuse.objectives.paths import Paths
from undiffuse.process import Denoise, GaussianProcess, expand
from undiffuse.randomness import KeyedDraw
from undiffuse.sampling.grids import LEVELS

MATCH = 30.0
"""The weight of the divergence beside those of `adversarial`: its gradient is that of a mean over the elements."""
TOO_CLEAR = 2
"""Levels next to the data that say nothing of a law, and are left out; as is pure noise."""
LEVEL, NOISED = 1, 2
"""Which random numbers choose the level at which samples are compared, and which noise them."""


class Companions(Judge, Protocol):
    """What is trained beside a student (`undiffuse.training.companions`)."""

    def imitate(self, condition: Condition | None) -> Denoise:
        """The denoiser of the student's samples."""


def difference(x_t: Tensor, t: Tensor, own: Teach, theirs: Teach, condition: Condition | None) -> tuple[Tensor, Tensor]:
    """x_0 of the samples' own denoiser less the teacher's, like x_t, and the teacher's: sigma^2 / alpha times the
    gradient of ln p_student - ln p_teacher of x_t."""
    real = theirs(condition)(x_t, t).x0
    return own(condition)(x_t, t).x0 - real, real


def divergence(process: GaussianProcess, ends: Ends, own: Teach, theirs: Teach) -> Tensor:
    """A loss (B,) whose gradient moves samples along -`difference` at a level drawn for each, divided by how far the
    teacher would move them (DMD, eq. 8); the mean over elements."""
    grid, x = levels(process)[1 : LEVELS - TOO_CLEAR], ends.x
    u = ends.draw.fold(LEVEL).uniform(x.flatten(1)[:, :1])[:, 0].cpu()
    t = grid[(u * len(grid)).long()]
    with torch.no_grad():
        x_t = process.marginal(x, t).at(ends.draw.fold(NOISED).normal(x))
        away, real = difference(x_t, t, own, theirs, ends.condition)
        distance = (x - real).abs().flatten(1).mean(1)
        away = away / expand(distance.clamp(min=1e-3), x)
    return 0.5 * (x - (x - away).detach()).square().flatten(1).mean(1)


def matching(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: KeyedDraw,
    *,
    paths: Paths,
    teach: Teach,
    companions: Companions,
) -> Tensor:
    """`adversarial`, and MATCH times the `divergence` of the samples from the teacher's law: (B,)."""

    def loss_of(ends: Ends) -> Tensor:
        moved = divergence(denoiser.process, ends, companions.imitate, teach)
        return MATCH * moved - ADVERSARY * companions.scores(*ends)

    return guarded(denoiser, x0, condition, u, draw, paths, loss_of)
