"""The networks written once more, from their weights by name: what old weights mean must never change unseen.

Frequencies and their order, cosines before sines, scale before shift, where a block resamples, which skip goes where,
how pixels are folded: each is a convention that training would learn around, and that a saved model depends on.
"""

import math
from collections.abc import Callable

import pytest
import torch
from references import as64
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.conditions import Labels, label_encoder
from undiffuse.networks import MLP, UNet
from undiffuse.networks.embedding import Conditioning
from undiffuse.networks.unet import ResidualBlock
from undiffuse.networks.unet2d import Options, ResnetBlock, UNet2D

Weights = dict[str, Tensor]


def filled(network: nn.Module) -> Weights:
    """Its weights, float64, all of them replaced by numbers of a fixed formula, none like another."""
    network.double().eval()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            place = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            parameter.copy_(torch.sin(1.7 * place + 0.9 * k + 0.3 * place.sqrt()) / math.sqrt(1 + parameter[0].numel()))
    return dict(network.state_dict())


def under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv(x: Tensor, w: Weights, name: str) -> Tensor:
    kernel = w[f"{name}.weight"]
    return functional.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[2] // 2)


def normed(x: Tensor, w: Weights, name: str, groups: int) -> Tensor:
    apart = x.reshape(len(x), groups, -1)
    apart = (apart - apart.mean(2, keepdim=True)) / (apart.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    scale, shift = (w[f"{name}.{kind}"].view(-1, 1, 1) for kind in ("weight", "bias"))
    return apart.reshape(x.shape) * scale + shift


def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; at an odd edge, of those that are there."""
    height, width = x.shape[2:]
    rows = [x[:, :, i : i + 2].mean(2) for i in range(0, height, 2)]
    return torch.stack([torch.stack([row[:, :, j : j + 2].mean(2) for j in range(0, width, 2)], 2) for row in rows], 2)


def doubled(x: Tensor, size: torch.Size) -> Tensor:
    """Every pixel four times; the last ones less often where the sides are odd."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


def conditioning_of(w: Weights, log_snr: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """cos and sin of log-SNR / 32^(k / 31), k = 0 .. 31; linear, SiLU, linear; the class (or none); SiLU."""
    angles = torch.stack([log_snr / 32 ** (k / 31) for k in range(32)], 1)
    vector = linear(silu(linear(torch.cat([angles.cos(), angles.sin()], 1), w, "layers.0")), w, "layers.2")
    if classes:
        assert labels is not None
        vector = vector + w["label.weight"][labels]
    return silu(vector)


def residual(
    x: Tensor, w: Weights, vector: Tensor, resample: str | None = None, size: torch.Size | None = None
) -> Tensor:
    """(1 + scale) norm + shift, scale being the first half; down before the first convolution, up after it."""
    inputs, outputs = w["conv1.weight"].shape[1], w["conv1.weight"].shape[0]
    h = silu(normed(x, w, "norm1", inputs // 16))
    if resample == "down":
        h, x = halved(h), halved(x)
    h = conv(h, w, "conv1")
    if "skip.weight" in w:
        x = conv(x, w, "skip")
    if resample == "up":
        assert size is not None
        h, x = doubled(h, size), doubled(x, size)
    told = linear(vector, w, "scale_shift")[:, :, None, None]
    h = (1 + told[:, :outputs]) * normed(h, w, "norm2", outputs // 16) + told[:, outputs:]
    return x + conv(silu(h), w, "conv2")


def attended(x: Tensor, w: Weights) -> Tensor:
    """One head of all channels: softmax(q k / sqrt(C)) v, from the convolution's first, second and last third."""
    channels = x.shape[1]
    q, k, v = conv(normed(x, w, "norm", channels // 16), w, "qkv").flatten(2).split(channels, 1)
    shares = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(channels), 2)
    return x + conv(torch.einsum("bij,bcj->bci", shares, v).view_as(x), w, "out")


def unet(w: Weights, x: Tensor, log_snr: Tensor, labels: Tensor | None) -> Tensor:
    """Two levels of 16 and 32 channels, patches of 2 x 2, one block a level, attention on the second, three classes."""
    vector = conditioning_of(under(w, "conditioning."), log_snr, labels, 3)
    folded = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)
    h = conv(folded, w, "stem")
    first = residual(h, under(w, "down.0.block."), vector)
    second = residual(first, under(w, "down.1.block."), vector, "down")
    second = attended(second, under(w, "down.1.attention."))
    h = attended(residual(second, under(w, "middle.block."), vector), under(w, "middle.attention."))
    h = residual(torch.cat([h, second], 1), under(w, "up.0.block."), vector)
    h = attended(h, under(w, "up.0.attention."))
    h = residual(h, under(w, "up.1."), vector, "up", first.shape[2:])
    h = residual(torch.cat([h, first], 1), under(w, "up.2.block."), vector)
    h = conv(silu(normed(h, w, "norm", 1)), w, "out").unflatten(1, (-1, 2, 2))
    unfolded = torch.zeros(*h.shape[:2], 2 * h.shape[4], 2 * h.shape[5], dtype=h.dtype)
    for i in (0, 1):
        for j in (0, 1):
            unfolded[:, :, i::2, j::2] = h[:, :, i, j]
    return unfolded


LOG_SNR, LABELS = as64(-7.3, 0.4, 12.9), torch.tensor([2, 0, 3])


@pytest.mark.parametrize("classes", [0, 3])
def test_the_noise_level_and_the_class_become_a_vector(classes: int) -> None:
    network = Conditioning(12, label_encoder(classes))
    w = filled(network)
    assert set(w) >= {"layers.0.weight", "layers.2.bias"} and "frequencies" not in w
    for labels in (Labels(LABELS, 3), Labels(LABELS, 3).dropped()) if classes else (None,):
        expected = conditioning_of(w, LOG_SNR, labels and labels.index, classes)
        torch.testing.assert_close(network(LOG_SNR, labels), expected, rtol=0, atol=1e-5)  # frequencies are float32


@pytest.mark.parametrize("outputs", [16, 48])
@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_residual_block_scales_then_shifts(resample: str | None, outputs: int) -> None:
    block = ResidualBlock(32, outputs, 6, resample=resample)  # type: ignore[arg-type]
    w = filled(block)
    x, vector = torch.randn(2, 32, 5, 7, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    size = torch.Size([9, 14])
    torch.testing.assert_close(block(x, vector, size), residual(x, w, vector, resample, size), rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(8, 8), (10, 14)])
@pytest.mark.parametrize("labels", [torch.full((3,), 3), LABELS])
def test_a_unet_is_what_is_written_here(labels: Tensor, size: tuple[int, int]) -> None:
    network = UNet(2, 3, patch=2, channels=(16, 32), blocks=1, attention=(1,), encoders=label_encoder(3))
    w = filled(network)
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, expected = network(x, LOG_SNR, Labels(labels, 3)), unet(w, x, LOG_SNR, labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_an_mlp_is_what_is_written_here() -> None:
    """x + block(x + what the noise level adds), a block being layer norm, linear, SiLU, linear."""
    network = MLP(3, 2, width=16, blocks=2, encoders=label_encoder(3))
    w = filled(network)
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = conditioning_of(under(w, "conditioning."), LOG_SNR, LABELS, 3)
    h = linear(x, w, "stem")
    for k in (0, 1):
        inner = normed((h + linear(vector, w, f"shifts.{k}"))[:, :, None, None], w, f"blocks.{k}.0", 1)[..., 0, 0]
        h = h + linear(silu(linear(inner, w, f"blocks.{k}.1")), w, f"blocks.{k}.3")
    expected = linear(silu(normed(h[:, :, None, None], w, "out.0", 1)[..., 0, 0]), w, "out.2")
    torch.testing.assert_close(network(x, LOG_SNR, Labels(LABELS, 3)), expected, rtol=0, atol=1e-5)


# DDPM's network, whose conventions are those of diffusers' weights (held beside diffusers itself in test_diffusers.py).


@pytest.mark.parametrize(("flip", "freq_shift"), [(True, 0.0), (False, 1.0)])
def test_sinusoids_of_timesteps(flip: bool, freq_shift: float) -> None:
    """sin and cos of k / 10000^(i / (d/2 - shift)); Ho et al. 2020 have shift 1 and sines first."""
    options = Options(flip_sin_to_cos=flip, freq_shift=freq_shift, norm_num_groups=4)
    levels = torch.linspace(9, -9, 101)
    network = UNet2D(1, 1, levels, channels=(8,), blocks=1, attention=(), options=options)
    k = torch.tensor([0.0, 3.0, 42.5, 99.0])
    angles = [[float(step) / 10000 ** (i / (4 - freq_shift)) for i in range(4)] for step in k]
    waves: list[Callable[[float], float]] = [math.cos, math.sin] if flip else [math.sin, math.cos]
    expected = torch.tensor([[wave(a) for wave in waves for a in row] for row in angles])
    torch.testing.assert_close(network.sinusoids(k), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_resnet_block_scales_then_shifts(scaled: bool) -> None:
    """norm(h + told), or norm(h) (1 + first half) + second half."""
    options = Options(norm_num_groups=4, resnet_time_scale_shift="scale_shift" if scaled else "default")
    block = ResnetBlock(8, 12, 6, 0.0, options, scale=1.5)
    w = filled(block)
    x, vector = torch.randn(2, 8, 5, 7, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    h = conv(silu(normed(x, w, "norm1", 4)), w, "conv1")
    told = linear(silu(vector), w, "time_emb_proj")[:, :, None, None]
    if scaled:
        h = normed(h, w, "norm2", 4) * (1 + told[:, :12]) + told[:, 12:]
    else:
        h = normed(h + told, w, "norm2", 4)
    expected = (conv(x, w, "conv_shortcut") + conv(silu(h), w, "conv2")) / 1.5
    torch.testing.assert_close(block(x, vector), expected, rtol=0, atol=1e-11)
