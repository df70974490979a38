"""The weights in a folder of diffusers: the files that hold them, their headers, and the tensors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.interop.tables import read_table
from undiffuse.names import cut, shown

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in early versions of diffusers, and today's."""
LEGACY = re.compile(rf"(?<=\.)({'|'.join(RENAMED)})(?=\.(weight|bias)$)")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name there, shape and type."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str


def find_weights(home: Path) -> Path:
    """The file of a network's weights, or the index of several; one in half precision only if there is no full one.

    Raises UsageError if there is none, or no way to choose between several.
    """
    paths = sorted(home.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name))
    found = {variant: path for path in paths if (variant := _variant(path.name)) is not None}  # one file, not several
    if "" in found or len(found) == 1:
        return found.get("") or found.popitem()[1]
    if found:
        raise UsageError(f"{home} has the weights {', '.join(found)} but not the full ones: keep only one of them")
    if pickles := sorted(home.glob("*.bin")):
        raise UsageError(
            f"{pickles[0]} is a pickle, which can run code when read, so it is not read; if you trust it, convert "
            f"it: diffusers.UNet2DModel.from_pretrained({str(home)!r}).save_pretrained({str(home)!r})"
        )
    raise UsageError(f"{home} has no {WEIGHTS}: the weights are missing")


def _variant(name: str) -> str | None:
    """The variant in the name of a file of all weights, or their index: "" if full, or "fp16" ...; else None."""
    stem, *parts = name.split(".")
    whole = parts[-1:] == ["safetensors"] and not re.search(r"-\d+-of-\d+", name)
    index = parts[-1:] == ["json"] and {"safetensors", "index"} <= set(parts)
    if f"{stem}.safetensors" != WEIGHTS or not (whole or index):
        return None
    return ".".join(part for part in parts if part not in ("safetensors", "index", "json"))


def read_headers(path: Path) -> dict[str, Stored]:
    """The tensors in the files of `find_weights` by today's names, without their values.

    Raises UndiffuseError for files that are missing, damaged, elsewhere or hold anything but floating-point numbers.
    """
    held: dict[str, Stored] = {}
    for file in _files(path):
        try:
            stored = list(_header(file))
        except (OSError, SafetensorError) as error:
            raise UndiffuseError(f"{file} does not hold the weights that it should: {cut(str(error))}") from None
        for tensor in stored:
            name = LEGACY.sub(lambda match: RENAMED[match[1]], tensor.name)
            if name in held:
                raise UndiffuseError(f"{path} is damaged: it holds {cut(name)} twice")
            if tensor.kind not in FLOATS:
                raise UndiffuseError(f"{file}: {cut(name)} is of {tensor.kind}: quantised weights are not read")
            held[name] = tensor
    return held


def _files(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    places = read_table(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UndiffuseError(f"{path} is damaged: it has no weight_map")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix != ".safetensors":
            raise UndiffuseError(f"{path} names {shown(name)}, which is not a .safetensors file beside it")
        if not (path.parent / name).is_file():
            raise UndiffuseError(f"{path.parent / name} is missing, and {path.name} says that it holds weights")
    return [path.parent / name for name in sorted(set(places.values()))]


def _header(file: Path) -> Iterator[Stored]:
    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118  (not a dictionary)
            tensor = content.get_slice(name)
            yield Stored(file, name, tuple(tensor.get_shape()), tensor.get_dtype())


def check_shapes(home: Path, wanted: dict[str, tuple[int, ...]], held: dict[str, Stored]) -> None:
    """Raises UndiffuseError if the weights held do not match a network with the shapes `wanted`."""
    wrong = [f"{name} is missing" for name in wanted if name not in held]
    wrong += [f"{cut(name)} is not part of it" for name in held if name not in wanted]
    wrong += [
        f"{name} has shape {held[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in held and held[name].shape != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise UndiffuseError(f"{home} does not hold the weights that its config.json describes: {wrong[0]}{more}")


def read_weights(held: dict[str, Stored]) -> dict[str, Tensor]:
    """The tensors, float32. Raises UndiffuseError for numbers that are not finite."""
    weights = {}
    for file in {stored.file for stored in held.values()}:
        with safe_open(file, "pt") as content:
            for name, stored in held.items():
                if stored.file == file:
                    weights[name] = content.get_tensor(stored.name).to(torch.float32)
                    if not weights[name].isfinite().all():
                        raise UndiffuseError(f"{file} is damaged: {name} has numbers that are not finite")
    return weights
