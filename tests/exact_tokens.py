"""Exact denoisers of a few tokens, from their enumerated joint law, and exact expectations of objectives."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process import CategoricalProcess, Time
from undiffuse.randomness import Draw
from undiffuse.token_denoiser import TokenDenoiser


def strings(values: int, length: int) -> Tensor:
    """All K^L strings in the order of a flattened joint law, int64 (K^L, L)."""
    return torch.tensor(list(itertools.product(range(values), repeat=length)))


def exact_denoiser(joint: Tensor, process: CategoricalProcess) -> TokenDenoiser:
    """The denoiser whose logits are exactly ln p(x_0i = v | the other noisy elements).

    Args:
        joint: p(x_0), float64 (K, ..., K), one axis for each of L tokens.
    """
    return _Exact(_never, process, joint)


def leave_one_out(joint: Tensor, evidence: Tensor) -> Tensor:
    """ln of the sum over the strings with x_i = v of p(x) times the evidence of all tokens but i: (B, L, K).

    Args:
        evidence: ln q(x_tj | x_0j = v), (B, L, K).

    Where the others are impossible together, all values are equally probable.
    """
    every = strings(joint.shape[0], joint.ndim)
    told = torch.stack([evidence[:, j, every[:, j]] for j in range(joint.ndim)], -1)  # (B, K^L, L)
    result = torch.empty_like(evidence)
    for i in range(joint.ndim):
        others = told.clone()
        others[..., i] = 0
        weight = joint.flatten().log() + others.sum(-1)
        for v in range(joint.shape[0]):
            result[:, i, v] = weight[:, every[:, i] == v].logsumexp(1)
    return torch.where((result == -torch.inf).all(-1, keepdim=True), 0.0, result)


def _never(x_t: Tensor, log_snr: Tensor, condition: object) -> Tensor:
    raise AssertionError("an exact denoiser has no network")


@dataclass(frozen=True)
class _Exact(TokenDenoiser):
    """Overrides `logits`: a network's log-SNR is float32 and clamped, which is not exact for uniform noise."""

    joint: Tensor

    def logits(self, x_t: Tensor, t: Time, condition: object = None) -> Tensor:
        return leave_one_out(self.joint, self._evidence(x_t, t))


@dataclass(frozen=True)
class Fixed:
    """A draw of given uniform numbers."""

    u: Tensor

    def uniform(self, like: Tensor) -> Tensor:
        return self.u

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("tokens need no normal numbers")

    def fold(self, number: int) -> Draw:
        raise AssertionError("one set of numbers is all that training has")


def expected(objective: Callable[..., Tensor], denoiser: TokenDenoiser, joint: Tensor, u: float, t: float) -> float:
    """The exact mean of objective(denoiser, x_0, None, u, draw) over the data and every corruption at its time t."""
    process, every = denoiser.process, strings(joint.shape[0], joint.ndim)
    assert isinstance(process, CategoricalProcess)
    p = joint.flatten()
    alpha = process.log_survival(t).exp().item()
    lost = 1 - alpha
    ways = [(1 - 2.0**-53, alpha)] if alpha else []  # (uniform number, probability) of each fate of a token
    if process.mask is not None:
        ways += [(0.0, lost)] if lost else []
    else:
        ways += [(lost * (v + 0.5) / process.values, lost / process.values) for v in range(process.values)]
    fates = torch.tensor(list(itertools.product(ways, repeat=joint.ndim)), dtype=torch.float64)
    numbers, weights = fates[..., 0], fates[..., 1].prod(-1)
    x0 = every.repeat_interleave(len(numbers), 0)
    chance = (p[:, None] * weights).flatten()
    possible = chance > 0
    uniform = numbers.repeat(len(every), 1)[possible]
    x0 = x0[possible]
    losses = objective(denoiser, x0, None, torch.full((len(x0),), u, dtype=torch.float64), Fixed(uniform))
    assert torch.isfinite(losses).all()
    return float((chance[possible] * losses).sum())
