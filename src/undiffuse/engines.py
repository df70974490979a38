"""What runs a network when it is used: PyTorch as it is, compiled, or ONNX Runtime on the CPU.

ONNX Runtime was measured beside OpenVINO (docs/measured.md) and kept: faster in batches of 1 and of 64, in float32.
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from undiffuse.data.cache import folder_for, locked, writing
from undiffuse.errors import UsageError
from undiffuse.interop.onnx import MISSING, OnnxNetwork, export_onnx, open_session
from undiffuse.model import Model
from undiffuse.progress import Bar, no_bar
from undiffuse.registry import ENGINES

FORMAT = 1
WORTH = 30_000
"""How many evaluations of the network save what turning it into ONNX costs (once for a model, some seconds)."""


def available() -> tuple[str, ...]:
    """The engines that can be asked for on this machine."""
    return tuple(name for name, engine in ENGINES.items() if engine.available)


def with_engine(model: Model, engine: str = "auto", evaluations: int | None = None, bar: Bar = no_bar) -> Model:
    """`model` with its network run by `engine`; its fingerprint, weights and parameters stay what they are.

    Args:
        engine: a name in ENGINES, or "auto": ONNX Runtime, where it is installed, the model is on the CPU, and it was
            turned into ONNX before or will be evaluated often enough for that to pay; else PyTorch.
        evaluations: of the network at single images, how many are to come; None: many.

    Raises UsageError for an engine that is not there.
    """
    ENGINES.check(engine, "auto")
    if model.engine == engine:
        return model
    if engine == "auto":
        pays = evaluations is None or evaluations >= WORTH or _folder(model).exists()
        usable = model.device.type == "cpu" and model.engine == "torch" and "onnxruntime" in available()
        if not (pays and usable):
            return model
        engine = "onnxruntime"
    network = ENGINES.find(engine)(model, bar)
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=network), engine=engine)


def plain(model: Model, bar: Bar = no_bar) -> nn.Module:
    """The network as PyTorch runs it."""
    return model.network


def compiled(model: Model, bar: Bar = no_bar) -> nn.Module:
    """The network, compiled when it is first called."""
    return Compiled(model.network)


def onnx_runtime(model: Model, bar: Bar = no_bar) -> nn.Module:
    """The network run by ONNX Runtime, turned into ONNX once and kept in the cache."""
    if model.device.type != "cpu":
        raise UsageError("the engine onnxruntime runs on the CPU: add --device cpu, or choose torch or compile")
    if "onnxruntime" not in available():
        raise UsageError(f"the engine onnxruntime {MISSING}")
    folder = _folder(model)
    with locked(folder):
        if not folder.exists():
            with bar("turning the network into ONNX, once", 0), writing(folder) as temporary:
                export_onnx(model, temporary / "network.onnx")
    session = open_session(folder / "network.onnx", torch.get_num_threads())
    return OnnxNetwork(model.network, session, len(model.data.classes))


def _folder(model: Model) -> Path:
    """Where its ONNX file is, once made."""
    return folder_for("onnx", [FORMAT, dataclasses.replace(model, grids={}).fingerprint, torch.__version__])


class Compiled(nn.Module):
    """`module`, compiled: with CUDA graphs on a GPU, where an evaluation is otherwise many small launches."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        cuda = next(module.parameters()).is_cuda
        self.run = torch.compile(module, mode="reduce-overhead" if cuda else "default")

    def forward(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        output = self.run(*inputs)
        return output.clone()  # a CUDA graph writes every output to the same place
