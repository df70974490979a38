"""A GPU computes what the CPU does; skipped without one. Run these by themselves: pytest tests/test_cuda.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_data

from undiffuse.config import preset, written
from undiffuse.editing.rows import edit
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.guide import request
from undiffuse.model import Model, load
from undiffuse.training import train
from undiffuse.writing import Writing, infill, rewrite, write

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LEVELS = 2  # of 255: float32 sums in another order, through all steps


def drawn(model: Model, recipe: Recipe, **asked: Any) -> np.ndarray:
    condition = request(model, 8, model.condition(range(8)), **asked)
    return np.concatenate(list(generate(model, recipe, range(8), condition)))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m", "ddpm"])
def test_samples_are_those_of_the_cpu(sampler: str) -> None:
    recipe = Recipe(sampler, 8, guidance=Guidance(2.0))
    cpu, gpu = (drawn(load("fashion-mnist", device), recipe, classes=["Bag"]) for device in ("cpu", "cuda"))
    assert apart(cpu, gpu) <= LEVELS


def test_edits_are_those_of_the_cpu() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    repaint = np.zeros((28, 28), dtype=bool)
    repaint[:14] = True
    found = []
    for device in ("cpu", "cuda"):
        model = load("fashion-mnist", device)
        found.append(edit(model, rows, Recipe(steps=6), model.unconditional(4), strength=0.8, repaint=repaint))
    assert apart(*found) <= LEVELS


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_is_that_of_the_cpu(optimizer: str, tmp_path: Path) -> None:
    """The same weights to rounding after some steps, in float32."""
    settings = {**TINY, "training.optimizer": optimizer, "training.steps": 3}
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={written(value)}")]
    data, found = write_data(tmp_path / "tiny.npz"), {}
    for name, visible in (("gpu", "0"), ("cpu", "")):
        command = [sys.executable, "-m", "undiffuse", "train", str(data), "--out", str(tmp_path / name), *given]
        subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": visible})
        found[name] = load(tmp_path / name, "cpu").network.state_dict()
    for name, tensor in found["cpu"].items():
        apart = (found["gpu"][name] - tensor).abs() > 1e-4 + 1e-3 * tensor.abs()
        assert apart.float().mean() < 2e-3, name  # Adam's steps have the sign of gradients that are 0 but for rounding


def test_texts_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Trained on the GPU, then written, filled in and rewritten on both: float32 rounding may flip a rare draw."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat.\nmy dog sat on the hill.\n" * 30)
    settings = preset("text") | {"data.source": str(path), "data.length": 32, "training.steps": 5}
    train(settings | {"network.channels": (64,), "training.precision": "fp32"}, tmp_path / "run", report=lambda _: None)
    tokens = np.arange(40) % 8
    found = []
    for device in ("cpu", "cuda"):
        model = load(tmp_path / "run", device)
        found.append(
            np.concatenate(
                [
                    write(model, Writing(), range(4), tokens[:5], 40),
                    infill(model, Writing("remdm", 8), range(4), tokens, tokens == 3),
                    rewrite(model, Writing("ancestral", 8), range(4), tokens, 0.5),
                ]
            )
        )
    assert np.mean(found[0] == found[1]) > 0.95
