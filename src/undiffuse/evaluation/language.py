"""What a text costs under a model, in bits per character with a standard error, and how fluent its samples are.

Text is one long array of tokens, `flat`, whole numbers (N,). What lies together is alike, so errors come from the means
of blocks of `BLOCK` tokens. `characters`, the characters per token, is 1 where tokens are characters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.likelihood.bound import stratified
from undiffuse.metrics.language import NGram, highest_order, ngram_entropy
from undiffuse.objectives import Objective
from undiffuse.process import CategoricalProcess
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Purpose, keyed_draws

BLOCK = 1000
BATCH = 64
GRAMS = 4
TOLERANCE = 0.02
"""How far the unigram entropy of samples that count may be from that of real text, as a share of the latter."""

LogProbs = Callable[[Tensor], Any]
"""Tokens (B, L) -> ln p of each of the K tokens at every place, a tensor or an array (B, L, K)."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, None if there are fewer than two blocks; `tokens` is how many were measured."""

    value: float
    error: float | None
    tokens: int

    @classmethod
    def of(cls, values: np.ndarray, block: int = BLOCK, weights: np.ndarray | None = None) -> "Estimate":
        """The mean of values (N,), with the error of the means of blocks of `block` of them; a shorter last block tells
        nothing of the error. `weights` (N,) are the tokens that each value stands for, 1 by default."""
        weights = np.ones(len(values), dtype=np.int64) if weights is None else weights
        whole = len(values) // block
        w = weights[: whole * block].reshape(whole, block)
        means = (values[: whole * block].reshape(whole, block) * w).sum(1) / w.sum(1)
        error = float(means.std(ddof=1)) / math.sqrt(whole) if whole > 1 else None
        return cls(float(values @ weights / weights.sum()), error, int(weights.sum()))

    def scaled(self, factor: float) -> "Estimate":
        """The estimate in another unit."""
        return Estimate(self.value * factor, None if self.error is None else self.error * factor, self.tokens)


@torch.no_grad()
def chain_rule_bits(
    log_probs: LogProbs,
    flat: np.ndarray,
    length: int,
    mask: int,
    *,
    blocks: int | None = None,
    characters: float = 1.0,
    device: torch.device | str = "cpu",
    progress: Bar = no_bar,
) -> Estimate:
    """Bits per character of a masked model that reads from left to right: each token given those before it in its
    window, with `mask` in its own place and in all later ones. One row of the model for every token.

    The first window tells of all its tokens, each later one starts half a window on and tells of its second half, so
    that every token is predicted once, from at least half a window after the first; what is beyond the end is masked.

    Args:
        blocks: measure only so many blocks of `BLOCK` tokens, evenly spaced; all tokens by default.
    """
    numbers = chosen(len(flat), blocks)
    starts = _starts(numbers, length)
    flat = np.asarray(flat, dtype=np.int64)
    padded = np.pad(flat, (0, length), constant_values=mask)
    nats = np.empty(len(numbers))
    with progress("chain rule", len(numbers)) as tell:
        for first in range(0, len(numbers), BATCH):
            here = slice(first, first + BATCH)
            windows = padded[starts[here, None] + np.arange(length)]
            place = numbers[here] - starts[here]
            windows[np.arange(length) >= place[:, None]] = mask
            law = _float64(log_probs(torch.from_numpy(windows).to(device)))
            nats[here] = -law[np.arange(len(place)), place, flat[numbers[here]]]
            tell(len(place))
    return Estimate.of(nats).scaled(1 / (math.log(2) * characters))


@torch.no_grad()
def causal_bits(
    log_probs: LogProbs,
    flat: np.ndarray,
    length: int,
    *,
    characters: float = 1.0,
    device: torch.device | str = "cpu",
    progress: Bar = no_bar,
) -> Estimate:
    """As `chain_rule_bits`, for an autoregressive model: `log_probs` at place i depends on the places before i only, so
    that one row of the model tells of a whole window. Beyond the end are zeros."""
    starts = np.unique(_starts(np.arange(len(flat)), length))
    padded = np.pad(np.asarray(flat, dtype=np.int64), (0, length))
    nats = np.empty(len(padded))
    with progress("left to right", len(starts)) as tell:
        for first in range(0, len(starts), BATCH):
            at = starts[first : first + BATCH, None] + np.arange(length)
            law = _float64(log_probs(torch.from_numpy(padded[at]).to(device)))
            found = -np.take_along_axis(law, padded[at][..., None], -1)[..., 0]
            new = (at[:, :1] == 0) | (np.arange(length) >= length - _stride(length))
            nats[at[new]] = found[new]
            tell(len(at))
    return Estimate.of(nats[: len(flat)]).scaled(1 / (math.log(2) * characters))


@torch.no_grad()
def bound_bits(
    objective: Objective,
    denoiser: Any,
    flat: np.ndarray,
    length: int,
    draws: int,
    seed: int,
    *,
    characters: float = 1.0,
    device: torch.device | str = "cpu",
    progress: Bar = no_bar,
) -> Estimate:
    """The bound on the bits per character of windows that tile the text, each on its own: the objective's mean over u
    and the prior's term, L_T.

    The last window is moved back to end where the text ends, and weighs as much as the tokens that only it holds.

    Args:
        objective: nats per token of each window, whose mean over u is the bound without the prior's term.
        denoiser: the objective's; it has a `process`.
        draws: estimates for each window, at stratified u (`likelihood.bound.stratified`).
        seed: of the corruption, which depends on it, the window and the number of the draw.

    Raises:
        UndiffuseError: the text is shorter than a window.
    """
    if len(flat) < length:
        raise UndiffuseError(f"a text of {len(flat)} tokens does not fill a window of {length}: use a longer text")
    starts = np.arange(0, len(flat), length)
    weights = np.minimum(length, len(flat) - starts)
    starts = np.minimum(starts, len(flat) - length)
    u = stratified(torch.arange(len(starts)), draws)
    prior = _prior(denoiser.process)
    nats = np.empty(len(starts))
    with progress("bound", len(starts) * draws) as tell:
        for first in range(0, len(starts), BATCH):
            here = slice(first, first + BATCH)
            windows = flat[starts[here, None] + np.arange(length)].astype(np.int64)
            x0 = torch.from_numpy(windows).to(device)
            draw = keyed_draws(seed, range(len(starts))[here], Purpose.BOUND)
            total = np.zeros(len(x0))
            for k in range(draws):
                total += _float64(objective(denoiser, x0, None, u[here, k], draw(k)))
                tell(len(x0))
            nats[here] = total / draws + prior[windows].mean(1)
    return Estimate.of(nats, math.ceil(BLOCK / length), weights).scaled(1 / (math.log(2) * characters))


@dataclass(frozen=True)
class Fluency:
    """Samples beside as much real text: bits per token under a judge, and the entropies of tokens and of the longest
    grams up to 4 in bits."""

    bits: float
    unigrams: float
    fourgrams: float
    real_bits: float
    real_unigrams: float
    real_fourgrams: float

    @property
    def counts(self) -> bool:
        """Whether the unigram entropy is real text's within `TOLERANCE`: if not, low bits only mean repetition."""
        return abs(self.unigrams - self.real_unigrams) <= TOLERANCE * self.real_unigrams


def fluency(samples: np.ndarray, judge: NGram, real: np.ndarray) -> Fluency:
    """How fluent samples are, int64 (B, L), beside B rows of L tokens from `real`, int64 (N,), evenly spaced.

    The judge must have learnt from other text than `real`, such as the other half.

    Raises:
        UndiffuseError: `real` has fewer tokens than the samples: entropies of unequal texts cannot be compared.
    """
    rows, length = samples.shape
    if len(real) < samples.size:
        raise UndiffuseError(
            f"{samples.size} tokens of samples need as much real text, which has {len(real)}: draw fewer"
        )
    starts = np.arange(rows) * (len(real) // rows)
    beside = real[starts[:, None] + np.arange(length)]

    def figures(tokens: np.ndarray) -> tuple[float, float, float]:
        one, four = (ngram_entropy(tokens, n, judge.size) for n in (1, highest_order(judge.size, GRAMS)))
        return float(judge.bits(tokens).mean()), one, four

    return Fluency(*figures(samples), *figures(beside))


def _stride(length: int) -> int:
    return max(length // 2, 1)


def _starts(numbers: np.ndarray, length: int) -> np.ndarray:
    """Where the window that tells of each token begins, int64 like `numbers`."""
    stride = _stride(length)
    return -(np.minimum(length - 1 - numbers, 0) // stride) * stride


def chosen(count: int, blocks: int | None) -> np.ndarray:
    """The numbers of the tokens in `blocks` whole blocks, evenly spaced over `count` tokens; of all if None or more."""
    whole = count // BLOCK
    if blocks is None or blocks >= whole:
        return np.arange(count)
    first = np.arange(blocks) * whole // blocks * BLOCK
    return (first[:, None] + np.arange(BLOCK)).ravel()


def _prior(process: CategoricalProcess) -> np.ndarray:
    """KL(q(x_1 | x_0) || prior) of each value of x_0, nats, float64 (K,): 0 if no signal is left."""
    values = torch.arange(process.values)[None]
    return _float64(process.marginal(values, 1.0).kl(process.prior(values))[0])


def _float64(values: Any) -> np.ndarray:
    return torch.as_tensor(values).cpu().double().numpy()
