"""The probability distributions (laws) of the elements of a state."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from undiffuse.process.schedule import float64_device
from undiffuse.randomness import Draw


class Law(Protocol):
    """A distribution of the elements of (B, ...), which are independent."""

    def sample(self, draw: Draw) -> Tensor:
        """A sample, (B, ...)."""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other) of every element, in nats, where `other` is of the same kind: (B, ...)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-probability, or log-density, of every element of x, in nats: (B, ...)."""


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """One value for each sample, (B,), of any dtype, as (B, 1, ..., 1), on the device of `like` (B, ...)."""
    return value.to(like.device).view(-1, *[1] * (like.ndim - 1))


def expand(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient shaped to multiply `like`: one per sample becomes (B, 1, ..., 1), any other keeps its shape.

    A 0-dim float64 CPU tensor multiplies a float32 tensor on any device without raising its dtype or synchronising.
    """
    if value.ndim == 0:
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return per_sample(value, like) if value.ndim == 1 else value


@dataclass(frozen=True)
class Normal:
    """N(mean, variance I): `variance` is 0-dim or one per sample, as `expand` broadcasts it (or shaped like `mean`)."""

    mean: Tensor
    variance: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """mean + sqrt(variance) noise."""
        return self.mean + expand(self.variance.sqrt(), self.mean) * noise

    def sample(self, draw: Draw) -> Tensor:
        """A sample; nothing is drawn where the variance is 0 throughout."""
        if self.variance.ndim == 0 and self.variance == 0:
            return self.mean
        return self.at(draw.normal(self.mean))

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) per element, in nats: shaped like the means. Infinite where only one variance is 0."""
        ours, theirs = (torch.as_tensor(expand(v, self.mean)) for v in (self.variance, other.variance))
        ratio = ours / theirs
        kl = 0.5 * ((self.mean - other.mean) ** 2 / theirs + (ratio - 1 - ratio.log()))
        return torch.where((theirs == 0) & (ours > 0), torch.inf, kl)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of x, per element, in nats."""
        variance = expand(self.variance, x)
        return -0.5 * ((x - self.mean) ** 2 / variance + (2 * math.pi * variance).log())


@dataclass(frozen=True)
class Categorical:
    """One of K categories for every element: normalised log-probabilities, (B, ..., K), -inf if impossible."""

    log_probs: Tensor

    def rows(self, rows: Tensor) -> "Categorical":
        """The distribution of some samples."""
        return Categorical(self.log_probs[rows])

    def split(self, count: int) -> list["Categorical"]:
        """The distributions of `count` batches of one size that were evaluated as one, in order."""
        return [Categorical(part) for part in self.log_probs.chunk(count)]

    def double(self) -> "Categorical":
        """The distribution in float64."""
        return Categorical(float64_device(self.log_probs).double())

    def without(self, evidence: Tensor) -> "Categorical":
        """The distribution before Bayes' rule added `evidence`, log-likelihoods (B, ..., K): divided by it, normalised.

        Categories that the evidence rules out get probability 0, whatever they had; NaN if none are left.
        """
        possible = evidence > -torch.inf
        before = torch.where(possible, self.log_probs - torch.where(possible, evidence, 0.0), -torch.inf)
        return Categorical(before.log_softmax(-1))

    @property
    def x0(self) -> Tensor:
        """The most probable category of every element, int64 (B, ...): shown as the prediction of x_0."""
        return self.log_probs.argmax(-1)

    def sample(self, draw: Draw) -> Tensor:
        """Categories, int64 (B, ...), by inverting the CDF at a float64 uniform number.

        Float32 uniforms are 2^-24 apart: categories less probable than that would come too rarely.
        """
        upper = float64_device(self.log_probs).double().exp().cumsum(-1)
        total = upper[..., -1:]
        u = draw.uniform(upper[..., 0]).unsqueeze(-1) * total
        u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))  # rounding must not go past the last
        return torch.searchsorted(upper, u, right=True).squeeze(-1).to(self.log_probs.device)

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self || other) per element, in nats: (B, ...). Infinite where `other` rules out a possible category."""
        possible = self.log_probs > -torch.inf
        p = torch.where(possible, self.log_probs, torch.zeros_like(self.log_probs))
        q = torch.where(possible, other.log_probs, torch.zeros_like(p))  # by cases: 0 ln(0 / q) = 0, with gradient 0
        return torch.where(possible, p.exp() * (p - q), torch.zeros_like(p)).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """ln of the probability of each element of x, int64 (B, ...)."""
        return self.log_probs.gather(-1, x.unsqueeze(-1)).squeeze(-1)
