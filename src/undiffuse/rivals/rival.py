"""What every rival is to the trainer, the commands and the measures."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undiffuse.conditions import Condition, Labels, Request
from undiffuse.errors import UsageError
from undiffuse.randomness import Draw, KeyedDraw


class Rival(nn.Module):
    """A generative model of pictures (C, H, W) that is not diffusion.

    Attributes:
        phases: the updates of a training step, one after the other, each of a part of the weights.
        evaluations: passes through the network for one sample, one after the other.
        progress: the share of the training that is done, 0 to 1, for what changes over it; the trainer sets it.
        classes: how many there are; 0: no labels.
        bounded: whether `nats` is an estimate of a bound, by random numbers, and no likelihood of anything.
    """

    phases: tuple[str, ...] = ("all",)
    evaluations: int = 1
    progress: float = 0.0
    bounded: bool = False
    classes: int

    def part(self, phase: str) -> nn.Module:
        """The module whose weights a phase updates."""
        return self

    @abstractmethod
    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """The loss of each of float32 pictures (B, C, H, W) in [-1, 1], of classes int64 (B,): (B,)."""

    @abstractmethod
    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        """Samples float32 (count, C, H, W) in [-1, 1]; number k depends on the draw's k-th key alone."""

    def nats(self, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """-ln p of 8-bit pictures, or an estimate of a bound of it, (B,). Raises UsageError if it has none."""
        raise UsageError(f"{type(self).__name__} has no likelihood")

    def matrices(self) -> list[Tensor]:
        """The weights that Muon takes."""
        return []


@dataclass(frozen=True)
class RivalDenoiser:
    """A rival where the denoiser of diffusion stands, so that one trainer, one card and one set of commands serve both.

    Attributes:
        network: the rival.
        phase: of the training step.
    """

    network: Rival
    phase: str = "all"

    def losses(self, x0: Tensor, condition: Condition | None, draw: Draw) -> Tensor:
        """The loss of each sample in this phase: (B,)."""
        return self.network.losses(self.phase, x0, labels_of(condition), draw)

    def nats(self, x0: Tensor, share: Sequence[float], draw: Draw) -> Tensor:
        """-ln p(x_0), whatever the class: -ln sum_c share_c p(x_0 | c), float64 (B,).

        Of a bound, -ln p(x_0) <= sum_c r_c (bound of -ln p(x_0 | c) - ln share_c + ln r_c) for any r of sum 1, here
        the posterior by other random numbers. -ln sum_c share_c e^-bound of one draw would be too small on average.
        """
        if not self.network.classes:
            return self.network.nats(x0, None, draw).double()

        def each(draw: Draw) -> Tensor:
            """ln share_c - nats, (classes, B)."""
            every = (torch.full((len(x0),), label, device=x0.device) for label in range(len(share)))
            nats = torch.stack([self.network.nats(x0, labels, draw).double() for labels in every])
            return torch.tensor(share, dtype=torch.float64, device=x0.device).log()[:, None] - nats

        found = each(draw)
        if not self.network.bounded:
            return -found.logsumexp(0)
        log_r = each(draw.fold(1)).log_softmax(0)
        return torch.where(log_r > -math.inf, log_r.exp() * (log_r - found), 0.0).sum(0)


def labels_of(condition: Request | None) -> Tensor | None:
    """The classes int64 (B,). Raises UsageError for samples of any class, which a rival does not have."""
    if condition is None:
        return None
    if not isinstance(condition, Labels):
        raise UsageError("a rival draws of one class")
    if condition.index.device.type == "cpu" and (condition.index == condition.classes).any():
        raise UsageError("a rival draws of a class only")
    return condition.index


def own(denoiser: RivalDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: KeyedDraw) -> Tensor:
    """objective.loss=own: what the rival itself minimises."""
    return denoiser.losses(x0, condition, draw)
