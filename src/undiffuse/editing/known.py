"""Step rules that keep what is known of a picture, such as the pixels outside a mask, or of a text.

Replacement draws from p(unknown | x_t's known part) as the network joins the two, which is not the conditional law: the
noise of the known part says nothing of what the unknown part has become (docs/editing.md has the closed form). The
exact ways are those of `undiffuse.guidance.observations`.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from undiffuse.process import CategoricalProcess, Denoise, GaussianProcess, Time
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


def holding(step: Step, tokens: Tensor, known: Tensor) -> Step:
    """`step` of a categorical process that never changes the tokens that are known.

    Under absorbing noise they stand in every state that the step or the denoiser sees, the first included: the law of
    the others is as exact as the step, for the network is made to be given some tokens. Under uniform noise they are
    noised to the level of each step, which is `keeping`: replacement, and not the conditional law.

    Args:
        tokens: x_0, int64 (B, L); any where they are not known.
        known: bool, broadcast against it.
    """

    def with_known(x: Tensor) -> Tensor:
        return torch.where(known, tokens, x)

    def held(state: State, s: float, denoise: Denoise, process: CategoricalProcess, draw: Draw) -> State:
        if process.mask is None:
            return keeping(step, tokens, ~known)(state, s, denoise, process, draw)

        def informed(x_t: Tensor, t: Time) -> Any:
            return denoise(with_known(x_t), t)

        after = step(dataclasses.replace(state, x=with_known(state.x)), s, informed, process, draw)
        return dataclasses.replace(after, x=with_known(after.x))

    return held
