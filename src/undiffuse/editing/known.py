"""Step rules that keep what is known of a picture, such as the pixels outside a mask.

Replacement draws from p(unknown | x_t's known part) as the network joins the two, which is not the conditional law: the
noise of the known part says nothing of what the unknown part has become (docs/editing.md has the closed form). The
exact ways are those of `undiffuse.guidance.observations`.
"""

import dataclasses

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess
from undiffuse.randomness import Draw
from undiffuse.sampling import State, Step


def keeping(step: Step, known: Tensor, repaint: Tensor, noise: Draw | None = None) -> Step:
    """`step`, after which x_s is q(x_s | known) wherever `repaint` is False (Song et al. 2021, score SDE, section 5).

    Args:
        known: x_0, (B, ...).
        repaint: bool, broadcast against it.
        noise: the noise of the known part, the same at every step; None: anew in each, from the step's draw.
    """

    def kept(state: State, s: float, denoise: Denoise, process: GaussianProcess, draw: Draw) -> State:
        after = step(state, s, denoise, process, draw)
        noisy = process.corrupt(known, s, draw.fold(1) if noise is None else noise)
        return dataclasses.replace(after, x=torch.where(repaint, after.x, noisy))

    return kept


def resampled(step: Step, times: int) -> Step:
    """`step` done `times` times over, each but the last followed by noise back to where it began.

    RePaint (Lugmayr et al. 2022, algorithm 1, U = `times` with jumps of one step). The step onto the data is done once.
    """

    def repeated(state: State, s: float, denoise: Denoise, process: GaussianProcess, draw: Draw) -> State:
        for k in range(1, times if s > 0 else 1):
            below = step(state, s, denoise, process, draw.fold(2 * k))
            noisy = process.transition(below.x, s, state.t).sample(draw.fold(2 * k + 1))
            state = State(noisy, state.t, below.x0)
        return step(state, s, denoise, process, draw)

    return repeated
