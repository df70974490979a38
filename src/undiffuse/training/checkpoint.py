"""Checkpoints: each one a complete model folder, with the state that training needs to resume beside the model.

RUN/checkpoints/step-00000250/  model.json weights.safetensors  training.json training.safetensors
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from undiffuse.adapters import NAME as ADAPTER
from undiffuse.adapters import write_adapter
from undiffuse.config import Config
from undiffuse.devices import laid_out
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_folder, read_json, write_json
from undiffuse.model import DataFacts, checkpoints, write_model
from undiffuse.names import cut, fault
from undiffuse.networks.lora import factors, merged
from undiffuse.training.state import Learner, Position
from undiffuse.weights import read_tensors, read_weights

_PROGRESS = TypeAdapter(Position)


def save(run: Path, learner: Learner, config: Config, data: DataFacts, facts: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest `keep`. Returns its folder."""
    folder = run / "checkpoints" / f"step-{learner.progress.step:08d}"
    tensors = {}
    for name, parameter in learner.named:
        tensors[f"network.{name}"] = parameter.detach()
        for key, value in learner.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    if learner.companions is not None:
        tensors |= {f"companions.{name}": value.detach() for name, value in learner.companions.state().items()}
    if learner.importance:
        tensors |= {"importance.moments": learner.importance.moments, "importance.seen": learner.importance.seen}
    averages = learner.averages
    if adapters := factors(averages):  # the model has them merged: their own averages are kept beside it
        tensors |= {f"average.{name}": averages[name] for name in learner.trained}
    state = {**asdict(learner.progress), "scaler": learner.scaler.state_dict() if learner.scaler else None}
    try:
        with atomic_folder(folder) as temporary:
            scale = config.training.lora_scale
            write_model(temporary, config, data, facts, merged(averages, scale))
            if adapters and learner.origin:
                adapters |= {name: averages[name] for name in learner.origin.new}
                card = read_json(temporary / "model.json")
                write_adapter(temporary / ADAPTER, card, learner.origin.fingerprint, scale, adapters)
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}  # channels last on a GPU
            save_file(contiguous, temporary / "training.safetensors")
            write_json(temporary / "training.json", state)
    except (UndiffuseError, SafetensorError) as error:
        saved = checkpoints(run)
        good = f"The last good checkpoint is {saved[-1]}" if saved else "No checkpoint was written before"
        what = error if isinstance(error, UndiffuseError) else f"cannot write {folder}: {error}."
        raise UndiffuseError(f"{what} {good}; go on with --resume once there is room.") from error
    for old in checkpoints(run)[:-keep]:  # renamed first: half-removed, it would still look like a checkpoint
        shutil.rmtree(old.replace(old.with_name(f".tmp-{old.name}")), ignore_errors=True)
    return folder


def last_good(run: Path) -> str:
    """For errors: the checkpoint from which a run can resume."""
    saved = checkpoints(run)
    return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"


def sweep(run: Path) -> None:
    """Removes files that a killed process left half-written or half-removed."""
    for left in (*run.glob(".tmp-*"), *run.glob("*/.tmp-*"), *run.glob("checkpoints/step-*")):
        if left.name.startswith(".tmp-") or not (left / "model.json").exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def restore(folder: Path, learner: Learner) -> None:
    """Restores a checkpoint exactly. Raises UndiffuseError naming the folder if it is damaged."""
    shapes = {name: tuple(parameter.shape) for name, parameter in learner.named}
    try:
        tensors = read_tensors(folder / "training.safetensors")
        state = read_json(folder / "training.json", finite=True)
        progress = _PROGRESS.validate_python({key: state[key] for key in asdict(Position())})
        known = {name: tensors.pop(f"network.{name}") for name in shapes}
        if factors(known):
            averages = known | {name: tensors.pop(f"average.{name}") for name in learner.trained}
        else:
            averages = read_weights(folder / "weights.safetensors", shapes)
        importance = (
            {key: tensors.pop(f"importance.{key}") for key in ("moments", "seen")} if learner.importance else {}
        )
        beside = {key: tensors.pop(key) for key in [*tensors] if key.startswith("companions.")}
        if learner.companions is not None:
            learner.companions.restore({key.removeprefix("companions."): value for key, value in beside.items()})
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in shapes}
        for key, value in tensors.items():
            _, moment, name = key.split(".", 2)
            moments[name][moment] = value
        _check(learner, known, averages, importance, moments)
        if learner.scaler and state["scaler"]:
            learner.scaler.load_state_dict(state["scaler"])
    except ValidationError as error:
        raise _damaged(folder, f"training.json: {fault(error)}") from error
    except KeyError as error:
        raise _damaged(folder, f"there is no {cut(str(error))} in it") from error
    except (UndiffuseError, TypeError, RuntimeError, ValueError) as error:
        raise _damaged(folder, cut(str(error), 300)) from error
    device = learner.ema.average[0].device
    with torch.no_grad():
        for (name, parameter), average in zip(learner.named, learner.ema.average, strict=True):
            parameter.copy_(known[name])
            average.copy_(averages[name])
            learner.optimizer.state[parameter] = {
                key: laid_out(value.to(device), parameter) for key, value in moments[name].items()
            }
    if learner.importance:
        learner.importance.moments, learner.importance.seen = importance["moments"], importance["seen"]
    learner.progress = progress


def _check(
    learner: Learner,
    known: dict[str, Tensor],
    averages: dict[str, Tensor],
    importance: dict[str, Tensor],
    moments: dict[str, dict[str, Tensor]],
) -> None:
    """Raises ValueError for a tensor of another shape, or if some of the optimiser's state is missing."""
    wanted: dict[str, tuple[Tensor, tuple[tuple[int, ...], ...]]]
    wanted = {f"network.{name}": (known[name], (tuple(parameter.shape),)) for name, parameter in learner.named}
    wanted |= {f"average.{name}": (averages[name], (tuple(parameter.shape),)) for name, parameter in learner.named}
    if learner.importance:
        wanted |= {f"importance.{key}": (value, ((learner.importance.bins,),)) for key, value in importance.items()}
    for name, parameter in learner.named:
        shapes = tuple(parameter.shape), ()  # a moment, or a count of steps
        wanted |= {f"optimizer.{key}.{name}": (value, shapes) for key, value in moments[name].items()}
    for key, (value, allowed) in wanted.items():
        if tuple(value.shape) not in allowed:
            raise ValueError(f"{cut(key)} is of shape {tuple(value.shape)}, not {allowed[0]}")
    names = {id(parameter): name for name, parameter in learner.named}
    for group in learner.optimizer.param_groups:
        held = [moments[names[id(parameter)]].keys() for parameter in group["params"] if parameter.requires_grad]
        if any(keys != held[0] for keys in held):
            raise ValueError("training.safetensors lacks some of the optimiser's state")


def _damaged(folder: Path, reason: str) -> UndiffuseError:
    return UndiffuseError(f"the checkpoint {folder} is damaged ({reason}); remove it and --resume again")
