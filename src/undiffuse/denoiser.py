"""What a network says: its output at a noise level, turned into a prediction of x_0 and eps whatever its target was.

The network knows nothing of diffusion: it gets its input at unit variance and the log-SNR, and returns a tensor. Every
target is a combination of x_0 and eps (undiffuse/targets.py), and every conversion goes through x_0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.process import Denoise, GaussianProcess, Level, Prediction, Time, expand, remembered
from undiffuse.targets import KNOWN, Coefficients
from undiffuse.targets import TARGETS as TARGETS

LOG_SNR_LIMIT = 20.0  # what the network is told of log-SNRs beyond: alpha^2 or sigma^2 is then below 3e-9
_NOISE = ("eps", "score")  # targets from which x_0 is read with a factor, sigma / alpha, that has no bound

LEVELS = "levels"
VALUES = 256  # of 8 bits
LEVEL_OUTPUTS = VALUES + 2
"""What a network of the target "levels" says of an element: a Gaussian's mean and sharpness, and logits."""
SHARPEST = 6.0  # such a Gaussian's standard deviation is at least sigma_data exp(-6), a third of a level or less


@dataclass(frozen=True)
class Denoiser:
    """A network read as a denoiser for a process.

    Attributes:
        network: (input (B, C, ...), log-SNR (B,) float32, condition) -> (B, C, ...), or (B, 2 C, ...).
        process: gives t its noise level; any process of the Gaussian family will do, trained on or not.
        target: a name in TARGETS, or "levels", for data of 8 bits: the output is (B, 258 C, ...), see `_of_levels`.
        sigma_data: the root mean square of the data, for the unit-variance input and the edm target.
        learned_variance: the second half of the channels is the variance, -1 the posterior's and 1 the transition's.
        least_log_snr: the lowest log-SNR that the network can be told of; with less signal it is told this one.
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    process: GaussianProcess
    target: str = "edm"
    sigma_data: float = 0.5
    learned_variance: bool = False
    least_log_snr: float = -LOG_SNR_LIMIT

    @remembered
    def coefficients(self, t: Time) -> Coefficients:
        """The target's coefficients at t, those that the network's answer has where it is told of another log-SNR.

        Told of more signal than there is, the network says the noise of that level. x_0 = (x_t - sigma eps) / alpha
        would multiply the difference by more than e^10, so it is read at the level that the network was told of, which
        x_t looks like. The other targets are bounded combinations, and with more signal than told the noise is small:
        they are right to exp(-|log-SNR| / 2) as they are.
        """
        level = self.process.level(t)
        beyond = (level.log_snr.float() < self.least_log_snr) & (level.alpha > 0)
        if self.target not in _NOISE or not beyond.any():
            return KNOWN[self.target](level, self.sigma_data)
        ratio = math.exp(-0.5 * self.least_log_snr)
        alpha = 1 / (self.input_scale(t) * math.hypot(self.sigma_data, ratio))  # at the same variance of x_t
        told = Level(torch.where(beyond, alpha, level.alpha), torch.where(beyond, ratio * alpha, level.sigma))
        c = KNOWN[self.target](told, self.sigma_data)
        a, b = (1 - c.p * level.alpha) / c.q, -c.p * level.sigma / c.q  # what makes x_0 = p x_t + q output exact
        return Coefficients(torch.where(beyond, a, c.a), torch.where(beyond, b, c.b), c.p, c.q)

    @remembered
    def input_scale(self, t: Time) -> Tensor:
        """What brings x_t to unit variance, float64: c_in of Karras et al. 2022, for any alpha."""
        level = self.process.level(t)
        return 1 / ((level.alpha * self.sigma_data) ** 2 + level.sigma**2).sqrt()

    def output(self, x_t: Tensor, t: Time, condition: Any = None) -> tuple[Tensor, Tensor | None]:
        """The network's output for x_t, shaped like it, and v of a learned variance, if any."""
        log_snr = self.process.schedule.log_snr(t)
        if (log_snr == math.inf).any():
            raise ValueError("at t = 0 there is no noise to be asked about: x_0 is x_t itself")
        log_snr = log_snr.clamp(self.least_log_snr, LOG_SNR_LIMIT)
        if log_snr.ndim == 0:
            log_snr = torch.full((len(x_t),), log_snr.item(), device=x_t.device)
        else:
            log_snr = log_snr.to(device=x_t.device, dtype=torch.float32)
        output = self.network(expand(self.input_scale(t), x_t) * x_t, log_snr, condition)
        if not self.learned_variance:
            return output, None
        output, variance = output.chunk(2, dim=1)
        return output, (variance + 1) / 2

    def target_of(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """What the network should have said."""
        c = self.coefficients(t)
        return expand(c.a, x0) * x0 + expand(c.b, x0) * noise

    def __call__(self, x_t: Tensor, t: Time, condition: Any = None) -> Prediction:
        """The prediction at x_t. `t` > 0: one for the batch or one per sample."""
        if self.target == LEVELS:
            return self._of_levels(x_t, t, condition)
        output, v = self.output(x_t, t, condition)
        c = self.coefficients(t)
        x0 = expand(c.p, x_t) * x_t + expand(c.q, x_t) * output.to(x_t.dtype)
        return Prediction(x0, x0, v).with_x0(x0, x_t, self.process.level(t))

    def _of_levels(self, x_t: Tensor, t: Time, condition: Any) -> Prediction:
        """x_0 as its mean over the 256 values an element can take, given what the network says and x_t itself.

        The network's odds, a Gaussian's times free ones, stand for what surrounds an element, and x_t there is weighed
        in by Bayes' rule. So what little noise hides need not be learnt: there x_0 is the value next to x_t.
        """
        level = self.process.level(t)
        channels = x_t.shape[1]
        output = self.output(x_t, t, condition)[0].to(x_t.dtype)
        mean, sharpness, free = output.split([channels, channels, VALUES * channels], 1)
        precision = (sharpness.clamp(max=SHARPEST).exp() / self.sigma_data) ** 2
        free = free.unflatten(1, (channels, VALUES)).movedim(2, -1)
        logits = level_logits(x_t, level, free, self.sigma_data * mean, precision)
        x0 = (logits.softmax(-1) * level_values(VALUES, x_t)).sum(-1)  # no product of matrices: those round, autocast
        return Prediction(x0, x0, logits=logits).with_x0(x0, x_t, level)

    def bind(self, condition: Any) -> Denoise:
        """The denoiser for one condition."""
        return lambda x_t, t: self(x_t, t, condition)


def level_values(levels: int, like: Tensor) -> Tensor:
    """The values of data with `levels` of them, evenly spaced on [-1, 1]: (levels,)."""
    return torch.arange(levels, device=like.device, dtype=like.dtype) / ((levels - 1) / 2) - 1


def level_logits(
    x_t: Tensor, level: Level, logits: Tensor, mean: Tensor | float = 0.0, precision: Tensor | float = 0.0
) -> Tensor:
    """ln p(x_0 = v | x_t) for every value v, up to a constant: ln of exp(logits) N(v; mean, 1 / precision) q(x_t | v).

    Args:
        x_t: (B, C, ...), with some signal left in it (alpha > 0) or a precision to go by.
        logits: (levels,), the same for all elements, or (B, C, ..., levels), as the result is.
        mean, precision: (B, C, ...), or none.
    """
    values = level_values(logits.shape[-1], x_t)
    told = expand(level.alpha / level.sigma**2, x_t)  # two Gaussians of v make one
    both = precision + expand((level.alpha / level.sigma) ** 2, x_t)
    root, centre = both.sqrt().to(x_t), (precision * mean + told * x_t) / both
    distance = torch.addcmul((-root * centre).unsqueeze(-1), root.unsqueeze(-1), values)
    return torch.addcmul(logits, distance, distance, value=-0.5)
