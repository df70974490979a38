"""ODE solvers from torchdiffeq, which is imported when needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import one_of

MISSING = 'the likelihood needs torchdiffeq: pip install "undiffuse[likelihood]"'
ADAPTIVE = ("dopri5", "dopri8", "bosh3")
FIXED = ("rk4", "midpoint", "euler")

Parts = tuple[Tensor, ...]
"""A state, in float64: tensors of B rows, one per sample."""


@dataclass(frozen=True)
class Solver:
    """A method and its accuracy.

    An adaptive method chooses its steps for the whole batch, so a sample's result depends on the others, within the
    tolerances; with fixed steps it does not.

    Attributes:
        method: "dopri5", "dopri8" or "bosh3", which choose their steps by their error; or "rk4", "midpoint" or "euler".
        rtol, atol: the error allowed to an adaptive step, relative and absolute: the root mean square over the elements
            of a sample, in the worst sample and the worst part of the state. Float32 networks are too rough for less
            than 1e-6.
        steps: the number of equal steps of a fixed method.

    Raises UsageError for invalid values.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None

    def __post_init__(self) -> None:
        one_of("solver", self.method, ADAPTIVE + FIXED)
        if self.method in ADAPTIVE and self.steps is not None:
            raise UsageError(f"the solver {self.method} chooses its own steps: to give their number, take rk4")
        if self.method in FIXED and (self.steps is None or self.steps < 1):
            raise UsageError(f"the solver {self.method} needs a number of steps, 1 or more")
        if not (self.rtol > 0 and self.atol > 0):
            raise UsageError("the tolerances of a solver must be above 0")

    def solve(self, slope: Callable[[float, Parts], Parts], state: Parts, start: float, end: float) -> Parts:
        """The state at `end` of the ODE d state / dw = slope(w, state), from `state` at `start`; either may be larger.

        `slope` is evaluated only between the two ends. Raises UsageError if torchdiffeq is missing, UndiffuseError if
        there is no solution: values that are not finite, or no step small enough for the tolerances.
        """
        try:
            from torchdiffeq import odeint
        except ImportError:
            raise UsageError(MISSING) from None
        low, high = min(start, end), max(start, end)
        device = state[0].device

        def within(w: Tensor, parts: Parts) -> Parts:
            return slope(min(max(w.item(), low), high), parts)  # the choice of the first step may go beyond the end

        ends = torch.tensor([start, end], dtype=torch.float64, device=device)
        # A step to the end itself, where torchdiffeq would step beyond it and interpolate.
        options: dict[str, Any] = {"norm": largest_norm, "step_t": ends[1:]}
        if self.steps is not None:
            grid = torch.linspace(start, end, self.steps + 1, dtype=torch.float64, device=device)
            options = {"grid_constructor": lambda *_: grid}
        try:
            path = odeint(within, state, ends, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        except AssertionError as error:  # how torchdiffeq gives up
            raise UndiffuseError(f"the ODE has no solution within the tolerances ({str(error)[:80]})") from error
        solution = tuple(part[-1] for part in path)
        if not all(part.isfinite().all() for part in solution):
            raise UndiffuseError("the ODE has no solution: the denoiser's values are not finite")
        return solution


def largest_norm(parts: Parts) -> Tensor:
    """The root mean square over a sample's elements, at its largest over samples and parts."""
    return torch.stack([part.reshape(len(part), -1).square().mean(1).max() for part in parts]).max().sqrt()
