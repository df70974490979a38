"""N-gram models against a dictionary-based Kneser-Ney, sums over all tokens, and sources of known entropy."""

from collections import Counter, defaultdict
from itertools import combinations, product

import numpy as np
import pytest

from undiffuse.errors import UndiffuseError
from undiffuse.metrics.language import NEAREST, Bidirectional, Level, NGram, highest_order, ngram_entropy
from undiffuse.randomness import stream

K = 5


def text(length: int, seed: int = 0) -> np.ndarray:
    """Tokens with a preference for their predecessor's neighbours, and some much rarer than others."""
    random = stream(seed, 1)
    steps = np.minimum(random.geometric(0.6, length) - 1, K - 1)
    return np.cumsum(steps) % K


def kneser_ney(grams: list[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
    """The laws after every context that was seen, by the formulas of Chen & Goodman (1999, sections 2.5 and 3).

    A gram is (furthest neighbour, ..., nearest neighbour, token).
    """
    counts = [Counter(grams)]
    for _ in grams[0][1:]:
        counts.append(Counter(gram[1:] for gram in counts[-1]))
    laws: dict[tuple[int, ...], np.ndarray] = {}
    for count in reversed(counts):
        n = Counter(count.values())
        enough = n[1] and n[2] and n[3] and n[4]
        if enough:
            y = n[1] / (n[1] + 2 * n[2])
            discount = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        after = defaultdict(lambda: np.zeros(K))
        for gram, number in count.items():
            after[gram[:-1]][gram[-1]] = number
        for context, numbers in after.items():
            shorter = laws[context[1:]] if context else np.full(K, 1 / K)
            if enough:
                less = np.array([discount[min(int(number), 3)] for number in numbers])
                laws[context] = (numbers - less + less.sum() * shorter) / numbers.sum()
            else:  # Witten & Bell
                kinds = (numbers > 0).sum()
                laws[context] = (numbers + kinds * shorter) / (numbers.sum() + kinds)
    return laws


def longest(laws: dict[tuple[int, ...], np.ndarray], context: tuple[int, ...]) -> np.ndarray:
    """The law after the longest end of the context that was seen."""
    while context not in laws:
        context = context[1:]
    return laws[context]


@pytest.mark.parametrize("order", [3, 4])
def test_the_model_is_modified_kneser_ney(order):
    tokens = text(4000)
    laws = kneser_ney([tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)])
    model = NGram.learnt(tokens, order, K)
    fresh = text(300, seed=7)
    expected = [longest(laws, tuple(fresh[max(0, i - order + 1) : i]))[token] for i, token in enumerate(fresh)]
    np.testing.assert_allclose(model.bits(fresh), -np.log2(expected), rtol=1e-12)
    rows = fresh.reshape(3, 100)
    np.testing.assert_array_equal(model.bits(rows)[1], model.bits(rows[1]))


@pytest.mark.parametrize(("length", "size"), [(40, 4), (3000, 5)])  # too few counts for discounts, and enough
def test_probabilities_sum_to_one_after_every_context(length, size):
    model = NGram.learnt(np.minimum(text(length), size - 2), 4, size)  # the last token never occurs
    contexts = np.array(list(product(range(-1, size), repeat=3)))  # seen, unseen, partly unknown
    p = model.given([contexts[:, i, None] for i in range(3)], np.arange(size))
    assert p.shape == (len(contexts), size)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-13)


def test_log_probs_hold_the_bits():
    tokens = text(200).reshape(2, 100)
    model = NGram.learnt(text(3000), 3, K)
    chosen = np.take_along_axis(model.log_probs(tokens), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(-chosen / np.log(2), model.bits(tokens), rtol=1e-12)


def test_without_the_counts_of_counts_a_level_is_witten_bells():
    level = Level.of(np.array([0, 1]), np.array([3, 1]), size=2)  # after the empty context: 0 three times, 1 once
    np.testing.assert_allclose(level.refine(np.array(0.5), np.array(0), np.arange(2), 2), [4 / 6, 2 / 6])


def test_the_bits_of_independent_tokens_are_their_entropy():
    p = np.array([0.5, 0.25, 0.125, 0.125])
    train, test = (stream(seed).choice(4, 200_000, p=p) for seed in (1, 2))
    bits = NGram.learnt(train, 3, 4).bits(test)
    assert abs(bits.mean() - 1.75) < 3 * bits.std() / len(bits) ** 0.5 + 1e-3  # 1e-3: learnt from finite text
    assert ngram_entropy(test, 1, 4) == pytest.approx(1.75, abs=0.005)
    assert ngram_entropy(test, 4, 4) == pytest.approx(7, abs=0.02)


def test_the_bits_of_a_markov_chain_are_its_entropy_rate():
    stays = 0.9  # of two states: a rate of H(0.9), while single tokens have 1 bit
    flips = stream(3).random(200_000) > stays
    tokens = np.cumsum(flips) % 2
    rate = -(stays * np.log2(stays) + (1 - stays) * np.log2(1 - stays))
    train, test = tokens[:100_000], tokens[100_000:]
    bits = {order: NGram.learnt(train, order, 2).bits(test) for order in (1, 2, 4)}
    assert bits[1].mean() == pytest.approx(1, abs=0.01)
    for order in (2, 4):
        assert abs(bits[order].mean() - rate) < 4 * bits[order].std() / len(test) ** 0.5


def test_both_neighbours_of_a_markov_chain_tell_what_bayes_rule_says():
    stays = 0.9
    tokens = np.cumsum(stream(4).random(400_000) > stays) % 2
    model = Bidirectional.learnt(tokens[:300_000], 2)
    rows = tokens[300_000:].reshape(-1, 100)
    hidden = np.zeros(rows.shape, dtype=bool)
    hidden[:, 50] = True
    p = np.exp(model.log_probs(rows, hidden)[:, 50])
    same = rows[:, 49] == rows[:, 51]
    agrees = p[np.arange(len(p)), rows[:, 49]]
    np.testing.assert_allclose(agrees[same], 0.81 / 0.82, atol=0.003)
    np.testing.assert_allclose(agrees[~same], 0.5, atol=0.02)


def test_a_bidirectional_model_is_kneser_ney_for_every_set_of_known_neighbours():
    tokens, row = text(20_000), text(60, seed=5)
    hidden = stream(6).random(60) < 0.5
    log_probs = Bidirectional.learnt(tokens, K).log_probs(row[None], hidden[None])[0]
    seen = set()
    laws = {}
    for known in (known for n in range(5) for known in combinations(NEAREST, n)):
        inside = range(2, len(tokens) - 2)
        laws[known] = kneser_ney([tuple(tokens[i + place] for place in (*reversed(known), 0)) for i in inside])
    for i in np.flatnonzero(hidden):
        known = tuple(place for place in NEAREST if 0 <= i + place < 60 and not hidden[i + place])
        expected = longest(laws[known], tuple(row[i + place] for place in reversed(known)))
        # The model has also learnt from the two places at each end of the text.
        np.testing.assert_allclose(np.exp(log_probs[i]), expected, atol=2e-3)
        seen.add(known)
    assert len(seen) >= 12


def test_what_is_hidden_is_not_read_and_laws_sum_to_one():
    model = Bidirectional.learnt(text(5000), K)
    rows, hidden = text(200).reshape(4, 50), stream(8).random((4, 50)) < 0.4
    log_probs = model.log_probs(rows, hidden)
    np.testing.assert_array_equal(model.log_probs(np.where(hidden, K, rows), hidden), log_probs)
    np.testing.assert_allclose(np.exp(log_probs[hidden]).sum(-1), 1, atol=1e-13)
    assert (log_probs[~hidden] == 0).all()


def test_the_entropy_of_ngrams_counts_within_rows():
    assert ngram_entropy(np.array([0, 0, 0, 1, 0, 1, 1, 1, 0, 0]), 3, 2) == 3  # de Bruijn: each of the 8 once
    assert ngram_entropy(np.array([[0, 1], [0, 1]]), 2, 2) == 0  # no (1, 0) from row to row


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(UndiffuseError, match="20-grams of 10 tokens do not fit"):
        NGram.learnt(np.zeros(100, dtype=np.int64), 20, 10)
    with pytest.raises(UndiffuseError, match="cannot be learnt from text of 3 tokens"):
        NGram.learnt(np.zeros((5, 3), dtype=np.int64), 4, 10)


def test_with_many_tokens_orders_are_lower():
    """The highest that fit 63 bits; of a lower order, a bidirectional model knows the nearest neighbours alone."""
    assert [highest_order(size, 5) for size in (2, 6208, 6209, 55108, 55109, 65536)] == [5, 5, 4, 4, 3, 3]
    text = np.random.default_rng(0).integers(0, 6, 4000)
    lower, full = (Bidirectional.learnt(text, 6, order) for order in (3, 5))
    hidden = np.zeros((1, 40), bool)
    hidden[0, 20] = True
    row = text[None, :40]
    expected = NGram.near(text, (-1, 1), 6).log_probs(row)
    np.testing.assert_allclose(lower.log_probs(row, hidden)[0, 20], expected[0, 20], rtol=1e-12)
    assert len(lower.models) == 4 and len(full.models) == 16
    large, first = np.random.default_rng(0).integers(0, 60_000, 3000), np.eye(8, dtype=bool)[:1]
    many = Bidirectional.learnt(large, 65_536, highest_order(65_536, 5))
    assert np.isfinite(many.log_probs(large[None, :8], first)).all()
