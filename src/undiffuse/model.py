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
from undiffuse.networks import current_name
from undiffuse.targets import SCORE_OF_STATE

FORMAT = 1
BUILT_IN = Path(__file__).parent / "models"


@dataclass(frozen=True)
class DataFacts:
    """What a model must know of the data it learnt: `shape` is (H, W, C), `class_share` the classes' frequencies.

    A class of share 0 had no picture to learn from; it is kept, so that labels mean what they mean in the data.
    """

    name: str
    shape: tuple[int, int, int]
    count: int
    classes: tuple[str, ...] = ()
    class_share: tuple[float, ...] = ()
    licence: str = ""
    fingerprint: str = ""

    @property
    def learnt(self) -> tuple[str, ...]:
        """The classes there were pictures of: those that can be drawn."""
        return tuple(name for name, share in zip(self.classes, self.class_share, strict=True) if share > 0)


@dataclass(frozen=True)
class Model:
    """A denoiser ready to use and what is known about it.

    Attributes:
        name: where it came from.
        denoiser: its network is in evaluation mode, without gradients.
        training: how it was trained: steps, images seen, seconds, machine, versions.
        engine: what runs the network (`undiffuse.engines`).
        grids: the time grids made for it (`undiffuse tune`): "sampler:steps" -> the N - 1 log-SNRs visited.
        source: where its run found its data; "" for a model outside of its run, of which only `config.data` is known.
    """

    name: str
    config: Config
    data: DataFacts
    denoiser: Denoiser
    training: dict[str, Any]
    engine: str = "torch"
    grids: dict[str, tuple[float, ...]] = field(default_factory=dict)
    source: str = ""

    @property
    def learnt(self) -> Data:
        """How to read what it learnt: `config.data`, from where its run found it."""
        return self.config.data.model_copy(update={"source": self.source or self.config.data.source})

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
        label = self._label(name)
        if not self.data.class_share[label]:
            raise UsageError(
                f"the model {self.name} saw no picture of {self.data.classes[label]!r} in training, so it draws none; "
                f"it has {', '.join(self.data.learnt)}."
            )
        return label

    def _label(self, name: str | int) -> int:
        classes = self.data.classes
        for index, known in enumerate(classes):
            if known.lower() == str(name).lower():
                return index
        if str(name).isdigit() and int(name) < len(classes):
            return int(name)
        if not classes:
            raise UsageError(f"the model {self.name} has no classes")
        close = difflib.get_close_matches(str(name), self.data.learnt, 1, 0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(self.data.learnt)}."
        raise UsageError(f"the model {self.name} has no class {name!r}; {hint}")

    def labels(self, samples: np.ndarray) -> Tensor | None:
        """Labels for the samples numbered `samples`, in the data's proportions; None for a model without classes.

        A pure function of the number: multiples of the golden ratio are as evenly spread as can be, however many.
        """
        if not self.data.classes:
            return None
        u = np.modf((samples + 0.5) * 0.6180339887498949)[0]
        labels = np.searchsorted(np.cumsum(self.data.class_share), u, side="right")
        last = np.flatnonzero(self.data.class_share)[-1]  # where the sum of the shares is a little below 1
        return torch.from_numpy(np.minimum(labels, last))


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
        weights = load_file(folder / "weights.safetensors")
        network.load_state_dict({current_name(key): tensor for key, tensor in weights.items()})
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
    source = recorded_source(folder.parent.parent) if folder.parent.name == "checkpoints" else ""
    return Model(
        str(name), config, data, make_denoiser(config, network), training, grids=read_grids(folder), source=source
    )


def built_in() -> list[str]:
    """Names of the models in the package."""
    return sorted(folder.name for folder in BUILT_IN.iterdir() if (folder / "model.json").exists())


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in run.glob("checkpoints/step-*/model.json"))


def recorded_source(run: Path) -> str:
    """Where the run in a folder last found its data: an absolute path that exists, or else "".

    It stands in run.json alone, so that a checkpoint taken out of its run tells nothing of the machine it was made on.
    """
    try:
        source = read_json(run / "run.json")["data"]["source"]
    except (UndiffuseError, KeyError, TypeError):
        return ""
    return source if isinstance(source, str) and os.path.isabs(source) and os.path.exists(source) else ""


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

    `settings` are those of `undiffuse.config.Process`, the rest at its defaults. Raises UsageError for what these
    cannot be, and for a model whose target has a meaning under its own process alone (denoiser.score_scale=state).
    """
    if model.denoiser.target == SCORE_OF_STATE:
        raise UsageError(
            f"{model.name} predicts the score of x_t itself, as models once did (denoiser.score_scale=state): "
            f"it stays on the process it was trained on, {model.config.process.schedule}"
        )
    process = make_config({f"process.{key}": value for key, value in settings.items()}).process
    config = model.config.model_copy(update={"process": process})
    return dataclasses.replace(model, config=config, denoiser=make_denoiser(config, model.denoiser.network))
