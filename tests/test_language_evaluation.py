"""Bits, bounds, infilling and fluency of models whose answers are known: independent tokens, Markov chains, cheats."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.evaluation.infilling import infilled, masks
from undiffuse.evaluation.language import BLOCK, Estimate, bound_bits, causal_bits, chain_rule_bits, fluency
from undiffuse.evaluation.texts import _characters
from undiffuse.metrics.language import Bidirectional, NGram, ngram_entropy
from undiffuse.objectives.categorical import categorical_bound, count
from undiffuse.process import CategoricalProcess
from undiffuse.process.closed_form import LinearSurvival
from undiffuse.randomness import stream
from undiffuse.token_denoiser import TokenDenoiser

P = np.array([0.5, 0.25, 0.125, 0.125])
H = 1.75
STAYS = 0.9
RATE = -(STAYS * math.log2(STAYS) + (1 - STAYS) * math.log2(1 - STAYS))


def independent(length: int, seed: int = 1) -> np.ndarray:
    """Tokens from P."""
    return stream(seed).choice(4, length, p=P)


def chain(length: int, seed: int = 3) -> np.ndarray:
    """A chain of two states that stays in one with probability STAYS."""
    return np.cumsum(stream(seed).random(length) > STAYS) % 2


def markov(x: Tensor) -> Tensor:
    """The chain's exact law at every place given those before it in the row, where 2 is the mask."""
    law = torch.full((*x.shape, 2), math.log(0.5), dtype=torch.float64)
    known = x[:, :-1] < 2
    stays = torch.nn.functional.one_hot(x[:, :-1].clamp(max=1), 2).double()
    after = (stays * STAYS + (1 - stays) * (1 - STAYS)).log()
    law[:, 1:] = torch.where(known[..., None], after, law[:, 1:])
    return law


def chain_bits(flat: np.ndarray, known: np.ndarray) -> float:
    """The mean bits of a chain: 1 where the token before is not known."""
    same = np.append(False, flat[1:] == flat[:-1])
    bits = np.where(same, -math.log2(STAYS), -math.log2(1 - STAYS))
    return float(np.where(known, bits, 1).mean())


@pytest.mark.parametrize("length", [1, 2, 7, 16, 5000])
@pytest.mark.parametrize("count", [1, 16, 1003])
def test_both_rules_read_every_token_once_after_all_that_its_window_holds(length, count):
    flat = chain(count)
    known = np.arange(count) > 0 if length > 1 else np.zeros(count, dtype=bool)
    expected = chain_bits(flat, known)
    for estimate in (causal_bits(markov, flat, length), chain_rule_bits(markov, flat, length, mask=2)):
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        assert estimate.tokens == count


def test_the_rules_agree_with_the_source_within_their_error():
    flat = chain(60_000)
    estimate = causal_bits(markov, flat, 64)
    assert abs(estimate.value - RATE) < 3 * estimate.error
    deviation = (STAYS * (math.log2(STAYS) + RATE) ** 2 + (1 - STAYS) * (math.log2(1 - STAYS) + RATE) ** 2) ** 0.5
    assert estimate.error == pytest.approx(deviation / 60_000**0.5, rel=0.3)  # its terms are independent


def test_the_model_sees_half_a_window_of_context_and_nothing_to_the_right():
    flat, seen = np.arange(100) % 9, []

    def spy(x: Tensor) -> Tensor:
        seen.extend(x.tolist())
        return torch.zeros(*x.shape, 9).log_softmax(-1)

    estimate = chain_rule_bits(spy, flat.astype(np.uint8), 10, mask=9)
    assert estimate.value == pytest.approx(math.log2(9))
    assert len(seen) == 100
    for number, row in enumerate(seen):
        before = sum(token < 9 for token in row)
        assert row == [*flat[number - before : number], *[9] * (10 - before)]
        assert before == number if number < 10 else 5 <= before < 10


def test_characters_per_token_and_blocks():
    flat = chain(10_500)
    once = chain_rule_bits(markov, flat, 8, mask=2)
    assert chain_rule_bits(markov, flat, 8, mask=2, characters=4).value == pytest.approx(once.value / 4)
    some = chain_rule_bits(markov, flat, 8, mask=2, blocks=2)
    assert some.tokens == 2 * BLOCK
    bits = np.where(np.append(False, flat[1:] == flat[:-1]), -math.log2(STAYS), -math.log2(1 - STAYS))
    bits[0] = 1
    assert some.value == pytest.approx(np.append(bits[:1000], bits[5000:6000]).mean(), abs=1e-12)


def test_the_error_of_alike_neighbours_is_that_of_their_blocks():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 1000)
    estimate = Estimate.of(np.append(values, [9.0] * 10))
    assert estimate.error == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)
    assert estimate.value == pytest.approx((6000 + 90) / 4010)
    assert Estimate.of(values[:1999]).error is None


@dataclass(frozen=True)
class Ends:
    """A schedule as far as `bound_bits` needs one: the probability of surviving to t = 1."""

    survival: float

    def log_snr(self, t: object) -> Tensor:
        return torch.tensor(self.survival, dtype=torch.float64).logit()


@dataclass(frozen=True)
class Toy:
    """A denoiser as far as `bound_bits` needs one; the objectives below know P."""

    process: CategoricalProcess


def toy(kind: str = "absorbing", survival: float = 0.0) -> Toy:
    return Toy(CategoricalProcess(Ends(survival), 4, kind, torch.float64))


NATS = torch.from_numpy(-np.log(P))


def exact(denoiser: Toy, x0: Tensor, condition: None, u: Tensor, draw) -> Tensor:
    """The nats of each window, whatever u."""
    return NATS[x0].mean(1)


def smoother(x_t: Tensor, log_snr: Tensor, condition: None) -> Tensor:
    """The chain's exact law at every place given the known tokens on both sides, where 2 is the mask: logits."""
    spins = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)[x_t]

    def told(spins: Tensor) -> Tensor:
        """The mean spin at each place, given what comes before it: it decays by 2 STAYS - 1 at every step."""
        means = torch.zeros_like(spins)
        for i in range(1, spins.shape[1]):
            before = torch.where(spins[:, i - 1] == 0, means[:, i - 1], spins[:, i - 1])
            means[:, i] = (2 * STAYS - 1) * before
        return means

    left, right = told(spins), told(spins.flip(1)).flip(1)
    return torch.stack([((1 + s * left) * (1 + s * right)).log() for s in (1, -1)], -1)


def test_the_bound_weighs_every_token_once():
    flat = independent(8_000)
    assert bound_bits(exact, toy(), flat, 16, draws=3, seed=0).value == pytest.approx(
        -np.log2(P)[flat].mean(), abs=1e-12
    )
    odd = bound_bits(exact, toy(), flat[:1003].astype(np.uint8), 10, draws=1, seed=0)
    bits = -np.log2(P)[flat[:1003]]
    assert odd.value == pytest.approx((bits[:1000].sum() + 3 * bits[-10:].mean()) / 1003, abs=1e-12)
    assert odd.tokens == 1003


# The deviation over ten seeds is 0.0027 and 0.0081; its mean is 0 within its error for both.
@pytest.mark.parametrize(("objective", "within"), [(count, 0.01), (categorical_bound, 0.03)])
def test_the_bound_of_the_exact_denoiser_is_the_probability_of_each_window(objective, within):
    flat = chain(8000)
    process = CategoricalProcess(LinearSurvival(), 2, dtype=torch.float64)
    estimate = bound_bits(objective, TokenDenoiser(smoother, process), flat, 16, draws=16, seed=0)
    assert estimate.value == pytest.approx(chain_bits(flat, np.arange(8000) % 16 > 0), abs=within)
    assert abs(estimate.value - (15 * RATE + 1) / 16) < 3 * estimate.error
    again = [bound_bits(objective, TokenDenoiser(smoother, process), flat[:800], 16, 2, seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_the_chain_rule_of_the_exact_denoiser_is_the_probability_of_the_text():
    flat = chain(1000)
    bits = chain_rule_bits(lambda x: smoother(x, None, None).log_softmax(-1), flat, 16, mask=2)
    assert bits.value == pytest.approx(chain_bits(flat, np.arange(1000) > 0), abs=1e-12)


def test_draws_of_a_window_differ_and_are_stratified_over_u():
    seen = []

    def spy(denoiser: Toy, x0: Tensor, condition: None, u: Tensor, draw) -> Tensor:
        seen.append((u, draw.uniform(x0)))
        return u**2

    estimate = bound_bits(spy, toy(), np.zeros(160, dtype=np.int64), 16, draws=4, seed=0)
    strata = torch.stack([u for u, _ in seen], 1)
    assert ((strata * 4).floor() == torch.arange(4)).all()
    assert not torch.equal(seen[0][1], seen[1][1])
    assert estimate.value == pytest.approx(1 / 3 / math.log(2), rel=0.02)  # the integral, from 40 values of u


@pytest.mark.parametrize("survival", [0.0, 0.3])
def test_the_bound_has_the_priors_term(survival):
    flat = independent(160)
    q = np.array([survival + (1 - survival) / 4, *[(1 - survival) / 4] * 3])
    kl = float((q * np.log2(q * 4)).sum())
    estimate = bound_bits(exact, toy("uniform", survival), flat, 16, draws=1, seed=0, characters=2)
    assert estimate.value == pytest.approx((-np.log2(P)[flat].mean() + kl) / 2, abs=1e-12)
    if survival:  # a mask that may be missing at t = 1 is ruled out by the prior
        assert bound_bits(exact, toy("absorbing", survival), flat, 16, draws=1, seed=0).value == math.inf


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UndiffuseError, match="a text of 9 tokens does not fill a window of 16"):
        bound_bits(exact, toy(), independent(9), 16, draws=1, seed=0)


def test_masks_hide_what_they_say():
    hidden = masks("characters", 2000, 128, seed=0)
    assert (hidden.sum(1) == 19).all() and masks("characters", 1, 64, seed=0).sum() == 10
    np.testing.assert_allclose(hidden.mean(0), 19 / 128, atol=0.04)  # every place is as likely
    for length in (16, 64, 128, 256):
        for row in masks("spans", 50, length, seed=0):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
            assert (edges[1::2] - edges[::2] == 8).all()
            assert len(edges) // 2 == max(length // 54, 1)
            assert (edges[2::2] - edges[1:-1:2] >= 8).all()
    for kind in ("characters", "spans"):
        np.testing.assert_array_equal(masks(kind, 3, 64, seed=1), masks(kind, 5, 64, seed=1)[:3])
        assert (masks(kind, 3, 64, seed=1) != masks(kind, 3, 64, seed=2)).any()


def test_masks_refuse_unknown_kinds_and_short_windows():
    with pytest.raises(ValueError, match="choose from characters, spans"):
        masks("words", 1, 64, seed=0)
    with pytest.raises(ValueError, match="at least 16 tokens, not 15"):
        masks("spans", 1, 15, seed=0)


def test_infilling_of_a_known_law():
    windows = independent(128 * 400).reshape(400, 128)
    hidden = masks("characters", 400, 128, seed=0)

    def fill(x: Tensor, away: Tensor) -> Tensor:
        assert (x[away] == 4).all()
        return -NATS.expand(*x.shape, 4)

    score = infilled(fill, windows, hidden, mask=4)
    truth = windows[hidden]
    assert score.bits.tokens == 19 * 400
    assert score.bits.value == pytest.approx(-np.log2(P)[truth].mean(), abs=1e-12)
    assert score.accuracy.value == pytest.approx((truth == 0).mean(), abs=1e-12)
    assert abs(score.accuracy.value - 0.5) < 4 * score.accuracy.error
    assert score.accuracy.error == pytest.approx((0.25 / (19 * 400)) ** 0.5, rel=0.2)


def test_the_bidirectional_rival_fills_in_a_chain_as_bayes_rule_does():
    flat = chain(300_000)
    rival = Bidirectional.learnt(flat[:200_000], 2)
    windows = flat[200_000:].reshape(-1, 100)
    hidden = np.zeros(windows.shape, dtype=bool)
    hidden[:, 10::10] = True  # both neighbours are known
    score = infilled(lambda x, away: rival.log_probs(x.numpy(), away.numpy()), windows, hidden, mask=2)
    # H(x_i | x_{i-1}, x_{i+1}): 2 H(0.9) - H(0.82), by the chain rule along the three.
    double = 0.82
    expected = 2 * RATE + double * math.log2(double) + (1 - double) * math.log2(1 - double)
    assert abs(score.bits.value - expected) < 4 * score.bits.error + 1e-3
    assert abs(score.accuracy.value - 0.9) < 4 * score.accuracy.error  # 0.82 (0.81 / 0.82) + 0.18 / 2


def test_fluency_tells_text_from_repetition_and_from_noise():
    flat = chain(100_000)
    judge, real = NGram.learnt(flat[:50_000], 4, 2), flat[50_000:]
    own = chain(6400, seed=9).reshape(50, 128)
    good = fluency(own, judge, real)
    assert good.bits == pytest.approx(RATE, abs=0.05)
    assert good.real_bits == pytest.approx(RATE, abs=0.05)
    assert good.unigrams == pytest.approx(1, abs=0.02) and good.counts
    assert good.fourgrams == pytest.approx(1 + 3 * RATE, abs=0.1)
    beside = real[(np.arange(50) * 1000)[:, None] + np.arange(128)]
    assert good.real_fourgrams == ngram_entropy(beside, 4, 2)
    dull = fluency(np.zeros((50, 128), dtype=np.int64), judge, real)
    assert dull.bits < good.bits and dull.unigrams == 0 and not dull.counts
    noise = fluency(stream(5).integers(0, 2, (50, 128)), judge, real)
    assert noise.bits == pytest.approx(-(math.log2(0.9) + math.log2(0.1)) / 2, abs=0.1) and noise.counts


def test_fluency_needs_as_much_real_text():
    judge = NGram.learnt(chain(1000), 2, 2)
    with pytest.raises(UndiffuseError, match="draw fewer"):
        fluency(np.zeros((10, 100), dtype=np.int64), judge, chain(999))


def test_characters_are_those_of_the_blocks_that_are_read():
    """Of two tokens, one of a letter and one of three, in halves of a text: the chosen blocks have their own mean."""

    class Words:
        def decode(self, ids):
            return "".join("a" if one == 0 else "bcd" for one in ids)

    class Text:
        tokenizer = Words()

    flat = np.repeat([0, 1], 4000)
    assert _characters(Text(), flat, None) == 2.0
    assert _characters(Text(), flat, 1) == 1.0
    assert _characters(Text(), flat[::-1], 3) == pytest.approx((2 * 3 + 1) / 3)
