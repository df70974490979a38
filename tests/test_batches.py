"""Batches that another thread makes are the same batches."""

from itertools import islice

import numpy as np
import pytest
import torch

from undiffuse.config import make_config
from undiffuse.data import ImageSet
from undiffuse.training.batches import Batch, batches, make_batch


@pytest.mark.parametrize("first", [0, 7])
def test_a_thread_makes_the_batches_that_there_would_be_without_it(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches in their order, from the step asked for; a device that holds nothing stands in for a GPU."""
    config = make_config({"training.batch_size": 8})
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    data = ImageSet("noise", "train", images, None, (), (), "", "")
    shares = [slice(0, 4), slice(4, 8)]
    moved: list[Batch] = []
    real = Batch.to

    def to(batch: Batch, device: torch.device) -> Batch:
        moved.append(batch)
        return real(batch, device)

    monkeypatch.setattr(Batch, "to", to)
    found = list(islice(batches(config, data, first, shares, torch.device("meta")), 6))
    assert all(batch.x0.is_meta and batch.noise.is_meta and not batch.u.is_meta for batch in found)
    expected = [make_batch(config, data, first + k // 2, shares[k % 2]) for k in range(6)]
    plain = list(islice(batches(config, data, first, shares, torch.device("cpu")), 6))
    for batches_found in (moved[:6], plain):
        for one, other in zip(batches_found, expected, strict=True):
            assert torch.equal(one.x0, other.x0) and torch.equal(one.noise, other.noise) and torch.equal(one.u, other.u)


def test_an_error_in_the_thread_is_the_error_of_the_step() -> None:
    config = make_config({"training.batch_size": 8})
    images = np.zeros((40, 4, 4), np.uint8)  # an axis is missing
    data = ImageSet("flat", "train", images, None, (), (), "", "")
    with pytest.raises(ValueError, match="shape"):
        next(batches(config, data, 0, [slice(0, 8)], torch.device("meta")))
