"""Values whose gradient is that of something else (the straight-through estimator of Bengio et al. 2013)."""

from torch import Tensor


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value`, exactly, with the gradient of x."""
    return value.detach() + (x - x.detach())


def within(x: Tensor) -> Tensor:
    """x cut off at [-1, 1], as pictures are when they are shown, with the gradient of x itself.

    So black need not be met exactly, a critic judges what will be shown, and what lies outside and should not comes
    back, which without a gradient it could not.
    """
    return straight_through(x.clamp(-1, 1), x)
