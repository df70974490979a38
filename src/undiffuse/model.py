"""A trained model: the folder it lives in, and the object it becomes.

A model folder holds `weights.safetensors` (the averaged weights) and `model.json` (the configuration, the facts about
its data, how it was trained). Nothing in it is executed or unpickled, and nothing outside it is needed.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from undiffuse.build import make_denoiser, make_network
from undiffuse.config import Config, Data, make_config, read_config
from undiffuse.denoiser import Denoiser
from undiffuse.devices import placed, shares_a_cpu
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json, write_json

FORMAT = 1
BUILT_IN = Path(__file__).parent / "models"


@dataclass(frozen=True)
class DataFacts:
    """What a model must know of the data it learnt: `shape` is (H, W, C), `class_share` the classes' frequencies."""

    name: str
    shape: tuple[int, int, int]
    count: int
    classes: tuple[str, ...] = ()
    class_share: tuple[float, ...] = ()
    licence: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Model:
    """A denoiser ready to use and what is known about it.

    Attributes:
        name: where it came from.
        denoiser: its network is in evaluation mode, without gradients.
        training: how it was trained: steps, images seen, seconds, machine, versions.
        engine: what runs the network (`undiffuse.engines`).
        grids: the time grids made for it (`undiffuse tune`): "sampler:steps" -> the N - 1 log-SNRs visited.
    """

    name: str
    config: Config
    data: DataFacts
    denoiser: Denoiser
    training: dict[str, Any]
    engine: str = "torch"
    grids: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network itself, whatever runs it."""
        network = getattr(self.denoiser.network, "module", self.denoiser.network)
        assert isinstance(network, nn.Module)
        return network

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def learnt(self) -> Data | None:
        """The data that it learnt, as it is read; None of an imported model, which knows the images' shape alone."""
        return None if "imported" in self.training else self.config.data

    def has_learnt(self, fingerprint: str) -> bool | None:
        """Whether the training images of this fingerprint are what it learnt; None of an imported model: not known."""
        return None if self.learnt is None else self.data.fingerprint == fingerprint

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of all that its samples depend on: weights, configuration, class shares and grids."""
        facts = [self.config.model_dump(mode="json"), self.data.shape, self.data.class_share, self.grids]
        return hashlib.sha256(
            (json.dumps(facts, sort_keys=True) + sha256_of_weights(self.network)).encode()
        ).hexdigest()

    def label(self, name: str | int) -> int:
        """The class `name` (or, where none is called that, its number) as a label, or a UsageError."""
        classes = self.data.classes
        for index, known in enumerate(classes):
            if known.lower() == str(name).lower():
                return index
        if str(name).isdigit() and int(name) < len(classes):
            return int(name)
        if not classes:
            raise UsageError(f"the model {self.name} has no classes")
        close = difflib.get_close_matches(str(name), classes, 1, 0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(classes)}."
        raise UsageError(f"the model {self.name} has no class {name!r}; {hint}")

    def labels(self, samples: np.ndarray) -> Tensor | None:
        """Labels for the samples numbered `samples`, in the data's proportions; None for a model without classes.

        A pure function of the number: multiples of the golden ratio are as evenly spread as can be, however many.
        """
        if not self.data.classes:
            return None
        u = np.modf((samples + 0.5) * 0.6180339887498949)[0]
        labels = np.searchsorted(np.cumsum(self.data.class_share), u, side="right")
        return torch.from_numpy(np.minimum(labels, len(self.data.classes) - 1))


def sha256_of_weights(network: nn.Module) -> str:
    """Of the names, shapes, types and bytes of all that a network's state holds, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_model(
    folder: Path, config: Config, data: DataFacts, training: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Writes a model into `folder`, which exists (make it with `atomic_folder`)."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "weights.safetensors")
    card = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "data": dataclasses.asdict(data),
        "training": training,
    }
    write_json(folder / "model.json", card)


def read_card(folder: Path) -> tuple[Config, DataFacts, dict[str, Any]]:
    """`model.json` of a folder. Raises UndiffuseError where it is not one this version reads."""
    card = read_json(folder / "model.json")
    try:
        if card["format"] != FORMAT:
            raise UndiffuseError(
                f"{folder}: model format {card['format']}; this version reads {FORMAT}. Upgrade undiffuse."
            )
        facts = dict(card["data"])
        for key in ("shape", "classes", "class_share"):
            facts[key] = tuple(facts[key])
        if len(facts["shape"]) != 3:
            raise ValueError(f"shape {facts['shape']} is not height, width, channels")
        return read_config(card["config"]), DataFacts(**facts), card["training"]
    except (KeyError, TypeError, ValueError) as error:
        raise UndiffuseError(f"{folder}/model.json is damaged or not a model of undiffuse: {error}") from error


def read_grids(folder: Path) -> dict[str, tuple[float, ...]]:
    """`grids.json` of a model folder, {} where there is none. Raises UndiffuseError where it is damaged."""
    if not (folder / "grids.json").exists():
        return {}
    try:
        grids = {key: tuple(map(float, entry["log_snr"])) for key, entry in read_json(folder / "grids.json").items()}
        for key, values in grids.items():
            if len(values) != int(key.partition(":")[2]) - 1 or any(a >= b for a, b in itertools.pairwise(values)):
                raise ValueError(f"{key} is not a grid of that many steps")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UndiffuseError(f"{folder}/grids.json is damaged ({error}): delete it, or run undiffuse tune") from error
    return grids


def load(name: str | os.PathLike[str], device: str | torch.device | None = None) -> Model:
    """A model from a run folder (its newest checkpoint), a model folder or a built-in name.

    `device` None: a GPU where there is one. Raises UsageError for an unknown name, UndiffuseError for a damaged model.
    """
    folder = find(name)
    config, data, training = read_card(folder)
    network = make_network(config, data.shape[2], len(data.classes))
    try:
        network.load_state_dict(load_file(folder / "weights.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UndiffuseError(f"{folder}/weights.safetensors does not hold this model's weights: {reason}") from error
    if device is None and "LOCAL_RANK" in os.environ:  # one of several processes: each has a GPU of its own
        device = PartialState(cpu=shares_a_cpu()).device
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        placed(network.eval().requires_grad_(False), device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use the device {device}: {str(error).splitlines()[0]}") from None
    return Model(str(name), config, data, make_denoiser(config, network), training, grids=read_grids(folder))


def built_in() -> list[str]:
    """Names of the models in the package."""
    return sorted(folder.name for folder in BUILT_IN.iterdir() if (folder / "model.json").exists())


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in run.glob("checkpoints/step-*/model.json"))


def find(name: str | os.PathLike[str]) -> Path:
    """The model folder that `name` means: a run or model folder on disk, else a built-in name."""
    path = Path(name)
    if (path / "model.json").exists():
        return path
    if saved := checkpoints(path):
        return saved[-1]
    if str(name) in built_in():
        return BUILT_IN / str(name)
    if path.is_dir():
        raise UsageError(f"{path} is a folder without a model: no model.json and no checkpoint in it (yet)")
    close = difflib.get_close_matches(str(name), built_in(), 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"built in are {', '.join(built_in()) or 'none'}."
    raise UsageError(f"no model {str(name)!r}: not a folder here, and not built in; {hint}")


def with_process(model: Model, **settings: Any) -> Model:
    """The model on another process of the Gaussian family, e.g. schedule="edm": what it was trained on is no limit.

    `settings` are those of `undiffuse.config.Process`, the rest at its defaults.
    """
    process = make_config({f"process.{key}": value for key, value in settings.items()}).process
    config = model.config.model_copy(update={"process": process})
    return dataclasses.replace(model, config=config, denoiser=make_denoiser(config, model.denoiser.network))
