"""A denoiser that is not asked twice about the same rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from undiffuse.process import Categorical, Denoise, Time


class Remembered:
    """A denoise(x_t, t) that evaluates only the rows of x_t that are others than in the last call.

    Only for networks that do not look at the time, so under absorbing noise, where the exact denoiser does not depend
    on it (Zheng et al. 2024). Most of many short steps reveal nothing in a row, and then cost nothing.

    Args:
        bind: condition -> denoise, as `TokenDenoiser.bind`, or a function that makes a guided denoiser; asked for the
            rows that are evaluated.
        condition: of the batch, or None.

    Attributes:
        evaluations: the calls of the denoiser so far.
        rows: the rows in those calls.
    """

    def __init__(self, bind: Callable[[Any], Denoise], condition: Any = None):
        self._bind, self._condition = bind, condition
        self._last: tuple[Tensor, Tensor] | None = None
        self.evaluations = self.rows = 0

    def __call__(self, x_t: Tensor, t: Time) -> Categorical:
        """The prediction at x_t, int64 (B, L): over K values, (B, L, K)."""
        changed = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
        if self._last is not None and self._last[0].shape == x_t.shape:
            changed = (self._last[0] != x_t).any(1)
        if self._last is None or changed.all():
            log_probs = self._evaluated(x_t, t, None)
        elif changed.any():
            log_probs = self._last[1].clone()
            log_probs[changed] = self._evaluated(x_t, t, changed.nonzero().squeeze(1))
        else:
            return Categorical(self._last[1])
        self._last = x_t.clone(), log_probs
        return Categorical(log_probs)

    def _evaluated(self, x_t: Tensor, t: Time, rows: Tensor | None) -> Tensor:
        condition = self._condition
        if rows is not None:
            x_t = x_t[rows]
            t = t.to(rows.device)[rows] if isinstance(t, Tensor) and t.ndim else t
            condition = None if condition is None else condition[rows]
        self.evaluations += 1
        self.rows += len(x_t)
        log_probs: Tensor = self._bind(condition)(x_t, t).log_probs
        return log_probs
