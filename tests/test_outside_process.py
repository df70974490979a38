"""A process from outside of the package: counts that are thinned out (Santos et al. 2023, "blackout diffusion").

    q(x_t | x_0) = Binomial(x_0, alpha_t),

with laws of its own. The package's loop samples it and its bound is the package's, neither of which knows it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from undiffuse.likelihood import Formula, all_steps, estimate_bound
from undiffuse.objectives import variational_bound
from undiffuse.process import FlowMatching, Schedule, Time, expand
from undiffuse.randomness import Draw, keyed_draws, stream
from undiffuse.sampling import ancestral, make_grid, trajectory

LARGEST, MEAN = 40, 3.0  # counts that matter, and the mean of the data, which is Poisson


@dataclass(frozen=True)
class Shifted:
    """`least` plus a binomial or (n = None) Poisson count, int64 (B, ...)."""

    least: Tensor
    rate: Tensor  # p, or the mean
    n: Tensor | None = None

    def log_prob(self, x: Tensor) -> Tensor:
        more = (x - self.least).numpy()
        if self.n is None:
            return torch.from_numpy(stats.poisson.logpmf(more, self.rate.numpy()))
        return torch.from_numpy(stats.binom.logpmf(more, self.n.numpy(), self.rate.numpy()))

    def _table(self) -> Tensor:
        counts = torch.arange(LARGEST).view(-1, *[1] * self.least.ndim)
        return self.log_prob(counts.expand(-1, *self.least.shape))

    def sample(self, draw: Draw) -> Tensor:
        upper = self._table().exp().cumsum(0)
        return (upper < draw.uniform(self.least.double())).sum(0)

    def kl(self, other: "Shifted") -> Tensor:
        ours, theirs = self._table(), other._table()
        return torch.where(ours > -torch.inf, ours.exp() * (ours - theirs), 0.0).sum(0)


@dataclass(frozen=True)
class More:
    """A prediction: how many more there are at t = 0 than are left, on average."""

    mean: Tensor

    @property
    def x0(self) -> Tensor:
        return self.mean

    def rows(self, rows: Tensor) -> "More":
        return More(self.mean[rows])

    def double(self) -> "More":
        return self


@dataclass(frozen=True)
class Thinning:
    """The process. alpha_t = sigmoid(log-SNR)."""

    schedule: Schedule

    def kept(self, t: Time, like: Tensor) -> Tensor:
        return expand(torch.sigmoid(self.schedule.log_snr(t)), like.double()).expand(like.shape)

    def marginal(self, x0: Tensor, t: Time) -> Shifted:
        return Shifted(torch.zeros_like(x0), self.kept(t, x0), x0)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Shifted:
        return Shifted(torch.zeros_like(x_s), self.kept(t, x_s) / self.kept(s, x_s), x_s)

    def _back(self, x_t: Tensor, s: Time, t: Time) -> Tensor:
        """The share of what was lost until t that was lost after s."""
        at_s, at_t = self.kept(s, x_t), self.kept(t, x_t)
        return (at_s - at_t) / (1 - at_t)

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Shifted:
        return Shifted(x_t, self._back(x_t, s, t), x0 - x_t)

    def reverse(self, prediction: More, x_t: Tensor, s: Time, t: Time, variance: Any = "small") -> Shifted:
        return Shifted(x_t, prediction.mean * self._back(x_t, s, t))

    def prior(self, like: Tensor) -> Shifted:
        return Shifted(torch.zeros_like(like), torch.zeros(like.shape), torch.zeros_like(like))

    def corrupt(self, x0: Tensor, t: Time, draw: Draw) -> Tensor:
        return self.marginal(x0, t).sample(draw)


@dataclass(frozen=True)
class Exact:
    """Of Poisson data, what is lost is Poisson too, and tells nothing of what is left."""

    process: Thinning
    mean: float = MEAN

    def __call__(self, x_t: Tensor, t: Time, condition: None = None) -> More:
        return More(self.mean * (1 - self.process.kept(t, x_t)))


class Shared:
    """One stream for the samples of a step."""

    def __init__(self, step: int):
        self.step = step

    def uniform(self, like: Tensor) -> Tensor:
        return torch.from_numpy(stream(3, self.step).random(like.shape))

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("counts need no normal numbers")


def test_the_loop_samples_it() -> None:
    """From nothing, in four steps, counts that are Poisson; `keyed_draws` serve as for any process."""
    process = Thinning(FlowMatching())
    like, count = torch.zeros(20_000, 1, dtype=torch.int64), 20_000
    grid = make_grid("trailing", process.schedule, 4)
    *_, last = trajectory(Exact(process), process, grid, ancestral, process.prior(like).sample(Shared(0)), Shared)
    found = np.bincount(last.x.flatten(), minlength=12)[:12]
    expected = count * stats.poisson.pmf(np.arange(12), MEAN)
    assert (
        stats.chisquare(np.append(found, count - found.sum()), np.append(expected, count - expected.sum())).pvalue
        > 1e-3
    )
    one = trajectory(Exact(process), process, grid, ancestral, like[:3], keyed_draws(0, range(3)))
    assert [state.t for state in one] == grid.tolist()


def test_the_bound_knows_it() -> None:
    """With the exact denoiser the bound is -ln p(x_0) of Poisson data, in any number of steps: nothing is lost.

    Not for each x_0, but on average over the data: here over x_0 and the states by Monte Carlo, to its standard error.
    """
    process = Thinning(FlowMatching())
    exact = Exact(process)
    x0 = torch.from_numpy(stream(5).poisson(MEAN, (4000, 1)))
    entropy = stats.poisson(MEAN).entropy()
    for steps in (1, 3):
        found = estimate_bound(exact, x0, Formula(steps), Shared, all_steps(len(x0), steps))  # type: ignore[arg-type]
        error = found.total.std().item() / len(x0) ** 0.5
        assert found.prior.abs().max() == 0  # all is lost at t = 1
        assert abs(found.total.mean().item() - entropy) < 4 * error < 0.1
    wrong = estimate_bound(Exact(process, 5.0), x0, Formula(3), Shared, all_steps(len(x0), 3))  # type: ignore[arg-type]
    assert wrong.total.mean() > entropy + 0.3
    u = torch.full((4000,), 0.5, dtype=torch.float64)
    assert variational_bound(exact, x0, None, u, Shared(7), steps=3).isfinite().all()  # type: ignore[arg-type]
