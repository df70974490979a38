"""Inference engines that run a network: PyTorch as it is, compiled, or ONNX Runtime on the CPU.

ONNX Runtime was measured faster than OpenVINO in batches of 1 and of 64, in float32 (docs/measured.md).
"""

import dataclasses
from importlib.util import find_spec

import torch
from torch import nn

from undiffuse.cache import folder_for, locked, writing
from undiffuse.conditions import Condition
from undiffuse.errors import UsageError
from undiffuse.interop.onnx import MISSING, OnnxNetwork, export_onnx, onnx_takes, open_session
from undiffuse.model import Model, pictures_only
from undiffuse.names import one_of
from undiffuse.progress import Bar, no_bar
from undiffuse.registry import ENGINES

FORMAT = 2
WORTH = 30_000
"""The evaluations of the network after which exporting it to ONNX pays off (once per model, some seconds)."""


def available() -> tuple[str, ...]:
    """The engines that can be used on this machine."""
    installed = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    return ENGINES if installed else tuple(name for name in ENGINES if name != "onnxruntime")


def with_engine(model: Model, engine: str = "auto", evaluations: int | None = None, bar: Bar = no_bar) -> Model:
    """`model` with its network run by `engine`; its fingerprint, weights and parameters are unchanged.

    Args:
        engine: a name in `undiffuse.registry.ENGINES`, or "auto": ONNX Runtime if it is installed, the model is on the
            CPU, and it was exported before or will be evaluated often enough for that to pay off; else PyTorch.
        evaluations: how many evaluations of the network, at single images, are to come; None: many.

    Raises UsageError for an engine that is not available.
    """
    one_of("engine", engine, ("auto", *ENGINES))
    if engine not in ("auto", "torch"):
        pictures_only(model, f"the engine {engine}")
    if model.engine == engine:
        return model
    folder = folder_for(
        "onnx", [FORMAT, dataclasses.replace(model, grids={}, guide=None, vocoder=None).fingerprint, torch.__version__]
    )
    if engine == "auto":
        pays = evaluations is None or evaluations >= WORTH or folder.exists()
        usable = model.device.type == "cpu" and model.engine == "torch" and "onnxruntime" in available()
        usable = usable and onnx_takes(model)
        if not (pays and usable):
            return model
        engine = "onnxruntime"
    network: nn.Module
    if engine == "onnxruntime":
        if model.device.type != "cpu":
            raise UsageError("the engine onnxruntime runs on the CPU: add --device cpu, or choose torch or compile")
        if engine not in available():
            raise UsageError(f"the engine onnxruntime {MISSING}")
        with locked(folder):
            if not folder.exists():
                with bar("exporting the network to ONNX, once", 0), writing(folder) as temporary:
                    export_onnx(model, temporary / "network.onnx")
        session = open_session(folder / "network.onnx", torch.get_num_threads())
        network = OnnxNetwork(model, session)
    elif engine == "compile":
        network = Compiled(model.network)
    else:
        network = model.network
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=network), engine=engine)


class Compiled(nn.Module):
    """`module`, compiled; with CUDA graphs on a GPU, where an evaluation is otherwise many small kernel launches."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        cuda = next(module.parameters()).is_cuda
        self.run = torch.compile(module, mode="reduce-overhead" if cuda else "default")

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        output = self.run(x, log_snr, condition)
        return output.clone()  # a CUDA graph writes every output to the same memory
