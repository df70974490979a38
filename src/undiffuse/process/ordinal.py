"""The categorical process of ordinal values: near values are more probable than far ones, as in 8-bit pixels.

D3PM's discretised Gaussian (Austin et al. 2021, appendix A.2.3). With K values evenly spaced on [-1, 1], step i has

    Q_i[a, b] = exp(-4 |a - b|^2 / ((K - 1)^2 beta_i)) / Z_i  for a != b,   Z_i the sum over a - b = -(K - 1) .. K - 1,

and what is left on the diagonal. Q_i is symmetric, so doubly stochastic, and its stationary law is uniform. Products of
such matrices have no closed form: every law is computed from the matrices themselves.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.process.laws import Categorical
from undiffuse.process.schedule import Time
from undiffuse.process.table import Table
from undiffuse.randomness import Draw


@dataclass(frozen=True)
class OrdinalProcess:
    """q for the betas of a table. Times are steps i / T, floats or float64 tensors, one per batch or one per sample.

    It keeps 2 T matrices: 2 T K^2 numbers, 1 GB for T = 1000 and 8 bits in float64.

    Attributes:
        values: K >= 2, of the data and of x_t: int64 (B, ...) in 0 .. K - 1.
        dtype: of the probabilities.
    """

    schedule: Table
    values: int
    dtype: torch.dtype = torch.float64
    mask: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ValueError(f"an ordinal process needs at least 2 values, not {self.values}")

    @property
    def categories(self) -> int:
        """The number of categories of x_t: K."""
        return self.values

    @cached_property
    def steps(self) -> Tensor:
        """Q_1 .. Q_T: (T, K, K), [x_s, x_t]."""
        offset = torch.arange(1 - self.values, self.values, dtype=torch.float64)
        kernel = (-4 * offset**2 / ((self.values - 1) ** 2 * self.schedule.betas[:, None])).softmax(1)
        index = torch.arange(self.values)
        matrices = kernel[:, index[:, None] - index + self.values - 1]
        matrices.diagonal(dim1=1, dim2=2).zero_()
        matrices.diagonal(dim1=1, dim2=2).copy_(1 - matrices.sum(2))
        return matrices.to(self.dtype)

    @cached_property
    def products(self) -> Tensor:
        """The identity, Q_1, Q_1 Q_2, ..., Q_1 .. Q_T: (T + 1, K, K)."""
        products = [torch.eye(self.values, dtype=self.dtype)]
        for step in self.steps:
            products.append(products[-1] @ step)
        return torch.stack(products)

    def marginal(self, x0: Tensor, t: Time) -> Categorical:
        """q(x_t | x_0)."""
        return self.transition(x0, 0.0, t)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Categorical:
        """q(x_t | x_s)."""
        return Categorical(_rows(*self._between(s, t), x_s).log())

    def likelihood(self, x_t: Tensor, t: Time) -> Tensor:
        """ln q(x_t | x_0) for each value of x_0, (B, ..., K)."""
        return self._told(x_t, 0.0, t)

    def noised(self, law: Categorical, t: Time) -> Categorical:
        """The distribution of x_t if that of x_0 is `law`."""
        matrices, which = self._between(0.0, t)
        p = law.log_probs.exp().to(self.dtype)
        chosen = matrices[which].to(p.device)
        return Categorical((p.flatten(1, -2) @ chosen).view_as(p).log())

    def posterior(self, x0: Tensor, x_t: Tensor, s: Time, t: Time) -> Categorical:
        """q(x_s | x_t, x_0), proportional to q(x_t | x_s) q(x_s | x_0); NaN where x_t cannot come from x_0."""
        return Categorical((self._told(x_t, s, t) + self.marginal(x0, s).log_probs).log_softmax(-1))

    def reverse(self, prediction: Categorical, x_t: Tensor, s: Time, t: Time, variance: str = "small") -> Categorical:
        """p(x_s | x_t), the mean of the posterior over the predicted x_0, (B, ..., K); `variance` is ignored."""
        w = prediction.without(self.likelihood(x_t, t))
        return Categorical((self._told(x_t, s, t) + self.noised(w, s).log_probs).log_softmax(-1))

    def prior(self, like: Tensor) -> Categorical:
        """p(x_1): uniform, for elements shaped like `like` (B, ...)."""
        flat = torch.zeros(self.values, dtype=self.dtype, device=like.device).log_softmax(-1)
        return Categorical(flat.expand(*like.shape, -1))

    def corrupt(self, x0: Tensor, t: Time, draw: Draw) -> Tensor:
        """x_t ~ q(x_t | x_0)."""
        return self.marginal(x0, t).sample(draw)

    def _told(self, x_t: Tensor, s: Time, t: Time) -> Tensor:
        """ln q(x_t | x_s) for each value of x_s, (B, ..., K)."""
        matrices, which = self._between(s, t)
        return _rows(matrices.mT, which, x_t).log()

    def _between(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """The different matrices of q(x_t | x_s), (N, K, K), and which of them each sample has, (B,) or (1,)."""
        pairs = torch.stack(torch.broadcast_tensors(self.schedule.index(s), self.schedule.index(t)), -1).view(-1, 2)
        different, which = pairs.unique(dim=0, return_inverse=True)
        return torch.stack([self._product(i, j) for i, j in different.tolist()]), which

    def _product(self, i: int, j: int) -> Tensor:
        """Q_{i+1} .. Q_j."""
        if i == 0:
            return self.products[j]
        product = self.steps[i]
        for step in self.steps[i + 1 : j]:
            product = product @ step
        return product


def _rows(matrices: Tensor, which: Tensor, x: Tensor) -> Tensor:
    """Row x of each element's matrix: (B, ..., K)."""
    which = which.view(-1, *[1] * (x.ndim - 1)).to(x.device)
    return matrices.to(x.device)[which, x]
