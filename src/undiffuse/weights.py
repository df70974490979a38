"""Tensors in safetensors files, which are read only after their names, shapes and types have been checked."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from undiffuse.errors import UndiffuseError
from undiffuse.names import cut, listed
from undiffuse.networks import current_name, first_name

FLOATS = ("F16", "BF16", "F32", "F64")


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (type, shape) of the tensors in a file. Raises UndiffuseError naming the file if it is damaged."""
    try:
        if path.exists() and not path.is_file():
            raise UndiffuseError(f"cannot read {path}: it is not a file")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {current_name(name): (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UndiffuseError(f"cannot read {path}: {_reason(error)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises UndiffuseError naming the file if any is not of floats or not finite."""
    return _tensors(path, read_header(path))


def _tensors(path: Path, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    for name, (kind, _) in header.items():
        if kind not in FLOATS:
            raise UndiffuseError(f"{path}: {cut(name)} is of type {cut(str(kind))}, not of {', '.join(FLOATS)}")
    try:
        tensors = {current_name(name): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UndiffuseError(f"cannot read {path}: {_reason(error)}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UndiffuseError(f"{path}: {cut(name)} holds numbers that are not finite")
    return tensors


def read_weights(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights in a file. Raises UndiffuseError if their names and shapes are not those of `expected`."""
    header = read_header(path)
    found = {name: shape for name, (_, shape) in header.items()}
    for what, names in (("lacks", expected.keys() - found.keys()), ("has unexpected", found.keys() - expected.keys())):
        if names:
            raise UndiffuseError(f"{path} does not hold this model's weights: it {what} {listed(sorted(names)[:3])}")
    for name, shape in expected.items():
        if found[name] != tuple(shape):
            raise UndiffuseError(
                f"{path} does not hold this model's weights: {name} is of shape {found[name]}, not {tuple(shape)}"
            )
    return _tensors(path, header)


def sha256_of_weights(network: nn.Module) -> str:
    """Hexadecimal sha256 of the (original) names, shapes, types and bytes in a network's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted((first_name(name), tensor) for name, tensor in network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or cut(str(error), 200) or type(error).__name__
