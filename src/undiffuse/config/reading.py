"""Configurations from settings, presets and files, and the list of all settings."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from undiffuse.config.sections import Choice, Config
from undiffuse.errors import UsageError
from undiffuse.names import cut, did_you_mean, fault, shown
from undiffuse.registry import PRESETS

MACHINE_KEYS = {f"training.{key}" for key in ("log_every", "checkpoint_every", "keep", "preview_every", "accumulation")}
"""Keys that may change when a run is resumed: they affect how it runs, not its result (except for
the order of summation)."""


def keys() -> Iterator[tuple[str, str, Any, str]]:
    """(section.key, type, default, description) of every setting."""
    for section, field in Config.model_fields.items():
        for key, inner in field.default.__class__.model_fields.items():
            optional = [one for part in get_args(inner.annotation) for one in getattr(part, "__metadata__", ())]
            choice = next((one for one in (*inner.metadata, *optional) if isinstance(one, Choice)), None)
            kind = _either((*choice.names, *["None"] * bool(optional))) if choice else _kind(inner.annotation)
            yield f"{section}.{key}", kind, inner.default, inner.description or ""


def _kind(annotation: Any) -> str:
    """A type in readable form: "int or None", "tuple[float, ...]", "fp32, bf16 or fp16"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return _either(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_kind, inner))}]"
    return {NoneType: "None", Ellipsis: "..."}.get(annotation) or annotation.__name__


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def written(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """["training.batch_size=64", ...] -> {"training.batch_size": 64}.

    Lists are written 1,2,3; "none" is None; the rest is JSON if it parses as JSON, else text. Raises UsageError for an
    unknown key, naming the nearest.
    """
    kinds = {name: kind for name, kind, *_ in keys()}
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"--set {cut(setting)}: write section.key=value, for example training.batch_size=64")
        check_known(name)
        kind = kinds.get(name, "of several kinds or None")  # one of process.options or network.options
        if text.lower() == "none" and kind.endswith(" or None"):
            parsed[name] = None
        elif kind.startswith("tuple"):
            parsed[name] = [_literal(item.strip()) for item in text.strip("[]()").split(",") if item.strip()]
        else:
            parsed[name] = text.strip('"') if kind == "str" else _literal(text)
    return parsed


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_known(name: str) -> None:
    """Raises UsageError for an unknown key, naming the nearest."""
    known = [key for key, *_ in keys()]
    if name in known or re.fullmatch(r"(process|network)\.options\.[A-Za-z0-9_]{1,64}", name):
        return
    ending = next((key for key in known if key.endswith(f".{name}")), None)
    hint = (
        f"did you mean {ending}?" if ending else did_you_mean(name, known, "undiffuse train --help-config lists them.")
    )
    raise UsageError(f"no setting is called {cut(name)}; {hint}")


FIRST_KEYS = {
    "data": "source size channels flip shift skip_corrupt",
    "process": "schedule steps betas zero_terminal_snr options",
    "denoiser": "target sigma_data learned_variance",
    "objective": "loss weighting gamma bias variance times mean std draw",
    "network": "patch channels blocks attention dropout",
    "training": "steps minutes batch_size learning_rate weight_decay betas warmup decay clip accumulation ema "
    "conditional label_dropout precision compile seed log_every checkpoint_every keep preview_every",
}
"""The keys in every saved configuration; the defaults of later ones do not change older models."""


def read_config(saved: Any) -> Config:
    """A configuration from its saved form. Raises ValueError if it is invalid, naming the first wrong key."""
    if not isinstance(saved, dict):
        raise ValueError(f"config = {shown(saved)} is not a table of settings")
    for section, names in FIRST_KEYS.items():
        held = saved.get(section)
        if not isinstance(held, dict):
            reason = "is missing" if held is None else f"= {shown(held)} is not a table of settings"
            raise ValueError(f"config.{section} {reason}")
        if missing := next((name for name in names.split() if name not in held), None):
            raise ValueError(f"config.{section}.{missing} is missing")
    training = {"optimizer": "adamw", **saved["training"]}  # the only optimizer before it could be chosen
    try:
        config = Config.model_validate({**saved, "training": training})
    except ValidationError as error:
        raise ValueError(fault(error, "config")) from None
    if config.denoiser.target == "score" and "score_scale" not in config.denoiser.model_fields_set:
        # Saved when the score was always that of x_t itself, which has unit scale under most schedules.
        scaled = config.process.schedule in ("sub-vp", "ve", "edm", "flow")
        before = config.denoiser.model_copy(update={"score_scale": "state" if scaled else "unit"})
        config = config.model_copy(update={"denoiser": before})
    return config


def presets() -> list[str]:
    """Names of the presets."""
    return list(PRESETS)


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset by dotted name. Raises UsageError for an unknown one."""
    sections = tomllib.loads(PRESETS.find(name).read_text(encoding="utf-8"))
    return {f"{section}.{key}": value for section, settings in sections.items() for key, value in settings.items()}


def preset_for(minutes: float | None) -> str:
    """The preset that suits a budget on two cores; without one, "balanced"."""
    return "balanced" if minutes is None else "fast" if minutes <= 15 else "balanced" if minutes <= 90 else "best"


def over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """`lower` overridden by `upper`, where a budget in steps also replaces one in minutes, and vice versa."""
    others = {"training.steps": "training.minutes", "training.minutes": "training.steps"}
    replaced = {other for name, other in others.items() if upper.get(name) is not None}
    return {name: value for name, value in lower.items() if name not in replaced | upper.keys()} | upper


def make_config(values: dict[str, Any], base: Config | None = None) -> Config:
    """`base` with the dotted `values` put in. Raises UsageError for the first value that does not fit."""
    tree = (base or Config()).model_dump()
    for name, value in values.items():
        check_known(name)
        *path, key = name.split(".")
        node: Any = tree
        for part in path:
            node = node[part]
            if not isinstance(node, dict):
                raise UsageError(f"{'.'.join(path)} = {shown(node)}: it should be a table that holds {name}")
        node[key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(fault(error)) from None
