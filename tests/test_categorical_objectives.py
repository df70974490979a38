"""Objectives of tokens against closed forms, with exact expectations over every string and every corruption."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from exact_tokens import Fixed, exact_denoiser, expected, strings
from scipy import stats
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.objectives import (
    continuous_bound,
    count,
    hybrid_cross_entropy,
    reconstruction_share,
    step_times,
    variational_bound,
)
from undiffuse.process import (
    Categorical,
    CategoricalProcess,
    FlowMatching,
    LinearSurvival,
    Schedule,
    Table,
    Time,
    cosine,
)
from undiffuse.token_denoiser import TokenDenoiser

KINDS = ["absorbing", "uniform"]
every_kind = pytest.mark.parametrize("kind", KINDS)
PAIR = torch.tensor([[0.3, 0.02, 0.08], [0.05, 0.24, 0.01], [0.01, 0.1, 0.19]], dtype=torch.float64)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def process(kind: str, schedule: Schedule | None = None, values: int = 3) -> CategoricalProcess:
    return CategoricalProcess(schedule or LinearSurvival(), values, kind, torch.float64)


def entropy(law: Tensor) -> float:
    return float(stats.entropy(law.flatten().numpy()))


def mutual_information(pair: Tensor) -> float:
    return entropy(pair.sum(0)) + entropy(pair.sum(1)) - entropy(pair)


def total(denoiser: TokenDenoiser, joint: Tensor, steps: int) -> float:
    """L_0 + ... + L_T of the whole string, in nats, every expectation exact."""
    q, times = denoiser.process, step_times(denoiser.process.schedule, steps)
    bound = partial(variational_bound, steps=steps)
    terms = [expected(bound, denoiser, joint, (i + 0.5) / steps, times[i + 1].item()) for i in range(steps)]
    x0 = strings(joint.shape[0], joint.ndim)
    prior = q.marginal(x0, 1.0).kl(q.prior(x0)).sum(1) @ joint.flatten()
    return joint.ndim * sum(terms) / steps + float(prior)


def integral(denoiser: TokenDenoiser, joint: Tensor, nodes: int, power: int = 1) -> float:
    """The continuous bound of the whole string, in nats: Gauss-Legendre in t^(1 / power) (ln t at 0 for uniform)."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    s = (points + 1) / 2
    t, weights = s**power, weights / 2 * power * s ** (power - 1)
    return joint.ndim * sum(
        w * expected(continuous_bound, denoiser, joint, at, at) for at, w in zip(t, weights, strict=True)
    )


def wrong(values: int, length: int, mask: bool) -> TokenDenoiser:
    """A network of fixed random logits for each context: all tokens but the one predicted, and no time."""
    size = values + mask
    table = torch.from_numpy(np.random.default_rng(1).normal(size=(length, size**length, values)))
    radix = size ** torch.arange(length)

    def network(x_t: Tensor, log_snr: Tensor, condition: object) -> Tensor:
        rows = [(torch.cat([x_t[:, :i], x_t[:, i + 1 :]], 1) * radix[: length - 1]).sum(1) for i in range(length)]
        return torch.stack([table[i, row] for i, row in enumerate(rows)], 1)

    return TokenDenoiser(network, process("absorbing" if mask else "uniform", values=values))


# The T-step bound.


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", [LinearSurvival(), FlowMatching()], ids=["survival", "flow"])
def test_independent_tokens_absorbing_is_the_entropy(steps: int, schedule: Schedule) -> None:
    joint = P[:, None] * P
    denoiser = exact_denoiser(joint, process("absorbing", schedule))
    assert total(denoiser, joint, steps) == pytest.approx(2 * entropy(P), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_independent_tokens_uniform_is_the_entropy_and_the_last_gap(steps: int) -> None:
    """H + KL(q_T, prior): what the last state still tells is lost, here by a cosine without its last step."""
    bars = cosine(steps + 1).noise_level(torch.arange(steps + 1) / (steps + 1)).alpha ** 2
    q = process("uniform", Table(1 - bars[1:] / bars[:-1]))
    joint = P[:, None] * P
    last = bars[-1].item() * P.numpy() + (1 - bars[-1].item()) / 3
    gap = float(stats.entropy(last, np.full(3, 1 / 3)))
    assert gap > 1e-4
    assert total(exact_denoiser(joint, q), joint, steps) == pytest.approx(2 * (entropy(P) + gap), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("schedule", [LinearSurvival(), FlowMatching()], ids=["survival", "flow"])
def test_two_correlated_tokens(steps: int, schedule: Schedule) -> None:
    """H + I sum (delta alpha)^2: two tokens revealed in one step cost their mutual information."""
    denoiser = exact_denoiser(PAIR, process("absorbing", schedule))
    times = step_times(schedule, steps).numpy()
    alpha = (1 - times) ** (1 if isinstance(schedule, LinearSurvival) else 2)
    if isinstance(schedule, FlowMatching):
        alpha = alpha / (alpha + times**2)
    expects = entropy(PAIR) + mutual_information(PAIR) * (np.diff(alpha) ** 2).sum()
    assert total(denoiser, PAIR, steps) == pytest.approx(expects, abs=1e-12)


@every_kind
def test_the_continuous_bound_is_the_limit(kind: str) -> None:
    """The distance falls by half with each doubling of the steps, for any model without time."""
    denoiser, joint = wrong(2, 2, kind == "absorbing"), torch.tensor([[0.5, 0.1], [0.15, 0.25]], dtype=torch.float64)
    limit = integral(denoiser, joint, 40, 4)
    gaps = [total(denoiser, joint, steps) - limit for steps in (16, 32, 64, 128)]
    ratios = [a / b for a, b in itertools.pairwise(gaps)]
    tolerance = 1e-8 if kind == "absorbing" else 0.02  # of uniform noise the terms of higher order fade
    assert ratios[-1] == pytest.approx(2, abs=tolerance)


@every_kind
def test_more_steps_are_tighter(kind: str) -> None:
    """Of a model without time that is wrong, but that more context helps, the bound falls to the continuous one.

    Without that it need not: absorbing, bound_T is the right Riemann sum of the error of a masked token over t, which
    grows with t only where context helps. So the sum of a model that context misleads lies below the integral.
    """
    apart = PAIR.sum(1, keepdim=True) * PAIR.sum(0)
    belief = 0.6 * PAIR + 0.3 * apart + 0.1 / 9
    denoiser = exact_denoiser(belief, process(kind))
    limit = integral(denoiser, PAIR, 40, 4)
    bounds = [total(denoiser, PAIR, steps) for steps in (1, 2, 4, 8, 16, 32, 64)]
    assert limit > entropy(PAIR) + 0.01
    assert all(a > b > limit for a, b in itertools.pairwise(bounds))
    if kind == "absorbing":
        misled, joint = wrong(2, 2, True), torch.tensor([[0.5, 0.1], [0.15, 0.25]], dtype=torch.float64)
        assert total(misled, joint, 1) < total(misled, joint, 8) < integral(misled, joint, 2)


@every_kind
def test_float32_does_not_bias_many_steps(kind: str) -> None:
    """With T = 10,000 the laws of a step differ by less than float32 resolves; T times a term stays right."""
    random = torch.Generator().manual_seed(0)
    x0, u = torch.tensor([[0, 1, 2, 0]] * 9), torch.linspace(0, 0.999, 9, dtype=torch.float64)
    draw, logits = Fixed(torch.rand(9, 4, generator=random).double()), torch.randn(9, 4, 3, generator=random)

    def term(dtype: torch.dtype) -> Tensor:
        q = CategoricalProcess(LinearSurvival(), 3, kind, dtype)
        return variational_bound(TokenDenoiser(lambda *_: logits, q), x0, None, u, draw, steps=10_000)

    torch.testing.assert_close(term(torch.float32), term(torch.float64), rtol=1e-5, atol=1e-6)


@every_kind
def test_hybrid_is_the_bound_and_a_hundredth_of_the_cross_entropy(kind: str) -> None:
    denoiser, t = exact_denoiser(PAIR, process(kind)), 0.5
    both = expected(partial(hybrid_cross_entropy, steps=4), denoiser, PAIR, 0.3, t)
    bound = expected(partial(variational_bound, steps=4), denoiser, PAIR, 0.3, t)
    # The cross-entropy of an exact denoiser: H(x_0i | x_t), by enumeration with matrices.
    size = 4 if kind == "absorbing" else 3
    into = np.zeros((3, size))
    into[:, 3 if size == 4 else slice(None)] = 0.5 if size == 4 else 0.5 / 3
    into[:, :3] += 0.5 * np.eye(3)
    joint = np.einsum("ab,ac,bd->abcd", PAIR.numpy(), into, into)
    ours = sum(
        stats.entropy(joint.sum(1 - i).reshape(3, -1).flatten()) - stats.entropy(joint.sum((0, 1)).flatten())
        for i in range(2)
    )
    assert both - bound == pytest.approx(0.01 * ours / 2, abs=1e-13)


# The count form.


@pytest.mark.parametrize("length", [1, 2, 3])
def test_count_is_the_chain_rule_over_all_orders_and_the_continuous_bound(length: int) -> None:
    """For a model that is wrong: the mean over orders of -ln p(x_o1) p(x_o2 | x_o1) ..., by hand from its table."""
    denoiser = wrong(2, length, True)
    joint = torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(2**length))).reshape((2,) * length)
    orders = list(itertools.permutations(range(length)))
    x0, p = strings(2, length), joint.flatten()
    by_count = 0.0
    for masks, order in itertools.product(range(length), orders):
        draw = Fixed((torch.tensor(order).double() / length).expand(len(x0), -1))
        u = torch.full((len(x0),), (masks + 0.3) / length, dtype=torch.float64)
        by_count += float(p @ count(denoiser, x0, None, u, draw)) / len(orders)
    chain = 0.0
    for order in orders:
        x = torch.full_like(x0, 2)
        for i in order:
            chain -= float(p @ denoiser.logits(x, 0.5)[:, i].log_softmax(-1).gather(1, x0[:, i : i + 1])[:, 0])
            x[:, i] = x0[:, i]
    assert by_count == pytest.approx(chain / len(orders), abs=1e-12)
    assert integral(denoiser, joint, length) == pytest.approx(by_count, abs=1e-12)  # a polynomial of degree L - 1 in t


def test_count_masks_those_with_the_smallest_numbers() -> None:
    """Exactly l, at the alpha = 1 - l / L of the schedule; u = 0 masks one and the largest u all of them."""
    seen = {}

    def network(x_t: Tensor, log_snr: Tensor, condition: object) -> Tensor:
        seen["x"], seen["log_snr"] = x_t, log_snr
        return torch.zeros(*x_t.shape, 3, dtype=torch.float64)

    x0, draw = torch.tensor([[0, 1, 2, 1]] * 3), Fixed(torch.tensor([[0.9, 0.1, 0.5, 0.3]] * 3).double())
    u = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    losses = count(TokenDenoiser(network, process("absorbing", FlowMatching())), x0, None, u, draw)
    assert seen["x"].tolist() == [[0, 3, 2, 1], [0, 3, 3, 3], [3, 3, 3, 3]]
    np.testing.assert_allclose(seen["log_snr"].numpy(), [np.log(3), np.log(1 / 3), -20], rtol=1e-6)
    np.testing.assert_allclose(losses.numpy(), np.log([3, 3, 3]), rtol=1e-14)


def test_count_needs_a_mask() -> None:
    with pytest.raises(UsageError, match=r"objective\.loss=count needs masks"):
        count(exact_denoiser(PAIR, process("uniform")), strings(3, 2), None, torch.zeros(9), Fixed(torch.zeros(9, 2)))


# The continuous bound.


@every_kind
@pytest.mark.parametrize("schedule", [LinearSurvival(), FlowMatching()], ids=["survival", "flow"])
def test_exact_denoisers_reach_the_entropy(kind: str, schedule: Schedule) -> None:
    """Independent or not, on any schedule: in continuous time no two tokens jump at once, so the joint law is exact.

    With uniform noise that holds only because the logits are the leave-one-out prediction.
    """
    for joint in (P[:, None] * P, PAIR):
        bound = integral(exact_denoiser(joint, process(kind, schedule)), joint, 60, 4)
        assert bound == pytest.approx(entropy(joint), abs=1e-9)


def test_the_posterior_in_place_of_leave_one_out_is_worse() -> None:
    """p(x_0 | x_t) as w counts the element's own evidence twice: the bound is then far above the entropy."""

    q = process("uniform")

    class PlugIn(TokenDenoiser):
        def logits(self, x_t: Tensor, t: Time, condition: object = None) -> Tensor:
            return exact_denoiser(PAIR, q)(x_t, t).log_probs

    bound = integral(PlugIn(lambda *_: PAIR, q), PAIR, 60, 4)
    assert bound > entropy(PAIR) + 0.1


def test_score_entropy_is_the_masked_loss() -> None:
    """SEDD's denoising score entropy (Lou et al. 2024, eq. 9 and 11) with its score s = alpha / (1 - alpha) w.

    Rates sigma(t) = -alpha' / alpha into the mask; the sum over the values y that a masked token may jump back to of
    sigma (s_y - r_y ln s_y + r_y (ln r_y - 1)), r_y = q(y | x_0) / q(mask | x_0).
    """
    t, x0 = 0.35, torch.tensor([[0, 2, 1, 1]])
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 3)))
    draw = Fixed(torch.tensor([[0.1, 0.9, 0.2, 0.3]]).double())  # masks all but the second
    denoiser = TokenDenoiser(lambda *_: logits, process("absorbing"))
    ours = continuous_bound(denoiser, x0, None, torch.tensor([t], dtype=torch.float64), draw)
    w, odds, entropy_of_scores = logits.softmax(-1).numpy()[0], (1 - t) / t, 0.0
    for i in (0, 2, 3):
        for y in range(3):
            s, r = odds * w[i, y], odds * (y == x0[0, i].item())
            entropy_of_scores += 1 / (1 - t) * (s - r * np.log(s) + (r * (np.log(r) - 1) if r else 0))
    assert ours.item() == pytest.approx(entropy_of_scores / 4, rel=1e-12)


def test_uniform_integrand_by_rates() -> None:
    """The sum over y of a ln(a / b) - a + b with rates from NumPy, values and time of each sample of its own."""
    t, x0, draw = (0.2, 0.7), torch.tensor([[0, 2], [1, 1]]), Fixed(torch.tensor([[0.05, 0.9], [0.6, 0.1]]))
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 2, 3)))
    q = process("uniform")
    ours = continuous_bound(TokenDenoiser(lambda *_: logits, q), x0, None, torch.tensor(t, dtype=torch.float64), draw)
    x_t, w = q.corrupt(x0, torch.tensor(t, dtype=torch.float64), draw), logits.softmax(-1).numpy()
    assert (x_t != x0).any() and (x_t == x0).any()
    for row in range(2):
        alpha, forward, expects = 1 - t[row], 1 / (1 - t[row]) / 3, 0.0
        for i, y in itertools.product(range(2), range(3)):
            at, data = int(x_t[row, i]), np.eye(3)[int(x0[row, i])]
            if y != at:
                true, model = (alpha * law + (1 - alpha) / 3 for law in (data, w[row, i]))
                a, b = forward * true[y] / true[at], forward * model[y] / model[at]
                expects += a * np.log(a / b) - a + b
        assert ours[row].item() == pytest.approx(expects / 2, rel=1e-12)


@every_kind
def test_ends_are_finite(kind: str) -> None:
    """The least and the largest u, with the largest and the least numbers; float32 as in training."""
    q = CategoricalProcess(LinearSurvival(), 3, kind)
    logits = torch.randn(4, 2, 3, requires_grad=True)
    u = torch.tensor([0.0, 0.0, 1 - 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    draw = Fixed(torch.tensor([[0.0, 0.5], [0.5, 1 - 2.0**-53]] * 2, dtype=torch.float64))
    losses = continuous_bound(TokenDenoiser(lambda *_: logits, q), torch.ones(4, 2).long(), None, u, draw)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    if kind == "uniform":  # at t = 1 nothing is left to tell, and cancellation must not be blown up by 1 / (1 - t)
        assert losses[2:].abs().max() < 1e-12
    assert reconstruction_share(TokenDenoiser(lambda *_: logits, q), True) == 0


@every_kind
def test_corruption_is_exact(kind: str) -> None:
    """As often as the marginal says, to 1 / n, over n even uniform numbers; exactly the data and pi at the ends."""
    q, n = process(kind), 3000
    u = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    x0 = torch.full((n, 1), 1)
    for t in (0.0, 0.31, 0.8, 1.0):
        found = torch.bincount(q.corrupt(x0, t, Fixed(u)).flatten(), minlength=q.categories).double() / n
        law: Categorical = q.marginal(x0[:1], t)
        np.testing.assert_allclose(found, law.log_probs.exp()[0, 0], rtol=0, atol=1.01 / n if 0 < t < 1 else 1e-12)
    extreme = torch.tensor([[0.0], [1 - 2.0**-53]], dtype=torch.float64)
    assert q.corrupt(x0[:2], 0.0, Fixed(extreme)).tolist() == [[1], [1]]
    assert q.corrupt(x0[:2], 1.0, Fixed(extreme)).tolist() == ([[3], [3]] if kind == "absorbing" else [[0], [2]])
