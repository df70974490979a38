"""undiffuse trains, samples and explains diffusion models.

    import undiffuse
    images = undiffuse.sample("fashion-mnist", n=16, steps=10)         # uint8 (16, 28, 28, 1)
    undiffuse.train({"data.source": "emoji", "training.minutes": 5}, out="runs/emoji")
    model = undiffuse.load("runs/emoji")

Names are imported when first used, so that `undiffuse --help` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undiffuse.errors import UndiffuseError, UsageError
    from undiffuse.generate import Recipe, generate, sample, states
    from undiffuse.model import Model, load
    from undiffuse.training import train

__version__ = version("undiffuse")

_HOME = {
    "Model": "undiffuse.model",
    "Recipe": "undiffuse.generate",
    "UndiffuseError": "undiffuse.errors",
    "UsageError": "undiffuse.errors",
    "generate": "undiffuse.generate",
    "load": "undiffuse.model",
    "sample": "undiffuse.generate",
    "states": "undiffuse.generate",
    "train": "undiffuse.training",
}
__all__ = ["Model", "Recipe", "UndiffuseError", "UsageError", "generate", "load", "sample", "states", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'undiffuse' has no attribute {name!r}")
