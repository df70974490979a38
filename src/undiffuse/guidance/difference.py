"""Guidance by the difference of two denoisers: classifier-free guidance, autoguidance, and what refines them.

A pair gives the prediction to move towards and the one to move away from: D_c and D_u of classifier-free guidance
(Ho & Salimans 2022), the model and a weaker one of autoguidance (Karras et al. 2024a). A rule combines their x_0, and
eps follows x_0, so that x_t = alpha x_0 + sigma eps still holds.

Scales are the same everywhere: w = 1 is the first of the pair alone, w = 0 the second, any real w is allowed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UsageError
from undiffuse.process import Denoise, GaussianProcess, NoiseLevel, Prediction, Time, per_sample
from undiffuse.token_denoiser import TokenDenoiser

Pair = Callable[[Tensor, Time], tuple[Any, Any]]
"""(x_t, t) -> the prediction to move towards, and the one to move away from: two `Prediction`, or two `Categorical`."""
Rule = Callable[[Tensor, Tensor], Tensor]
"""(x_0 of the first, x_0 of the second) -> the guided x_0; all (B, ...)."""


def in_one_batch(
    denoiser: Denoiser | TokenDenoiser, conditions: Sequence[Condition]
) -> Callable[[Tensor, Time], list[Any]]:
    """The predictions at x_t under several conditions, by one evaluation of the network on all of them."""
    first, *others = conditions
    together, count = first.joined(*others), len(conditions)

    def evaluate(x_t: Tensor, t: Time) -> list[Any]:
        repeated = x_t.repeat(count, *[1] * (x_t.ndim - 1))
        times = t.repeat(count) if isinstance(t, Tensor) and t.ndim else t
        return denoiser(repeated, times, together).split(count)

    return evaluate


def with_and_without(denoiser: Denoiser | TokenDenoiser, condition: Condition, away: Condition) -> Pair:
    """The pair of classifier-free guidance in one batch; `away` is `condition.dropped()`, or another to avoid."""
    evaluate = in_one_batch(denoiser, [condition, away])

    def pair(x_t: Tensor, t: Time) -> tuple[Any, Any]:
        towards, away = evaluate(x_t, t)
        return towards, away

    return pair


def of_two(towards: Denoise, away: Denoise) -> Pair:
    """The pair of two denoisers, such as a model and a weaker one (Karras et al. 2024a)."""
    return lambda x_t, t: (towards(x_t, t), away(x_t, t))


def guided(pair: Pair, process: GaussianProcess, rule: Rule) -> Denoise:
    """The denoiser whose x_0 is `rule` of the pair's; the learned variance and the logits are those of the first.

    The x_0 of the second stays in `Prediction.unguided`, for rules such as CFG++.
    """

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        towards, away = pair(x_t, t)
        x0 = rule(towards.x0, away.x0)
        return dataclasses.replace(towards, unguided=away.x0).with_x0(x0, x_t, process.noise_level(t))

    return denoise


def composed(
    denoiser: Denoiser,
    process: GaussianProcess,
    conditions: Sequence[Condition],
    away: Condition,
    scales: Sequence[float],
) -> Denoise:
    """D_u + sum_i w_i (D_i - D_u): several conditions at once, in one batch (Liu et al. 2022, eq. 11)."""
    evaluate = in_one_batch(denoiser, [away, *conditions])

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        without, *towards = evaluate(x_t, t)
        x0 = without.x0
        for scale, one in zip(scales, towards, strict=True):
            x0 = x0 + scale * (one.x0 - without.x0)
        return dataclasses.replace(towards[0], unguided=without.x0).with_x0(x0, x_t, process.noise_level(t))

    return denoise


def linear(scale: float) -> Rule:
    """D_u + w (D_c - D_u) (Ho & Salimans 2022, eq. 6, where w is one less)."""
    return lambda towards, away: away + scale * (towards - away)


def rescaled(rule: Rule, share: float) -> Rule:
    """`rule`, brought a `share` of the way back to the standard deviation that the first x_0 has within each sample.

    Lin et al. 2024, eq. 15 and 16. They rescale the network's output, a v; here it is x_0, whatever the target.
    """

    def apply(towards: Tensor, away: Tensor) -> Tensor:
        x0 = rule(towards, away)
        wanted, present = _over_samples(towards, Tensor.std), _over_samples(x0, Tensor.std)
        ratio = torch.where(present > 0, wanted / present, 1.0)
        return x0 * (share * ratio + (1 - share))

    return apply


def projected(scale: float, eta: float = 0.0, norm: float | None = None, momentum: float = 0.0) -> Rule:
    """Adaptive projected guidance, APG (Sadat et al. 2024, algorithm 1): D_c + (w - 1) (orthogonal + eta parallel).

    The difference D_c - D_u is split along D_c and across it; the part along it is what saturates colours.

    Args:
        eta: of the parallel part; 1 with the other defaults is classifier-free guidance.
        norm: the most that the difference may be, as a root mean square over the elements of a sample, so that it means
            the same at every size of picture (the paper has the norm itself).
        momentum: beta, below 0 as a rule: of the sum of past differences that is added. Such a rule remembers its
            trajectory: make one for each.
    """
    average: list[Tensor] = []

    def apply(towards: Tensor, away: Tensor) -> Tensor:
        difference = towards - away
        if momentum:
            if average:
                difference = difference + momentum * average.pop()
            average.append(difference)
        if norm is not None:
            size = _over_samples(difference, _root_mean_square)
            difference = difference * (norm / size).clamp(max=1)
        flat, along = difference.flatten(1), towards.flatten(1)
        squares = (along * along).sum(1).clamp(min=torch.finfo(along.dtype).tiny)
        parallel = ((flat * along).sum(1) / squares)[:, None] * along
        update = (flat - (1 - eta) * parallel).view_as(towards)
        return towards + (scale - 1) * update

    return apply


def inside_interval(level: NoiseLevel, interval: tuple[float, float] | None) -> Tensor:
    """Whether low < sigma / alpha <= high, bool, shaped like the level; None: always."""
    low, high = interval or (-1.0, math.inf)
    above = level.sigma > low * level.alpha
    return above & (level.sigma <= high * level.alpha) if math.isfinite(high) else above  # inf times 0 is NaN


def within(inside: Denoise, outside: Denoise, process: GaussianProcess, interval: tuple[float, float]) -> Denoise:
    """`inside` where sigma / alpha lies in (low, high], `outside` elsewhere (Kynkaanniemi et al. 2024, eq. 5).

    With one time for the batch only one of the two is evaluated.
    """

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        here = inside_interval(level, interval)
        if here.ndim == 0:
            return (inside if here else outside)(x_t, t)
        x0 = outside(x_t, t).x0
        chosen = per_sample(here, x_t)
        prediction: Prediction = inside(x_t, t)
        return prediction.with_x0(torch.where(chosen, prediction.x0, x0), x_t, level)

    return denoise


@dataclass(frozen=True)
class Guidance:
    """How strongly a condition, or another model, guides.

    Attributes:
        scale: w; 1 is the plain conditional model, 0 the unconditional one.
        interval: the noise levels (low, high] of sigma / alpha that are guided; None: all.
        rescale: the share of `rescaled`, 0 to 1.
        eta, norm, momentum: those of `projected`; the defaults are plain guidance.

    Raises UsageError for numbers out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    eta: float = 1.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError(f"guidance = {self.scale} must be a finite number")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            low, high = self.interval
            raise UsageError(f"the guidance interval {low:g},{high:g} must be two noise levels, 0 <= low < high")
        if not 0 <= self.rescale <= 1:
            raise UsageError(f"the guidance rescale = {self.rescale:g} must lie between 0 and 1")
        if (self.norm is not None and not self.norm > 0) or not math.isfinite(self.eta) or not -1 < self.momentum < 1:
            raise UsageError("APG takes any eta, a norm above 0 and a momentum between -1 and 1")

    @property
    def is_linear(self) -> bool:
        """Whether it is neither rescaled nor projected."""
        return not self.rescale and self._plain

    @property
    def _plain(self) -> bool:
        return self.eta == 1 and self.norm is None and not self.momentum

    @property
    def rule(self) -> Rule:
        """A rule for one trajectory."""
        rule = linear(self.scale) if self._plain else projected(self.scale, self.eta, self.norm, self.momentum)
        return rescaled(rule, self.rescale) if self.rescale else rule


def _over_samples(x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    """A statistic of each sample, (B, 1, ..., 1)."""
    return per_sample(function(x.flatten(1), 1), x)


def _root_mean_square(x: Tensor, dim: int) -> Tensor:
    return x.square().mean(dim).sqrt()
