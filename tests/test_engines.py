"""What runs a network must not change what it says."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from torch import nn

from undiffuse import engines
from undiffuse.conditions import Labels, Several, known_pixels
from undiffuse.devices import placed
from undiffuse.engines import available, with_engine
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe, sample, states
from undiffuse.interop import onnx
from undiffuse.model import Model, load

needs_onnx = pytest.mark.skipif("onnxruntime" not in available(), reason="onnx, onnxscript or onnxruntime is missing")


@pytest.fixture(scope="module")
def model(whole: Path) -> Model:
    """A trained model with classes."""
    return load(whole)


@pytest.fixture(scope="module")
def fast(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same, run by ONNX Runtime; in a cache of its own, so that "auto" stays PyTorch for other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("onnx")))
        return with_engine(model, "onnxruntime")


@needs_onnx
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_onnx_runtime_says_what_pytorch_says(model: Model, fast: Model, batch: int) -> None:
    """At any batch size, with classes and without: to the rounding of float32 sums of some thousand terms."""
    x, log_snr = torch.randn(batch, 1, 16, 16), torch.linspace(-20, 20, batch)
    labels = Labels(torch.arange(batch) % 4, 3)
    for condition in (labels.dropped(), labels):
        with torch.no_grad():
            expected, found = (m.denoiser.network(x, log_snr, condition) for m in (model, fast))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("name", ["avatars/1-step", "emoji"])
def test_captions_are_inputs_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a student, and beside classes: with a sentence, with one that says something else, and without."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    model = load(name)
    fast = with_engine(model, "onnxruntime")
    first, other = (model.condition(range(start, start + 4)) for start in (0, 4))
    assert first is not None and other is not None
    if isinstance(first, Several):  # of a class too
        first = Several({**first.parts, "label": Labels(torch.tensor([0, 3, 5, 8]), 9)})
        with pytest.raises(ValueError, match="takes a Several, not a Labels"):
            fast.denoiser(torch.zeros(4, *model.domain.shape), 0.7, first.parts["label"])
    noise, images = torch.randn(4, *model.domain.shape), []
    for condition in (first, other, first.dropped(), first.dropped(torch.tensor([True, False, True, False]))):
        ends = []
        for one in (model, fast):
            with torch.no_grad():
                jumps = one.config.network.jumps
                made = one.denoiser.jump(noise, 1.0, 0.0, condition) if jumps else one.denoiser(noise, 0.7, condition)
            ends.append(made.x0)
        torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)
        images.append(ends[1])
    assert all(not torch.allclose(images[0], image, atol=1e-2) for image in images[1:]), "the condition is heard"
    metadata = onnx.open_session(next(tmp_path.rglob("*.onnx")), 1).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["takes"])["kind"] == model.data.takes.kind  # type: ignore[union-attr]


@needs_onnx
def test_what_is_known_is_an_input_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside a sentence; what is hidden is not heard, and without any, nothing is known."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    model = load("avatars")
    fast = with_engine(model, "onnxruntime")
    x, noise = torch.randn(2, 3, *model.domain.shape)
    sentences, repaint = model.condition(range(3)), torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    repaint[..., 10:20, 5:30] = True
    assert sentences is not None
    for condition in (sentences, sentences.dropped()):
        shown = [known_pixels(condition, where, repaint) for where in (x, torch.where(repaint, 9.0, x), -x)]
        ends = []
        for given in (*shown, condition):
            with torch.no_grad():
                expected, found = (one.denoiser(noise, 0.7, given).x0 for one in (model, fast))
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
            ends.append(found)
        assert torch.equal(ends[0], ends[1])
        assert all(not torch.allclose(ends[0], end, atol=1e-2) for end in ends[2:])


@needs_onnx
def test_a_network_of_values_is_the_same_elsewhere(
    likelihood: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The preset `likelihood`, census and filters, in ONNX Runtime: the x_0 that it means, at any noise and batch."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    model = load(likelihood)
    fast = with_engine(model, "onnxruntime")
    times = torch.tensor([1e-3, 0.3, 0.7, 1.0], dtype=torch.float64)
    x0 = torch.randint(0, 256, (4, 1, 16, 16)) / 127.5 - 1
    x = model.denoiser.process.marginal(x0, times).at(torch.randn(4, 1, 16, 16))
    with torch.no_grad():
        expected, found = (m.denoiser(x, times, m.unconditional(4)).x0 for m in (model, fast))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@needs_onnx
def test_an_engine_changes_neither_the_model_nor_its_samples(model: Model, fast: Model) -> None:
    assert (fast.engine, fast.fingerprint, fast.parameters) == ("onnxruntime", model.fingerprint, model.parameters)
    recipe = Recipe(steps=8)
    ends = [list(states(m, recipe, range(6), m.condition(range(6))))[-1].x for m in (model, fast)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-3)
    images = [sample(m, 6, steps=8, engine=m.engine).astype(int) for m in (model, fast)]
    assert np.abs(images[0] - images[1]).max() <= 1


@needs_onnx
def test_going_back_to_torch_is_exact(model: Model, fast: Model) -> None:
    back = with_engine(fast, "torch")
    assert back.engine == "torch" and back.denoiser.network is model.network


@needs_onnx
def test_auto_turns_a_network_into_onnx_when_that_pays_and_then_keeps_to_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    assert with_engine(model, "auto", evaluations=100).engine == "torch"
    assert with_engine(model, "auto", evaluations=engines.WORTH).engine == "onnxruntime"
    assert with_engine(model, "auto", evaluations=1).engine == "onnxruntime"


def test_without_onnx_auto_is_torch_and_asking_says_what_to_install(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    real = importlib.util.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert with_engine(model).engine == "torch"
    with pytest.raises(UsageError, match=r"pip install .undiffuse\[onnx\]"):
        with_engine(model, "onnxruntime")
    with pytest.raises(UsageError, match="choose from"):
        with_engine(model, "tensorrt")


@needs_onnx
def test_export_writes_a_file_that_says_what_it_is(command: Command, whole: Path, tmp_path: Path) -> None:
    code, out, err = command("export", whole, "--format", "onnx", "--out", tmp_path / "network.onnx")
    assert code == 0, err
    assert "network.onnx" in out
    session = onnx.open_session(tmp_path / "network.onnx", 1)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["dark", "grey", "bright"]
    assert json.loads(metadata["undiffuse"])["denoiser"]["target"] == "edm"
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [
        ("x", [1, 16, 16]),
        ("log_snr", []),
        ("labels", []),
    ]


@needs_onnx
def test_a_file_that_disagrees_with_pytorch_is_not_written(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx, "LARGEST_DIFFERENCE", 1e-12)
    with pytest.raises(UndiffuseError, match="differs from PyTorch"):
        onnx.export_onnx(model, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_a_compiled_network_says_what_pytorch_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without a compiler of C++, which not every machine has; what is ours is how it is called."""
    real: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, mode: real(module, backend="eager"))
    compiled = with_engine(model, "compile")
    assert compiled.fingerprint == model.fingerprint
    x, log_snr = torch.randn(2, 1, 16, 16), torch.zeros(2)
    labels = Labels(torch.tensor([0, 3]), 3)
    for condition in (labels.dropped(), labels):
        with torch.no_grad():
            torch.testing.assert_close(
                compiled.denoiser.network(x, log_snr, condition), model.network(x, log_snr, condition), rtol=0, atol=0
            )


def test_weights_are_laid_out_for_the_device(model: Model) -> None:
    """On the CPU as they come; channels last, as on a GPU, gives the same outputs."""
    conv = placed(nn.Conv2d(4, 4, 3), "cpu").weight
    assert conv.is_contiguous()
    x, log_snr = torch.randn(2, 1, 16, 16), torch.zeros(2)
    with torch.no_grad():
        any_class = model.unconditional(2)
        expected = model.network(x, log_snr, any_class)
        network = load(model.name).network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.testing.assert_close(network(x, log_snr, any_class), expected, rtol=1e-4, atol=1e-5)


def test_the_fingerprint_knows_the_grids(model: Model) -> None:
    """They decide samples, which are cached by it."""
    tuned = dataclasses.replace(model, grids={"dpm++2m:3": (-2.0, 2.0)})
    assert tuned.fingerprint != model.fingerprint
