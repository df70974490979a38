"""Everything that training changes, which is also what a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from undiffuse.build import make_network
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.devices import placed
from undiffuse.domains import domain_of
from undiffuse.errors import UsageError
from undiffuse.model import DataFacts, Model
from undiffuse.networks import PixelUNet
from undiffuse.networks.embedding import Conditioning
from undiffuse.networks.lora import add_adapters
from undiffuse.objectives import Importance
from undiffuse.objectives.flow_map import Teach
from undiffuse.objectives.paths import Paths
from undiffuse.registry import CATEGORICAL
from undiffuse.rivals.pixels import Pixels
from undiffuse.training.companions import Companions
from undiffuse.training.ema import EMA
from undiffuse.training.muon import make_optimizer
from undiffuse.training.statistics import log_value_prior
from undiffuse.training.transfer import Origin, transfer

Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: number of steps taken.
        seconds: how long they took, and what was before them.
        before: seconds of a budget that were gone before the first step.
        total: number of steps in all; None until a wall-clock budget has decided it.
        pending: losses of the steps since the last row of the metrics.
    """

    step: Count = 0
    seconds: Annotated[Finite, Field(ge=0, le=1e15)] = 0.0
    total: Count | None = None
    pending: list[Finite] = field(default_factory=list)
    before: Annotated[Finite, Field(ge=0, le=1e15)] = 0.0

    def share(self, minutes: float | None) -> float:
        """The share of the steps that is done, in [0, 1]: by their number or, until that is known, by the budget."""
        if self.total is not None:
            return self.step / self.total
        left = max(60 * (minutes or 1) - self.before, 1e-9)
        return min(1.0, (self.seconds - self.before) / left)

    def remaining(self, minutes: float | None) -> float:
        """The seconds that the other steps will take, at the pace of those so far."""
        return (self.seconds - self.before) * (1 / max(self.share(minutes), 1e-9) - 1)


@dataclass
class Learner:
    """Everything that training changes: the network, its average, the optimiser, the loss scaler of fp16, and the
    statistics of the losses if the times are drawn by importance. And, of a distillation, the teacher, which stays,
    what is trained beside the student, the teacher's paths, and its fingerprint."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    progress: Position
    importance: Importance | None = None
    teach: Teach | None = None
    companions: Companions | None = None
    paths: Paths | None = None
    taught_by: str | None = None
    origin: Origin | None = None

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """The parameters by name, in the order of the average."""
        return list(self.network.named_parameters())

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages of the parameters, by name."""
        return dict(zip([name for name, _ in self.named], self.ema.average, strict=True))

    @property
    def trained(self) -> list[str]:
        """The names of the parameters that change."""
        return [name for name, parameter in self.named if parameter.requires_grad]


def make_learner(
    config: Config,
    images: ImageSet,
    data: DataFacts,
    accelerator: Accelerator,
    base: Model | None = None,
    origin: Origin | None = None,
) -> Learner:
    """The state that a run begins with: of the weights of `base`, or random ones.

    `origin` is that of a run which has checkpoints to go on from, and so no use for its base. Raises UsageError for a
    base whose weights do not fit, and for augmentation that the network has no labels for.
    """
    training = config.training
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(config.training.seed)
        shape = domain_of(data).shape
        network = make_network(config, shape[0], data.takes, len(shape) - 1)
        if config.data.augment and not any(isinstance(m, Conditioning) and m.augmentation for m in network.modules()):
            raise UsageError(f"data.augment: network.kind={config.network.kind} takes no augmentation labels")
        if base:
            origin = transfer(network, base, data)
        elif isinstance(network, Pixels) or (config.denoiser.target == CATEGORICAL and isinstance(network, PixelUNet)):
            network.set_value_prior(log_value_prior(images))
        if training.lora:
            assert origin is not None
            add_adapters(network, training.lora, training.lora_scale, origin.new)
        network = placed(network, accelerator.device)
    if training.compile:
        network.compile()
    return Learner(
        network,
        EMA(list(network.parameters()), training.ema),
        make_optimizer(training, network),
        accelerator.scaler,
        Position(),
        Importance() if config.objective.importance else None,
        origin=origin,
    )
