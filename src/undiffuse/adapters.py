"""Adapters in files of their own: what a fine-tuning with `training.lora` has learnt, without the base.

One safetensors file: the factors A and B of each adapted layer as "layer.lora_A" and "layer.lora_B", the parameters
that are not the base's, and as metadata the fingerprint of the base, the scale of the factors and the model's card.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undiffuse.build import make_denoiser, make_network
from undiffuse.card import Card, as_card
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import parse_json
from undiffuse.model import Model
from undiffuse.names import cut, listed
from undiffuse.networks.lora import FACTORS, low_rank_sum
from undiffuse.weights import read_tensors

NAME = "adapter.safetensors"
KEY = "undiffuse-adapter"  # of the metadata


def base_fingerprint(base: Model) -> str:
    """Identifies a base by its weights and configuration, not by time grids, which `undiffuse tune` may change."""
    return replace(base, grids={}, guide=None).fingerprint


def write_adapter(path: Path, card: dict[str, object], base: str, scale: float, tensors: dict[str, Tensor]) -> None:
    """Writes the factors and new parameters `tensors` for the base of this fingerprint, with the model's card."""
    about = json.dumps({"base": base, "scale": scale, "card": card})  # one entry: safetensors orders several at random
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {KEY: about})


def with_adapter(base: Model, path: str | os.PathLike[str]) -> Model:
    """The fine-tuned model of an adapter file: the base's weights with the adapter merged into them.

    Raises UsageError for an adapter of another base, UndiffuseError for a damaged file, or one whose tensors are not
    exactly those that the network needs.
    """
    path = Path(path)
    card, fingerprint, scale = _read_metadata(path)
    if fingerprint != base_fingerprint(base):
        raise UsageError(
            f"{path} is an adapter of {card.config.training.base} ({cut(fingerprint, 12)}), and {base.name} is another "
            f"model ({base_fingerprint(base)[:12]}): give the base that the adapter was trained on"
        )
    adapter = read_tensors(path)
    config, data, training, _ = card
    shape = domain_of(data).shape
    network = make_network(config, shape[0], data.takes, len(shape) - 1)
    known, weights = {name: tensor.cpu() for name, tensor in base.network.state_dict().items()}, {}
    try:
        for name, tensor in network.state_dict().items():
            layer = name.removesuffix(".weight")
            if name in adapter:
                weights[name] = adapter.pop(name)
            elif f"{layer}{FACTORS[0]}" in adapter:
                a, b = (adapter.pop(f"{layer}{factor}") for factor in FACTORS)
                weights[name] = low_rank_sum(known[name], a, b, scale)
            else:
                weights[name] = known[name]
            if weights[name].shape != tensor.shape:
                raise ValueError(f"{name} is of shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}")
        if adapter:
            raise ValueError(f"it has {listed(sorted(adapter))} besides")
    except KeyError as error:
        raise UndiffuseError(f"{path} is damaged: it lacks {cut(str(error))}") from None
    except (ValueError, RuntimeError) as error:
        raise UndiffuseError(f"{path} is damaged: {cut(str(error), 200)}") from None
    network.load_state_dict(weights)
    network.to(base.device).eval().requires_grad_(False)
    return Model(f"{base.name} with {path}", config, data, make_denoiser(config, network), training)


def _read_metadata(path: Path) -> tuple[Card, str, float]:
    """The card, the fingerprint of the base and the scale of the factors."""
    try:
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {})[KEY])
        return as_card(about["card"], path), str(about["base"]), float(about["scale"])
    except (OSError, SafetensorError) as error:
        raise UndiffuseError(f"cannot read {path}: {getattr(error, 'strerror', None) or cut(str(error))}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UndiffuseError(f"{path} is no adapter of undiffuse: {cut(str(error))}") from None
