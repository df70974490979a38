"""A user's own feature extractor: `module:function` or `module:network`."""

import hashlib
import importlib
import inspect
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.metrics.features.extractor import Extractor, Features
from undiffuse.weights import sha256_of_weights


def custom(name: str) -> Extractor:
    """The callable that `package.module:name` names (the working directory is searched too).

    It takes uint8 (N, H, W, C) and returns float (N, D), or Features; its attribute `preprocessing`, if it has one, is
    recorded. The cache detects changes of the module's source and of a network's weights.

    Raises UsageError if there is no such callable, or it returns something else.
    """
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--features {name}: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise UsageError(f"--features {name}: {attribute} is a {type(function).__name__}, not a function or network")
    source = inspect.getsourcefile(sys.modules[module_name])
    facts = {
        "network": name,
        "preprocessing": str(getattr(function, "preprocessing", "its own")),
        "source_sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None,
    }
    if isinstance(function, nn.Module):
        function.eval()
        facts["weights_sha256"] = sha256_of_weights(function)

    @torch.inference_mode()
    def extract(images: Tensor) -> Features:
        result = function(images)
        features = result if isinstance(result, Features) else Features(result)
        for part in features:
            if part is not None and not (isinstance(part, Tensor) and part.ndim == 2 and len(part) == len(images)):
                found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                n = len(images)
                raise UsageError(f"--features {name}: {n} images must give a tensor ({n}, D), not {found}")
        given = {key: part.float().cpu() for key, part in features._asdict().items() if part is not None}
        return features._replace(**given)

    return Extractor(name, extract, facts)
