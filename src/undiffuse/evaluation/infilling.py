"""Infilling: how well a model knows the characters that are hidden from it, single ones and spans."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.evaluation.language import BATCH, Estimate
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose, stream

KINDS = ("characters", "spans")
SHARE = 0.15
"""Of the places of a window that "characters" hides."""
SPAN, PIECE = 8, 54
"""The length of a span, and of the text that has one: 14.8% is hidden."""

Fill = Callable[[Tensor, Tensor], Any]
"""Windows with a mask where they are hidden, int64 (B, L), and where that is, bool (B, L) -> ln p (B, L, K)."""


@dataclass(frozen=True)
class Infilling:
    """Of the hidden tokens: the share whose most probable token is right, and the bits per token."""

    accuracy: Estimate
    bits: Estimate


def masks(kind: str, count: int, length: int, seed: int) -> np.ndarray:
    """What is hidden of `count` windows of `length` tokens, bool (count, length); row i is a function of (seed, i).

    "characters": 15% of the places, rounded, at random. "spans": one span of 8 in each of as many equal pieces of at
    least 54 places as there is room for (one, if there is none), with at least 8 places from span to span.

    Raises:
        ValueError: an unknown kind, or windows too short to hide anything and leave some.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of infilling is called {kind!r}: choose from {', '.join(KINDS)}")
    if length < 2 * SPAN:
        raise ValueError(f"infilling needs windows of at least {2 * SPAN} tokens, not {length}")
    hidden = np.zeros((count, length), dtype=bool)
    for number, row in enumerate(hidden):
        random = stream(seed, Purpose.MASK, number)
        if kind == "characters":
            row[random.choice(length, round(SHARE * length), replace=False)] = True
            continue
        pieces = max(length // PIECE, 1)
        piece = length // pieces
        first = np.arange(pieces) * piece + random.integers(0, piece - 2 * SPAN + 1, pieces)
        row[first[:, None] + np.arange(SPAN)] = True
    return hidden


@torch.no_grad()
def infilled(
    fill: Fill,
    windows: np.ndarray,
    hidden: np.ndarray,
    mask: int | None,
    *,
    device: torch.device | str = "cpu",
    progress: Bar = no_bar,
) -> Infilling:
    """The scores of a model on windows, int64 (B, L), of which `hidden`, bool (B, L), the same number in each row, is
    replaced by `mask`; None: none is replaced, for a model that sees only what stands before each place, which is so
    told all of that. Each hidden token is predicted on its own; standard errors are over windows."""
    right, nats = [], []
    with progress("infilling", len(windows)) as tell:
        for first in range(0, len(windows), BATCH):
            x0, away = windows[first : first + BATCH], hidden[first : first + BATCH]
            seen = torch.from_numpy(x0 if mask is None else np.where(away, mask, x0)).to(device)
            law = torch.as_tensor(fill(seen, torch.from_numpy(away).to(device))).cpu().double().numpy()[away]
            shape = (len(x0), -1)
            right.append((law.argmax(-1) == x0[away]).reshape(shape).mean(1))
            nats.append(-law[np.arange(len(law)), x0[away]].reshape(shape).mean(1))
            tell(len(x0))
    tokens = hidden.sum(1)
    return Infilling(
        Estimate.of(np.concatenate(right), 1, tokens),
        Estimate.of(np.concatenate(nats), 1, tokens).scaled(1 / math.log(2)),
    )
