"""What a scheduler of diffusers says about training: the betas, the prediction type, and if the variance is learned.

The rest of its configuration is about sampling (thresholding, spacing, Karras' sigmas ...), not part of a model.
"""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.interop.tables import read_table
from undiffuse.names import cut, fault

FILE = "scheduler_config.json"
MOST_STEPS = 100_000
LARGEST_BETA = 0.999
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "sigmoid": "sigmoid",
    "squaredcos_cap_v2": "cosine",
}


def _laplace(t: float) -> float:
    log_snr = -math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return (1 + math.exp(-log_snr / 2)) ** -0.5  # exp(log_snr / 2) and a root, as in diffusers, whatever the paper says


WRITTEN_OUT: dict[str, Callable[[float], float]] = {"exp": lambda t: math.exp(-12 * t), "laplace": _laplace}
"""alpha_bar(t) of beta_schedules that have no name here: their betas are written out."""

NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPM": {},
    "DDPMParallel": {},
    "DDIM": {},
    "DDIMParallel": {},
    "DDIMInverse": {},
    "PNDM": {},
    "DEISMultistep": {},
    "DPMSolverMultistep": {},
    "DPMSolverMultistepInverse": {},
    "DPMSolverSDE": NARROW,
    "DPMSolverSinglestep": {},
    "EulerDiscrete": {},
    "EulerAncestralDiscrete": {},
    "HeunDiscrete": NARROW,
    "KDPM2Discrete": NARROW,
    "KDPM2AncestralDiscrete": NARROW,
    "LMSDiscrete": {},
    "RePaint": {},
    "SASolver": {},
    "UnCLIP": {"beta_schedule": "squaredcos_cap_v2"},
    "UniPCMultistep": {},
}
"""The schedulers that are read, with the defaults in which they differ from DDPM. They differ in how they sample: the
betas and the prediction type define what was trained."""

UNREAD = {
    "EDM|CosineDPMSolver": "its network takes ln(sigma) / 4, not a timestep, and its noise has no table of betas",
    "FlowM|LTX|Helios|SCM": "its path from data to noise is not a table of betas",
    "ScoreSdeVe|KarrasVe": "its noise is added to data that keeps its scale, without a table of betas",
    "LCM|TCD|CMStochastic": "it is of a consistency model, whose network gives the end of a trajectory, not a mean x_0",
    "CogVideoX": "it shifts its betas' signal-to-noise ratio",
    "IPNDM": "its network takes times from 0 to 1, not timesteps",
}
"""Why others are not, by the beginning of their names."""


class Settings(BaseModel):
    """The options that concern training, with the defaults of DDPM."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=MOST_STEPS)
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: list[float] | None = Field(None, max_length=MOST_STEPS)
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool | None = False
    variance_type: str | None = None
    use_flow_sigmas: bool | None = False
    timestep_type: str | None = "discrete"


@dataclass(frozen=True)
class Scheduler:
    """A scheduler as it was found.

    Attributes:
        path: its file.
        content: the whole content of the file.
        settings: ours by dotted name: those of `process`, `denoiser.target` and `denoiser.learned_variance`.
    """

    path: Path
    content: dict[str, Any]
    settings: dict[str, Any]

    def __str__(self) -> str:
        kind = self.settings["process.schedule"]
        betas = "betas of its own" if kind == "betas" else f"{self.content.get('beta_schedule', kind)} betas"
        steps = self.settings.get("process.steps") or len(self.settings["process.betas"])
        rescaled = " rescaled to zero terminal SNR" if self.settings["process.zero_terminal_snr"] else ""
        predicted = next(name for name, target in TARGETS.items() if target == self.settings["denoiser.target"])
        learned = ", learned variance" if self.settings["denoiser.learned_variance"] else ""
        return f"{steps} steps, {betas}{rescaled}, prediction type {predicted}{learned}"

    @property
    def of_sampling(self) -> str | None:
        """How to sample as it does, if it differs from our defaults; else None."""
        if self.content.get("thresholding"):
            return "it samples with dynamic thresholding, as undiffuse sample does with --threshold dynamic"
        if self.content.get("clip_sample") is False:
            return "it samples without clipping, as undiffuse sample does with --threshold none"
        if (limit := self.content.get("clip_sample_range", 1)) != 1:
            return f"it clips at {cut(str(limit))}, undiffuse sample at 1 or, with --threshold none, not at all"
        return None


def find_scheduler(folder: Path, given: Path | None = None) -> Scheduler:
    """The scheduler that a network was trained with: `given`, a file or its folder, or one in or near `folder`.

    Near is beside it, or in the pipeline's folder above checkpoint-N. Raises UsageError if there is none, if several
    disagree on what was trained, and for those without a counterpart here.
    """
    if given is not None:
        paths = [path for path in (given, given / FILE, given / "scheduler" / FILE) if path.is_file()]
        if not paths:
            raise UsageError(f"--scheduler {given}: there is no {FILE}")
        return _scheduler(paths[0])
    paths = _about(folder)
    if not paths:
        said = {"num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type"}
        example = {"_class_name": "DDPMScheduler", **Settings().model_dump(include=said)}
        raise UsageError(
            f"{folder} has no {FILE} in it, beside it or in a pipeline above, so the noise it was trained on is "
            f"unknown: give --scheduler FILE, such as one of {json.dumps(example)}"
        )
    first, *others = map(_scheduler, paths)
    for other in others:
        if other.settings != first.settings:
            raise UsageError(f"{first.path} ({first}) and {other.path} ({other}) disagree: choose one with --scheduler")
    return first


def _about(folder: Path) -> list[Path]:
    """The scheduler files in or near a network's folder, nearest first: at its path, else where a link leads."""
    for place in (Path(os.path.abspath(folder)), folder.resolve()):
        found = []
        part = True
        while part:
            found += [path for path in (place / "scheduler" / FILE, place / FILE) if path.is_file()]
            network_or_checkpoint = (place / "config.json").exists() or re.fullmatch(r"checkpoint-\d+", place.name)
            part = bool(network_or_checkpoint) and not (place / "model_index.json").exists()
            place = place.parent
        if found:
            here = Path.cwd()
            return [path.relative_to(here) if path.is_relative_to(here) else path for path in found]
    return []


def _scheduler(path: Path) -> Scheduler:
    content = read_table(path)
    kind = str(content.get("_class_name")).removesuffix("Scheduler")
    if kind not in DEFAULTS:
        reasons = (reason for names, reason in UNREAD.items() if re.match(names, kind))
        reason = next(reasons, "those with betas are, such as DDPM, DDIM, PNDM, DPMSolverMultistep or HeunDiscrete")
        raise UsageError(f"{path} is for a {cut(kind)}Scheduler, which is not read: {reason}")
    known = {name: value for name, value in content.items() if name in Settings.model_fields}
    try:
        settings = Settings.model_validate({**DEFAULTS[kind], **known})
    except ValidationError as error:
        raise UndiffuseError(f"{path} is damaged: {fault(error)}") from None
    try:
        return Scheduler(path, content, _translated(settings))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _translated(settings: Settings) -> dict[str, Any]:
    if settings.prediction_type not in TARGETS:
        raise UsageError(
            f"prediction_type = {cut(settings.prediction_type)} is not read: known are {', '.join(TARGETS)}"
        )
    if settings.use_flow_sigmas:
        raise UsageError("use_flow_sigmas: a straight path from data to noise is not a table of betas, and not read")
    if settings.timestep_type != "discrete":
        raise UsageError(f"timestep_type = {settings.timestep_type!s:.60}: only networks that take timesteps are read")
    return {
        **process_of(settings),
        "process.zero_terminal_snr": bool(settings.rescale_betas_zero_snr),
        "denoiser.target": TARGETS[settings.prediction_type],
        "denoiser.learned_variance": settings.variance_type == "learned_range",
    }


def process_of(settings: Settings) -> dict[str, Any]:
    """Settings of `process` for betas before any rescaling: by name, or one by one."""
    name, steps, betas = settings.beta_schedule, settings.num_train_timesteps, settings.trained_betas
    if betas is None and name in WRITTEN_OUT:
        alpha_bar = [WRITTEN_OUT[name](step / steps) for step in range(steps + 1)]
        betas = [min(1 - alpha_bar[k + 1] / alpha_bar[k], LARGEST_BETA) for k in range(steps)]
    if betas is not None:
        if len(betas) != steps:
            raise UsageError(f"num_train_timesteps = {steps}, but trained_betas has {len(betas)} numbers: one is wrong")
        return {"process.schedule": "betas", "process.betas": betas}
    if name not in SCHEDULES:
        known = ", ".join([*SCHEDULES, *WRITTEN_OUT])
        raise UsageError(f"beta_schedule = {cut(name)} is not read: known are {known}, and trained_betas")
    found: dict[str, Any] = {"process.schedule": SCHEDULES[name], "process.steps": steps}
    if name != "squaredcos_cap_v2":
        if settings.beta_end > LARGEST_BETA:
            raise UsageError(
                f"beta_end = {settings.beta_end}: named schedules end at {LARGEST_BETA} or below here; write them out "
                "as trained_betas"
            )
        scale = 1000 / steps  # by which our schedules multiply their ends
        found["process.options"] = {"beta_min": settings.beta_start / scale, "beta_max": settings.beta_end / scale}
    return found
