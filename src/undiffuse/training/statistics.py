"""What a run measures of its data before it begins: its scale, how often each value and each class occurs."""

import numpy as np
import torch

from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.discretised import VALUES
from undiffuse.domains import domain_of
from undiffuse.model import DataFacts


def root_mean_square(images: ImageSet) -> float:
    """Of x_0, to three digits: sigma_data. 1 where it is 0."""
    some = domain_of(images).encode(_some(images)).double()
    return round(some.square().mean().sqrt().item(), 3) or 1.0


def log_value_prior(images: ImageSet) -> torch.Tensor:
    """ln of how often each value is seen, float64 (VALUES,)."""
    seen = np.bincount(_some(images).ravel(), minlength=VALUES) + 1.0
    return torch.from_numpy(np.log(seen / seen.sum()))


def data_facts(config: Config, data: ImageSet) -> DataFacts:
    """What a model folder says of the data, with the share of each class where classes are learnt."""
    share: tuple[float, ...] = ()
    if data.labels is not None and data.classes and config.training.conditional:
        counts = np.bincount(data.labels, minlength=len(data.classes))
        share = tuple((counts / counts.sum()).tolist())
    return DataFacts(
        config.data.source,
        data.shape,
        len(data),
        data.classes if share else (),
        share,
        data.licence,
        data.fingerprint,
        data.domain,
    )


def _some(images: ImageSet) -> np.ndarray:
    """About 2000 of them, from all over the set."""
    return np.asarray(images.images[:: max(1, len(images) // 2000)])
