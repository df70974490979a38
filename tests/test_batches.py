"""Batches: what is in them, and that nothing but the seed and the step decides it, whichever thread makes them."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from undiffuse.conditions import Labels
from undiffuse.config import make_config
from undiffuse.data import ImageSet
from undiffuse.randomness import Purpose
from undiffuse.training.batches import Batch, batches, make_batch, order

Values = dict[str, Any]


def image_set(images: np.ndarray, classes: int = 0) -> ImageSet:
    labels = np.arange(len(images)) % classes if classes else None
    return ImageSet("made", "train", images, labels, tuple(map(str, range(classes))), (), "", "")


def batch_of(data: ImageSet, step: int = 0, share: slice = slice(None), **settings: Any) -> Batch:
    values = {"training.batch_size": 16, **{key.replace("__", "."): value for key, value in settings.items()}}
    return make_batch(make_config(values), data, step, share)


def pixels(batch: Batch) -> np.ndarray:
    """x0 as uint8 (B, H, W), and exactly so."""
    levels = (batch.x0[:, 0].double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    return levels.round().numpy().astype(np.uint8)


@pytest.mark.parametrize(("count", "batch_size"), [(50, 16), (16, 16), (7, 16), (101, 10)])
def test_every_epoch_visits_every_item_once(count: int, batch_size: int) -> None:
    """Across the batches' borders, each stretch of `count` items is a permutation; no two are alike."""
    steps = 5 * count // batch_size + 1
    items = np.concatenate([order(3, step, batch_size, count) for step in range(steps)])
    epochs = items[: 5 * count].reshape(5, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert not np.array_equal(order(4, 0, batch_size, count), order(3, 0, batch_size, count))


@pytest.mark.parametrize("step", [0, 3, 1_000_000])
@pytest.mark.parametrize("parts", [2, 4, 16])
def test_a_batch_does_not_depend_on_who_shares_it(step: int, parts: int) -> None:
    """The slices of any number of processes and micro-batches, put together, are the batch of one."""
    data = image_set(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), 3)
    settings: Values = {"data__flip": True, "data__shift": 2, "training__label_dropout": 0.3}
    size = 16 // parts
    whole = batch_of(data, step, **settings)
    pieces = [batch_of(data, step, slice(k * size, (k + 1) * size), **settings) for k in range(parts)]
    labels = [piece.condition.index for piece in pieces if isinstance(piece.condition, Labels)]
    assert isinstance(whole.condition, Labels) and torch.equal(torch.cat(labels), whole.condition.index)
    for name in ("x0", "u", "noise"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name)), name


@pytest.mark.parametrize("draw", ["independent", "antithetic", "low-discrepancy"])
def test_times_and_noise_are_fresh_every_step(draw: str) -> None:
    """u in [0, 1) is uniform over many steps; noise is standard normal and differs by step, place and seed."""
    data = image_set(np.zeros((20, 8, 8, 1), np.uint8))
    batches = [batch_of(data, step, objective__draw=draw) for step in range(100)]
    u = torch.cat([batch.u for batch in batches]).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.sort(u) - (np.arange(1600) + 0.5) / 1600).max() < 1.63 / 40  # Kolmogorov-Smirnov at 1 %
    noise = torch.cat([batch.noise for batch in batches])
    assert len(noise.flatten(1)[:, 0].unique()) == 1600
    assert abs(noise.mean().item()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std().item() - 1) < 4 / (2 * noise.numel()) ** 0.5
    assert not torch.equal(batch_of(data, 0, training__seed=1).noise, batches[0].noise)


def test_flips_mirror_half_of_the_images() -> None:
    """An image comes as it is or mirrored left to right, half and half, and never otherwise; without flip never."""
    ramp = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.repeat(ramp[None, :, :, None], 9, 0))
    seen = pixels(batch_of(data, training__batch_size=4096, data__flip=True))
    mirrored = (seen == ramp[:, ::-1]).all((1, 2))
    assert (mirrored | (seen == ramp).all((1, 2))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 64
    assert (pixels(batch_of(data, training__batch_size=64)) == ramp).all()


def test_shifts_are_even_and_repeat_the_edge() -> None:
    """Each of the (2 s + 1)^2 shifts comes equally often, and is that window of the image with its edge repeated."""
    ramp = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.repeat(ramp[None, :, :, None], 9, 0))
    seen = pixels(batch_of(data, training__batch_size=2250, data__shift=2))
    index = np.arange(8)
    counts = []
    for y in range(-2, 3):
        for x in range(-2, 3):
            window = ramp[np.clip(index + y, 0, 7)][:, np.clip(index + x, 0, 7)]
            counts.append((seen == window).all((1, 2)).sum())
    assert sum(counts) == 2250
    assert np.abs(np.array(counts) - 90).max() < 5 * 90**0.5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_labels_are_dropped_in_their_share(share: float) -> None:
    """A share of the labels becomes "no class", one past the last; the others are the items' own."""
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    batch = batch_of(image_set(images, 3), training__batch_size=4000, training__label_dropout=share)
    assert isinstance(batch.condition, Labels)
    labels = batch.condition.index
    items = torch.from_numpy(pixels(batch)[:, 0, 0].astype(np.int64))
    dropped = labels == 3
    assert torch.equal(labels[~dropped], items[~dropped] % 3)
    assert abs(dropped.float().mean().item() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


def test_labels_are_dropped_whatever_else_is_drawn() -> None:
    """Of the items without a label half are mirrored, and noise levels, images and places have their shares."""
    rows = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.stack([rows, rows + 100])[:, :, :, None], 2)
    settings: Values = {"data__flip": True, "training__label_dropout": 0.3, "objective__draw": "independent"}
    batches = [batch_of(data, step, training__batch_size=4096, **settings) for step in range(2)]
    labels = torch.cat([batch.condition.index for batch in batches if isinstance(batch.condition, Labels)])
    dropped = (labels == 2).numpy()
    seen = np.concatenate([pixels(batch) for batch in batches])
    mirrored, second = seen[:, 0, 0] > seen[:, 0, 1], seen[:, 0, 0] >= 100
    early, first = torch.cat([batch.u for batch in batches]).numpy() < 0.3, np.arange(8192) < 4096
    for other in (mirrored, second, early, first):
        expected = dropped.mean() * other.mean()
        assert abs((dropped & other).mean() - expected) < 4 * (expected * (1 - expected) / 8192) ** 0.5
    assert not np.array_equal(dropped[:4096], dropped[4096:])


def test_no_two_draws_of_a_run_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of everything that steps and seeds draw: none comes twice."""
    from undiffuse import randomness
    from undiffuse.training import batches

    keys: list[tuple[int, ...]] = []

    def spied(make: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*key: int) -> Any:
            keys.append(tuple(map(int, key)))
            return make(*key)

        return spy

    monkeypatch.setattr(batches, "stream", spied(batches.stream))
    monkeypatch.setattr(batches, "torch_generator", spied(batches.torch_generator))
    monkeypatch.setattr(randomness, "stream", spied(randomness.stream))
    data = image_set(np.zeros((21, 8, 8, 1), np.uint8), 3)
    for seed in (70, 71):
        for step in range(3):
            batch_of(data, step, training__seed=seed, data__flip=True, data__shift=1)
    assert len(keys) == len(set(keys)) == 2 * (3 * (3 + 16) + 3)  # 3 permutations in 48 of 21 items
    own = {Purpose.ORDER, Purpose.TIME, Purpose.NOISE, Purpose.AUGMENT, Purpose.CONDITION}
    assert {purpose for _, purpose, *_ in keys} == own  # and so none of sampling's or of measuring's either


def test_unconditional_batches_have_no_labels() -> None:
    """training.conditional=false learns no classes, and data without labels have none."""
    images = np.zeros((20, 8, 8, 1), np.uint8)
    assert batch_of(image_set(images, 3), training__conditional=False).condition is None
    assert batch_of(image_set(images)).condition is None


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
