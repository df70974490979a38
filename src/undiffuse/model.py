"""A trained model: its folder, and the object loaded from it.

A model folder holds `weights.safetensors` (the averaged weights) and `model.json` (the configuration, the facts about
its data, how it was trained). Nothing in it is executed or unpickled, and nothing outside it is needed.
"""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn

from undiffuse.build import default_network, make_denoiser, make_network, network_shapes
from undiffuse.card import (
    BUILT_IN,
    FORMAT,
    Card,
    DataFacts,
    built_in,
    checkpoints,
    find,
    read_card,
    read_grids,
    recorded_source,
)
from undiffuse.classifier import Classifier
from undiffuse.conditions import Condition, Known, Labels, Request, Sentences, Several
from undiffuse.conditions.sentences import text_of
from undiffuse.config import Config, DataConfig, make_config
from undiffuse.data.tokens import tokenizer_of
from undiffuse.denoiser import Denoiser
from undiffuse.devices import placed, shares_a_cpu
from undiffuse.domains import Domain, domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import write_json
from undiffuse.names import choose, cut, listed, shown
from undiffuse.registry import CATEGORICAL, CONDITIONS, FIRST_CATEGORICAL
from undiffuse.rivals.rival import RivalDenoiser
from undiffuse.targets import SCORE_OF_STATE
from undiffuse.weights import read_weights, sha256_of_weights

__all__ = [
    "BUILT_IN",
    "FORMAT",
    "Card",
    "DataFacts",
    "Model",
    "built_in",
    "checkpoints",
    "find",
    "load",
    "pictures_only",
    "read_card",
    "read_grids",
    "with_process",
    "write_model",
]


@dataclass(frozen=True)
class Model:
    """A denoiser ready to use and what is known about it.

    Attributes:
        name: where it came from.
        denoiser: its network is in evaluation mode, without gradients.
        training: how it was trained: steps, images seen, seconds, machine, versions.
        engine: what runs the network (`undiffuse.engines`).
        grids: the time grids made for it (`undiffuse tune`): "sampler:steps" -> the N - 1 log-SNRs visited.
        guide: the weaker model, or the classifier, that guides it (`undiffuse.guide.with_guide`); None: its own
            unconditional predictions.
        vocoder: makes waveforms of its spectrograms (`undiffuse.vocoder.with_vocoder`); None: Griffin-Lim, and for all
            other kinds of data.
        source: where its run found its data; "" for a model outside its run, for which only `config.data` is known.
    """

    name: str
    config: Config
    data: DataFacts
    denoiser: Denoiser
    training: dict[str, Any]
    engine: str = "torch"
    grids: dict[str, tuple[float, ...]] = field(default_factory=dict)
    source: str = ""
    guide: "Model | Classifier | None" = None
    vocoder: "Model | None" = None

    @cached_property
    def domain(self) -> Domain:
        """The kind of data that its samples are."""
        return domain_of(self.data)

    @property
    def network(self) -> nn.Module:
        """The network itself, without an engine's wrapper."""
        network = getattr(self.denoiser.network, "module", self.denoiser.network)
        assert isinstance(network, nn.Module)
        return network

    @property
    def rival(self) -> RivalDenoiser | None:
        """What stands in the denoiser's place of a model that is not diffusion; None for diffusion."""
        return self.denoiser if isinstance(self.denoiser, RivalDenoiser) else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def learnt(self) -> DataConfig | None:
        """How to read its training data, from where its run found it; None (unknown) for an imported model."""
        if "imported" in self.training:
            return None
        return self.config.data.model_copy(update={"source": self.source or self.config.data.source})

    def has_learnt(self, fingerprint: str) -> bool | None:
        """Whether it was trained on the images with this fingerprint; None (unknown) for an imported model."""
        return None if self.learnt is None else self.data.fingerprint == fingerprint

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of everything its samples depend on: weights, configuration, class shares and grids."""
        config = self.config.model_dump(mode="json")
        if self.config.denoiser.target == CATEGORICAL:  # keeps the fingerprints from before it was renamed
            config["denoiser"]["target"] = FIRST_CATEGORICAL
        facts: list[Any] = [config, self.data.shape, self.data.class_share, self.grids]
        if self.data.condition:
            facts.append(dataclasses.asdict(self.data.condition))
        if self.data.domain != "pictures":  # keeps the fingerprints of models of pictures
            facts.append(self.data.domain)
        if self.data.tokens is not None:
            facts.append(self.data.tokens)
        if self.guide is not None:
            facts.append(self.guide.fingerprint)
        if self.vocoder is not None:
            facts.append({"vocoder": self.vocoder.fingerprint})
        return hashlib.sha256(
            (json.dumps(facts, sort_keys=True) + sha256_of_weights(self.network)).encode()
        ).hexdigest()

    def label(self, name: str | int) -> int:
        """The label of the class `name`, as `undiffuse.names.choose` finds it.

        Raises UsageError if there is no such class, or it had no training data.
        """
        if not self.data.classes:
            raise UsageError(f"the model {self.name} has no classes")
        try:
            label = choose(name, self.data.classes)
        except UsageError as error:
            raise UsageError(f"the model {self.name}: {error}") from None
        if not self.data.class_share[label]:
            raise UsageError(
                f"the model {self.name} saw no picture of {self.data.classes[label]!r} in training, so it draws none; "
                f"it has {listed(self.data.learnt)}."
            )
        return label

    def condition(self, numbers: Sequence[int] | np.ndarray) -> Condition | None:
        """The default condition of the samples numbered `numbers`: a pure function of the number, distributed as in
        the data. On the model's device; None for a model that takes no condition."""
        takes = self.data.takes
        if takes is None:
            return None
        kind: type[Condition] = CONDITIONS.find(takes.kind)
        return kind.for_samples(takes.facts, np.asarray(numbers, dtype=np.int64)).to(self.device)

    def asked(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """What `condition` asks of the samples numbered `numbers`, in words: a sentence or a class, else ""."""
        captions, condition = self.data.condition, self.condition(numbers)
        if captions is not None and captions.kind == Sentences.kind:
            return Sentences.asked(captions.facts, np.asarray(numbers, dtype=np.int64))
        if isinstance(condition, Labels):
            return [self.data.classes[label] for label in condition.index.tolist()]
        return [""] * len(numbers)

    def unconditional(self, count: int) -> Condition | None:
        """The condition of `count` unconditional samples; None for a model that takes no condition."""
        condition = self.condition(range(count))
        return None if condition is None else condition.dropped()

    def of_class(self, name: str | int, count: int) -> Condition:
        """The condition of `count` samples of the class `name`. Raises UsageError as `label` does."""
        label = self.label(name)
        return self._asked("label", Labels(torch.full((count,), label, device=self.device), len(self.data.classes)))

    def of_prompt(self, prompt: str, count: int, class_name: str | int | None = None) -> Condition:
        """The condition of `count` samples that a sentence describes, of a class if one is given.

        Warns of words that the model has not learnt. Raises UsageError if it has learnt none of them, if there are too
        many, and for a model without captions.
        """
        captions = self.data.condition
        if captions is None or captions.kind != Sentences.kind:
            raise UsageError(f"the model {self.name} was trained without captions, so it takes no prompt")
        text = text_of(captions.facts)
        size, unknown = text.size(prompt), text.unknown(prompt)
        if size > text.length:
            raise UsageError(f"the prompt has {size} words, and {self.name} reads {text.length}: shorten it")
        if len(unknown) == size:
            raise UsageError(f"the model {self.name} has learnt no word of the prompt {shown(prompt)}")
        if unknown:
            warnings.warn(f"the model {self.name} has never learnt: {listed(unknown)}", stacklevel=2)
        found = self._asked("sentence", Sentences.of([prompt] * count, text).to(self.device))
        if class_name is not None:
            of_class = self.of_class(class_name, count)
            if not isinstance(found, Several) or not isinstance(of_class, Several):
                raise UsageError(f"the model {self.name} takes either a prompt or a class")
            found = Several({**found.parts, "label": of_class.parts["label"]})
        return found

    def _asked(self, name: str, part: Condition) -> Condition:
        """`part` as the model's condition: with its other parts unconditional, if it takes several."""
        whole = self.unconditional(len(part))
        return Several({**whole.parts, name: part}) if isinstance(whole, Several) else part

    def taken(self, condition: Request | None, count: int) -> Request | None:
        """`condition`, checked to be for `count` samples, on the model's device.

        Raises UsageError if it is missing, unexpected, or for another number of samples.
        """
        if isinstance(condition, Known):
            if not self.config.network.inpaint:
                raise UsageError(f"the model {self.name} takes no known pixels: fine-tune it with network.inpaint")
            self.taken(condition.condition, count)
            return condition.to(self.device)
        if condition is None and self.data.takes is not None:
            raise UsageError(
                f"the model {self.name} takes a condition ({self.data.takes.kind}) and was given none: give "
                "model.condition(numbers), or model.unconditional(count) for unconditional samples"
            )
        if condition is None:
            return None
        if self.data.takes is None and not isinstance(self.guide, Classifier):
            raise UsageError(f"the model {self.name} takes no condition, and was given a {type(condition).__name__}")
        if len(condition) != count:
            raise UsageError(f"a condition of {len(condition)} samples was given for {count}")
        return condition.to(self.device)


def pictures_only(model: Model, what: str) -> None:
    """Raises UsageError for a model of texts and for a rival of diffusion: `what` is not for it."""
    if model.data.domain == "texts":
        raise UsageError(f"{what} is for pictures, and {model.name} is a model of texts")
    if model.rival is not None:
        raise UsageError(f"{what} is for diffusion, and {model.name} is another model: {model.config.network.kind}")


def write_model(
    folder: Path, config: Config, data: DataFacts, training: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Writes a model into `folder`, which exists (make it with `atomic_folder`)."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "weights.safetensors")
    card = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "data": data.to_json(),
        "training": training,
    }
    write_json(folder / "model.json", card)


def load(name: str | os.PathLike[str], device: str | torch.device | None = None) -> Model:
    """A model from a run folder (its newest checkpoint), a model folder or a built-in name.

    `device` None: a GPU where there is one. Raises UsageError for an unknown name, UndiffuseError for a damaged model.
    """
    folder = find(name)
    config, data, training, _ = read_card(folder)
    grids = read_grids(folder)
    try:
        domain = domain_of(data)
        default_network(config.network, domain.shape[1:])  # raises if it is not for data of this shape
        dims = len(domain.shape) - 1
        shapes = network_shapes(config, domain.shape[0], data.takes, dims)
        if data.domain == "texts" and tokenizer_of(data.tokens).size != config.data.vocabulary:
            raise UndiffuseError(f"the tokenizer does not have data.vocabulary = {config.data.vocabulary} tokens")
        make_denoiser(config, nn.Identity())  # raises if the target is not for the process
    except UndiffuseError as error:
        reason = cut(str(error), 250)
        raise UndiffuseError(f"{folder}/model.json is damaged or not a model of undiffuse: {reason}") from error
    weights = read_weights(folder / "weights.safetensors", shapes)
    network = make_network(config, domain.shape[0], data.takes, dims)
    network.load_state_dict(weights)
    if device is None and "LOCAL_RANK" in os.environ:  # one of several processes: each has a GPU of its own
        device = PartialState(cpu=shares_a_cpu()).device
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        placed(network.eval().requires_grad_(False), device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use the device {device}: {str(error).splitlines()[0]}") from None
    source = recorded_source(folder.parent.parent) if folder.parent.name == "checkpoints" else ""
    return Model(str(name), config, data, make_denoiser(config, network), training, grids=grids, source=source)


def with_process(model: Model, **settings: Any) -> Model:
    """The model on another process of the Gaussian family, e.g. schedule="edm", than it was trained on.

    `settings` are those of `undiffuse.config.ProcessConfig`, the rest at its defaults. Raises UsageError for invalid
    ones, and for a model whose target is defined only under its own process (denoiser.score_scale=state).
    """
    pictures_only(model, "another process")
    if model.denoiser.target == SCORE_OF_STATE:
        raise UsageError(
            f"{model.name} predicts the score of x_t itself, as old models do (denoiser.score_scale=state): "
            f"it works only on the process it was trained on, {model.config.process.schedule}"
        )
    process = make_config({f"process.{key}": value for key, value in settings.items()}).process
    config = model.config.model_copy(update={"process": process})
    return dataclasses.replace(model, config=config, denoiser=make_denoiser(config, model.denoiser.network))
