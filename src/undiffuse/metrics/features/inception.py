"""The Inception-v3 of the FID (Szegedy et al. 2016; TensorFlow's 2015-12-05 graph), as that graph computes it.

It differs from torchvision's: averages exclude the padding, the last block uses max pooling, there are 1008 logits.
Names are those of the weights file pt_inception-2015-12-05-6726825d.pth.
"""

import hashlib
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.metrics.features.extractor import Extractor, Features, to_floats
from undiffuse.weights import sha256_of_weights

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256_BEGINS = "6726825d"
SIZE = 299
SPATIAL = 7  # channels of mixed_6/conv that ADM's sFID takes: 17 x 17 x 7 = 2023


def resize_tf1(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, size, size) as TensorFlow 1 does: bilinear, output i at input i * H / size."""

    def weights(length: int) -> Tensor:
        place = (torch.arange(size) * torch.tensor(length / size)).double()  # float32, as in TensorFlow
        low = place.floor().long()
        matrix = torch.zeros(size, length, dtype=torch.float64)
        rows = torch.arange(size)
        matrix[rows, low] += 1 - (place - low)
        matrix[rows, (low + 1).clamp(max=length - 1)] += place - low
        return matrix.to(x)

    return weights(x.shape[-2]) @ x @ weights(x.shape[-1]).T


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, stride: int = 1, padding: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionA(nn.Module):
    """35 x 35: 1x1; 5x5; two 3x3; average."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(_average(x))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, pool], 1)


class InceptionB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    """17 x 17: 1x1; 7x7 and two 7x7, each as 1x7 and 7x1; average."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        across, down = partial(Conv, kernel=(1, 7), padding=(0, 3)), partial(Conv, kernel=(7, 1), padding=(3, 0))
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, width, 1)
        self.branch7x7_2, self.branch7x7_3 = across(width, width), down(width, 192)
        self.branch7x7dbl_1 = Conv(inputs, width, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = down(width, width), across(width, width)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = down(width, width), across(width, 192)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class InceptionD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inputs, 192, 1), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(inputs, 192, 1), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), padding=(3, 0)), Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    """8 x 8: 1x1; 3x3 and two 3x3, their ends split in 1x3 and 3x1; average, or in the last block maximum."""

    def __init__(self, inputs: int, last: bool):
        super().__init__()
        self.last = last
        across, down = partial(Conv, kernel=(1, 3), padding=(0, 1)), partial(Conv, kernel=(3, 1), padding=(1, 0))
        self.branch1x1, self.branch3x3_1 = Conv(inputs, 320, 1), Conv(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = across(384, 384), down(384, 384)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = across(384, 384), down(384, 384)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        ends = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        ends += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pool = functional.max_pool2d(x, 3, 1, 1) if self.last else _average(x)
        return torch.cat([self.branch1x1(x), *ends, self.branch_pool(pool)], 1)


class InceptionV3(nn.Module):
    """uint8 (N, H, W, C) images -> pooled (N, 2048), spatial (N, 2023), logits (N, 1008) without their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280, last=False), InceptionE(2048, last=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Features:
        """The images are resized to 299 x 299 by `resize_tf1`, unrounded, and scaled to [-1, 1) by (x - 128) / 128."""
        x = (resize_tf1(to_floats(images, 3).to(self.fc.weight.dtype), SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6d(x)
        spatial = x[:, :SPATIAL].flatten(1)  # the block's first branch is mixed_6/conv
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pooled = x.mean((2, 3))
        return Features(pooled, spatial, pooled @ self.fc.weight.T)


def inception(path: str | None = None) -> Extractor:
    """The network with the weights of a .pth or .safetensors file; None: torch's hub cache, or a download to it.

    Only with the original file (by its sha256) is a number the FID; any other is named. Raises UsageError for a file
    that is missing or holds something else, UndiffuseError if the download fails.
    """
    file = Path(path).expanduser() if path else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path is None and not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(file), hash_prefix=SHA256_BEGINS, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            raise UndiffuseError(f"cannot fetch {URL}: {error}. Save it and pass --features inception:FILE") from None
    if not file.is_file():
        raise UsageError(f"--features inception:{path}: no such file; expected {FILE}")
    original = hashlib.sha256(file.read_bytes()).hexdigest().startswith(SHA256_BEGINS)
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # which error depends on the file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--features inception: {file} is not a file of weights: {reason}") from None
    network = InceptionV3()
    try:
        result = network.load_state_dict(weights, strict=False)
        missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
        wrong = [*missing, *result.unexpected_keys]
    except (RuntimeError, TypeError, AttributeError) as error:
        wrong = [(str(error).splitlines() or ["not a table of tensors"])[-1].strip()]
    if wrong:
        raise UsageError(f"--features inception: {file} is not {FILE}: {len(wrong)} names do not fit, first {wrong[0]}")
    network.eval().requires_grad_(False)

    @torch.inference_mode()
    def extract(images: Tensor) -> Features:
        return network(images)

    facts = {
        "network": "Inception-v3 of the FID, TensorFlow 2015-12-05",
        "weights_sha256": sha256_of_weights(network),
        "original_weights": original,
        "preprocessing": f"TensorFlow-1 bilinear to {SIZE}x{SIZE}, unrounded; (x - 128) / 128; grey repeated",
        "pooled": "mean of the last 2048 maps",
        "spatial": f"first {SPATIAL} channels of mixed_6/conv (17x17)",
    }
    name = "inception-v3" if original else f"inception-v3 with the weights {file.name}"
    return Extractor(name, extract, facts, is_fid=original, batch_size=16)
