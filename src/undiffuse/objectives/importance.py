"""Loss-aware importance sampling of times, and with it a learned noise schedule.

An objective is a function of u, uniform in [0, 1). Drawn with the density p(u) instead and weighted with 1 / p(u), its
mean is the same, and its variance, for independent draws, is smallest for p proportional to the root of E[loss(u)^2]
(Nichol & Dhariwal 2021, eq. 18). In continuous time u -> log-SNR is then the noise schedule that Kingma et al. 2021
(section 5.1, appendix I) learn by gradient for the same purpose: here it is computed directly from the observed losses.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

RATE = 0.1  # a moment averages over about 1 / RATE losses: 10, like IDDPM's history
UNIFORM = 0.05
"""The share drawn uniformly, so that no time is neglected (IDDPM: 0.001, with fewer losses to misjudge)."""


@dataclass
class Importance:
    """The second moments of the loss in equal intervals of u, float64 on the CPU, from `seen` losses in each.

    Until every interval has been seen, u is drawn uniformly.
    """

    bins: int = 128
    moments: Tensor = field(init=False)
    seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.moments = torch.zeros(self.bins, dtype=torch.float64)
        self.seen = torch.zeros(self.bins, dtype=torch.float64)

    @property
    def density(self) -> Tensor:
        """p, float64 (bins,), of mean 1."""
        if (self.seen == 0).any():
            return torch.ones(self.bins, dtype=torch.float64)
        p = self.moments.sqrt()
        total = p.mean()
        return UNIFORM + (1 - UNIFORM) * p / total if total > 0 else torch.ones_like(p)

    def warp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform u (float64) -> u' of density p, and the weights 1 / p(u')."""
        p = self.density
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), p.cumsum(0) / self.bins])
        edges = edges / edges[-1]
        k = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, self.bins - 1)
        inside = ((u - edges[k]) / (edges[k + 1] - edges[k])).clamp(max=1 - 2.0**-40)
        return (k + inside) / self.bins, 1 / p[k]

    def update(self, u: Tensor, losses: Tensor) -> None:
        """Records the losses (before weighting) at u, except those not finite, which the run reports."""
        finite = losses.detach().isfinite()
        u, losses = u[finite.to(u.device)], losses[finite]
        k = (u * self.bins).long().clamp(max=self.bins - 1)
        squares = losses.detach().to("cpu", torch.float64) ** 2
        count = torch.zeros(self.bins, dtype=torch.float64).index_add_(0, k, torch.ones_like(squares))
        mean = torch.zeros(self.bins, dtype=torch.float64).index_add_(0, k, squares) / count.clamp(min=1)
        # A plain average of the first losses, an exponential one later.
        rate = torch.maximum(1 - (1 - RATE) ** count, count / (self.seen + count).clamp(min=1))
        self.moments += torch.where(count > 0, rate, 0.0) * (mean - self.moments)
        self.seen += count

    def learnt_log_snrs(self, log_snrs: Tensor, first: float, count: int = 65) -> Tensor:
        """The learned schedule: log-SNRs at evenly spaced times, from those of the schedule trained on, linear in time.

        Args:
            log_snrs: (K,) at evenly spaced times of the schedule trained on.
            first: the share of u that selects no time (`undiffuse.objectives.reconstruction_share`).
        """
        p = self.density
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), p.cumsum(0) / self.bins])
        start = _interpolate(torch.tensor([first], dtype=torch.float64), edges, mass)
        wanted = torch.lerp(start, mass[-1:], torch.linspace(0, 1, count, dtype=torch.float64))
        time = (_interpolate(wanted, mass, edges) - first) / (1 - first)
        even = torch.linspace(0, 1, len(log_snrs), dtype=torch.float64)
        return _interpolate(time.clamp(0, 1), even, log_snrs)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through (xs, ys), xs increasing, at x."""
    below = (torch.searchsorted(xs, x, right=True) - 1).clamp(0, len(xs) - 2)
    share = ((x - xs[below]) / (xs[below + 1] - xs[below])).clamp(0, 1)
    return torch.lerp(ys[below], ys[below + 1], share)
