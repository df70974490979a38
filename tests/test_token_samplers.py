"""Samplers of tokens, by enumeration: the uniform numbers that a step draws are all the middles of even intervals.

The probabilities of the cases are whole numbers of such intervals, so that counting gives the exact law of a step, and
a recursion over the states the exact law of the sampler.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import lcm, prod
from typing import Any

import numpy as np
import pytest
import torch
from exact_tokens import exact_denoiser
from torch import Tensor

from undiffuse.editing.known import holding
from undiffuse.process import Categorical, CategoricalProcess, Denoise, LinearSurvival
from undiffuse.randomness import keyed_draws
from undiffuse.sampling import (
    State,
    Step,
    confidence,
    first_hitting,
    predictor_corrector,
    remdm,
    reveal,
)

Law = dict[tuple[int, ...], float]
PAIRS = np.array([[3, 1], [1, 3]])
"""Two tokens that depend on each other: eighths."""
TRIPLES = np.array(
    [[[1, 2, 1], [2, 1, 1], [1, 1, 2]], [[2, 1, 1], [1, 1, 2], [1, 2, 1]], [[1, 1, 2], [1, 2, 1], [2, 1, 1]]]
)
"""Three tokens that depend on each other in pairs and in threes."""
TRIPLES[0, 0, 0] += 4


def absorbing(values: int) -> CategoricalProcess:
    return CategoricalProcess(LinearSurvival(), values, "absorbing", torch.float64)


def share(counts: np.ndarray, x: tuple[int, ...], place: int) -> np.ndarray:
    """p(value at `place` | the other tokens of x that are no masks), by counting."""
    size = len(counts)
    slot: list[Any] = [slice(None) if token == size else token for token in x]
    slot[place] = slice(None)
    kept = counts[tuple(slot)]
    axis = sum(token == size for token in x[:place])
    return np.moveaxis(kept, axis, 0).reshape(size, -1).sum(1)


def exact(counts: np.ndarray) -> Denoise:
    """The exact denoiser of the law that is proportional to the counts."""
    joint = torch.from_numpy(counts / counts.sum())
    return exact_denoiser(joint, absorbing(len(counts))).bind(None)


@dataclass(frozen=True)
class Enumerated:
    """Uniform numbers by the folds that lead to them; the first columns that are asked for."""

    numbers: dict[tuple[int, ...], Tensor]
    path: tuple[int, ...] = ()

    def uniform(self, like: Tensor) -> Tensor:
        return self.numbers[self.path].reshape(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("tokens need no normal numbers")

    def fold(self, number: int) -> "Enumerated":
        return replace(self, path=(*self.path, number))


def middles(*counts: int) -> Tensor:
    """Every combination of the middles of so many even intervals, float64 (rows, columns)."""
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts]
    return torch.stack([one.flatten() for one in torch.meshgrid(*axes, indexing="ij")], 1)


def counted(x: Tensor) -> Law:
    return {key: n / len(x) for key, n in Counter(map(tuple, x.tolist())).items()}


def by_cells(step: Step, q: CategoricalProcess, denoise: Any, which: int, value: int) -> Callable[..., Law]:
    """The law of a step of `reveal`'s kind: `which` intervals for whether, `value` for the value of each position."""

    def law(x: tuple[int, ...], t: float, s: float) -> Law:
        u = middles(*[which] * len(x), *[value] * len(x))
        draw = Enumerated({(): u[:, : len(x)], (100,): u[:, len(x) :]})
        return counted(step(State(torch.tensor(x).expand(len(u), -1), t), s, denoise, q, draw).x)

    return law


def along(grid: list[float], start: Law, law: Callable[..., Law]) -> Law:
    """The law at the end of the grid."""
    for t, s in itertools.pairwise(grid):
        after: Counter[tuple[int, ...]] = Counter()
        for x, p in start.items():
            for y, given in law(x, t, s).items():
                after[y] += p * given  # type: ignore[assignment]
        start = dict(after)
    return start


def assert_same(ours: Law, expected: Law) -> None:
    assert sum(ours.values()) == pytest.approx(1, abs=1e-12)
    for x in {*ours, *expected}:
        assert ours.get(x, 0) == pytest.approx(expected.get(x, 0), abs=1e-12), x


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_law_of_ancestral_steps(steps: int) -> None:
    """(1 - 1/N) P + (1/N) P_1 x P_2 for two tokens and survival 1 - t: both are revealed at once once in N times."""
    q, p = absorbing(2), PAIRS / PAIRS.sum()
    law = along(
        np.linspace(1, 0, steps + 1).tolist(),
        {(2, 2): 1.0},
        by_cells(reveal, q, exact(PAIRS), lcm(*range(1, steps + 1)), 4),
    )
    apart = np.outer(p.sum(1), p.sum(0))
    assert_same(law, {x: (1 - 1 / steps) * p[x] + apart[x] / steps for x in np.ndindex(2, 2)})


@pytest.mark.parametrize("step", [reveal, first_hitting, confidence, partial(remdm, eta=0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_values_come_as_often_as_they_should(step: Step, dtype: torch.dtype) -> None:
    """Values of probability 1e-8 and 1e-7, first and last: the numbers where they begin and end, within a hundredth."""
    rare = torch.tensor([1e-8, 1e-7, 1 - 2.2e-7, 1e-7, 1e-8], dtype=torch.float64)
    law = Categorical((rare.log()).to(dtype).expand(1, 1, 5))
    bounds = [1e-8, 1.1e-7]
    low = [(bound * (1 + side), k + (side > 0)) for k, bound in enumerate(bounds) for side in (-0.01, 0.01)]
    ends = [(1 - u, 4 - value) for u, value in low] if dtype == torch.float64 else []  # float32 sums to 1 +- 1e-7
    for u, value in low + ends:
        one = torch.tensor([[u]], dtype=torch.float64)
        paths = {(): one * 0, (100,): one, (100, 1): torch.cat([one * 0, one * 0, one], 1)}
        after = step(State(torch.tensor([[5]]), 1.0), 0.0, lambda x, t: law, absorbing(5), Enumerated(paths))
        assert after.x.item() == value, u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1e-7, 1e-8])
def test_a_rare_value_in_the_middle(p: float, dtype: torch.dtype) -> None:
    """Its share of 4001 numbers around where it lies is its probability: float32 sums would lose it beside 1/2."""
    told = Categorical(torch.tensor([0.5, p, 0.5 - p], dtype=torch.float64).log().to(dtype).expand(4001, 1, 3))
    u = torch.linspace(0.5 - 2 * p, 0.5 + 2 * p, 4001, dtype=torch.float64)[:, None]
    draw = Enumerated({(): 0 * u, (100,): u})
    x = reveal(State(torch.full((4001, 1), 3), 1.0), 0.0, lambda x, t: told, absorbing(3), draw).x
    assert (x == 1).sum().item() / 4000 * 4 * p == pytest.approx(p, rel=0.01)


def any_order_cells(counts: np.ndarray) -> int:
    """A number of intervals that every conditional probability is a whole number of."""
    size, length = len(counts), counts.ndim
    sums = {
        int(share(counts, x, place).sum())
        for x in np.ndindex(*[size + 1] * length)
        for place in range(length)
        if x[place] == size
    }
    return lcm(*sums)


def test_the_law_of_first_hitting() -> None:
    """Over all 27 strings of three tokens it is the data's, reached one token a call, in every order."""
    q, denoise, cells = absorbing(3), exact(TRIPLES), any_order_cells(TRIPLES)

    def law(x: tuple[int, ...], t: float, s: float) -> Law:
        """One token from x: the first time is just below t = 1, the second far below s."""
        left = x.count(3)
        u = middles(left, cells)
        soon, late = torch.zeros(len(u)).double(), torch.full((len(u),), 1 - 2.0**-53).double()
        draw = Enumerated(
            {
                (100, 1): torch.stack([soon, *u.T], 1),
                (100, 2): torch.stack([late, late, late], 1),
            }
        )
        after = first_hitting(State(torch.tensor(x).expand(len(u), -1), 1.0), 0.5, denoise, q, draw).x
        changed = (after != torch.tensor(x)).sum(0)
        assert changed.tolist() == [cells if token == 3 else 0 for token in x]  # one of the masks, each equally often
        return counted(after)

    ours = along([1.0, 0.5, 0.25, 0.0], {(3, 3, 3): 1.0}, law)
    assert len(ours) == 27
    assert_same(ours, {x: TRIPLES[x] / TRIPLES.sum() for x in np.ndindex(3, 3, 3)})


def test_the_times_of_first_hitting() -> None:
    """The number that is revealed from t to s is binomial: each mask by itself, with (alpha_s - alpha_t)/(1 - alpha_t).

    The first time is exact, (s / t)^3 that none goes; the second by 300 x 300 middles.
    """
    q, uniform = absorbing(2), lambda x, t: Categorical(torch.full((*x.shape, 2), 0.5).double().log())
    s, t, n = 0.4, 0.8, 300
    u, start = torch.cat([middles(8), torch.full((8, 2), 0.5).double()], 1), torch.tensor([[2, 2, 2]])
    draw = Enumerated({(100, 1): u, (100, 2): torch.full((8, 3), 1 - 2.0**-53).double()})
    after = first_hitting(State(start.expand(8, -1), t), s, uniform, q, draw).x
    assert (after == 2).all(1).sum() == 1 and (after == 2).sum() == 3 + 7 * 2
    u = middles(n, n)
    half = torch.full((n * n, 2), 0.5).double()
    draw = Enumerated({(100, k + 1): torch.cat([u[:, k : k + 1], half], 1) for k in range(2)})
    left = (first_hitting(State(start[:, :2].expand(n * n, -1), t), s, uniform, q, draw).x == 2).sum(1)
    found = np.bincount(left, minlength=3) / n**2
    np.testing.assert_allclose(found, [0.25, 0.5, 0.25], atol=2 / n)


def test_first_hitting_asks_at_the_times() -> None:
    """The denoiser gets a time for every row, from t down and never below s; rows that have arrived keep theirs, t."""
    q, times = absorbing(3), []

    def denoise(x: Tensor, t: Tensor) -> Categorical:
        times.append(t)
        return exact(TRIPLES)(x, t)

    start, draw = torch.tensor([[3, 3, 3], [3, 0, 1], [0, 1, 2]]), keyed_draws(0, range(3))(1)
    after = first_hitting(State(start, 0.9), 0.0, denoise, q, draw)
    assert (after.x < 3).all() and (after.x[1:][start[1:] < 3] == start[1:][start[1:] < 3]).all()
    asked = torch.stack(times)
    assert asked.shape == (3, 3) and (asked[:, 0].diff() < 0).all() and (asked[1:, 1] == 0.9).all()
    expected, level = [], 0.9
    for k, n in ((1, 3), (2, 2), (3, 1)):
        level *= (1 - draw.fold(100).fold(k).uniform(torch.empty(3, 3))[0, 0].item()) ** (1 / n)
        expected.append(level)
    np.testing.assert_allclose(asked[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(("remasking", "eta"), [("cap", 0.25), ("cap", 1.0), ("rescale", 0.5), ("rescale", 1.0)])
def test_remdm_keeps_the_marginals(remasking: str, eta: float) -> None:
    """q(x_s | x_0) of tokens that are known exactly, and of one that is drawn, at every time of the grid."""
    q, counts = absorbing(2), np.array([1, 3])
    told = Categorical(torch.tensor([[[0.25, 0.75]]]).double().log())

    def denoise(x: Tensor, t: float) -> Categorical:
        return Categorical(torch.where((x == 2)[..., None], told.log_probs, torch.eye(2).double().log()[x % 2]))

    step, law = partial(remdm, remasking=remasking, eta=eta), {(2,): 1.0}
    cells = 2**5 * 3 * 5
    for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        law = along([t, s], law, by_cells(step, q, denoise, cells, 4))
        assert_same(law, {(2,): s} | {(k,): (1 - s) * counts[k] / 4 for k in range(2)})
    again = by_cells(step, q, denoise, cells, 4)((0,), 0.75, 0.5)[2,]
    most = min(1, 0.5 / 0.25)
    assert again == pytest.approx(min(eta, most) if remasking == "cap" else eta * most, abs=1e-12)


def of_correction(back: float, law: Law, t: float, s: float) -> Law:
    """The law after predictor-corrector from t to s, of `PAIRS`, by fractions: an implementation of its own."""
    p = PAIRS / PAIRS.sum()

    def down(law: Law, t: float, s: float) -> Law:
        after: Counter[tuple[int, ...]] = Counter()
        for x, weight in law.items():
            options = []
            for place in range(2):
                given = share(p, x, place)
                chance = (t - s) / t
                options.append(
                    [(x[place], 1.0)]
                    if x[place] < 2
                    else [(2, 1 - chance), *((k, chance * given[k] / given.sum()) for k in range(2))]
                )
            for pick in itertools.product(*options):
                after[tuple(k for k, _ in pick)] += weight * prod(c for _, c in pick)  # type: ignore[assignment]
        return dict(after)

    def up(law: Law, s: float, t: float) -> Law:
        after: Counter[tuple[int, ...]] = Counter()
        for x, weight in law.items():
            for lost in itertools.product([False, True], repeat=2):
                chance = prod(
                    float(gone) if token == 2 else ((t - s) if gone else (1 - t)) / (1 - s)
                    for token, gone in zip(x, lost, strict=True)
                )
                after[tuple(2 if gone else k for k, gone in zip(x, lost, strict=True))] += weight * chance  # type: ignore[assignment]
        return dict(after)

    between = s + back * (t - s)
    return down(up(down(law, t, s), s, between), between, s)


@pytest.mark.parametrize("start", [(2, 2), (2, 0), (1, 1)])
def test_the_law_of_predictor_corrector(start: tuple[int, int]) -> None:
    """Down from 1 to 1/2, up to 3/4 and down again: for two tokens as an enumeration of its own says."""
    q = absorbing(2)
    u = middles(*[2] * 2, *[4 if 2 in start != (2, 2) else 2] * 2, *[2] * 2, *[3] * 2, *[4] * 2)
    one, value, up, two, again = (u[:, 2 * k : 2 * k + 2] for k in range(5))
    draw = Enumerated(
        {(100, 1): one, (100, 1, 100): value, (100, 2): up, (100, 3): two, (100, 3, 100): again},
    )
    state = State(torch.tensor(start).expand(len(u), -1), 1.0)
    ours = counted(predictor_corrector(state, 0.5, exact(PAIRS), q, draw, back=0.5).x)
    assert_same(ours, of_correction(0.5, {start: 1.0}, 1.0, 0.5))


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_predictor_corrector_leaves_one_token_as_it_is(kind: str) -> None:
    """A token of the law q(x_t) has q(x_s) afterwards, by 40 middles of each number that it uses."""
    q, n, (t, s) = CategoricalProcess(LinearSurvival(), 2, kind, torch.float64), 40, (0.8, 0.3)
    log_p = torch.tensor([0.9, 0.1], dtype=torch.float64).log()

    def denoise(x: Tensor, t: float) -> Categorical:
        return Categorical((log_p + q.likelihood(x, t)).log_softmax(-1))

    before, after = (log_p.exp() @ q.marginal(torch.arange(2), at).log_probs.exp() for at in (t, s))
    found = torch.zeros(q.categories, dtype=torch.float64)
    u = middles(n, n, n) if kind == "uniform" else middles(8, 10, 7, 2, 10)
    keys = [(100, 1), (100, 2), (100, 3)]
    if kind == "absorbing":
        keys = [(100, 1), (100, 1, 100), (100, 2), (100, 3), (100, 3, 100)]
    draw = Enumerated({key: u[:, k : k + 1] for k, key in enumerate(keys)})
    # From 0.8 to 0.3 masks are revealed 5 times in 8; up to 0.6 tokens are lost 3 times in 7, and down revealed 1 in 2.
    for x, weight in enumerate(before):
        state = State(torch.full((len(u), 1), x), t)
        x_s = predictor_corrector(state, s, denoise, q, draw, back=0.6).x.flatten()
        found += weight * torch.bincount(x_s, minlength=q.categories) / len(u)
    np.testing.assert_allclose(found, after, atol=1e-12 if kind == "absorbing" else 0.01)


def test_confidence_is_exact_one_at_a_time() -> None:
    """With as many steps as tokens it reveals one a step, and the law is the data's."""
    q, cells = absorbing(3), any_order_cells(TRIPLES)

    def law(x: tuple[int, ...], t: float, s: float) -> Law:
        draw = Enumerated({(100,): middles(cells).expand(-1, 3)})
        return counted(confidence(State(torch.tensor(x).expand(cells, -1), t), s, exact(TRIPLES), q, draw).x)

    ours = along([1.0, 2 / 3, 1 / 3, 0.0], {(3, 3, 3): 1.0}, law)
    assert_same(ours, {x: TRIPLES[x] / TRIPLES.sum() for x in np.ndindex(3, 3, 3)})


def test_confidence_is_deterministic_in_where_it_reveals() -> None:
    """The surest first, ties from the left, tokens that stand never; 4 masks by half of the way are 2, 5 are 3."""
    sure = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.99, 0.6], dtype=torch.float64)
    told = Categorical(torch.stack([sure, 1 - sure], -1).log().expand(20, 6, 2))
    for start, masks in (((2, 2, 2, 2, 1, 1), {0, 2}), ((2, 2, 2, 2, 0, 2), {0, 5}), ((2, 1, 2, 1, 0, 2), {0})):
        state = State(torch.tensor(start).expand(20, -1), 1.0)
        x = confidence(state, 0.5, lambda x, t: told, absorbing(2), keyed_draws(0, range(20))(1)).x
        assert all({*row.eq(2).nonzero().flatten().tolist()} == masks for row in x)
        assert len(x.unique(dim=0)) > 1  # their values are drawn


@pytest.mark.parametrize("step", [reveal, partial(remdm, eta=0.25)])
def test_the_others_follow_the_law_given_the_known(step: Step) -> None:
    """The second of two tokens, the first being 1: p(x_2 | x_1 = 1), though the start says nothing of it."""
    q, one = absorbing(2), torch.tensor([True, False])
    held = holding(step, torch.tensor([1, 0]), one)
    law = along([1.0, 0.75, 0.5, 0.0], {(2, 2): 1.0}, by_cells(held, q, exact(PAIRS), 48, 4))
    assert_same(law, {(1, 0): 1 / 4, (1, 1): 3 / 4})
