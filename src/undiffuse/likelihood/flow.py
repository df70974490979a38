"""The probability-flow ODE of a denoiser (Song et al. 2021, the SDE paper, eq. 13), in a form common to all schedules.

At unit scale, y = x_t / r with r^2 = alpha^2 + sigma^2, a state rotates from data to noise, whatever the schedule:

    y = cos(phi) x_0 + sin(phi) eps,   tan(phi) = sigma / alpha,   dy/dphi = cos(phi) eps - sin(phi) x_0,

and the flow uses the denoiser's x_0 and eps there. The integration variable is w = ln theta, with KNEE tan(theta) =
tan(phi). Towards the data w is -log_snr / 2 - ln KNEE, and where no signal is left it ends at theta = pi / 2: the slope
is smooth and bounded from end to end, for zero terminal SNR as for any other. With R^2 = cos^2(theta) + KNEE^2
sin^2(theta), so that cos(phi) = cos(theta) / R,

    dy/dw = theta / (R sin(theta)) (cos(phi) y - x_0).
"""

import math

import torch
from torch import Tensor

from undiffuse.denoiser import Denoise
from undiffuse.errors import UsageError
from undiffuse.likelihood.solver import Parts, Solver
from undiffuse.process import GaussianProcess

KNEE = 10.0
"""sigma / alpha up to which w follows the log-SNR: of 1, 10, 80 and 10^4, 10 took the fewest evaluations on images."""


class Flow:
    """The ODE of a denoiser between its ends, w = `data` and w = `prior`. Counts its `evaluations`."""

    def __init__(self, denoise: Denoise, process: GaussianProcess, log_snr_max: float | None):
        schedule = process.schedule
        first = float(schedule.log_snr(schedule.t_min)) if log_snr_max is None else log_snr_max
        last = float(schedule.log_snr(1.0))
        if not last < first < math.inf:
            raise UsageError(f"log_snr_max must be finite and above the schedule's last, {last:g}: not {first:g}")
        self.denoise, self.process, self.evaluations = denoise, process, 0
        self.data, self.prior = (math.log(math.atan(math.exp(-0.5 * end) / KNEE)) for end in (first, last))

    def time(self, w: float) -> float:
        """The schedule's t."""
        theta = min(math.exp(w), math.pi / 2)
        return self.process.schedule.time(2 * math.log(math.cos(theta) / (KNEE * math.sin(theta)))).item()

    def scale(self, w: float) -> float:
        """r = x_t / y."""
        level = self.process.noise_level(self.time(w))
        return math.hypot(level.alpha, level.sigma)

    def slope(self, w: float, y: Tensor, dtype: torch.dtype) -> Tensor:
        """dy/dw in float64; the denoiser gets `dtype`."""
        self.evaluations += 1
        theta = min(math.exp(w), math.pi / 2)
        radius = math.hypot(math.cos(theta), KNEE * math.sin(theta))
        x0 = self.denoise((self.scale(w) * y).to(dtype), self.time(w)).x0
        if y.requires_grad and not x0.requires_grad:
            raise UsageError("the denoiser cannot be differentiated, which the likelihood needs: run it with PyTorch")
        return theta / (radius * math.sin(theta)) * (math.cos(theta) / radius * y - x0.double())

    def integrate(self, x: Tensor, solver: Solver, start: float, end: float) -> Tensor:
        """The state at `end`, integrated from `x` at `start`."""
        state = (x.double() / self.scale(start),)
        (y,) = solver.solve(lambda w, parts: (self.slope(w, parts[0], x.dtype),), state, start, end)
        return (self.scale(end) * y).to(x.dtype)

    def slope_and_trace(self, w: float, y: Tensor, dtype: torch.dtype, probes: Tensor) -> Parts:
        """dy/dw, and the sum of v^T J v over the probes v (K, B, ...), per element: (B,)."""
        with torch.inference_mode(False), torch.enable_grad():
            y = y.clone().requires_grad_()
            slope = self.slope(w, y, dtype)
            trace = torch.zeros(len(y), dtype=torch.float64, device=y.device)
            for left, v in zip(reversed(range(len(probes))), probes, strict=True):
                (product,) = torch.autograd.grad(slope, y, v, retain_graph=left > 0)
                trace += (product * v).flatten(1).mean(1)
        return slope.detach(), trace
