"""A noise-aware classifier p(y | x_t), right under every process of the Gaussian family, and the folder it lives in.

The folder holds `weights.safetensors` and `classifier.json`, which is laid out as a `model.json` is; of its settings
`data`, `network` and `training` are used, and `denoiser.sigma_data`. How accurate it is at which noise level stands
in `training.accuracy`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from undiffuse.card import FORMAT, DataFacts, read_card
from undiffuse.conditions import Labels
from undiffuse.config import Config
from undiffuse.devices import placed
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import write_json
from undiffuse.names import choose, cut, format_shape, listed
from undiffuse.networks import MLP
from undiffuse.networks.classifier import HalfUNet
from undiffuse.process import NoiseLevel, expand
from undiffuse.sampling.steps import PURE_NOISE
from undiffuse.weights import read_weights, sha256_of_weights

CARD, WEIGHTS = "classifier.json", "weights.safetensors"
LARGEST_RATIO = PURE_NOISE
"""sigma / alpha that it is trained up to, and down to 1 / 80: between nothing and everything that pictures show."""


@dataclass(frozen=True)
class Classifier:
    """A network read as p(y | x_t).

    The network's input is x_t at unit variance, as a denoiser's is. Its output F is what x_t tells beyond the classes'
    frequencies, and counts as much as there is signal, c_out from 1 at the data to 0 where only noise is left:

        p(y | x_t) = softmax_y (ln p(y) + c_out F_y(c_in x_t, log-SNR)),   c_out = alpha sigma_data c_in.

    By Bayes' rule ln p(y | x_t) - ln p(y) is of the first order in alpha / sigma where there is little signal. So F is
    of one size at all noise levels, and sigma^2 / alpha does not magnify its errors: guidance shifts x_0 by sigma_data
    (c_in sigma)^2 times a gradient of F, which stays finite as alpha goes to 0.

    Attributes:
        name: where it came from.
        network: (input (B, C, ...), log-SNR (B,)) -> (B, K); in evaluation mode, without gradients of its own.
        sigma_data: the root mean square of the data.
        log_prior: ln p(y), the classes' frequencies: (K,), on the network's device.
        data: of what it was trained on, with the classes' names and frequencies.
        training: how it was trained, and how accurate it is.
    """

    name: str
    network: Callable[[Tensor, Tensor], Tensor]
    sigma_data: float
    log_prior: Tensor
    data: DataFacts
    training: dict[str, Any]

    def log_probs(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """ln p(y | x_t) of every class, (B, K) of x_t's dtype, for a noise level 0-dim or one per sample."""
        limit = 2 * torch.tensor(LARGEST_RATIO).log().item()
        c_in = 1 / ((level.alpha * self.sigma_data) ** 2 + level.sigma**2).sqrt()
        output = self.network(expand(c_in, x_t) * x_t, level.log_snr.clamp(-limit, limit).to(x_t).expand(len(x_t)))
        c_out = expand(level.alpha * self.sigma_data * c_in, output)
        return (self.log_prior.to(output) + c_out * output).log_softmax(1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of all that its probabilities depend on."""
        assert isinstance(self.network, nn.Module)
        facts = json.dumps([self.data.class_share, self.sigma_data])
        return hashlib.sha256((facts + sha256_of_weights(self.network)).encode()).hexdigest()

    def of_class(self, name: str | int, count: int) -> Labels:
        """The labels of `count` samples of the class `name`. Raises UsageError where it is none."""
        label = choose(name, self.data.classes)
        return Labels(torch.full((count,), label, device=self.log_prior.device), len(self.data.classes))

    def check(self, data: DataFacts, name: str) -> None:
        """Raises UsageError where the model `name` of `data` cannot be guided by this: other shapes, other classes."""
        if data.shape != self.data.shape:
            raise UsageError(
                f"the classifier {self.name} knows {format_shape(self.data.shape)}, and {name} makes "
                f"{format_shape(data.shape)}: train one with --size {data.shape[0]}"
            )
        if data.classes and data.classes != self.data.classes:
            raise UsageError(
                f"the classifier {self.name} has the classes {listed(self.data.classes)}, and {name} has "
                f"{listed(data.classes)}: train one on the data of {name}"
            )


def make_classifier_network(config: Config, data: DataFacts) -> nn.Module:
    """The network for `data`; `config.network` must be decided. For points an MLP, else the half of a U-Net.

    Raises ValueError for data without two classes.
    """
    if len(data.classes) < 2:
        raise ValueError(f"a classifier needs two classes, not {len(data.classes)}")
    network, shape = config.network, domain_of(data).shape
    assert network.channels and network.patch and network.attention is not None
    if len(shape) == 1:
        return MLP(shape[0], len(data.classes), width=network.channels[0], blocks=network.blocks)
    return HalfUNet(
        shape[0],
        len(data.classes),
        dims=len(shape) - 1,
        patch=network.patch,
        channels=network.channels,
        blocks=network.blocks,
        attention=network.attention,
        dropout=network.dropout,
    )


def make_classifier(
    name: str, config: Config, data: DataFacts, network: nn.Module, training: dict[str, Any]
) -> Classifier:
    """The network read as a classifier. Raises ValueError where denoiser.sigma_data is left open."""
    if config.denoiser.sigma_data is None:
        raise ValueError("denoiser.sigma_data is left open")
    device = next(network.parameters()).device
    log_prior = torch.tensor(data.class_share, device=device).log()
    return Classifier(name, network, config.denoiser.sigma_data, log_prior, data, training)


def write_classifier(
    folder: Path, config: Config, data: DataFacts, training: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Writes a classifier into `folder`, which exists."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    card = {"format": FORMAT, "config": config.model_dump(mode="json"), "data": data.to_json(), "training": training}
    write_json(folder / CARD, card)


def load_classifier(folder: str | os.PathLike[str], device: str | torch.device | None = None) -> Classifier:
    """The classifier in a folder that `undiffuse train-classifier` wrote.

    `device` None: a GPU where there is one. Raises UsageError where there is none, UndiffuseError for a damaged one.
    """
    place = Path(folder)
    if not (place / CARD).is_file():
        raise UsageError(f"no classifier in {cut(str(place), 200)}: make one with undiffuse train-classifier DATA")
    config, data, training, _ = read_card(place, CARD)
    try:
        with torch.device("meta"):
            shapes = {name: tuple(t.shape) for name, t in make_classifier_network(config, data).state_dict().items()}
        weights = read_weights(place / WEIGHTS, shapes)
        network = make_classifier_network(config, data)
        network.load_state_dict(weights)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        placed(network.eval().requires_grad_(False), device)
        return make_classifier(str(folder), config, data, network, training)
    except (ValueError, AssertionError, RuntimeError) as error:
        if isinstance(error, UndiffuseError):
            raise
        raise UndiffuseError(f"{place / CARD} is damaged or not of a classifier: {cut(str(error), 200)}") from None
