"""Objectives of tokens: the continuous-time bound, absorbing and uniform, and its count form. All in nats/token.

The network's logits are the leave-one-out prediction w = p(x_0i | the other noisy elements) (`TokenDenoiser`).
"""

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.errors import UsageError
from undiffuse.process import CategoricalProcess, Schedule, expand, float64_device
from undiffuse.randomness import Draw
from undiffuse.token_denoiser import TokenDenoiser

EARLIEST = 2.0**-53
"""The time that stands for t = 0, where the integrand is infinite: the smallest float64 uniform number above 0."""


def categorical_bound(
    denoiser: TokenDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw
) -> Tensor:
    """The integrand at t = u of the bound with T -> infinity, in nats/token: (B,).

    Its integral over t from 0 to 1 and the prior's term are the bound: alpha_0 = 1, so there is no reconstruction.

    Absorbing: -alpha' / (1 - alpha) times the summed cross-entropy of the masked tokens (Sahoo et al. 2024, eq. 10;
    Shi et al. 2024, eq. 4). Uniform: the divergence of the rates of jumps, `jump_divergence`.
    """
    process = denoiser.process
    if not isinstance(process, CategoricalProcess):
        raise UsageError("this process has steps and no continuous time: set objective.loss=bound")
    t = u.clamp(min=EARLIEST)
    x_t = process.corrupt(x0, t, draw)
    if process.mask is None:
        logits = denoiser.logits(x_t, t, condition)
        return jump_divergence(process, float64_device(logits), x0, x_t, t).flatten(1).mean(1).to(logits)
    # SNR' = alpha' / (1 - alpha)^2
    weight = -process.schedule.snr_derivative(t) * _noise(process.schedule, t)
    errors = denoiser.errors(x_t, t, x0, x_t == process.mask, condition)
    return weight.to(errors) * errors.flatten(1).mean(1)


def jump_divergence(process: CategoricalProcess, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The sum over y != x_t of a ln(a / b) - a + b, for uniform noise: of every element, in nats per unit of time.

    a and b are the rates of the reverse jumps from x_t to y: the forward rate -alpha' / (alpha K) times the ratio of
    the probabilities of y and x_t at time t, in a q = alpha [y = x_0] + (1 - alpha) / K, in b p = alpha w +
    (1 - alpha) / K (Schiff et al. 2024, theorem 3.1). The latter is exact where w, the softmax of the logits, is the
    leave-one-out prediction (arXiv 2605.22765); p(x_0 | x_t) in its place counts the element's own evidence twice.

    The sums are taken apart, so that of K values each only a logarithm is left:

        (sum q ln q - sum q ln p) / q_t + (ln p_t - ln q_t - 1) / q_t + 1 / p_t    times the forward rate.

    Args:
        logits: (B, ..., K), of which the precision of the result is.
        t: (B,), above 0.
    """
    values, noise, alpha = process.values, _noise(process.schedule, t), process.log_survival(t).exp()
    rate = -process.schedule.snr_derivative(t) * noise**2 / alpha / values
    p = expand(noise, logits) + expand(alpha * values, logits) * logits.softmax(-1)  # K p, as all that follows
    logs, p_t = p.log(), _at(p, x_t)
    noise, alpha = expand(noise, p_t), expand(alpha, p_t)
    q_0 = noise + alpha * values
    q_t = torch.where(x_t == x0, q_0, noise)
    entropy = q_0 * q_0.log() + (values - 1) * noise * noise.log()
    cross = noise * logs.sum(-1).double() + alpha * values * _at(logs, x0)
    divergence = (entropy - cross) / q_t + values * ((_at(logs, x_t) - q_t.log()) / q_t + (q_t - p_t) / (p_t * q_t))
    faint = torch.finfo(logits.dtype).eps ** 0.75  # less signal says less than rounding
    return expand(rate, divergence) * torch.where(alpha > faint, divergence, 0.0)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x (B, ..., K) at the values int64 (B, ...), in float64."""
    return x.gather(-1, places.unsqueeze(-1).to(x.device))[..., 0].double()


def count(denoiser: TokenDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw) -> Tensor:
    """The bound of absorbing noise by the number of masks: the mean cross-entropy of l masked tokens, in nats/token.

    l = 1 + floor(u L) of the L tokens are masked, those with the smallest uniform numbers. The mean over l and the
    masks is the mean over all orders of the chain rule's terms (Uria et al. 2014; Hoogeboom et al. 2022, eq. 4), and
    the continuous bound of a network that does not see the time, without its schedule and with less variance.

    Raises UsageError for a process without a mask.
    """
    process = denoiser.process
    if process.mask is None:
        raise UsageError("objective.loss=count needs masks: with uniform noise, set objective.loss=continuous-bound")
    length = x0[0].numel()
    masks = 1 + (u * length).floor().clamp(max=length - 1)
    rank = draw.uniform(float64_device(x0)).flatten(1).argsort(dim=1, stable=True).argsort(1).to(x0.device)
    masked = (rank < masks.to(rank.device)[:, None]).view_as(x0)
    t = process.schedule.time((length - masks).log() - masks.log())  # alpha_t = 1 - l / L
    errors = denoiser.errors(torch.where(masked, process.mask, x0), t, x0, masked, condition)
    return errors.flatten(1).sum(1) / masks.to(errors)


def _noise(schedule: Schedule, t: Tensor) -> Tensor:
    """1 - alpha_t, without cancellation: float64."""
    return torch.sigmoid(-schedule.log_snr(t))
