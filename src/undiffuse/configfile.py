"""Configuration files: TOML as printed by `undiffuse train --dump-config`, or JSON, such as that of a run or model."""

import json
import tomllib
from pathlib import Path
from typing import Any

from undiffuse.config import Config, check_known, keys, make_config, read_config
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import parse_json, read_text
from undiffuse.names import cut, did_you_mean, shown

SECTIONS = tuple(Config.model_fields)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a file, by dotted name as `make_config` takes them.

    A .json file is JSON, any other TOML; "none" is None, as on the command line. A run.json or model.json gives
    its whole configuration. Raises UsageError naming the file, and the line of a syntax error or the invalid key.
    """
    path = Path(path)
    tree = _parsed(path)
    try:
        if "config" in tree:
            return flat(read_config(tree["config"]))
        values = _settings(tree)
        make_config(values)
    except ValueError as error:
        raise UsageError(f"{path}: {cut(str(error), 300)}") from None
    return values


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except UndiffuseError as error:
        raise UsageError(str(error)) from None
    try:
        tree = parse_json(text, finite=True) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {cut(str(error), 200)}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no table of settings")
    return tree


def _settings(tree: dict[str, Any]) -> dict[str, Any]:
    kinds = {name: kind for name, kind, *_ in keys()}
    values: dict[str, Any] = {}
    for section, settings in tree.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, SECTIONS, f"there are {', '.join(SECTIONS)}.")
            raise UsageError(f"no section is called {cut(section)}; {hint}")
        if not isinstance(settings, dict):
            raise UsageError(f"{section} = {shown(settings)}: it should be a table, [{section}]")
        for key, value in settings.items():
            name = f"{section}.{key}"
            if name not in kinds:
                check_known(name)
                raise UsageError(f"{cut(name)}: write it as {key.rpartition('.')[0]} = {{...}}")
            if name == "network.options" and isinstance(value, dict):
                value = {option: _none(given) for option, given in value.items()}
            values[name] = _none(value) if kinds[name].endswith(" or None") else value
    return values


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value


def flat(config: Config) -> dict[str, Any]:
    """All settings of a configuration by dotted name."""
    tree = config.model_dump()
    return {f"{section}.{key}": value for section in SECTIONS for key, value in tree[section].items()}


def as_toml(config: Config) -> str:
    """The whole configuration as TOML that `read_settings` reads back; None, which TOML lacks, is "none"."""
    lines = []
    for section, settings in config.model_dump().items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    match value:
        case None:
            return '"none"'
        case bool():
            return str(value).lower()
        case str():
            return _quoted(value)
        case dict():
            return "{" + ", ".join(f"{_quoted(key)} = {_toml(item)}" for key, item in value.items()) + "}"
        case tuple() | list():
            return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
