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
    from undiffuse.classifier import Classifier, load_classifier
    from undiffuse.distilling import distill
    from undiffuse.errors import UndiffuseError, UsageError
    from undiffuse.generate import Recipe, generate, sample, states
    from undiffuse.model import Model, load
    from undiffuse.training import train
    from undiffuse.training.classifier import train_classifier

__version__ = version("undiffuse")

_HOME = {
    "Classifier": "undiffuse.classifier",
    "Model": "undiffuse.model",
    "Recipe": "undiffuse.generate",
    "UndiffuseError": "undiffuse.errors",
    "UsageError": "undiffuse.errors",
    "distill": "undiffuse.distilling",
    "generate": "undiffuse.generate",
    "load": "undiffuse.model",
    "load_classifier": "undiffuse.classifier",
    "sample": "undiffuse.generate",
    "states": "undiffuse.generate",
    "train": "undiffuse.training",
    "train_classifier": "undiffuse.training.classifier",
}
__all__ = [
    "Classifier",
    "Model",
    "Recipe",
    "UndiffuseError",
    "UsageError",
    "distill",
    "generate",
    "load",
    "load_classifier",
    "sample",
    "states",
    "train",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'undiffuse' has no attribute {name!r}")
