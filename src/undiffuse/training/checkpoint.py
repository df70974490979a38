"""Checkpoints: each one a complete model folder, and beside the model what training needs to go on from it.

RUN/checkpoints/step-00000250/  model.json weights.safetensors  training.json training.safetensors
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undiffuse.config import Config
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_folder, read_json, write_json
from undiffuse.model import DataFacts, checkpoints, write_model
from undiffuse.networks import current_name
from undiffuse.objectives import Importance
from undiffuse.training.ema import EMA


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: how many were taken.
        seconds: how long that took.
        total: how many there will be; None until a wall-clock budget has decided.
        pending: losses of the steps since the last row of the metrics.
    """

    step: int = 0
    seconds: float = 0.0
    total: int | None = None
    pending: list[float] = field(default_factory=list)


@dataclass
class Learner:
    """Everything that training changes: the network, its average, the optimiser, the loss scaler of fp16, and what is
    known of the losses' sizes where that decides the times."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    progress: Progress
    importance: Importance | None = None

    @property
    def named(self) -> list[tuple[str, Tensor]]:
        """The parameters by name, in the order of the average."""
        return list(self.network.named_parameters())


def save(run: Path, learner: Learner, config: Config, data: DataFacts, facts: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest `keep`. Returns its folder."""
    folder = run / "checkpoints" / f"step-{learner.progress.step:08d}"
    tensors = {}
    for name, parameter in learner.named:
        tensors[f"network.{name}"] = parameter.detach().contiguous()
        for key, value in learner.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    if learner.importance:
        tensors |= {"importance.moments": learner.importance.moments, "importance.seen": learner.importance.seen}
    averages = {name: average for (name, _), average in zip(learner.named, learner.ema.average, strict=True)}
    state = {**asdict(learner.progress), "scaler": learner.scaler.state_dict() if learner.scaler else None}
    try:
        with atomic_folder(folder) as temporary:
            write_model(temporary, config, data, facts, averages)
            save_file(tensors, temporary / "training.safetensors")
            write_json(temporary / "training.json", state)
    except (UndiffuseError, SafetensorError) as error:
        saved = checkpoints(run)
        good = f"The last good checkpoint is {saved[-1]}" if saved else "No checkpoint was written before"
        what = error if isinstance(error, UndiffuseError) else f"cannot write {folder}: {error}."
        raise UndiffuseError(f"{what} {good}; go on with --resume once there is room.") from error
    for old in checkpoints(run)[:-keep]:  # renamed first: half-removed, it would still look like a checkpoint
        shutil.rmtree(old.replace(old.with_name(f".tmp-{old.name}")), ignore_errors=True)
    return folder


def sweep(run: Path) -> None:
    """Removes what a killed process left half-written or half-removed."""
    for left in (*run.glob(".tmp-*"), *run.glob("*/.tmp-*"), *run.glob("checkpoints/step-*")):
        if left.name.startswith(".tmp-") or not (left / "model.json").exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def restore(folder: Path, learner: Learner) -> None:
    """Puts a checkpoint back, exactly. Raises UndiffuseError naming the folder when it is damaged."""
    try:
        tensors, averages = (
            {current_name(key): tensor for key, tensor in load_file(folder / f"{file}.safetensors").items()}
            for file in ("training", "weights")
        )
        state = read_json(folder / "training.json")
        with torch.no_grad():
            for (name, parameter), average in zip(learner.named, learner.ema.average, strict=True):
                parameter.copy_(tensors.pop(f"network.{name}"))
                average.copy_(averages[name])
        if learner.importance:
            learner.importance.moments = tensors.pop("importance.moments")
            learner.importance.seen = tensors.pop("importance.seen")
        moments: dict[str, dict[str, Tensor]] = {name: {} for name, _ in learner.named}
        for key, value in tensors.items():
            _, moment, name = key.split(".", 2)
            moments[name][moment] = value
        device = learner.ema.average[0].device
        for name, parameter in learner.named:
            learner.optimizer.state[parameter] = {key: value.to(device) for key, value in moments[name].items()}
        if learner.scaler and state["scaler"]:
            learner.scaler.load_state_dict(state["scaler"])
        learner.progress = Progress(state["step"], state["seconds"], state["total"], state["pending"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UndiffuseError(f"the checkpoint {folder} is damaged ({error}); remove it and --resume again") from error
