"""The categorical process q: elements with one of K values are replaced by a mask or a uniformly drawn value.

    q(x_t | x_0) = alpha_t delta(x_0) + (1 - alpha_t) pi,   alpha_t = sigmoid(log_snr(t)),

with pi the mask (absorbing) or uniform over the K values (uniform): D3PM (Austin et al. 2021, appendix A.2). alpha_t,
the probability that an element has survived, is alpha_t^2 of a variance-preserving Gaussian schedule, so that one
schedule serves both kinds of data. Everything is computed in log space, where probability 0 is -inf and the ends are
exact: t = 0 is the data, and if the schedule leaves no signal, t = 1 is pi.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from undiffuse.process.laws import Categorical, expand
from undiffuse.process.schedule import Schedule, Time, float64_device
from undiffuse.randomness import Draw

KINDS = ("absorbing", "uniform")


@dataclass(frozen=True)
class CategoricalProcess:
    """q for a schedule. Times are floats or float64 tensors, one per batch or one per sample; always s < t.

    Attributes:
        values: K >= 2, of the data: x_0 is int64 (B, ...) in 0 .. K - 1.
        kind: "absorbing", with the mask as an extra category, K; or "uniform".
        dtype: of the probabilities.
    """

    schedule: Schedule
    values: int
    kind: str = "absorbing"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no kind of categorical process is called {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.values < 2:
            raise ValueError(f"a categorical process needs at least 2 values, not {self.values}")

    @property
    def mask(self) -> int | None:
        """The category of masked elements, for the absorbing kind."""
        return self.values if self.kind == "absorbing" else None

    @property
    def categories(self) -> int:
        """The number of categories of x_t: K, plus the mask if there is one."""
        return self.values + (self.kind == "absorbing")

    def log_survival(self, t: Time) -> Tensor:
        """ln alpha_t, float64: 0 at the data."""
        return logsigmoid(self.schedule.log_snr(t))

    def marginal(self, x0: Tensor, t: Time) -> Categorical:
        """q(x_t | x_0)."""
        return self._survived(self._certain(x0), self.log_survival(t))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Categorical:
        """q(x_t | x_s) = alpha_t / alpha_s delta(x_s) + (1 - alpha_t / alpha_s) pi."""
        return self._survived(self._certain(x_s), self.log_survival(t) - self.log_survival(s))

    def noised(self, law: Categorical, t: Time) -> Categorical:
        """The distribution of x_t if that of x_0 is `law`, over the K values: alpha_t law + (1 - alpha_t) pi."""
        log_probs = law.log_probs
        if self.mask is not None:
            log_probs = torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf)
        return self._survived(log_probs, self.log_survival(t))

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Categorical:
        """q(x_s | x_t, x_0), proportional to q(x_t | x_s) q(x_s | x_0) (Austin et al. 2021, eq. 3); x_0 at s = 0.

        NaN where x_t cannot come from x_0.
        """
        return self._given(x_t, s, t, self.marginal(x0, s).log_probs)

    def reverse(self, prediction: Categorical, x_t: Tensor, s: Time, t: Time, variance: str = "small") -> Categorical:
        """p(x_s | x_t), the mean of the posterior over the predicted x_0 (Austin et al. 2021, eq. 4).

        sum_i q(x_s | x_t, i) p(i | x_t) is proportional to q(x_t | x_s) [alpha_s w(x_s) + (1 - alpha_s) pi(x_s)], with
        w(i) = p(i | x_t) / q(x_t | i), normalised: the prediction without the evidence of the element itself.

        Args:
            prediction: p(x_0 | x_t) over the K values, (B, ..., K). Values that x_t rules out get probability 0,
                whatever the prediction; the result is NaN if none are left.
            variance: ignored.
        """
        w = prediction.without(self.likelihood(x_t, t))
        return self._given(x_t, s, t, self.noised(w, s).log_probs)

    def double(self) -> "CategoricalProcess":
        """The process with its probabilities in float64."""
        return replace(self, dtype=torch.float64)

    def prior(self, like: Tensor) -> Categorical:
        """p(x_1) = pi, for elements shaped like `like` (B, ...)."""
        return Categorical(self._log_pi(like).expand(*like.shape, -1))

    def corrupt(self, x0: Tensor, t: Time, draw: Draw) -> Tensor:
        """x_t ~ q(x_t | x_0), from one float64 uniform number per element; exactly x_0 or pi at the ends.

        The element is replaced if its number is below 1 - alpha_t, so with the same numbers it stays replaced at every
        later time. Where the number lies below that decides the value, without a table of probabilities.
        """
        u = draw.uniform(float64_device(x0))
        lost = expand(torch.sigmoid(-self.schedule.log_snr(t)), u)
        if self.mask is not None:
            return torch.where((u < lost).to(x0.device), self.mask, x0)
        drawn = (u / lost * self.values).clamp(max=self.values - 1).long()  # u / lost may round to 1
        return torch.where(u < lost, drawn, x0.to(u.device)).to(x0.device)

    def likelihood(self, x_t: Tensor, t: Time) -> Tensor:
        """ln q(x_t | x_0) for each of the K values of x_0, (B, ..., K): the evidence that the element itself gives."""
        return self._likelihood(x_t, self.log_survival(t))[..., : self.values]

    def _log_pi(self, like: Tensor) -> Tensor:
        """ln pi, (categories,)."""
        if self.mask is None:
            return torch.full((self.values,), -math.log(self.values), dtype=self.dtype, device=like.device)
        return self._certain(torch.tensor(self.mask, device=like.device))

    def _is(self, x: Tensor) -> Tensor:
        """The one-hot category of each element, bool (B, ..., categories)."""
        return x.unsqueeze(-1) == torch.arange(self.categories, device=x.device)

    def _certain(self, x: Tensor) -> Tensor:
        """ln delta(x), (B, ..., categories)."""
        return torch.zeros((), dtype=self.dtype, device=x.device).where(self._is(x), -torch.inf)

    def _survived(self, log_probs: Tensor, log_kept: Tensor) -> Categorical:
        """The distribution of elements that are kept with some probability, and else drawn from pi."""
        kept = expand(log_kept, log_probs) + log_probs
        return Categorical(_log_add(kept, expand(_log_complement(log_kept), log_probs) + self._log_pi(log_probs)))

    def _likelihood(self, x_t: Tensor, log_kept: Tensor) -> Tensor:
        """ln q(x_t | j) for every category j that the element may have had before, (B, ..., categories)."""
        log_pi = self._log_pi(x_t)[x_t].unsqueeze(-1)
        drawn = expand(_log_complement(log_kept), log_pi) + log_pi
        return _log_add(drawn, expand(log_kept, drawn) + self._certain(x_t))

    def _given(self, x_t: Tensor, s: Time, t: Time, log_probs: Tensor) -> Categorical:
        """Bayes' rule: the distribution of x_s, (B, ..., categories), given the later x_t."""
        likelihood = self._likelihood(x_t, self.log_survival(t) - self.log_survival(s))
        return Categorical((likelihood + log_probs).log_softmax(-1))


def _log_complement(log_p: Tensor) -> Tensor:
    """ln(1 - p)."""
    return (-torch.expm1(log_p)).log()


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """ln(exp a + exp b), with a separate case for both -inf, where the gradient of torch's is NaN."""
    none = torch.maximum(a, b) == -torch.inf
    return torch.logaddexp(a.masked_fill(none, 0.0), b.masked_fill(none, 0.0)).masked_fill(none, -torch.inf)
