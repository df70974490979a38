"""The denoiser: turns a network's output at a noise level into a prediction of x_0 and eps, whatever its target.

The network knows nothing of diffusion: it maps an input of unit variance and the log-SNR to a tensor. Every target is
a combination of x_0 and eps (undiffuse/targets.py), and every conversion goes through x_0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse import discretised
from undiffuse.conditions import Condition, jumping
from undiffuse.process import Denoise, GaussianProcess, NoiseLevel, Prediction, Time, cached_by_time, expand
from undiffuse.registry import CATEGORICAL
from undiffuse.targets import SCORE_OF_STATE, Coefficients, coefficients

LOG_SNR_LIMIT = 20.0  # the network's log-SNR is clamped here: alpha^2 or sigma^2 is then below 3e-9


@dataclass(frozen=True)
class Denoiser:
    """A network used as a denoiser for a process.

    Attributes:
        network: (input (B, C, ...), log-SNR (B,) float32, condition) -> (B, C, ...), or (B, 2 C, ...).
        process: any of the Gaussian family, not only the one trained on; maps t to a noise level.
        target: a name in TARGETS, or "categorical", for 8-bit data: (B, 258 C, ...), see undiffuse/discretised.py.
        sigma_data: the root mean square of the data, for the unit-variance input and the edm target.
        learned_variance: the second half of the output is the variance: -1 the posterior's, 1 the transition's.
        least_log_snr: the lowest log-SNR that the network takes; lower ones are clamped to it.
    """

    network: Callable[[Tensor, Tensor, Condition | None], Tensor]
    process: GaussianProcess
    target: str = "edm"
    sigma_data: float = 0.5
    learned_variance: bool = False
    least_log_snr: float = -LOG_SNR_LIMIT

    @cached_by_time
    def coefficients(self, t: Time) -> Coefficients:
        """The target's coefficients at t; where the network's log-SNR is clamped, those that match its output.

        Clamped from below, the network predicts the noise of a level with more signal. x_0 = (x_t - sigma eps) / alpha
        would amplify the difference by more than e^10, so x_t is treated as a sample at the clamped level. This applies
        to eps, the score and every target of the noise alone (a = 0). The others are bounded combinations, and clamped
        from above the noise is small: their coefficients at t are accurate to exp(-|log-SNR| / 2).
        """
        level = self.process.noise_level(t)
        beyond = (level.log_snr.float() < self.least_log_snr) & (level.alpha > 0)
        c = coefficients(self.target, level, self.sigma_data)
        if c.a.any() or self.target == SCORE_OF_STATE or not beyond.any():
            return c
        ratio = math.exp(-0.5 * self.least_log_snr)
        alpha = 1 / (self.c_in(t) * math.hypot(self.sigma_data, ratio))  # keeps the variance of x_t
        clamped = NoiseLevel(torch.where(beyond, alpha, level.alpha), torch.where(beyond, ratio * alpha, level.sigma))
        c = coefficients(self.target, clamped, self.sigma_data)
        # Makes x_0 = c_skip x_t + c_out output exact:
        a, b = (1 - c.c_skip * level.alpha) / c.c_out, -c.c_skip * level.sigma / c.c_out
        return Coefficients(torch.where(beyond, a, c.a), torch.where(beyond, b, c.b), c.c_skip, c.c_out)

    @cached_by_time
    def c_in(self, t: Time) -> Tensor:
        """The factor that gives x_t unit variance, float64 (Karras et al. 2022, eq. 7 and table 1, for any alpha)."""
        level = self.process.noise_level(t)
        return 1 / ((level.alpha * self.sigma_data) ** 2 + level.sigma**2).sqrt()

    @cached_by_time
    def log_snr(self, t: Time) -> Tensor:
        """The log-SNR that is the network's input, clamped: float64. Raises ValueError at t = 0."""
        log_snr = self.process.schedule.log_snr(t)
        if (log_snr == math.inf).any():
            raise ValueError("at t = 0 there is no noise to predict: x_0 is x_t itself")
        return log_snr.clamp(self.least_log_snr, LOG_SNR_LIMIT)

    def output(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's output for x_t, shaped like it, and the v of a learned variance, or None."""
        log_snr = self.log_snr(t)
        if log_snr.ndim == 0:
            log_snr = torch.full((len(x_t),), float(log_snr), device=x_t.device)
        else:
            log_snr = log_snr.to(device=x_t.device, dtype=torch.float32)
        output = self.network(expand(self.c_in(t), x_t) * x_t, log_snr, condition)
        if not self.learned_variance:
            return output, None
        output, variance = output.chunk(2, dim=1)
        return output, (variance + 1) / 2

    def target_of(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """The value the network is trained to output."""
        c = self.coefficients(t)
        return expand(c.a, x0) * x0 + expand(c.b, x0) * noise

    def __call__(self, x_t: Tensor, t: Time, condition: Condition | None = None) -> Prediction:
        """The prediction at x_t. `t` > 0: one for the batch or one per sample."""
        if self.target == CATEGORICAL:
            output, _ = self.output(x_t, t, condition)
            return discretised.predict(output, x_t, self.process.noise_level(t), self.sigma_data)
        output, v = self.output(x_t, t, condition)
        c = self.coefficients(t)
        x0 = expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * output.to(x_t.dtype)
        return Prediction(x0, x0, v).with_x0(x0, x_t, self.process.noise_level(t))

    def jump(self, x_t: Tensor, t: Time, s: Time, condition: Condition | None = None) -> Prediction:
        """The prediction by which DDIM's step from t ends where the ODE does at s <= t, if the network is a flow map.

        The network is told both levels. At s = t it is the denoiser itself. Times: one for the batch or one per sample.
        """
        goal = self.process.schedule.log_snr(s).clamp(self.least_log_snr, LOG_SNR_LIMIT)
        goal = goal.to(device=x_t.device, dtype=torch.float32).expand(len(x_t))
        return self(x_t, t, jumping(condition, goal))

    def bind(self, condition: Condition | None) -> Denoise:
        """The denoiser with its condition bound."""
        return lambda x_t, t: self(x_t, t, condition)
