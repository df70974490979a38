"""Distribution matching: a student's samples are moved until the teacher cannot tell their law from the data's.

The gradient of KL(student || teacher) at a noise level is the difference of two denoisers' x_0, that of the student's
own samples, which is trained beside it, and the teacher's (Luo et al. 2023; Yin et al. 2024, DMD, eq. 7).
A critic that sees data adds what a teacher does not know (DMD2, Yin et al. 2024b, section 4.3).
"""

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.objectives.adversarial import Judge
from undiffuse.objectives.flow_map import Teach, levels, step
from undiffuse.process import Denoise, expand
from undiffuse.randomness import Draw, KeyedDraw
from undiffuse.sampling.grids import LEVELS

ADVERSARY = 0.1
"""The weight of the critic beside the difference of the denoisers."""
TOO_CLEAR = 2
"""Levels next to the data that say nothing of a law, and are left out; as is pure noise."""
OWN, NOISED = 1, 2
"""Which random numbers are the samples' own, and which noise them."""


class Companions(Judge, Protocol):
    """What is trained beside a student (`undiffuse.training.companions`)."""

    def imitate(self, condition: Condition | None) -> Denoise:
        """The denoiser of the student's samples."""


def drawn(denoiser: Denoiser, condition: Condition | None, draw: Draw, like: Tensor, jumps: int) -> Tensor:
    """Samples of a flow map, like `like` (B, ...), with a gradient in the last of its jumps."""
    process, grid = denoiser.process, levels(denoiser.process)[:: LEVELS // jumps]
    x = process.prior(like).sample(draw)
    for number, (t, s) in enumerate(pairwise(grid)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and number == jumps - 1):
            x0 = denoiser.jump(x, t.item(), s.item(), condition).x0
        x = x0 if s == 0 else step(process, x0, x, t, s)
    return x


def difference(x_t: Tensor, t: Tensor, own: Teach, theirs: Teach, condition: Condition | None) -> tuple[Tensor, Tensor]:
    """x_0 of the samples' own denoiser less the teacher's, like x_t, and the teacher's: sigma^2 / alpha times the
    gradient of ln p_student - ln p_teacher of x_t."""
    real = theirs(condition)(x_t, t).x0
    return own(condition)(x_t, t).x0 - real, real


def matching(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition | None,
    u: Tensor,
    draw: KeyedDraw,
    *,
    teach: Teach,
    companions: Companions,
    jumps: int = 1,
) -> Tensor:
    """A loss whose gradient moves the student's samples along -`difference`, divided by how far the teacher would move
    them (DMD, eq. 8), and to where the critic's scores are higher than the data's: (B,)."""
    process = denoiser.process
    x = drawn(denoiser, condition, draw.fold(OWN), x0, jumps)
    grid = levels(process)[1 : LEVELS - TOO_CLEAR]
    t = grid[(u * len(grid)).long()]
    with torch.no_grad():
        x_t = process.marginal(x, t).at(draw.fold(NOISED).normal(x0))
        away, real = difference(x_t, t, companions.imitate, teach, condition)
        distance = (x - real).abs().flatten(1).mean(1)
        away = away / expand(distance.clamp(min=1e-3), x)
    loss = 0.5 * (x - (x - away).detach()).square().flatten(1).mean(1)
    return loss - ADVERSARY * companions.scores(x, condition, x0, condition, draw)
