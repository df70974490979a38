"""Domains: rows and x_0, both ways; and one from outside of the package, trained, saved, loaded, drawn and written."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, ignore
from torch import Tensor

from undiffuse import output
from undiffuse.card import read_card
from undiffuse.config import DataConfig, make_config
from undiffuse.data import ImageSet
from undiffuse.domains import DOMAINS, domain_of
from undiffuse.domains.pictures import Pictures
from undiffuse.domains.points import Points
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.evaluation import density, evaluate
from undiffuse.explain import work
from undiffuse.generate import Recipe, generate, sample
from undiffuse.model import load
from undiffuse.networks import MLP, UNet
from undiffuse.randomness import BatchDraw
from undiffuse.training import train
from undiffuse.training.batches import make_batch

LENGTH = 12
SELDOM = {f"training.{what}_every": 1000 for what in ("log", "checkpoint", "preview")}


@dataclasses.dataclass(frozen=True)
class Bits:
    """Sequences of 0 and 1: uint8 rows (N, L), x_0 (N, 1, L) of -1 and 1."""

    stored: tuple[int, ...]
    values = 2
    noun = "bits"
    suffix = ".txt"
    bounded = True
    features = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.stored)

    def check(self, settings: DataConfig) -> None:
        pass

    def augment(self, rows: np.ndarray, settings: DataConfig, draw: Any) -> np.ndarray:
        return np.where(draw.uniform()[:, None] < 0.5, rows[:, ::-1], rows) if settings.flip else rows

    def encode(self, rows: np.ndarray) -> Tensor:
        return 2 * torch.from_numpy(np.array(rows))[:, None].float() - 1

    def decode(self, x0: Tensor) -> np.ndarray:
        return (x0[:, 0] > 0).byte().cpu().numpy()

    def save(self, row: np.ndarray, path: Path) -> None:
        path.write_text("".join(map(str, row)))

    def show(self, rows: np.ndarray, path: Path) -> None:
        Pictures((*rows.shape, 1)).save(255 * rows[..., None], path)


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """A data set of them: words of one bit twelve times. The domain goes when the test does."""
    monkeypatch.setattr(DOMAINS, "_entries", dict(DOMAINS._entries))
    DOMAINS.add("bits", f"{__name__}:Bits")
    rows = np.repeat(np.arange(64, dtype=np.uint8)[:, None] % 2, LENGTH, axis=1)
    return ImageSet("all-alike", "train", rows, None, (), (), "", "of bits", domain="bits")


def test_every_value_of_a_picture_and_back() -> None:
    """v / 127.5 - 1 to the last bit of float32, every value in its place, from any floating dtype."""
    rows = np.random.default_rng(0).permutation(np.arange(256 * 15) % 256).astype(np.uint8).reshape(64, 4, 5, 3)
    domain = Pictures((4, 5, 3))
    x0 = domain.encode(rows)
    assert domain.shape == (3, 4, 5) == x0.shape[1:] and x0.dtype == torch.float32
    assert x0[7, 2, 3, 1].item() == np.float32(rows[7, 3, 1, 2]) / np.float32(127.5) - np.float32(1)
    assert (x0.min(), x0.max()) == (-1, 1)
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(domain.decode(x0.to(dtype)), rows)
    again = domain.encode(domain.decode(x0))
    assert torch.equal(again, x0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 1), (7, 3, 3), (1, 9, 3)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_of_odd_shapes_go_there_and_back(shape: tuple[int, ...], count: int) -> None:
    """Also none, and rows that lie in memory in another order."""
    rows = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    domain = Pictures(shape)
    for view in (rows, rows[::-1], np.asfortranarray(rows)):
        assert np.array_equal(domain.decode(domain.encode(view)), view)


def test_between_values_the_nearest_wins_and_outside_the_ends() -> None:
    """What samplers leave is not on the values."""
    x = (torch.arange(256) + 0.4).clamp(max=255).view(1, 1, 16, 16) / 127.5 - 1
    assert Pictures((16, 16, 1)).decode(x).ravel().tolist() == list(range(256))
    assert Pictures((1, 2, 1)).decode(torch.tensor([-7.0, 7.0]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]


def test_points_are_what_they_are(tmp_path: Path) -> None:
    """To the last bit, in memory and in their file."""
    rows = np.random.default_rng(0).uniform(-1, 1, (9, 3)).astype(np.float32)
    domain = Points((3,))
    assert np.array_equal(domain.decode(domain.encode(rows)), rows)
    domain.save(rows[0], tmp_path / "p.txt")
    assert np.array_equal(np.loadtxt(tmp_path / "p.txt", dtype=np.float32), rows[0])
    for shape in ((3,), (1,)):
        Points(shape).show(rows[:, : shape[0]], tmp_path / "p.png")


@pytest.mark.parametrize(("domain", "shape"), [("pictures", (4, 4)), ("pictures", (4, 4, 2)), ("points", (4, 4, 1))])
def test_rows_of_another_shape_are_refused(domain: str, shape: tuple[int, ...]) -> None:
    data = ImageSet("odd", "train", np.zeros((2, *shape), np.uint8), None, (), (), "", "", domain=domain)
    with pytest.raises(ValueError, match=r"have a shape|channels"):
        domain_of(data)


def test_a_domain_from_outside_of_the_package(bits: ImageSet, tmp_path: Path) -> None:
    """From a batch to samples in files, with the 1-D U-Net; what there is to learn is learnt."""
    values = {**TINY, "training.steps": 120, "training.learning_rate": 1e-2, "data.flip": True, **SELDOM}
    config = make_config({**values, "training.batch_size": 16})
    whole = make_batch(config, bits, 3, slice(0, 16))
    half = make_batch(config, bits, 3, slice(8, 16))
    assert whole.x0.shape == (16, 1, LENGTH) and torch.equal(half.x0, whole.x0[8:])
    outcome = train(values, tmp_path / "run", data=bits, report=ignore)
    card = json.loads((outcome.checkpoint / "model.json").read_text())
    assert card["data"]["domain"] == "bits" and card["data"]["shape"] == [LENGTH]
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    assert train({}, tmp_path / "run", data=bits, resume=True, report=ignore).finished
    model = load(tmp_path / "run", "cpu")
    assert isinstance(model.network, UNet) and isinstance(model.domain, Bits)
    (rows,) = generate(model, Recipe(steps=20), range(32))
    alike = [(rows.sum(1) == count).sum() for count in (0, LENGTH)]
    assert rows.shape == (32, LENGTH) and sum(alike) > 25 and min(alike) > 4  # by chance one in 2000 is
    output.write(tmp_path / "samples", model.domain, rows, None, ())
    assert (tmp_path / "samples" / "000003.txt").read_text() == "".join(map(str, rows[3]))
    output.write(tmp_path / "samples.npz", model.domain, rows, None, ())
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["bits"], rows)


def test_what_is_for_pictures_is_refused_in_words(bits: ImageSet, tmp_path: Path) -> None:
    train({**TINY, "training.steps": 1}, tmp_path, data=bits, report=ignore)
    model = load(tmp_path, "cpu")
    with pytest.raises(UsageError, match="bits"):
        density(model)
    with pytest.raises(UsageError, match="bits"):
        next(evaluate(tmp_path, n=4))
    with pytest.raises(UsageError, match="bits"):
        work(model, 4)
    with pytest.raises(UsageError, match="256 values, which bits"):
        train(
            {**TINY, "denoiser.target": "categorical", "objective.loss": "continuous-bound"}, tmp_path / "x", data=bits
        )
    with pytest.raises(UsageError, match="for pictures"):
        train({**TINY, "network.head": 8}, tmp_path / "y", data=bits)


def test_points_are_learnt_by_an_mlp(tmp_path: Path) -> None:
    """Four points are found again, by all samples and all of them."""
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]], np.float32)
    data = ImageSet("corners", "train", np.tile(corners, (16, 1)), None, (), (), "", "corners", domain="points")
    settings: dict[str, Any] = {"network.kind": "mlp", "network.channels": (64,), "training.steps": 600, **SELDOM}
    train(
        {**TINY, **settings, "training.learning_rate": 1e-2, "training.batch_size": 64},
        tmp_path,
        data=data,
        report=ignore,
    )
    model = load(tmp_path, "cpu")
    assert isinstance(model.network, MLP)
    rows = sample(model, 64, steps=20)
    nearest = np.abs(rows[:, None] - corners).max(2)
    assert (nearest.min(1) < 0.25).mean() > 0.9 and len(np.unique(nearest.argmin(1))) == 4
    with pytest.raises(UsageError, match=r"network\.kind=unet"):
        train(TINY, tmp_path / "unet", data=data)
    with pytest.raises(UsageError, match=r"data\.flip is for pictures"):
        train({**TINY, **settings, "data.flip": True}, tmp_path / "flip", data=data)


def test_folders_of_before_hold_pictures_and_unknown_domains_are_refused(whole: Path, tmp_path: Path) -> None:
    """A card without a domain reads as before; one of a domain that is not here names those that are."""
    folder = sorted(whole.glob("checkpoints/*"))[-1]
    card = json.loads((folder / "model.json").read_text())
    assert card["data"].pop("domain") == "pictures"
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert read_card(tmp_path).data == read_card(folder).data
    card["data"]["domain"] = "sculptures"
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UndiffuseError, match=r"no domain 'sculptures'.*pictures"):
        read_card(tmp_path)


def test_the_page_about_domains_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file, and then what trains with it."""
    monkeypatch.setattr(DOMAINS, "_entries", dict(DOMAINS._entries))
    page = Path(__file__).parents[1] / "docs" / "extending-domain.md"
    module, training = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "bits.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace = vars(importlib.import_module("bits"))
    exec(training, dict(namespace))
    assert sample("run", 4, steps=3).shape == (4, 16)
    monkeypatch.delitem(sys.modules, "bits")


def test_the_numbers_of_a_shift_are_down_and_then_right() -> None:
    """The same seed gives the same pictures ever after: first who is mirrored, then for each how far down and right."""
    rows = np.random.default_rng(0).integers(0, 256, (9, 5, 7, 1), dtype=np.uint8)
    moved = Pictures((5, 7, 1)).augment(rows, DataConfig(shift=2), BatchDraw(np.random.default_rng(1), 9, slice(None)))
    random = np.random.default_rng(1)
    random.random(9)
    y, x = np.arange(5), np.arange(7)
    for row, result, (down, right) in zip(rows, moved, random.integers(-2, 3, (9, 2)), strict=True):
        assert np.array_equal(result, row[(y + down).clip(0, 4)][:, (x + right).clip(0, 6)])
