"""The JSON files in folders of diffusers."""

from pathlib import Path
from typing import Any

from undiffuse.errors import UndiffuseError
from undiffuse.files import read_json


def read_table(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UndiffuseError if the file cannot be read or holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UndiffuseError(f"{path} is damaged: it holds no table of settings")
    return content
