"""The pictures of a lecture, from a tiny run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ignore, write_data
from PIL import Image

from undiffuse.explain import draw, work
from undiffuse.model import checkpoints, load, with_process
from undiffuse.plots import curves, grid_of, save_image, strips
from undiffuse.training import train


def test_explain_writes_every_picture_it_names(whole: Path, tmp_path: Path) -> None:
    """Each picture is there, opens and shows something; nothing else is there; the ticks fill the bar."""
    model, ticks = load(whole), []
    model = with_process(model, steps=100)
    pictures = list(draw(model, tmp_path / "lecture", 2, 0, ticks.append))
    assert sum(ticks) == work(model, 2)
    assert sorted(path.name for path, _ in pictures) == sorted(p.name for p in (tmp_path / "lecture").iterdir())
    assert len(pictures) == 6
    for path, caption in pictures:
        assert caption.endswith(".")
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 100 and len(np.unique(pixels)) > 20


@pytest.mark.parametrize(
    "values",
    [
        {"process.steps": 40},
        {
            "process.steps": 100,
            "denoiser.learned_variance": True,
            "objective.loss": "bound",
            "objective.variance": "learned",
        },
    ],
    ids=["few steps", "learned variance"],
)
def test_explain_takes_any_model(tiny: dict[str, Any], tmp_path: Path, values: dict[str, Any]) -> None:
    """A table with few steps, a learned variance, data that are gone: the lecture is still held."""
    source = write_data(tmp_path / "data.npz")
    train({**tiny, "data.source": str(source), "training.steps": 1, **values}, tmp_path / "run", report=ignore)
    source.unlink()
    assert checkpoints(tmp_path / "run")
    pictures = list(draw(load(tmp_path / "run"), tmp_path / "out", 2, 0, lambda part: None))
    assert len(pictures) == 6
    assert "not here" in pictures[0][1]


def test_a_grid_puts_every_image_in_its_place() -> None:
    """Row by row, a margin of two, the rest background."""
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    sheet = grid_of(images, 3)
    assert sheet.shape == (2 * 5 + 2, 3 * 6 + 2, 1)
    for k in range(5):
        y, x = 2 + k // 3 * 5, 2 + k % 3 * 6
        assert (sheet[y : y + 3, x : x + 4] == k).all()
    assert (sheet == 255).sum() == sheet.size - 5 * 12


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_saved_as_it_is(tmp_path: Path, channels: int) -> None:
    """PNG loses nothing; enlarging repeats pixels."""
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    save_image(image, tmp_path / "x.png", scale=3)
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture).reshape(15, 18, channels)
    assert np.array_equal(pixels, image.repeat(3, 0).repeat(3, 1))


def test_figures_take_rows_of_any_length_and_colour(tmp_path: Path) -> None:
    """Short rows are padded, colour is kept, infinite values leave a gap."""
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[..., 0] = 255
    strips([("a", images), ("b", images[:1])], ["1", "2", "3"], "title", tmp_path / "strips.png")
    with Image.open(tmp_path / "strips.png") as picture:
        assert (np.asarray(picture.convert("RGB")) == [255, 0, 0]).all(-1).mean() > 0.05
    x = np.linspace(0, 1, 5)
    curves([("t", "x", {"line": (x, np.append(x[:4], np.inf))})], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
