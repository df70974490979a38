"""The density of a diffusion model (Song et al. 2021, the SDE paper, section 4.3, D.1 and D.2), and its latent codes.

Along the probability flow (undiffuse/likelihood/flow.py) the log-density changes by the trace of the Jacobian of
dy/dw (their eq. 39). With D elements, and p(y) = r^D p(x) at both ends,

    ln p(x) = ln N(y_1; 0, I) + (integral of the trace dw, from the data to the prior) - D ln r.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoiser import Denoise
from undiffuse.errors import UsageError
from undiffuse.likelihood.flow import Flow
from undiffuse.likelihood.solver import Parts, Solver
from undiffuse.names import one_of
from undiffuse.process import GaussianProcess
from undiffuse.randomness import Purpose, normal

MOST_EXACT = 256
"""The largest number of elements for which the exact trace is computed, at a backward pass for each."""
DIVERGENCES = ("rademacher", "gaussian", "exact")
DOPRI5 = Solver()


@dataclass(frozen=True)
class Likelihood:
    """The result of `log_likelihood`.

    Attributes:
        log_prob: ln p(x), the density at the scale of x, in nats: float64 (B,).
        latent: x_1, like x.
        prior_log_prob: ln p(x_1) under the prior of the process, in nats: float64 (B,).
        evaluations: of the network by the batch. Each probe adds a backward pass to each.
    """

    log_prob: Tensor
    latent: Tensor
    prior_log_prob: Tensor
    evaluations: int


def probes_for(divergence: str, x: Tensor, count: int, seed: int, samples: Sequence[int]) -> Tensor:
    """Vectors v (K, B, ...), float64, whose sum of v^T J v is the trace, or has it as its mean (Hutchinson 1990)."""
    one_of("divergence", divergence, DIVERGENCES)
    if divergence == "exact":
        elements = x[0].numel()
        if elements > MOST_EXACT:
            raise UsageError(
                f"the exact divergence is for at most {MOST_EXACT} elements, not {elements}: take rademacher"
            )
        unit = torch.eye(elements, dtype=torch.float64, device=x.device)
        return unit.view(elements, 1, *x.shape[1:]).expand(-1, *x.shape)
    if count < 1:
        raise UsageError("a divergence needs at least one probe")
    keys = [(seed, Purpose.PROBE, sample, k) for k in range(count) for sample in samples]
    v = normal(keys, x.shape[1:]).to(x.device, torch.float64).view(count, *x.shape)
    return (torch.where(v < 0, -1.0, 1.0).double() if divergence == "rademacher" else v) / math.sqrt(count)


@torch.no_grad()
def log_likelihood(
    denoise: Denoise,
    process: GaussianProcess,
    x: Tensor,
    *,
    divergence: str = "rademacher",
    probes: int = 1,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    solver: Solver = DOPRI5,
    log_snr_max: float | None = None,
) -> Likelihood:
    """The density of `x` under a model, taken as x_t at t_min, where the flow begins, close to the data.

    Args:
        denoise: differentiable in x_t, each sample on its own.
        x: (B, ...) of any floating dtype, which the denoiser gets. The ODE is solved in float64.
        divergence: of the flow: "exact", or estimated along random directions, which are fixed for the whole
            trajectory: "rademacher" (signs) or "gaussian". The mean of log_prob over them is the exact one.
        probes: how many directions, each a function of (seed, sample, its number).
        samples: the number of each sample; by default 0 .. B - 1.
        log_snr_max: where the flow begins, if not at t_min.

    Raises UsageError where torchdiffeq is missing, for "exact" with more than MOST_EXACT elements, for a denoiser that
    cannot be differentiated; UndiffuseError where the ODE has no solution.
    """
    flow = Flow(denoise, process, log_snr_max)
    r_data, r_prior, elements = flow.scale(flow.data), flow.scale(flow.prior), x[0].numel()
    vectors = probes_for(divergence, x, probes, seed, range(len(x)) if samples is None else samples)
    state = x.double() / r_data, torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def slope(w: float, parts: Parts) -> Parts:
        return flow.slope_and_trace(w, parts[0], x.dtype, vectors)

    y, log_det = solver.solve(slope, state, flow.data, flow.prior)  # per element, on the scale of the tolerances
    prior = -0.5 * y.square().flatten(1).sum(1) - elements * (0.5 * math.log(2 * math.pi) + math.log(r_prior))
    log_prob = prior + elements * (log_det + math.log(r_prior) - math.log(r_data))
    return Likelihood(log_prob, (r_prior * y).to(x.dtype), prior, flow.evaluations)


@torch.no_grad()
def encode(
    denoise: Denoise, process: GaussianProcess, x: Tensor, solver: Solver = DOPRI5, log_snr_max: float | None = None
) -> Tensor:
    """The latent x_1 of `x` as x_t at t_min, like x: the flow of `log_likelihood`, without its density."""
    flow = Flow(denoise, process, log_snr_max)
    return flow.integrate(x, solver, flow.data, flow.prior)


@torch.no_grad()
def decode(
    denoise: Denoise,
    process: GaussianProcess,
    latent: Tensor,
    solver: Solver = DOPRI5,
    log_snr_max: float | None = None,
) -> Tensor:
    """The x, as x_t at t_min, whose latent is `latent`: inverts `encode` to the solver's tolerances."""
    flow = Flow(denoise, process, log_snr_max)
    return flow.integrate(latent, solver, flow.prior, flow.data)
