"""N-gram models of tokens in NumPy: judges of samples, and rivals that a network must beat.

All of them are interpolated: the law after a context is what was seen after it, discounted, and the mass that this
frees goes to the law after a shorter context, down to the uniform law over the tokens (Chen & Goodman 1999, section 2).
Sequences of tokens are sorted and looked up as int64 numbers in base K, so nothing loops over the text.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undiffuse.errors import UndiffuseError

NEAREST = (-1, 1, -2, 2)
"""The places of the neighbours that `Bidirectional` knows; it falls back on those that come first."""


@dataclass(frozen=True)
class Level:
    """The laws after all contexts of one kind: p(w | c) = share(c, w) + left(c) p(w | shorter c).

    Attributes:
        grams: every (c, w) that was seen, as a number, sorted int64 (N,); shares: float64 (N,).
        contexts: every c that was seen, sorted int64 (M,); left: float64 (M,).
    """

    grams: np.ndarray
    shares: np.ndarray
    contexts: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, size: int) -> "Level":
        """From the distinct grams, sorted, and how often each counts, int64 (N,).

        Modified Kneser-Ney's discounts of counts of 1, 2 and from 3 on, as estimated from the counts of counts (Chen &
        Goodman 1999, eq. 17); where a count of counts is missing, Witten-Bell's law (section 2.5), which needs none.
        """
        contexts, first, kinds = np.unique(grams // size, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        once, twice, thrice, four = (int((counts == n).sum()) for n in range(1, 5))
        if not (once and twice and thrice and four):
            return cls(grams, counts / np.repeat(totals + kinds, kinds), contexts, kinds / (totals + kinds))
        y = once / (once + 2 * twice)
        less = np.array([0.0, 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice])
        discounts = np.clip(less, 0, [0, 1, 2, 3])[np.minimum(counts, 3)]
        freed = np.add.reduceat(discounts, first)
        return cls(grams, (counts - discounts) / np.repeat(totals, kinds), contexts, freed / totals)

    def refine(self, shorter: np.ndarray, contexts: np.ndarray, tokens: np.ndarray, size: int) -> np.ndarray:
        """p(tokens | contexts) from p(tokens | shorter contexts), float64; a context of -1 was never seen."""
        share = _found(self.grams, self.shares, contexts * size + tokens, 0.0)
        return share + _found(self.contexts, self.left, contexts, 1.0) * shorter


@dataclass(frozen=True)
class NGram:
    """p(token | its neighbours at some places), which falls back on the neighbours without the last of them.

    Attributes:
        places: of the neighbours, such as (-1, -2) for the two tokens before.
        levels: given none of them, the first, the first two, ...
        size: K, the number of tokens.
    """

    places: tuple[int, ...]
    levels: tuple[Level, ...]
    size: int

    @classmethod
    def learnt(cls, tokens: np.ndarray, order: int, size: int) -> "NGram":
        """The model of each token given the `order` - 1 before it, from text: see `near`."""
        return cls.near(tokens, tuple(range(-1, -order, -1)), size)

    @classmethod
    def near(cls, tokens: np.ndarray, places: tuple[int, ...], size: int) -> "NGram":
        """From text, int (..., L) in 0 .. size - 1, whose rows are separate.

        Interpolated modified Kneser-Ney (Chen & Goodman 1999, section 3): below the highest order, a gram counts once
        for each different token at the place that it leaves out.

        Raises:
            UndiffuseError: the grams do not fit int64, or no row is long enough to hold one.
        """
        _fits(size, len(places) + 1)
        tokens = np.asarray(tokens, dtype=np.int64)
        numbers = np.broadcast_to(_number(_neighbours(tokens, places), size), tokens.shape)
        numbers = (numbers * size + tokens)[numbers >= 0]
        if not len(numbers):
            raise UndiffuseError(f"{len(places) + 1}-grams cannot be learnt from text of {tokens.shape[-1]} tokens")
        grams, counts = np.unique(numbers, return_counts=True)
        levels = [Level.of(grams, counts, size)]
        for _ in places:
            grams, counts = np.unique(grams // size**2 * size + grams % size, return_counts=True)
            levels.append(Level.of(grams, counts, size))
        return cls(places, tuple(reversed(levels)), size)

    def bits(self, tokens: np.ndarray) -> np.ndarray:
        """-log2 p of every token given its neighbours in its row: float64, the shape of `tokens` (..., L)."""
        tokens = np.asarray(tokens, dtype=np.int64)
        return -np.log2(self.given(_neighbours(tokens, self.places), tokens))

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """ln p of all K tokens at every place of `tokens` (..., L), given its neighbours: float64 (..., L, K)."""
        near = _neighbours(np.asarray(tokens, dtype=np.int64), self.places)
        return np.log(self.given([n[..., None] for n in near], np.arange(self.size)))

    def given(self, near: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """p(tokens | neighbours), float64; int64 arrays that broadcast. From a neighbour of -1 on, none is known."""
        p = np.array(1 / self.size)
        for n, level in enumerate(self.levels):
            p = level.refine(p, _number(near[:n], self.size), tokens, self.size)
        return p


@dataclass(frozen=True)
class Bidirectional:
    """p(token | those of its neighbours in `NEAREST` that are known): a 5-gram model that fills in what is missing.

    Attributes:
        models: one for each set of neighbours that may be known, in the order of `NEAREST`.
    """

    models: tuple[NGram, ...]
    size: int

    @classmethod
    def learnt(cls, tokens: np.ndarray, size: int, order: int = 5) -> "Bidirectional":
        """From text, int (..., L) in 0 .. size - 1: see `NGram.near`. Of a lower order, it knows the nearest alone."""
        nearest = NEAREST[: order - 1]
        sets = [known for n in range(len(nearest) + 1) for known in itertools.combinations(nearest, n)]
        return cls(tuple(NGram.near(tokens, known, size) for known in sets), size)

    def log_probs(self, tokens: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """ln p of all K tokens where `hidden`, bool (B, L); elsewhere 0: float64 (B, L, K).

        What `tokens` (B, L) says where `hidden` is not read; beyond the ends of a row nothing is known.
        """
        seen = np.where(hidden, -1, tokens).astype(np.int64)
        nearest = self.models[-1].places
        near = dict(zip(nearest, _neighbours(seen, nearest), strict=True))
        result = np.zeros((*seen.shape, self.size))
        for model in self.models:
            is_known = [(near[place] >= 0) == (place in model.places) for place in nearest]
            here = hidden & np.logical_and.reduce(is_known)
            known = [near[place][here][:, None] for place in model.places]
            result[here] = np.log(model.given(known, np.arange(self.size)))
        return result


def ngram_entropy(tokens: np.ndarray, n: int, size: int) -> float:
    """The entropy of the n-grams of rows, int (..., L) in 0 .. size - 1: bits per n-gram.

    It is that of the observed shares, so it is too low by an amount that falls with the number of tokens: compare only
    texts of the same length.
    """
    _fits(size, n)
    tokens = np.asarray(tokens, dtype=np.int64)
    last = tokens.shape[-1] - n + 1
    numbers = _number([tokens[..., i : i + last] for i in range(n)], size)
    _, counts = np.unique(numbers, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def highest_order(size: int, most: int) -> int:
    """The highest order of grams of `size` tokens, up to `most`, that fit 64-bit numbers."""
    return next(n for n in range(most, 0, -1) if size**n <= np.iinfo(np.int64).max)


def _fits(size: int, n: int) -> None:
    if n != highest_order(size, n):
        raise UndiffuseError(f"{n}-grams of {size} tokens do not fit 64-bit numbers: choose a lower order")


def _number(digits: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The numbers with these digits in base `size`, the first the highest, int64; -1 where a digit is -1 (unknown)."""
    number = np.zeros((), dtype=np.int64)
    for digit in digits:
        number = np.where((number < 0) | (digit < 0), -1, number * size + digit)
    return number


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, otherwise: float) -> np.ndarray:
    """The value of each wanted key, or `otherwise`; keys are sorted, and there is at least one."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], otherwise)


def _neighbours(tokens: np.ndarray, places: Sequence[int]) -> list[np.ndarray]:
    """The token at each of these places beside every token, -1 beyond the ends: int64 (..., L) each."""
    reach = max(map(abs, places), default=0)
    wide = np.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(reach, reach)], constant_values=-1)
    return [wide[..., reach + place : reach + place + tokens.shape[-1]] for place in places]
