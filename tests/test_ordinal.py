"""D3PM's discretised Gaussian on 8-bit values, against matrices written out in NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from exact_tokens import Fixed
from scipy import stats
from scipy.linalg import toeplitz
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.objectives import continuous_bound, step_times, variational_bound
from undiffuse.process import Categorical, OrdinalProcess, Table, cosine, linear
from undiffuse.token_denoiser import TokenDenoiser

BETAS = [1e-4, 2e-3, 0.02, 0.3]
Q = OrdinalProcess(Table(BETAS), 256)


def matrices(values: int, betas: list[float]) -> list[np.ndarray]:
    """Q_1 .. Q_T by appendix A.2.3, entry by entry of a Toeplitz matrix."""
    result = []
    for beta in betas:
        n = np.arange(values)
        weight = np.exp(-4 * n**2 / ((values - 1) ** 2 * beta))
        q = toeplitz(weight / (weight[0] + 2 * weight[1:].sum()))
        np.fill_diagonal(q, 0)
        np.fill_diagonal(q, 1 - q.sum(1))
        result.append(q)
    return result


STEPS = matrices(256, BETAS)


def probabilities(law: Categorical) -> np.ndarray:
    return law.log_probs.exp().numpy()


def test_steps_are_the_papers_and_doubly_stochastic() -> None:
    every = torch.arange(256)
    for i, expects in enumerate(STEPS):
        ours = probabilities(Q.transition(every, i / 4, (i + 1) / 4))
        np.testing.assert_allclose(ours, expects, rtol=0, atol=1e-15)
        np.testing.assert_allclose(ours.sum(0), 1, rtol=1e-13)
        np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-13)
        assert (ours >= 0).all() and (np.diff(ours[128, 129:]) <= 0).all()  # farther is never more probable


def test_marginals_are_products() -> None:
    """Of any two times, and with a time for each sample; the data itself at t = 0."""
    every = torch.arange(256)
    for i, j in ((0, 0), (0, 1), (0, 4), (1, 3), (2, 4)):
        expects = np.linalg.multi_dot([np.eye(256), np.eye(256), *STEPS[i:j]])
        ours = probabilities(Q.transition(every, i / 4, j / 4)) if j > i else probabilities(Q.marginal(every, 0.0))
        np.testing.assert_allclose(ours, expects, rtol=0, atol=1e-14)
    x0, t = torch.tensor([[3, 200], [3, 77], [9, 9]]), torch.tensor([0.25, 1.0, 0.25], dtype=torch.float64)
    together = Q.marginal(x0, t).log_probs
    for k in range(3):
        assert torch.equal(together[k : k + 1], Q.marginal(x0[k : k + 1], t[k].item()).log_probs)


@pytest.mark.parametrize(("i", "j"), [(0, 2), (1, 2), (2, 3), (1, 4)])
def test_posterior_and_reverse_by_enumeration(i: int, j: int) -> None:
    """Bayes' rule over all 256 x_s; `reverse` is the posterior's mean over the prediction's x_0."""
    to_s = np.linalg.multi_dot([np.eye(256), np.eye(256), *STEPS[:i]])
    onwards = np.linalg.multi_dot([np.eye(256), np.eye(256), *STEPS[i:j]])
    x0, x_t = torch.tensor([[0, 100], [255, 131]]), torch.tensor([[1, 103], [254, 128]])
    ours = probabilities(Q.posterior(x0, x_t, i / 4, j / 4))
    for at in np.ndindex(2, 2):
        joint = to_s[x0[at].item()] * onwards[:, x_t[at].item()]
        np.testing.assert_allclose(ours[at], joint / joint.sum(), rtol=0, atol=1e-13)
    prior = np.random.default_rng(0).dirichlet(np.ones(256))
    joint = prior[:, None] * to_s * onwards[:, 103]  # [x_0, x_s] given x_t = 103
    prediction = joint.sum(1) / joint.sum()
    reverse = Q.reverse(
        Categorical(torch.from_numpy(prediction).log()[None, None]), torch.tensor([[103]]), i / 4, j / 4
    )
    np.testing.assert_allclose(probabilities(reverse)[0, 0], joint.sum(0) / joint.sum(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("values", "table"), [(5, cosine(6)), (256, Table(BETAS))], ids=["few", "8-bit"])
def test_the_bound_of_independent_values(values: int, table: Table) -> None:
    """H + KL(q_T, uniform) by the `variational_bound` of pictures and text, every x_t of every x_0 enumerated."""
    q, random = OrdinalProcess(table, values), np.random.default_rng(1)
    support = torch.from_numpy(np.sort(random.choice(values, 3, replace=False)))
    weights = random.dirichlet(np.ones(3))
    log_p = torch.full((values,), -torch.inf, dtype=torch.float64)
    log_p[support] = torch.from_numpy(weights).log()
    denoiser = TokenDenoiser(lambda x, *_: log_p.expand(*x.shape, -1), q)
    times, total = step_times(table), 0.0
    for index in range(len(times) - 1):
        law = q.marginal(support[:, None], times[index + 1].item()).log_probs.exp()[:, 0]
        upper = law.cumsum(1)
        chance, middles = (law * torch.from_numpy(weights)[:, None]).flatten(), (upper - law / 2).flatten()
        seen = chance > 1e-14  # narrower intervals have no number of their own
        x0, u = support.repeat_interleave(values)[seen, None], (index + 0.5) / (len(times) - 1)
        bound = partial(variational_bound, denoiser, x0, None, torch.full((len(x0),), u, dtype=torch.float64))
        total += float(chance[seen] @ bound(Fixed(middles[seen, None]))) / (len(times) - 1)
    total += float(torch.from_numpy(weights) @ q.marginal(support, 1.0).kl(q.prior(support)))
    last = weights @ probabilities(q.marginal(support, 1.0))
    expects = stats.entropy(weights) + stats.entropy(last, np.full(values, 1 / values))
    assert total == pytest.approx(expects, abs=1e-9)


def test_corruption_and_refusals() -> None:
    """Samples by the marginal, over even uniform numbers; no continuous time, no step between steps."""
    u = (torch.arange(4000, dtype=torch.float64)[:, None] + 0.5) / 4000
    x: Tensor = Q.corrupt(torch.full((4000, 1), 40), 0.75, Fixed(u))
    found = np.bincount(x.flatten().numpy(), minlength=256) / 4000
    np.testing.assert_allclose(found, probabilities(Q.marginal(torch.tensor([40]), 0.75))[0], rtol=0, atol=1.01 / 4000)
    with pytest.raises(ValueError, match="between the steps"):
        Q.marginal(torch.tensor([1]), 0.3)
    with pytest.raises(ValueError, match="at least 2 values"):
        OrdinalProcess(linear(10), 1)
    denoiser = TokenDenoiser(lambda x, *_: torch.zeros(*x.shape, 256), Q)
    with pytest.raises(UsageError, match="no continuous time"):
        continuous_bound(denoiser, torch.zeros(1, 1).long(), None, torch.zeros(1).double(), Fixed(u[:1]))
