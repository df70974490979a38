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
from undiffuse.model import DataFacts
from undiffuse.networks import PixelUNet
from undiffuse.objectives import Importance
from undiffuse.registry import CATEGORICAL
from undiffuse.training.ema import EMA
from undiffuse.training.muon import make_optimizer
from undiffuse.training.statistics import log_value_prior

Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: how many were taken.
        seconds: how long that took.
        total: how many there will be; None until a wall-clock budget has decided.
        pending: losses of the steps since the last row of the metrics.
    """

    step: Count = 0
    seconds: Annotated[Finite, Field(ge=0, le=1e15)] = 0.0
    total: Count | None = None
    pending: list[Finite] = field(default_factory=list)


@dataclass
class Learner:
    """Everything that training changes: the network, its average, the optimiser, the loss scaler of fp16, and what is
    known of the losses' sizes where that decides the times."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    progress: Position
    importance: Importance | None = None

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """The parameters by name, in the order of the average."""
        return list(self.network.named_parameters())


def make_learner(config: Config, images: ImageSet, data: DataFacts, accelerator: Accelerator) -> Learner:
    """The state that a run begins with."""
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(config.training.seed)
        shape = domain_of(data).shape
        network = make_network(config, shape[0], data.takes, len(shape) - 1)
        network = placed(network, accelerator.device)
    if config.denoiser.target == CATEGORICAL and isinstance(network, PixelUNet):
        network.set_value_prior(log_value_prior(images))
    if config.training.compile:
        network.compile()
    return Learner(
        network,
        EMA(list(network.parameters()), config.training.ema),
        make_optimizer(config.training, network),
        accelerator.scaler,
        Position(),
        Importance() if config.objective.importance else None,
    )
