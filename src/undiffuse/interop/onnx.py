"""A network as an ONNX file, for other engines, languages and browsers.

The graph is the bare network: `x` (B, C, H, W) float32 at unit variance, `log_snr` (B,) float32, for a flow map `goal`
(B,) float32, the log-SNR to reach, for one that is shown what is known `known` (B, C + 1, H, W) float32 (the planes of
`undiffuse.conditions.Known`), for a model with classes `labels` (B,) int64 (one past the last: any class) and for one
with captions `tokens` and `present` (`undiffuse.conditions.Sentences`) in, `output` (B, C', H, W) out, for any B.
How x follows from x_t, and x_0 from the output, is in undiffuse/denoiser.py; the file's metadata hold the configuration
for it, and what the condition is, such as the vocabulary.
"""

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.conditions import (
    Condition,
    Labels,
    Sentences,
    Several,
    check_given,
    jumping,
    knowing,
    nothing_known,
    planes_of,
    without_jump,
    without_known,
)
from undiffuse.conditions.labels import index_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_file
from undiffuse.model import Model, pictures_only
from undiffuse.networks import UNet2D

LARGEST_DIFFERENCE = 1e-4
"""The limit for the difference between the file's outputs and PyTorch's, relative to their root mean square; rounding
gives about 1e-6."""

MISSING = 'needs onnx and onnxruntime: pip install "undiffuse[onnx]"'


def inputs(model: Model, batch: int) -> dict[str, Tensor]:
    """Random inputs of the network, by name, in the order in which it takes them."""
    generator = torch.Generator().manual_seed(batch)
    made = {
        "x": torch.randn(batch, *model.domain.shape, generator=generator),
        "log_snr": 4 * torch.randn(batch, generator=generator),
    }
    if isinstance(model.network, UNet2D):  # between the steps of its table, it amplifies rounding errors of the log-SNR
        steps = torch.randint(1, len(model.network.log_snr), (batch,), generator=generator)
        made["log_snr"] = model.network.log_snr.cpu()[steps]
    if model.config.network.jumps:
        made["goal"] = made["log_snr"] + torch.rand(batch, generator=generator)
    if model.config.network.inpaint:
        hidden = torch.rand(made["x"][:, :1].shape, generator=generator) < 0.5
        made["known"] = planes_of(torch.randn(made["x"].shape, generator=generator), hidden)
    condition = model.condition(range(batch))
    if condition is not None:
        made |= flat(condition.dropped(torch.arange(batch) % 3 == 1), condition)
    if "labels" in made:  # beside a sentence, no class is asked for by itself
        made["labels"] = torch.arange(batch) % (len(model.data.classes) + 1)
    return made


def flat(condition: Condition, like: Condition) -> dict[str, Tensor]:
    """A condition as inputs of the file, by name. Raises ValueError for one of another kind than `like`."""
    if isinstance(like, Labels):
        return {"labels": index_of(condition, like.classes)}
    if isinstance(like, Several) and isinstance(condition, Several) and condition.parts.keys() == like.parts.keys():
        parts = [flat(condition.parts[name], part) for name, part in like.parts.items()]
        return {name: made for part in parts for name, made in part.items()}
    if not isinstance(like, Sentences) or not isinstance(condition, Sentences):
        raise ValueError(f"the network takes a {type(like).__name__}, not a {type(condition).__name__}")
    tokens, theirs = condition.tokens, like.tokens
    if (tokens.shape[1:], tokens.dtype) != (theirs.shape[1:], theirs.dtype):
        raise ValueError(f"the network takes {theirs.shape[1]} tokens of {like.text.name}")
    return {"tokens": tokens, "present": condition.present}


def filled(like: Condition, made: dict[str, Tensor]) -> Condition:
    """The condition whose `flat` inputs these are, of the kind of `like`."""
    if isinstance(like, Several):
        return Several({name: filled(part, made) for name, part in like.parts.items()})
    if isinstance(like, Sentences):
        return dataclasses.replace(like, tokens=made["tokens"], present=made["present"])
    assert isinstance(like, Labels), "onnx_takes no others"
    return dataclasses.replace(like, index=made["labels"])


def onnx_takes(model: Model) -> bool:
    """Whether the model's inputs can be those of the file: no tokens of a text to write, and as a condition labels,
    sentences, both or nothing."""
    takes = model.data.takes
    kinds = set() if takes is None else {takes.kind}
    if takes is not None and takes.kind == Several.kind:
        kinds = {part["kind"] for part in takes.facts.values()}
    return model.data.tokens is None and model.rival is None and kinds <= {Labels.kind, Sentences.kind}


class Plain(nn.Module):
    """`network` with its condition as plain tensors, since the file's inputs must be tensors: those of `inputs`."""

    def __init__(self, model: Model):
        super().__init__()
        self.network, self.like = model.network, model.condition(range(1))
        self.names = [*inputs(model, 1)][2:]

    def forward(self, x: Tensor, log_snr: Tensor, *more: Tensor) -> Tensor:
        made = dict(zip(self.names, more, strict=True))
        condition = None if self.like is None else filled(self.like, made)
        if "known" in made:
            condition = knowing(condition, made["known"])
        if "goal" in made:
            condition = jumping(condition, made["goal"])
        return self.network(x, log_snr, condition)


def _shapes(inputs: int, shape: dict[int, Any]) -> tuple[Any, ...]:
    """`shape` for each argument of `Plain.forward`, of which the last is a tuple, if there are so many."""
    return (shape, shape, (shape,) * (inputs - 2)) if inputs > 2 else (shape, shape)


def write_onnx(model: Model, path: Path) -> None:
    """Writes the network of `model`, on the CPU, to `path`. Raises UsageError if the exporter is missing."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (used by PyTorch's exporter)
    except ImportError:
        raise UsageError(f"the ONNX format {MISSING}") from None
    if not onnx_takes(model):
        raise UsageError(f"an ONNX file takes labels and sentences: {model.name} takes something else")
    made = inputs(model, 2)
    level = (log := logging.getLogger("torch.onnx")).level
    log.setLevel(logging.ERROR)  # it warns about libraries that it does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Plain(model),
                tuple(made.values()),
                dynamo=True,
                dynamic_shapes=_shapes(len(made), {0: torch.export.Dim("batch", min=1, max=1 << 20)}),
                input_names=list(made),
                output_names=["output"],
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    metadata = {
        "undiffuse": json.dumps(model.config.model_dump(mode="json")),
        "classes": json.dumps(model.data.classes),
        "licence": model.data.licence,
    }
    if model.data.takes is not None:
        metadata["takes"] = json.dumps({"kind": model.data.takes.kind, "facts": model.data.takes.facts})
    proto = program.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_file(path) as temporary:
        onnx.save(proto, str(temporary))


def open_session(path: Path, threads: int) -> Any:
    """The file in ONNX Runtime, on the CPU. Raises UsageError if that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"the engine onnxruntime {MISSING}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(model: Model, session: Any) -> float:
    """The largest difference of the session's outputs from PyTorch's, relative to their root mean square, over several
    batch sizes."""
    largest = 0.0
    for batch in (1, 2, 5):
        made = inputs(model, batch)
        with torch.inference_mode():
            expected = Plain(model)(*made.values())
        (found,) = session.run(None, {name: value.numpy() for name, value in made.items()})
        difference = (torch.from_numpy(found) - expected).abs().max() / expected.square().mean().sqrt()
        largest = max(largest, difference.item())
    return largest


def export_onnx(model: Model, path: Path) -> float:
    """Writes the network to `path`, compares it with PyTorch and returns the largest relative difference.

    Raises UndiffuseError, and leaves nothing behind, if the two do not agree.
    """
    pictures_only(model, "export")
    if model.device.type != "cpu":
        raise UsageError("export from the CPU: add --device cpu")
    with atomic_file(path) as temporary:
        write_onnx(model, temporary)
        difference = largest_difference(model, open_session(temporary, torch.get_num_threads()))
        if not difference < LARGEST_DIFFERENCE:
            raise UndiffuseError(
                f"the ONNX network differs from PyTorch's by {difference:.1e} of its output: {path} was not written"
            )
    return difference


class OnnxNetwork(nn.Module):
    """The network of `model`, run by ONNX Runtime: the same call, the same outputs to rounding."""

    def __init__(self, model: Model, session: Any):
        super().__init__()
        self.module, self.session, self.like = model.network, session, model.condition(range(1))
        self.jumps, self.shown = model.config.network.jumps, model.config.network.inpaint

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        condition, goal = without_jump(condition)
        condition, planes = without_known(condition)
        check_given(condition, self.like is not None)
        feed = {"x": x.float(), "log_snr": log_snr}
        if self.jumps:
            feed["goal"] = log_snr if goal is None else goal
        if self.shown:
            feed["known"] = nothing_known(feed["x"]) if planes is None else planes.float()
        if condition is not None:
            assert self.like is not None
            feed |= flat(condition, self.like)
        return torch.from_numpy(self.session.run(None, {name: made.numpy() for name, made in feed.items()})[0])
