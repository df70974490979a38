"""The FID's Inception against torch-fidelity's port of it, on random weights; its resize; the files it refuses."""

import hashlib
import os
import random
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.metrics.features import inception
from undiffuse.metrics.features.inception import InceptionV3, load_inception, resize_tf1


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights that keep the activations of every layer of order one; no counts of batches, as in some files."""
    generator = torch.Generator().manual_seed(0)

    def random(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("running_var"):
            return 0.5 + torch.rand(shape, generator=generator)
        if name.endswith("bn.weight"):
            return 0.8 + 0.4 * torch.rand(shape, generator=generator)
        scale = (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.1
        return scale * torch.randn(shape, generator=generator)

    with torch.device("meta"):
        state = InceptionV3().state_dict()
    return {name: random(name, tensor.shape) for name, tensor in state.items() if "num_batches" not in name}


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def ours(file: Path) -> InceptionV3:
    return load_inception(str(file))[0]


@pytest.fixture(scope="module")
def fidelity() -> Iterator[ModuleType]:
    """torch-fidelity's module of Inception. The package imports torchvision, of which this needs nothing: a stub."""
    names = ["", ".datasets", ".transforms", ".transforms.functional"]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, f"torchvision{name}", MagicMock())
        module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def theirs(fidelity: ModuleType, file: Path) -> nn.Module:
    return fidelity.FeatureExtractorInceptionV3("test", ["2048", "logits_unbiased"], str(file))


def outputs(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What torch-fidelity has in the places of `Features`. uint8 (N, H, W, 3), as ours."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
        for name in ("Mixed_6d.branch1x1", "AvgPool")
    ]
    try:
        _, logits = network(images.permute(0, 3, 1, 2))
    finally:
        for hook in hooks:
            hook.remove()
    spatial = seen["Mixed_6d.branch1x1"].movedim(1, -1)[..., :7]
    return seen["AvgPool"].flatten(1), spatial.reshape(len(images), -1), logits


@torch.inference_mode()
def test_the_network_is_torch_fidelitys(fidelity: ModuleType, file: Path) -> None:
    """In float64, on 299 x 299 where the resize is exact: the same function. Its logits come as float32."""
    network = load_inception(str(file))[0].double()
    images = pictures(1, 299, 299, 3)
    ours = network.features((images.permute(0, 3, 1, 2).double() - 128) / 128)
    names = ["2048", "logits_unbiased"]
    theirs = fidelity.FeatureExtractorInceptionV3("test", names, str(file)).double()
    theirs.feature_extractor_internal_dtype = torch.float64  # its own argument for this gives float32 in 0.4.0
    pooled, spatial, logits = outputs(theirs, images)
    for features in (pooled, spatial, logits):  # or the comparison would mean little
        assert 0.1 < features.std() < 10
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.spatial, spatial, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.logits.float(), logits, rtol=2**-23, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (1, 40, 24, 3), (1, 320, 16, 3)])
@torch.inference_mode()
def test_images_become_torch_fidelitys_features(shape: tuple[int, ...], ours: InceptionV3, theirs: nn.Module) -> None:
    """From uint8 of any size, in float32: 1e-4 where features are of order one, some hundred roundings of 6e-8 deep."""
    images = pictures(*shape)
    features = ours(images)
    for mine, expected, width in zip(features, outputs(theirs, images), (2048, 2023, 1008), strict=True):
        assert mine.shape == (shape[0], width) and mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_grey_is_repeated_and_a_batch_is_its_images(ours: InceptionV3) -> None:
    grey = pictures(2, 28, 28, 1)
    both, alone = ours(grey.expand(-1, -1, -1, 3)), ours(grey[1:])
    for together, one in zip(both, alone, strict=True):
        torch.testing.assert_close(together[1:], one, rtol=1e-4, atol=1e-4)


def test_the_architecture_is_the_graphs() -> None:
    """torchvision's Inception v3, the same but for the head, is known to have 23,834,568 weights for 1000 classes.

    94 convolutions with a batch norm each. By hand: the first convolution is 3*32*9; the first block has
    192*(64+48+64+32) + 48*64*25 + 64*96*9 + 96*96*9 weights in convolutions, and 64+48+64+64+96+96+32 channels.
    """
    with torch.device("meta"):
        network = InceptionV3()
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    assert len(state) == 94 * 5 + 2
    assert sum(weight.numel() for weight in network.parameters()) == 23_834_568 + 8 * (2048 + 1)
    assert sum(tensor.numel() for tensor in state.values()) == 23_885_392  # with running means and variances
    first = [tensor.numel() for name, tensor in state.items() if name.startswith("Mixed_5b.") and "conv" in name]
    assert sum(first) == 192 * (64 + 48 + 64 + 32) + 48 * 64 * 25 + 64 * 96 * 9 + 96 * 96 * 9
    assert state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert state["Mixed_6d.branch1x1.conv.weight"].shape == (192, 768, 1, 1)
    assert state["Mixed_6d.branch7x7_2.conv.weight"].shape == (160, 160, 1, 7)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["fc.weight"].shape == (1008, 2048)
    assert all(module.eps == 1e-3 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def columns(*values: float, rows: int = 2) -> Tensor:
    """(1, 1, rows, len(values)): the values from left to right, the same in every row."""
    return torch.tensor(values, dtype=torch.float64).expand(1, 1, rows, -1)


def test_resize_reads_output_i_at_i_in_over_out() -> None:
    """No half-pixel centres, the edge repeated, no antialiasing; across and downwards alike."""
    for given, size, expected in [
        ((0, 1), 4, (0, 0.5, 1, 1)),
        ((0, 1, 2), 6, (0, 0.5, 1, 1.5, 2, 2)),
        ((7, 1, 3, 8), 2, (7, 3)),
        ((0, 4, 6), 2, (0, 5)),
        ((5,), 3, (5, 5, 5)),
    ]:
        across = resize_tf1(columns(*given), size)
        assert (across == columns(*expected, rows=size)).all()
        assert (resize_tf1(columns(*given).mT, size) == across.mT).all()


@pytest.mark.parametrize("inputs", [1, 28, 32, 64, 299, 512])
def test_resize_of_ramps_and_constants(inputs: int) -> None:
    """A ramp is read where it says, up to its end; a constant stays itself; at the same size nothing changes.

    Coordinates are float32: 2^-24 of at most `inputs`, twice (for in / out, and for the product).
    """
    ramp = resize_tf1(columns(*range(inputs)), 299)
    expected = (torch.arange(299, dtype=torch.float64) * inputs / 299).clamp(max=inputs - 1)
    torch.testing.assert_close(ramp, expected.expand_as(ramp), rtol=0, atol=inputs * 2**-23)
    constant = resize_tf1(torch.full((1, 1, inputs, 20), 200.0), 299)
    torch.testing.assert_close(constant, torch.full_like(constant, 200.0), rtol=2**-22, atol=0)
    x = pictures(1, 3, inputs, inputs).float()
    assert (resize_tf1(x, inputs) == x).all()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 40, 24), (1, 1, 500, 300)])
def test_resize_is_torch_fidelitys(fidelity: ModuleType, shape: tuple[int, ...]) -> None:
    """The same float32 coordinates, so the same values to a few roundings of 255."""
    x = pictures(*shape).float()
    expected = fidelity.interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    torch.testing.assert_close(resize_tf1(x, 299), expected, rtol=0, atol=4 * 255 * 2**-24)


def test_files_with_and_without_counts_load(weights: dict[str, Tensor], file: Path, tmp_path: Path) -> None:
    """.pth and .safetensors, in eval mode, without gradients; the hash is sha256sum's; no random numbers are used."""
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(3) for name in weights if "mean" in name
    }
    save_file({**weights, **counts}, tmp_path / "weights.safetensors")
    before = torch.get_rng_state()
    for path in (file, tmp_path / "weights.safetensors"):
        network, digest = load_inception(str(path))
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        state = network.state_dict()
        assert all((state[name] == tensor).all() for name, tensor in weights.items())
        assert state.keys() == weights.keys() | counts.keys()
        assert not any(module.training for module in network.modules())
        assert not any(weight.requires_grad for weight in network.parameters())
    assert (torch.get_rng_state() == before).all()


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_inception(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_other_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """In a line that names what is wrong first."""
    few = {name: tensor for name, tensor in weights.items() if name.startswith("Conv2d_1a")}
    some = {name: tensor for name, tensor in weights.items() if name != "Mixed_6d.branch1x1.bn.bias"}
    for state, reason in [
        (some, "Mixed_6d.branch1x1.bn.bias is missing"),
        (few, "Conv2d_2a_3x3.conv.weight is missing (and 466 more)"),
        ({**weights, "AuxLogits.fc.bias": torch.zeros(8)}, "AuxLogits.fc.bias does not belong there"),
        ({**weights, "fc.bias": torch.zeros(1000)}, "fc.bias has shape (1000,), not (1008,)"),
        ({**weights, "fc.bias": 0.5}, "something else"),
        ([1, 2, 3], "something else"),
    ]:
        torch.save(state, tmp_path / "other.pth")
        assert refused(tmp_path / "other.pth").endswith(reason)


class Evil:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(zipped: bool, tmp_path: Path) -> None:
    """In either of torch's formats."""
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"fc.bias": Evil(ran)}, path, _use_new_zipfile_serialization=zipped)
    assert "more than tensors" in refused(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # it would have


def test_what_is_no_file_of_weights_is_refused(file: Path, tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "absent.pth")
    assert "there is no file" in refused(tmp_path)
    for name in ("bad.pth", "bad.safetensors"):
        for content in (b"", b"hello, world", bytes(100), random.Random(0).randbytes(100), file.read_bytes()[:10_000]):
            (tmp_path / name).write_bytes(content)
            assert "not a file of weights" in refused(tmp_path / name)


def test_without_a_path_torch_hub_is_asked(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its cache is used, offline; a damaged one is not; without one the error says what to do."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UndiffuseError, match=r"no route to host[\s\S]*--features inception:FILE") as caught:
        load_inception(None)
    assert not isinstance(caught.value, UsageError)

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for sha256 in (digest, "0" * 64):
        monkeypatch.setattr(inception, "URL", f"https://example.invalid/weights-{sha256[:8]}.pth")
        cached = tmp_path / "hub" / "checkpoints" / f"weights-{sha256[:8]}.pth"
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.symlink_to(file)
        if sha256 == digest:
            assert load_inception(None)[1] == digest
        else:
            with pytest.raises(UndiffuseError, match="checksum"):
                load_inception(None)
