"""The Inception-v3 of the FID against torch-fidelity's, with the same random weights."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.metrics.features.inception import InceptionV3, inception, resize_tf1


@pytest.fixture
def fidelity() -> Iterator[types.ModuleType]:
    """torch_fidelity, whose package wants torchvision on import and not for this."""
    pytest.importorskip("torch")
    stubs = ["torchvision", *(f"torchvision.{name}" for name in ("datasets", "transforms", "transforms.functional"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in stubs:
            patch.setitem(sys.modules, name, MagicMock())
        yield pytest.importorskip("torch_fidelity")
        for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """Random weights and statistics; the scales keep activations near 1 through the depth."""
    torch.manual_seed(0)
    network = InceptionV3().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.requires_grad_(False)


def images(height: int, width: int) -> Tensor:
    return torch.randint(256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_torch_fidelity(network: InceptionV3, fidelity: types.ModuleType, tmp_path: Path) -> None:
    """Pooled features, logits and the first branch of Mixed_6d, in float64: equal to rounding."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(network.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"), "float64")
    theirs = theirs.double()
    theirs.feature_extractor_internal_dtype = torch.float64  # its "float64" is float32
    seen: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: seen.append(out))
    theirs.AvgPool.register_forward_hook(lambda module, given, out: seen.append(out.flatten(1)))
    x = images(299, 299)  # no resize: that is the next test's
    ours = network.double()(x)
    network.float()
    _, logits = theirs(x.permute(0, 3, 1, 2))
    spatial, pooled = seen
    pairs = (ours.pooled, pooled, 1e-10), (ours.spatial, spatial[:, :7].flatten(1), 1e-10), (ours.logits, logits, 1e-6)
    for mine, reference, tolerance in pairs:  # its logits come back as float32
        scale = reference.double().abs().max()
        assert scale > 1e-3
        torch.testing.assert_close(mine / scale, reference.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(28, 28), (40, 24), (299, 299), (512, 400)])
def test_resize_is_tensorflows(fidelity: types.ModuleType, shape: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = images(*shape).permute(0, 3, 1, 2).float()
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(resize_tf1(x, 299), theirs, rtol=0, atol=1e-4)  # float32 sums of values to 255


def test_resize_of_a_ramp() -> None:
    """Value 10 i at place i gives 10 i H / size at output i, and the last pixel beyond the last."""
    ramp = (10 * torch.arange(4.0, dtype=torch.float64)).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 5, 10, 15, 20, 25, 30, 30], dtype=torch.float64)
    assert torch.equal(resize_tf1(ramp, 8)[0, 0, 3], expected)
    assert torch.equal(resize_tf1(ramp, 4), ramp)


def test_size_and_names(network: InceptionV3) -> None:
    """The graph's 21,785,568 parameters without the classifier (Keras counts 21,802,784 with 17,216 variances that
    are no parameters here and no scale, which the file has), and 1008 logits of 2048 inputs."""
    scales = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    total = sum(parameter.numel() for parameter in network.parameters())
    assert scales == 17_216
    assert total - scales - (2048 + 1) * 1008 == 21_802_784 - 2 * 17_216
    assert "Mixed_7c.branch3x3dbl_3b.bn.running_var" in network.state_dict()


def test_files(network: InceptionV3, tmp_path: Path) -> None:
    """Other weights than the original are read, and not called FID; anything else is refused in a line."""
    weights = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "own.pth")
    extractor = inception(str(tmp_path / "own.pth"))
    assert not extractor.is_fid and "own.pth" in extractor.name
    assert extractor.extract(images(16, 16)[..., :1]).pooled.shape == (2, 2048)

    with pytest.raises(UsageError, match="no such file"):
        inception(str(tmp_path / "none.pth"))
    torch.save({"fc.bias": weights["fc.bias"]}, tmp_path / "part.pth")
    with pytest.raises(UsageError, match="do not fit"):
        inception(str(tmp_path / "part.pth"))

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UsageError, match="not a file of weights"):
        inception(str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "executed").exists()


def test_the_name_of_a_file_does_not_make_a_fid(
    network: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights under the original's name in torch's cache are told by their sha256; a damaged file is refused."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    file.parent.mkdir()
    torch.save(network.state_dict(), file)
    assert not inception().is_fid
    for content in (b"", b"hello, world", file.read_bytes()[:5000]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="not a file of weights"):
            inception()
