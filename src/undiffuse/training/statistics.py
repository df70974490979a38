"""What a run measures of its data before it begins: its scale, how often each value and each class occurs."""

import numpy as np
import torch

from undiffuse.card import ConditionFacts, DataFacts
from undiffuse.conditions import Labels
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.discretised import VALUES
from undiffuse.domains import domain_of


def root_mean_square(images: ImageSet) -> float:
    """Of x_0, to three digits: sigma_data. 1 where it is 0."""
    some = domain_of(images).encode(_some(images)).double()
    return round(some.square().mean().sqrt().item(), 3) or 1.0


def log_value_prior(images: ImageSet) -> torch.Tensor:
    """ln of how often each value is seen, float64 (VALUES,)."""
    seen = np.bincount(_some(images).ravel(), minlength=VALUES) + 1.0
    return torch.from_numpy(np.log(seen / seen.sum()))


def data_facts(config: Config, data: ImageSet) -> DataFacts:
    """What a model folder says of the data, and of the condition that is learnt with it."""
    condition = data.condition if config.training.conditional else None
    takes = None if condition is None else ConditionFacts(condition.kind, condition.facts())
    share: tuple[float, ...] = ()
    if takes is not None and takes.kind == Labels.kind:  # format 1 says it in words of its own
        share, takes = tuple(takes.facts["share"]), None
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
    )


def _some(images: ImageSet) -> np.ndarray:
    """About 2000 of them, from all over the set."""
    return np.asarray(images.images[:: max(1, len(images) // 2000)])
