"""The categorical process q, by enumeration of every state: NumPy, with probabilities in place of logarithms."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from references import SCHEDULES, ZERO_SNR
from scipy import stats
from torch import Tensor

from undiffuse.objectives import variational_bound
from undiffuse.process import Categorical, CategoricalProcess, FlowMatching, Schedule, cosine, linear
from undiffuse.randomness import keyed_draws, normal, stream
from undiffuse.sampling import ancestral, make_grid, trajectory

every_kind = pytest.mark.parametrize("kind", ["absorbing", "uniform"])
every_count = pytest.mark.parametrize("values", [2, 3, 4, 5])
every_schedule = pytest.mark.parametrize("schedule", ["cosine", "linear", "flow", "zero-snr", "vp"])
PAIRS = [(0.05, 0.1), (0.05, 1.0), (0.3, 0.35), (0.5, 0.95), (0.25, 0.75), (0.0, 0.05), (0.0, 0.5), (0.0, 1.0)]


def process(schedule: str, values: int, kind: str) -> CategoricalProcess:
    return CategoricalProcess(SCHEDULES[schedule], values, kind, torch.float64)


def survival(schedule: Schedule, t: float) -> float:
    """alpha_t: the share of signal of a variance-preserving process, computed from its level."""
    level = schedule.noise_level(t)
    return float(level.alpha**2 / (level.alpha**2 + level.sigma**2))


def matrix(q: CategoricalProcess, s: float, t: float) -> np.ndarray:
    """The transition matrix Q, Q[i, j] = q(x_t = j | x_s = i) (Austin et al. 2021, appendix A.2), as a matrix."""
    size = q.values + (q.kind == "absorbing")
    pi = np.zeros(size)
    pi[q.values :] = 1
    if q.kind == "uniform":
        pi[:] = 1 / size
    kept = survival(q.schedule, t) / survival(q.schedule, s)
    return kept * np.eye(size) + (1 - kept) * pi


def probabilities(law: Categorical) -> np.ndarray:
    return law.log_probs.exp().numpy()


def by_bayes(prior: np.ndarray, likelihood: np.ndarray) -> np.ndarray:
    joint = prior * likelihood
    return joint / joint.sum()


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    """Every kind, number of values, schedule and pair of times."""
    return every_kind(every_count(every_schedule(pytest.mark.parametrize(("s", "t"), PAIRS)(test))))


@every_case
def test_marginal_is_the_product_of_transitions(schedule: str, values: int, kind: str, s: float, t: float) -> None:
    """Chapman-Kolmogorov, with ours and with the matrices: Q(0, s) Q(s, t) = Q(0, t)."""
    q = process(schedule, values, kind)
    x0, every = torch.arange(values), torch.arange(q.categories)
    at_s, onwards = probabilities(q.marginal(x0, s)), probabilities(q.transition(every, s, t))
    ours = probabilities(q.marginal(x0, t))
    np.testing.assert_allclose(at_s @ onwards, ours, rtol=0, atol=1e-14)
    np.testing.assert_allclose(ours, matrix(q, 0, t)[:values], rtol=0, atol=1e-14)
    np.testing.assert_allclose(onwards, matrix(q, s, t), rtol=0, atol=1e-12)  # alpha_t / alpha_s of the reference


@every_case
def test_posterior_by_enumeration(schedule: str, values: int, kind: str, s: float, t: float) -> None:
    """q(x_s | x_t, x_0) = q(x_s | x_0) q(x_t | x_s) / q(x_t | x_0) for every pair (x_0, x_t) that can be."""
    q = process(schedule, values, kind)
    to_s, onwards, to_t = matrix(q, 0, s), matrix(q, s, t), matrix(q, 0, t)
    for x0, x_t in itertools.product(range(values), range(q.categories)):
        ours = probabilities(q.posterior(torch.tensor([x0]), torch.tensor([x_t]), s, t))[0]
        if to_t[x0, x_t] < 1e-15:
            assert np.isnan(ours).all()
            continue
        np.testing.assert_allclose(ours, by_bayes(to_s[x0], onwards[:, x_t]), rtol=0, atol=1e-12)


@every_case
def test_reverse_is_the_mean_of_the_posterior(schedule: str, values: int, kind: str, s: float, t: float) -> None:
    """sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), for predictions that Bayes' rule makes from any prior."""
    q = process(schedule, values, kind)
    to_s, onwards, to_t = matrix(q, 0, s), matrix(q, s, t), matrix(q, 0, t)
    prior = np.random.default_rng(values).dirichlet(np.ones(values))
    for x_t in range(q.categories):
        if (prior * to_t[:values, x_t]).sum() < 1e-15:
            continue
        prediction = by_bayes(prior, to_t[:values, x_t])
        expected = np.zeros(q.categories)
        for x0 in np.flatnonzero(prediction):
            expected += prediction[x0] * by_bayes(to_s[x0], onwards[:, x_t])
        told = Categorical(torch.from_numpy(prediction).log().unsqueeze(0))
        ours = probabilities(q.reverse(told, torch.tensor([x_t]), s, t))[0]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@every_kind
def test_ends_are_exact(kind: str) -> None:
    """At t = 0 the data, at the end of a schedule without signal pi alone; not nearly, exactly."""
    q = process("flow", 3, kind)
    x0 = torch.arange(3)
    at_data, at_noise = q.marginal(x0, 0.0), q.marginal(x0, 1.0)
    assert torch.equal(at_data.log_probs.exp(), torch.eye(3, q.categories, dtype=torch.float64))
    assert torch.equal(at_noise.kl(q.prior(x0)), torch.zeros(3, dtype=torch.float64))
    onto_data = q.posterior(x0, x0 if kind == "uniform" else torch.full((3,), 3), 0.0, 1.0)
    assert torch.equal(onto_data.log_probs.exp(), torch.eye(3, q.categories, dtype=torch.float64))


@every_kind
def test_times_one_per_sample(kind: str) -> None:
    """A time for each sample gives what the times give one by one; elements of any rank."""
    q = process("cosine", 4, kind)
    x0 = torch.tensor([[[0, 1], [2, 3]], [[3, 3], [1, 0]]])
    x_t = torch.tensor([[[0, 1], [2, 3]], [[3, 3], [1, 0]]])
    s, t = torch.tensor([0.1, 0.4], dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64)
    prediction = Categorical(torch.randn(2, 2, 2, 4, dtype=torch.float64).log_softmax(-1))
    laws: list[Callable[[Tensor, slice, Tensor | float, Tensor | float], Categorical]] = [
        lambda x, k, s, t: q.marginal(x, t),
        lambda x, k, s, t: q.transition(x, s, t),
        lambda x, k, s, t: q.posterior(x, x_t[k], s, t),
        lambda x, k, s, t: q.reverse(Categorical(prediction.log_probs[k]), x_t[k], s, t),
    ]
    for law in laws:
        together = law(x0, slice(None), s, t).log_probs
        for k in range(2):
            alone = law(x0[k : k + 1], slice(k, k + 1), s[k].item(), t[k].item()).log_probs
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-13, atol=0)


def test_divergence_by_cases() -> None:
    """0 ln 0 = 0, a ruled-out possibility is infinitely wrong, and gradients are finite where the value is."""
    p = Categorical(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log())
    q = Categorical(torch.tensor([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64).log())
    np.testing.assert_allclose(p.kl(q).numpy(), [0.5 * np.log(2), np.inf], rtol=1e-15)
    np.testing.assert_allclose(p.kl(p).numpy(), [0, 0], rtol=0)
    assert p.log_prob(torch.tensor([1, 1])).tolist() == [np.log(0.5), -np.inf]
    dense = np.random.default_rng(0).dirichlet(np.ones(5), 2)
    one, other = (Categorical(torch.from_numpy(row).log()) for row in dense)
    assert one.kl(other).item() == pytest.approx(stats.entropy(*dense), rel=1e-13)


@every_kind
@pytest.mark.parametrize("s", [0.0, 0.3])
def test_gradients_of_the_bound_are_finite(kind: str, s: float) -> None:
    """KL(posterior, reverse) of every x_t that can be, differentiated by the logits: as differences quotients say."""
    q = process("flow", 3, kind)
    x0 = torch.tensor([0, 1, 2, 0])
    x_t = torch.tensor([0, 1, 3, 3]) if kind == "absorbing" else torch.tensor([0, 1, 0, 2])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def bound(logits: Tensor) -> Tensor:
        return q.posterior(x0, x_t, s, 0.6).kl(q.reverse(Categorical(logits.log_softmax(-1)), x_t, s, 0.6)).sum()

    assert torch.autograd.gradcheck(bound, logits)


def test_absorbing_keeps_what_is_not_masked() -> None:
    """An element that is not masked stays, whatever is predicted; a masked one is revealed as often as it should."""
    q = process("cosine", 3, "absorbing")
    prediction = Categorical(torch.tensor([[0.2, 0.3, 0.5]] * 2, dtype=torch.float64).log())
    law = probabilities(q.reverse(prediction, torch.tensor([1, 3]), 0.4, 0.7))
    np.testing.assert_allclose(law[0], [0, 1, 0, 0], rtol=0, atol=1e-15)
    alpha_s, alpha_t = survival(q.schedule, 0.4), survival(q.schedule, 0.7)
    revealed = (alpha_s - alpha_t) / (1 - alpha_t)  # Sahoo et al. 2024, eq. 7
    np.testing.assert_allclose(law[1], [0.2 * revealed, 0.3 * revealed, 0.5 * revealed, 1 - revealed], rtol=1e-12)


def test_samples_follow_the_law() -> None:
    """A chi-squared test over 40,000 samples; what has no probability never comes."""
    p = np.array([0.0, 0.5, 0.0, 0.2, 0.05, 0.25, 0.0])
    law = Categorical(torch.from_numpy(p).log().expand(400, 100, 7))
    counts = np.bincount(law.sample(keyed_draws(0, range(400))(1)).flatten().numpy(), minlength=7)
    assert (counts[p == 0] == 0).all()
    assert stats.chisquare(counts[p > 0], 40_000 * p[p > 0]).pvalue > 1e-3


def test_rare_categories_are_not_too_rare() -> None:
    """The largest uniform number reaches the last category though it has probability 1e-9, and the least the first."""
    rare = torch.tensor([1e-12, 1 - 1e-9 - 1e-12, 1e-9], dtype=torch.float64).log()

    class Fixed:
        def __init__(self, u: float):
            self.u = u

        def uniform(self, like: Tensor) -> Tensor:
            return torch.full(like.shape, self.u, dtype=torch.float64)

    for dtype in (torch.float32, torch.float64):
        law = Categorical(rare.to(dtype).expand(1, 1, 3))
        found = [law.sample(Fixed(u)).item() for u in (0.0, 2e-12, 1 - 2e-9, 1 - 5e-10, 1 - 2.0**-53)]  # type: ignore[arg-type]
        assert found == ([0, 1, 1, 2, 2] if dtype == torch.float64 else [*found[:3], 2, 2])


def test_draws_do_not_depend_on_the_batch() -> None:
    """Sample k's numbers alone are those it has among others; both kinds and folds have streams of their own."""
    like = torch.empty(3, 2, 4)
    together, alone = keyed_draws(0, range(3))(1), keyed_draws(0, [1])(1)
    for number in ("normal", "uniform"):
        assert torch.equal(getattr(together, number)(like)[1:2], getattr(alone, number)(like[:1]))
    assert torch.equal(together.normal(like), normal(together.keys, (2, 4)))
    u = torch.cat(
        [d.uniform(like).flatten() for d in (together, together.fold(1), together.fold(2), keyed_draws(1, range(3))(1))]
    )
    assert u.dtype == torch.float64 and len(u.unique()) == len(u)
    many = keyed_draws(0, [0])(1).uniform(torch.empty(1, 20_000)).flatten().numpy()
    assert stats.kstest(many, "uniform").pvalue > 1e-3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="choose from absorbing, uniform"):
        CategoricalProcess(cosine(10), 3, "masking")
    with pytest.raises(ValueError, match="at least 2 values"):
        CategoricalProcess(linear(10), 1)
    assert CategoricalProcess(FlowMatching(), 3, "uniform").mask is None
    assert "flow" in ZERO_SNR  # where the exact end is tested


@every_kind
def test_the_loop_samples_tokens(kind: str) -> None:
    """Ancestral sampling through `trajectory` with the exact posterior: pairs come as often as the data has them.

    Two tokens that depend on each other; elements are revealed one by one with many steps, so no two at once by chance.
    """
    q = CategoricalProcess(FlowMatching(), 3, kind)
    joint = np.array([[0.3, 0.02, 0.08], [0.05, 0.24, 0.01], [0.01, 0.1, 0.19]])
    pairs = torch.from_numpy(joint).float().log()

    def denoise(x: Tensor, t: float) -> Categorical:
        told = [q.marginal(torch.arange(3), t).log_probs[:, x[:, k]].T for k in range(2)]  # ln q(x_t | x_0 = i)
        both = pairs + told[0][:, :, None] + told[1][:, None, :]
        both = both - both.flatten(1).logsumexp(1)[:, None, None]
        return Categorical(torch.stack([both.logsumexp(2), both.logsumexp(1)], 1))

    class Shared:  # one stream for all samples, since 20,000 keys take minutes
        def __init__(self, step: int):
            self.step = step

        def uniform(self, like: Tensor) -> Tensor:
            return torch.from_numpy(stream(1, self.step).random(like.shape))

    count = 20_000
    draws: Any = Shared
    start = q.prior(torch.zeros(count, 2)).sample(draws(0))
    grid = make_grid("trailing", q.schedule, 60)
    *_, last = trajectory(denoise, q, grid, ancestral, start, draws)
    assert last.t == 0 and (last.x < 3).all()
    counts = np.bincount(3 * last.x[:, 0] + last.x[:, 1], minlength=9)
    expected = count * joint.flatten()
    # Sixty steps reveal both tokens in one step once in 60 times, when their dependence is lost: within 2 %.
    assert np.abs(counts - expected).sum() / count < 0.04
    assert stats.chisquare(np.bincount(last.x[:, 0]), count * joint.sum(1)).pvalue > 1e-3


@every_kind
def test_the_discrete_bound_of_tokens_is_exact(kind: str) -> None:
    """With the true posterior of one token, prior + steps + first term is the entropy of the data, and the last gap.

    The same `variational_bound` that pictures use, every term, the expectation over x_t by enumeration.
    """
    q, p = CategoricalProcess(cosine(6), 3, kind, torch.float64), np.array([0.5, 0.3, 0.2])
    log_p = torch.from_numpy(p).log()

    class Known:
        process = q

        def __call__(self, x: Tensor, t: Tensor, condition: None) -> Categorical:
            told = torch.stack([q.marginal(torch.full_like(x, i), t).log_prob(x) for i in range(3)], -1)
            return Categorical((told + log_p).log_softmax(-1))

    class Enumerated:
        """Uniform numbers in the middles of `rows` even intervals, one for each row."""

        def __init__(self, rows: int):
            self.u = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows

        def uniform(self, like: Tensor) -> Tensor:
            return self.u

        def normal(self, like: Tensor) -> Tensor:
            raise AssertionError("tokens need no normal numbers")

    rows, total = 4000, 0.0
    for x0 in range(3):
        data = torch.full((rows, 1), x0)
        for index in range(6):
            u = torch.full((rows,), (index + 0.5) / 6, dtype=torch.float64)
            terms = variational_bound(Known(), data, None, u, Enumerated(rows))  # type: ignore[arg-type]
            total += p[x0] * terms.mean().item() / 6
        total += p[x0] * q.marginal(data[:1], 1.0).kl(q.prior(data[:1])).item()
    # -sum p ln p, and in the prior's term what the last state still tells; enumeration is exact to 1 / rows.
    mixture = sum(p[i] * probabilities(q.marginal(torch.tensor([i]), 1.0))[0] for i in range(3))
    gap = stats.entropy(mixture, probabilities(q.prior(torch.zeros(1)))[0])
    assert total == pytest.approx(stats.entropy(p) + gap, abs=2e-3)
