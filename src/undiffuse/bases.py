"""The model that a run starts from, `training.base`: which settings the run takes from it. Imports no torch."""

from typing import Any

from undiffuse.card import find, read_card
from undiffuse.config import Config, DataConfig, make_config, preset
from undiffuse.errors import UsageError
from undiffuse.names import shown
from undiffuse.registry import RIVALS

KEPT = ("process", "denoiser", "objective", "network")
"""The sections of the base's configuration that a run starts from."""
FREE = ("network.dropout", "network.inpaint", "network.jumps")
"""Settings of the network that may differ from the base's: its weights still fit."""


def base_config(values: dict[str, Any]) -> Config | None:
    """The configuration that the settings of a new run change; None: the defaults.

    For a run with `training.base`: the base's process, denoiser, objective and network, its size and channels of the
    data, and the preset "finetune". Raises UsageError for an unknown base, and for settings that its weights exclude.
    """
    name = values.get("training.base")
    if name is None:
        if values.get("training.lora"):
            raise UsageError("training.lora adapts the weights of a model: choose it with --from MODEL")
        return None
    config, data, *_ = read_card(find(name))
    if config.network.kind in RIVALS:
        raise UsageError(f"{name} is no diffusion: a {config.network.kind} begins anew, or goes on with --resume")
    for key, value in values.items():
        section, _, setting = key.partition(".")
        if section == "network" and key not in FREE:
            theirs = getattr(config.network, setting, None)
            if value != theirs and value != (list(theirs) if isinstance(theirs, tuple) else theirs):
                raise UsageError(f"{key} = {shown(value)}: the weights of {name} are for {shown(theirs)}; leave it out")
    if (channels := values.get("data.channels")) and data.domain == "pictures" and channels != data.shape[2]:
        raise UsageError(f"data.channels = {channels}: {name} is for pictures of {data.shape[2]}; leave it out")
    size: dict[str, Any] = {}
    if data.domain == "texts":
        size = {"kind": "text", "length": data.shape[0], "tokens": config.data.tokens}
    if data.domain == "pictures" and data.shape[0] == data.shape[1]:
        size = {"size": data.shape[0], "channels": data.shape[2]}
    elif data.domain == "pictures":
        size = {"channels": data.shape[2]}
    kept = {section: getattr(config, section) for section in KEPT}
    kept["objective"] = config.objective.model_copy(update={"paths": None})  # as many as this run has time for
    return make_config(preset("finetune"), Config(data=DataConfig(**size), **kept))


def check_preset(name: str, base: str) -> None:
    """Raises UsageError for a preset that sets what a run takes from its base."""
    for key, value in preset(name).items():
        if key.partition(".")[0] in KEPT:
            raise UsageError(
                f"--preset {name} sets {key} = {shown(value)}, and --from keeps that of {base}: leave --preset out, "
                "and give other settings with --set"
            )
