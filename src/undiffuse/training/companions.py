"""What is trained beside a student in distribution matching: a denoiser of its samples, and a critic of them."""

import copy
import dataclasses
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from undiffuse.build import make_objective
from undiffuse.conditions import Condition, Labels, Several
from undiffuse.config import Config
from undiffuse.denoiser import Denoiser
from undiffuse.devices import laid_out
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.model import Model
from undiffuse.objectives.matching import OWN, drawn
from undiffuse.process import Denoise
from undiffuse.rivals.gan import frozen, penalty, relativistic
from undiffuse.rivals.gan.networks import Critic, Sizes
from undiffuse.training.batches import Batch
from undiffuse.training.muon import make_optimizer

WIDTHS, GROUP, GAMMA = (16, 64, 128), 16, 1.0
"""Of the critic, and the weight of its penalties (`undiffuse.rivals.gan`)."""
UPDATES = 3, 4
"""Which random numbers the samples are drawn from that the two are trained on."""


class Companions(nn.Module):
    """A copy of the teacher that follows the student's samples, and a critic of pictures, each with its optimiser.

    Raises UsageError for several processes, and for fp16.
    """

    def __init__(self, config: Config, teacher: Model, accelerator: Accelerator):
        super().__init__()
        if accelerator.num_processes > 1:
            raise UsageError("objective.loss=matching is trained in one process: start undiffuse without torchrun")
        if accelerator.mixed_precision == "fp16":
            raise UsageError("objective.loss=matching is not trained in fp16: set training.precision=fp32 or bf16")
        self.teacher_facts = teacher
        self.autocast, self.jumps = accelerator.autocast, config.objective.jumps
        self.fake = copy.deepcopy(teacher.network).train().requires_grad_()
        self.critic: Critic | None = None
        shape = teacher.domain.shape
        if teacher.data.domain == "pictures":
            sizes = Sizes(shape[0], (shape[1], shape[2]), _classes(teacher), WIDTHS, 1, GROUP, 1)
            self.critic = Critic(sizes).to(accelerator.device)
        self.denoiser: Denoiser = dataclasses.replace(teacher.denoiser, network=self.fake)
        self.objective = make_objective(teacher.config)
        self.optimizers = [make_optimizer(config.training, self.fake)]
        if self.critic is not None:
            rate = config.training.learning_rate
            self.optimizers.append(torch.optim.AdamW(self.critic.parameters(), lr=rate, betas=(0.0, 0.99), fused=True))

    def imitate(self, condition: Condition | None) -> Denoise:
        """The denoiser of the student's samples, with its predictions in range."""
        return Recipe().thresholded(self.teacher_facts, self.denoiser.bind(condition))

    def scores(self, x: Tensor, condition: Condition | None) -> Tensor | None:
        """The critic's scores (B,), which have a gradient in x alone; None without a critic."""
        if self.critic is None:
            return None
        with frozen(self.critic):
            scores: Tensor = self.critic(x, _labels(condition))
        return scores

    def update(self, student: Denoiser, batch: Batch, rate: float) -> None:
        """One step of each, on samples that the student draws now."""
        losses = [self._imitation, *([self._criticism] if self.critic is not None else [])]
        for number, loss, optimizer in zip(UPDATES, losses, self.optimizers, strict=False):
            draw = batch.draw.fold(number)
            with torch.no_grad(), self.autocast():
                x = drawn(student, batch.condition, draw.fold(OWN), batch.x0, self.jumps)
            with self.autocast():
                value = loss(x.float(), batch).mean()
            value.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

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
        for part, optimizer in zip(("fake", "critic"), self.optimizers, strict=False):
            for name, parameter in self.get_submodule(part).named_parameters(prefix=part):
                yield name, parameter, optimizer

    def _imitation(self, x: Tensor, batch: Batch) -> Tensor:
        return self.objective(self.denoiser, x, batch.condition, batch.u, batch.draw.fold(UPDATES[0]))

    def _criticism(self, x: Tensor, batch: Batch) -> Tensor:
        assert self.critic is not None
        labels = _labels(batch.condition)
        both = torch.cat([batch.x0, x]).requires_grad_()
        scores = self.critic(both, None if labels is None else labels.repeat(2))
        real, fake = scores.chunk(2)
        r1, r2 = penalty(scores, both).chunk(2)
        return relativistic(real, fake) + GAMMA / 2 * (r1 + r2)


def _labels(condition: Condition | None) -> Tensor | None:
    labels = condition.parts.get("label") if isinstance(condition, Several) else condition
    return labels.index if isinstance(labels, Labels) else None


def _classes(teacher: Model) -> int:
    return len(teacher.data.classes) if _labels(teacher.condition(range(1))) is not None else 0
