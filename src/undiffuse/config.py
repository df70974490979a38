"""The configuration of a run: typed, validated, saved with the run. Imports no torch, so that help comes at once.

`None` means "decided from the data when the run begins"; what was decided is what the run saves.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undiffuse.errors import UsageError
from undiffuse.names import fault

PRESETS = Path(__file__).parent / "presets"
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Data(_Section):
    """What is learnt."""

    source: str = Field("emoji", description="a built-in name, a folder, .npz, .npy, .parquet or a hub name")
    size: int | None = Field(None, ge=4, le=4096, description="side in pixels; None: the data's own or a sensible one")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; None: as the data is")
    flip: bool = Field(False, description="mirror images left to right at random")
    shift: int = Field(0, ge=0, description="shift images at random by up to this many pixels, edges repeated")
    skip_corrupt: bool = Field(False, description="leave unreadable files out instead of refusing")


class Process(_Section):
    """The forward process."""

    schedule: Literal[
        "linear",
        "cosine",
        "scaled-linear",
        "sigmoid",
        "quadratic",
        "betas",
        "vp",
        "sub-vp",
        "ve",
        "edm",
        "flow",
        "log-snr",
    ] = Field("cosine", description="the noise schedule; the first six are tables of betas")
    steps: int = Field(1000, ge=1, description="T, for a table")
    betas: tuple[float, ...] | None = Field(None, description="your own table, with schedule=betas")
    log_snrs: tuple[float, ...] | None = Field(None, description="log-SNRs at even times, with schedule=log-snr")
    zero_terminal_snr: bool = Field(False, description="rescale a table so that no signal is left at t = 1")
    options: dict[str, float] = Field({}, description="numbers of the schedule, such as beta_max or sigma_max")


class Denoiser(_Section):
    """What the network predicts."""

    target: Literal["eps", "x0", "v", "score", "flow", "edm", "levels"] = Field(
        "edm", description="the network's output; levels: the odds of a pixel's 256 values"
    )
    sigma_data: float | None = Field(None, gt=0, description="root mean square of the data; None: measured")
    learned_variance: bool = Field(False, description="predict the reverse variance too (loss=hybrid or bound)")


class Objective(_Section):
    """The loss."""

    loss: Literal["error", "bound", "hybrid", "continuous-bound"] = Field(
        "error", description="weighted error; the variational bound in T steps or in continuous time; IDDPM's L_hybrid"
    )
    weighting: Literal["simple", "x0", "v", "truncated-snr", "min-snr", "sigmoid", "flow", "edm"] = Field(
        "edm", description="what an error costs at a noise level; simple is L_simple"
    )
    gamma: float = Field(5.0, gt=0, description="of weighting=min-snr")
    bias: float = Field(2.0, description="of weighting=sigmoid")
    variance: Literal["small", "large", "learned"] = Field("small", description="reverse variance, for loss=bound")
    times: Literal["uniform", "log-normal"] = Field("log-normal", description="how times are distributed")
    mean: float = Field(-0.8, description="of ln(sigma / alpha), for times=log-normal")
    std: float = Field(1.2, gt=0, description="of ln(sigma / alpha), for times=log-normal")
    draw: Literal["independent", "antithetic", "low-discrepancy"] = Field(
        "low-discrepancy", description="how the times of one batch depend on each other"
    )
    importance: bool = Field(False, description="learn to draw each time as often as its losses vary")


class Network(_Section):
    """The U-Net."""

    kind: Literal["unet", "unet2d"] = Field("unet", description="unet2d is DDPM's network as diffusers has it")
    patch: int | None = Field(None, ge=1, description="pixels to a side folded by the stem; None: 2 from 16 pixels on")
    channels: tuple[Positive, ...] | None = Field(
        None, min_length=1, description="channels at each level; None: from the image size"
    )
    width: float = Field(1.0, gt=0, le=16, description="what the channels from the image size are multiplied with")
    blocks: int = Field(1, ge=1, description="residual blocks per level and direction")
    attention: tuple[Natural, ...] | None = Field(None, description="levels with attention; None: where it is cheap")
    head: Natural = Field(0, description="channels per pixel of a last layer at full resolution; 0: none")
    kernel: Natural = Field(0, description="side of a filter of the input made for each pixel, odd; 0: none")
    values: bool = Field(False, description="see which values a picture has, for denoiser.target=levels")
    fourier: tuple[Natural, ...] = Field((), description="n, m ...: waves of 2^n pi x beside the input, VDM's are 7,8")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks; depends on the number of processes")
    options: dict[str, Any] = Field({}, description="of kind=unet2d, by diffusers' names, such as norm_num_groups")


class Training(_Section):
    """The optimisation."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; None with minutes=None: 20000")
    minutes: float | None = Field(None, gt=0, description="wall-clock budget; the learning rate decays to fit it")
    batch_size: int = Field(64, ge=1, description="images per step, over all processes and micro-batches")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="muon: for matrices, and AdamW for the rest")
    learning_rate: float = Field(6e-3, gt=0, description="the peak")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), description="of AdamW")
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    decay: float = Field(0.6, ge=0, le=1, description="the last share of the run, over which the rate falls to 0")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    accumulation: int = Field(1, ge=1, description="micro-batches per step")
    ema: float = Field(0.05, gt=0, lt=0.28, description="width of the weight average, relative to the run's length")
    conditional: bool = Field(True, description="learn classes where the data has them")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels left out, for unconditional use")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on a GPU, else fp32"
    )
    compile: bool = Field(False, description="torch.compile the network")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    log_every: int = Field(10, ge=1, description="steps between metrics")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    preview_every: int = Field(250, ge=1, description="steps between preview grids")


class Config(_Section):
    """Everything a run depends on."""

    data: Data = Data()
    process: Process = Process()
    denoiser: Denoiser = Denoiser()
    objective: Objective = Objective()
    network: Network = Network()
    training: Training = Training()


MACHINE_KEYS = {f"training.{key}" for key in ("log_every", "checkpoint_every", "keep", "preview_every", "accumulation")}
"""Keys that may change when a run is resumed: they say how it is run, not what comes out (but for
the order of summation)."""


def keys() -> Iterator[tuple[str, str, Any, str]]:
    """(section.key, type, default, description) of every setting."""
    for section, field in Config.model_fields.items():
        for key, inner in field.default.__class__.model_fields.items():
            kind = inner.annotation.__name__ if isinstance(inner.annotation, type) else str(inner.annotation)
            kind = kind.replace("typing.", "").replace("Optional", "None or ")
            yield f"{section}.{key}", kind, inner.default, inner.description or ""


def written(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """["training.batch_size=64", ...] -> {"training.batch_size": 64}.

    Lists are written 1,2,3; "none" is None; the rest is JSON where it parses as JSON, else words. Raises UsageError for
    an unknown key, naming the nearest.
    """
    kinds = {name: kind for name, kind, *_ in keys()}
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"--set {setting}: write section.key=value, for example training.batch_size=64")
        _check_known(name)
        kind = kinds.get(name, "one of several options, or None")
        if text.lower() == "none" and "None" in kind:
            parsed[name] = None
        elif kind.startswith("tuple"):
            parsed[name] = [_literal(item.strip()) for item in text.strip("[]()").split(",") if item.strip()]
        else:
            parsed[name] = text.strip('"') if kind == "str" else _literal(text)
    return parsed


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_known(name: str) -> None:
    known = [key for key, *_ in keys()]
    if name in known or re.fullmatch(r"(process|network)\.options\.\w+", name):
        return
    close = difflib.get_close_matches(name, known, 1, 0.5) or [key for key in known if key.endswith("." + name)][:1]
    hint = f"did you mean {close[0]}?" if close else "undiffuse train --help-config lists the keys."
    raise UsageError(f"no setting is called {name}; {hint}")


def read_config(saved: dict[str, Any]) -> Config:
    """A configuration as files hold it. Raises ValueError, as pydantic does, for one that is none."""
    training = {"optimizer": "adamw", **saved["training"]}  # what there was before there was a choice
    return Config.model_validate({**saved, "training": training})


def presets() -> list[str]:
    """Names of the settings that come with the package, each a file of undiffuse/presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset by dotted name. Raises UsageError for an unknown one."""
    if name not in presets():
        raise UsageError(f"no preset {name!r}: choose from {', '.join(presets())}")
    sections = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    return {f"{section}.{key}": value for section, settings in sections.items() for key, value in settings.items()}


def preset_for(minutes: float | None) -> str:
    """The preset that suits a budget on two cores; without one, "balanced"."""
    return "balanced" if minutes is None else "fast" if minutes <= 15 else "balanced" if minutes <= 90 else "best"


def make_config(values: dict[str, Any], base: Config | None = None) -> Config:
    """`base` with the dotted `values` put in. Raises UsageError for the first value that does not fit."""
    tree = (base or Config()).model_dump()
    for name, value in values.items():
        _check_known(name)
        *path, key = name.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(fault(error)) from None
