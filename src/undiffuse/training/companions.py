"""What is trained beside a student: a critic of its samples, and in distribution matching a denoiser of them."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.build import make_objective
from undiffuse.conditions import Condition
from undiffuse.config import Config
from undiffuse.denoiser import Denoiser
from undiffuse.devices import laid_out
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.model import Model
from undiffuse.networks import UNet
from undiffuse.networks.critic import Critic, watched
from undiffuse.networks.frozen import frozen
from undiffuse.objectives.times import log_normal
from undiffuse.process import Denoise
from undiffuse.randomness import KeyedDraw
from undiffuse.training.gradients import join, total
from undiffuse.training.muon import make_optimizer

LEVELS = -1.2, 1.2
"""Mean and deviation of ln(sigma / alpha) of the noise through which the critic sees."""
RATE = 2e-3
"""Its learning rate, where the student's is at its peak."""
LEVEL, SEEN, REAL, TIME, FOLLOWED = 3, 4, 5, 6, 7
"""Which random numbers are for the critic's level, the noise on samples and on data; the times and the noise of what
follows the student."""


class Shown(NamedTuple):
    """Samples of a student and as much data, with their conditions, and the random numbers of their places; `features`
    are what the critic has seen of the samples."""

    x: Tensor
    condition: Condition | None
    features: list[Tensor]
    x0: Tensor
    given: Condition | None
    draw: KeyedDraw


class Companions(nn.Module):
    """A critic on the teacher's features, and for `matching` a copy of the teacher that follows the student's samples.

    Each has an optimiser; they learn from what the student's loss has just shown them, in every process of a torchrun.
    Raises UsageError for fp16.
    """

    def __init__(self, config: Config, teacher: Model, accelerator: Accelerator):
        super().__init__()
        name = config.objective.loss
        if accelerator.mixed_precision == "fp16":
            raise UsageError(f"objective.loss={name} is not trained in fp16: set training.precision=fp32 or bf16")
        self.facts, self.autocast, self.peak = teacher, accelerator.autocast, config.training.learning_rate
        self.shown: list[Shown] = []
        shape, half = teacher.domain.shape, torch.full((1,), 0.5, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            x = torch.zeros(1, *shape, device=accelerator.device)
            with torch.no_grad():
                features = self.features(x, half, teacher.condition(range(1)))
            self.critic = Critic([feature.shape[1] for feature in features], len(shape) - 1).to(accelerator.device)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.critic.parameters(), lr=RATE, betas=(0.0, 0.99), fused=True)
        ]
        if name == "matching":
            self.fake = copy.deepcopy(teacher.network).train().requires_grad_()
            self.denoiser: Denoiser = dataclasses.replace(teacher.denoiser, network=self.fake)
            self.objective = make_objective(teacher.config)
            self.optimizers.append(make_optimizer(config.training, self.fake))

    def imitate(self, condition: Condition | None) -> Denoise:
        """The denoiser of the student's samples, with its predictions in range."""
        return Recipe().thresholded(self.facts, self.denoiser.bind(condition))

    def scores(
        self, x: Tensor, condition: Condition | None, x0: Tensor, given: Condition | None, draw: KeyedDraw
    ) -> Tensor:
        """The critic's scores (B,) of samples, which have a gradient in x alone. `update` learns from them, and from
        as much data."""
        features = self._seen(x.float(), condition, draw, SEEN)
        detached = [feature.detach() for feature in features]
        self.shown.append(Shown(x.detach().float(), condition, detached, x0, given, draw))
        with frozen(self.critic):
            return torch.stack([one.mean(1) for one in self._judged(features)]).mean(0)

    def update(self, rate: float) -> None:
        """One step of each, by what has been shown since the last; `rate` is the student's."""
        count = total(sum(len(shown.x) for shown in self.shown), next(self.parameters()).device)
        if not count:  # no jump ended in data
            return
        for shown in self.shown:
            self._criticism(shown).sum().div(count).backward()
            if len(self.optimizers) > 1:
                u = shown.draw.fold(TIME).uniform(shown.x.flatten(1)[:, :1])[:, 0].cpu()
                with self.autocast():
                    loss = self.objective(self.denoiser, shown.x, shown.condition, u, shown.draw.fold(FOLLOWED))
                loss.sum().div(count).backward()
        self.shown.clear()
        for optimizer, peak in zip(self.optimizers, (RATE, self.peak), strict=False):
            for group in optimizer.param_groups:
                join(group["params"], "sum")
                nn.utils.clip_grad_norm_(group["params"], 1.0)
                group["lr"] = peak * rate / self.peak
            optimizer.step()
            optimizer.zero_grad()

    def features(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> list[Tensor]:
        """What the stages of the teacher's network give at x_t, with a gradient in it."""
        network = self.facts.network
        assert isinstance(network, UNet), "undiffuse distill takes no other teacher"
        with watched(network) as seen, self.autocast():
            self.facts.denoiser(x_t, t, condition)
        return seen

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, by name."""
        found = {f"weights.{name}": tensor for name, tensor in self.state_dict().items()}
        for name, parameter, optimizer in self._updated():
            found |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """What `state` gave. Raises RuntimeError or KeyError for anything else."""
        weights = {name: tensor for name, tensor in state.items() if name.startswith("weights.")}
        self.load_state_dict({name.removeprefix("weights."): tensor for name, tensor in weights.items()})
        moments: dict[str, dict[str, Tensor]] = {}
        for key in state.keys() - weights.keys():
            moment, _, name = key.partition(".")
            moments.setdefault(name, {})[moment] = state[key]
        for name, parameter, optimizer in self._updated():
            if name in moments:
                optimizer.state[parameter] = {
                    key: laid_out(value.to(parameter.device), parameter) for key, value in moments[name].items()
                }

    def _updated(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        for part, optimizer in zip(("critic", "fake"), self.optimizers, strict=False):
            for name, parameter in self.get_submodule(part).named_parameters(prefix=part):
                yield name, parameter, optimizer

    def _seen(self, x: Tensor, condition: Condition | None, draw: KeyedDraw, noise: int) -> list[Tensor]:
        """The teacher's features of x (B, ...) under noise."""
        process = self.facts.denoiser.process
        t = log_normal(process.schedule, draw.fold(LEVEL).uniform(x.flatten(1)[:, :1])[:, 0].cpu(), *LEVELS)
        return self.features(process.marginal(x, t).at(draw.fold(noise).normal(x)), t, condition)

    def _judged(self, features: list[Tensor]) -> list[Tensor]:
        """The critic's scores at every place of every feature: float32 (B, places)."""
        with self.autocast():
            return [one.float() for one in self.critic(features)]

    def _criticism(self, shown: Shown) -> Tensor:
        """The hinge loss of samples and as much data: (B,)."""
        with torch.no_grad():
            of_data = self._seen(shown.x0, shown.given, shown.draw, REAL)
        parts = [
            functional.relu(1 + fake).mean(1) + functional.relu(1 - true).mean(1)
            for fake, true in zip(self._judged(shown.features), self._judged(of_data), strict=True)
        ]
        return torch.stack(parts).mean(0)
