"""The optimisation itself: a generator of steps. Logging, previews, checkpoints and budgets are left to its caller."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from torch.func import functional_call

from undiffuse.build import make_denoiser, make_objective, takes
from undiffuse.config import Config, TrainingConfig
from undiffuse.data import ImageSet
from undiffuse.denoiser import Denoiser
from undiffuse.domains import domain_of
from undiffuse.errors import UsageError
from undiffuse.objectives.flow_map import Student
from undiffuse.randomness import Purpose, torch_generator
from undiffuse.rivals.rival import Rival, RivalDenoiser
from undiffuse.training.batches import batches
from undiffuse.training.gradients import join
from undiffuse.training.state import Learner


@dataclass(frozen=True)
class TrainingStep:
    """The result of a step, for listeners: `loss` and `gradient_norm` are 0-dim tensors, left on the device."""

    number: int
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


def learning_rate(config: TrainingConfig, step: int, total: int | None) -> float:
    """The rate of step `step` (from 0): linear warm-up, constant, then linear decay to 0 over the last `decay`.

    Until a wall-clock budget has fixed `total` (None), the rate is constant: the decay is the only part that needs it.
    """
    rate = config.learning_rate * min(1.0, (step + 1) / max(config.warmup, 1))
    if total is not None and config.decay > 0:
        rate *= min(1.0, (total - step) / (config.decay * total))
    return rate


def positions(config: TrainingConfig, accelerator: Accelerator) -> list[slice]:
    """This process's share of the global batch, one slice per micro-batch. Raises UsageError if it does not divide."""
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise UsageError(
            f"training.batch_size = {config.batch_size} does not divide into {accelerator.num_processes} processes "
            f"x {config.accumulation} micro-batches; make it a multiple of {parts}"
        )
    size = config.batch_size // parts
    first = accelerator.process_index * config.accumulation
    return [slice(part * size, (part + 1) * size) for part in range(first, first + config.accumulation)]


def training_steps(
    config: Config, data: ImageSet, learner: Learner, accelerator: Accelerator
) -> Iterator[TrainingStep]:
    """Takes steps without end, updating `learner` in place, and yields after each; the caller ends it.

    The loss is the mean over the global batch; `learner.progress.total` may be set between steps.
    """
    if isinstance(learner.network, Rival):  # its losses are more than the `forward` that a wrapper would watch
        wrapped, optimizer = learner.network, accelerator.prepare(learner.optimizer)
    else:
        wrapped, optimizer = accelerator.prepare(learner.network, learner.optimizer)
    assert isinstance(wrapped, nn.Module)
    denoiser, objective = make_denoiser(config, wrapped), make_objective(config)
    if config.network.jumps and domain_of(data).bounded:
        denoiser = Student.of(denoiser)
    companions = learner.companions
    averages = learner.averages
    beside = {
        "teach": learner.teach,
        "companions": companions,
        "paths": learner.paths,
        "share": lambda: learner.progress.share(config.training.minutes),
        "average": dataclasses.replace(
            denoiser, network=lambda *inputs: functional_call(learner.network, averages, inputs)
        ),
    }
    if given := {name: part for name, part in beside.items() if takes(config.objective.loss, name)}:
        objective = partial(cast(Any, objective), **given)
    shares = positions(config.training, accelerator)
    parameters = [parameter for _, parameter in learner.named]
    progress, device, importance = learner.progress, accelerator.device, learner.importance
    phases = _phases(denoiser, learner.network, accelerator)
    upcoming = batches(config, data, progress.step, shares, device)
    learner.network.train()
    while True:
        number = progress.step
        rate = learning_rate(config.training, number, progress.total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        micro_batches = [next(upcoming) for _ in shares]
        for phase in phases:
            phase.begin(progress.share(config.training.minutes))
            total = torch.zeros((), device=device)
            seen = []
            for share, batch in zip(shares, micro_batches, strict=True):
                if config.network.dropout:  # the only draw by torch's global generator: the same after a resume
                    torch.manual_seed(
                        torch_generator(config.training.seed, Purpose.DROPOUT, number, share.start).initial_seed()
                    )
                last = share is shares[-1]
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped), phase.autocast():
                    u, weight = (batch.u, None) if importance is None else importance.warp(batch.u)
                    losses = objective(phase.denoiser, batch.x0, batch.condition, u, batch.draw)
                    weighted = losses if weight is None else losses * weight.to(losses)
                    loss = weighted.mean() / len(shares)
                accelerator.backward(loss)
                seen.append((u, losses.detach()))
                total += loss.detach()
            if importance is not None:
                importance.update(*_all(accelerator, seen))
            if phase.rival is not None:  # what has a gradient is the same in every process: it depends on the phase
                join([parameter for parameter in parameters if parameter.grad is not None], "mean")
            norm = accelerator.clip_grad_norm_(parameters, config.training.clip)
            optimizer.step()
            optimizer.zero_grad()
        if companions is not None:
            companions.update(rate)
        progress.step += 1
        learner.ema.update(parameters, progress.step)
        yield TrainingStep(progress.step, total, torch.as_tensor(norm), rate)


@dataclass(frozen=True)
class _Phase:
    """A part of every step, with an update of its own: of diffusion the only one; of a GAN, the critic's or the
    generator's.

    Attributes:
        denoiser: what the objective takes.
        autocast: the context of what is not in the network's `forward`.
        rival: the network, if it is one.
        kept: of its parameters, those that do not change.
    """

    denoiser: Denoiser
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    rival: Rival | None = None
    kept: tuple[Tensor, ...] = ()

    def begin(self, share: float) -> None:
        """Asks for gradients of what changes alone: optimisers leave parameters without gradients as they are."""
        if self.rival is not None:
            self.rival.progress = share
            self.rival.requires_grad_()
        for parameter in self.kept:
            parameter.requires_grad_(False)


def _phases(denoiser: Denoiser, network: nn.Module, accelerator: Accelerator) -> list[_Phase]:
    if not isinstance(network, Rival):
        return [_Phase(denoiser)]
    phases = []
    for name in network.phases:
        inside = {id(parameter) for parameter in network.part(name).parameters()}
        kept = tuple(parameter for parameter in network.parameters() if id(parameter) not in inside)
        phases.append(_Phase(cast(Denoiser, RivalDenoiser(network, name)), accelerator.autocast, network, kept))
    return phases


def _all(accelerator: Accelerator, seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Times and losses of the whole global batch, the same in every process."""
    u, losses = (torch.cat(parts) for parts in zip(*seen, strict=True))
    if accelerator.num_processes > 1:
        u, losses = gather((u.to(losses.device), losses))
    return u.cpu(), losses
