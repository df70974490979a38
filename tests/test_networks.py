"""The networks' own arithmetic."""

import pytest
import torch

from undiffuse.build import make_network
from undiffuse.conditions import Labels, label_encoder
from undiffuse.config import make_config
from undiffuse.networks import PixelUNet, current_name, unet


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7)])
def test_attention_is_that_of_its_definition_either_way(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax over all pixels of the scaled products, head by head (Vaswani et al. 2017, eq. 1)."""
    torch.manual_seed(0)
    layer = unet.Attention(32, head_width=16).double()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).view(2, 3, 2, 16, -1).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(4).softmax(3)
    heads = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(x.shape)
    expected = x + layer.out(heads)
    for few in (0, 256):
        monkeypatch.setattr(unet, "FEW_TOKENS", few)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("head", "patch"), [(0, 1), (0, 2), (8, 2)])
def test_a_kernel_filters_the_input(head: int, patch: int) -> None:
    """With the same filter at every pixel it is a convolution, zeros around, added to the first outputs only."""
    network = PixelUNet(2, 5, patch=patch, channels=(16,), blocks=1, attention=(), head=head, kernel=3).double()
    filters = torch.randn(2, 3, 3, dtype=torch.float64)
    bias = torch.cat([torch.arange(5), filters.flatten()]).double()
    with torch.no_grad():
        last = network.head[-1] if head else network.out  # type: ignore[index]
        last.bias.copy_(bias if head else bias.repeat_interleave(patch**2))
    x = torch.randn(3, 2, 6, 8, dtype=torch.float64)
    expected = torch.arange(5.0, dtype=torch.float64).view(1, 5, 1, 1).repeat(3, 1, 6, 8)
    expected[:, :2] += torch.nn.functional.conv2d(x, filters[:, None], padding=1, groups=2)
    torch.testing.assert_close(network(x, torch.zeros(3)), expected, rtol=0, atol=1e-12)


def test_fourier_features_are_vdms() -> None:
    """Sin and cos of 2^n pi z beside the input, z the data's own scale (Kingma et al. 2021, appendix C)."""
    settings = {"network.fourier": (7, 8), "network.patch": 1, "network.channels": (16,), "network.attention": ()}
    config = make_config({**settings, "denoiser.sigma_data": 0.3})
    network, heard = make_network(config, 1), []
    assert isinstance(network, unet.UNet)
    network.stem.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    z = torch.rand(2, 1, 4, 4) * 2 - 1
    network(z / 0.3, torch.zeros(2))
    waves = [wave(2**n * torch.pi * z.double()) for n in (7, 8) for wave in (torch.sin, torch.cos)]
    # float32 has z to 6e-8, and 2^8 pi times that in the angle
    torch.testing.assert_close(heard[0], torch.cat([z / 0.3, *waves], 1).float(), rtol=0, atol=3e-4)


def test_sequences_go_through_the_same_network() -> None:
    """A 1-D U-Net is the 2-D one on pictures of one row: kernels' middle rows are its kernels, its patches are rows."""
    torch.manual_seed(0)
    settings = {"patch": 1, "channels": (16, 32), "blocks": 2, "attention": (1,), "encoders": label_encoder(3)}
    one, two = (unet.UNet(2, 3, dims=dims, **settings).double() for dims in (1, 2))  # type: ignore[arg-type]
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = two.state_dict()
    for name, tensor in one.state_dict().items():
        if tensor.ndim == 3:
            state[name].zero_()
            state[name][:, :, state[name].shape[2] // 2] = tensor
        else:
            state[name].copy_(tensor)
    x, log_snr = torch.randn(2, 2, 11, dtype=torch.float64), torch.tensor([-1.0, 3.0])
    labels = Labels(torch.tensor([0, 3]), 3)
    expected = two(x[:, :, None], log_snr, labels)[:, :, 0]
    torch.testing.assert_close(one(x, log_snr, labels), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 3, 12), (2, 3, 6, 8)])
def test_folding_gathers_patches(shape: tuple[int, ...]) -> None:
    """Element i of a patch of channel c becomes channel c p + i, row by row; unfolding is the inverse."""
    x = torch.randn(shape)
    folded = unet.fold(x, 2)
    if len(shape) == 3:
        expected = torch.stack([x[:, c, i::2] for c in range(3) for i in range(2)], 1)
    else:
        expected = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], 1)
    assert torch.equal(folded, expected)
    assert torch.equal(unet.unfold(folded, 2), x)


def test_weights_of_version_0_1_have_their_places() -> None:
    """Names in model folders and checkpoints of old are read as today's."""
    assert current_name("values.census.0.weight") == "values.encoder.0.weight"
    assert current_name("network.values.log_odds") == "network.values.log_prior"
    assert current_name("optimizer.exp_avg.values.recall.bias") == "optimizer.exp_avg.values.to_power.bias"
    assert current_name("down.0.block.conv1.weight") == "down.0.block.conv1.weight"
