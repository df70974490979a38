"""The configuration of a run: typed, validated, saved with the run. Imports no torch, so that --help is fast."""

from undiffuse.config.reading import (
    FIRST_KEYS,
    MACHINE_KEYS,
    check_known,
    keys,
    make_config,
    over,
    parse_settings,
    preset,
    preset_for,
    presets,
    read_config,
    written,
)
from undiffuse.config.sections import (
    Config,
    DataConfig,
    DenoiserConfig,
    NetworkConfig,
    ObjectiveConfig,
    ProcessConfig,
    TrainingConfig,
)

__all__ = [
    "FIRST_KEYS",
    "MACHINE_KEYS",
    "Config",
    "DataConfig",
    "DenoiserConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "ProcessConfig",
    "TrainingConfig",
    "check_known",
    "keys",
    "make_config",
    "over",
    "parse_settings",
    "preset",
    "preset_for",
    "presets",
    "read_config",
    "written",
]
