"""What was made anew in a gap of a waveform, joined to what was there before and after it."""

import math

import torch
from torch import Tensor


def joined(made: Tensor, known: Tensor, gap: range, fade: int) -> Tensor:
    """`known` outside of the gap, exactly, and in it `made`, without a step at either border. All are (B, L).

    `made` misses what is known by some error, and to switch from one to the other would be heard as a click. So its
    error goes on into the gap: mirrored about the border, which makes it continuous, and faded out by a squared cosine
    over `fade` samples, or as many as there are on both sides of the border.
    """
    free = torch.zeros(made.shape[1], dtype=torch.bool)
    free[gap.start : gap.stop] = True
    result = torch.where(free.to(made.device), made, known)
    error = known - made
    _continue(result, error, gap.start, min(fade, len(gap)))
    backwards, errors = result.flip(1), error.flip(1)
    _continue(backwards, errors, made.shape[1] - gap.stop, min(fade, len(gap)))
    return backwards.flip(1)


def _continue(result: Tensor, error: Tensor, border: int, fade: int) -> None:
    """Adds the error before `border` to what comes after it, in place."""
    count = min(fade, border)
    ramp = (math.pi / 2 * (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)).cos().square()
    result[:, border : border + count] += ramp.to(result) * error[:, border - count : border].flip(1)
