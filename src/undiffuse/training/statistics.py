"""What a run measures on its data before it begins: its scale, how often each value and each class occurs."""

import numpy as np
import torch

from undiffuse.card import ConditionFacts, DataFacts
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.data.texts import TextSet
from undiffuse.discretised import VALUES
from undiffuse.domains import domain_of
from undiffuse.training.batches import conditions_of


def root_mean_square(images: ImageSet) -> float:
    """The root mean square of x_0, to three digits: sigma_data. 1 if it is 0."""
    some = domain_of(images).encode(_some(images)).double()
    return round(some.square().mean().sqrt().item(), 3) or 1.0


def log_value_prior(images: ImageSet) -> torch.Tensor:
    """The log frequency of each value, float64 (VALUES,)."""
    seen = np.bincount(_some(images).ravel(), minlength=VALUES) + 1.0
    return torch.from_numpy(np.log(seen / seen.sum()))


def data_facts(config: Config, data: ImageSet) -> DataFacts:
    """What a model folder says about the data, and about the condition."""
    parts = conditions_of(config, data)
    share: tuple[float, ...] = ()
    if (labels := parts.pop("label", None)) is not None:  # format 1 has fields of its own for labels
        share = tuple(labels.facts()["share"])
    takes = next((ConditionFacts(part.kind, part.facts()) for part in parts.values()), None)
    return DataFacts(
        config.data.source,
        data.shape,
        len(data),
        data.classes if share else (),
        share,
        data.licence,
        data.fingerprint,
        data.domain,
        takes,
        {"kind": data.tokenizer.name, "facts": data.tokenizer.facts} if isinstance(data, TextSet) else None,
        data.sound,
    )


def _some(images: ImageSet) -> np.ndarray:
    """About 2000 of the images, spread over the set."""
    return np.asarray(images.images[:: max(1, len(images) // 2000)])
