"""Features of the exact values that the elements of an 8-bit picture share, which show at low noise.

Stretched contrast skips every other value, a scan has its own white, an edge five greys. Convolutions of a noisy
picture see none of that. Here the posterior over each element's values is computed first, from its own x_t by Bayes'
rule. The mean of an embedding under it is an input of the network, and the histogram of the picture's values raises the
probability of values that the picture has elsewhere.
"""

import math
import re

import torch
from torch import Tensor, nn

from undiffuse.networks.embedding import zero_

FEATURES = 16
OLD_NAMES = {
    "log_odds": "log_prior",
    "census": "encoder",
    "told": "to_conditioning",
    "common": "to_logits",
    "recall": "to_power",
}
"""Old -> current names of the parts of `Values`; model folders written by version 0.1 have the old ones."""


def current_name(name: str) -> str:
    """The current name of a weight, from its name in a model folder."""
    return _renamed(name, OLD_NAMES)


def first_name(name: str) -> str:
    """The original name of a weight, from its current one: fingerprints use it, so that they do not change."""
    return _renamed(name, {new: old for old, new in OLD_NAMES.items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    return re.sub(rf"(?<=\bvalues\.)({'|'.join(names)})\b", lambda match: names[match[1]], name)


class Values(nn.Module):
    """For inputs x (B, C, H, W): x_t at unit variance, where x_0 takes `count` values evenly spaced on [-1, 1].

    Whatever resolves 256 values is computed in float32 or better, even under autocast.

    Args:
        channels: C.
        count: how many values there are.
        width: of the conditioning vector.
        sigma_data: the root mean square of the data, which determines how x_t was scaled to unit variance.
    """

    def __init__(self, channels: int, count: int, width: int, sigma_data: float):
        super().__init__()
        self.count, self.sigma_data = count, sigma_data
        self.features = channels * FEATURES
        self.log_prior = nn.Parameter(torch.zeros(count), requires_grad=False)  # the data's, not trained
        angles = torch.linspace(-1, 1, count)[:, None] * math.pi / 2 * 2.0 ** torch.arange(FEATURES // 2)
        self.embedding = nn.Parameter(torch.cat([angles.sin(), angles.cos()], 1))
        self.encoder = nn.Sequential(nn.Linear(channels * count, width), nn.SiLU())
        self.to_conditioning, self.to_logits = zero_(nn.Linear(width, width)), zero_(nn.Linear(width, channels * count))
        self.to_power = zero_(nn.Linear(width, 2))

    def posterior(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """p(v | x_t) of every element from its own x_t, with the prior exp(log_prior): (B, C, H, W, count)."""
        root = (0.5 * log_snr.to(x)).exp().view(-1, 1, 1, 1)  # alpha / sigma
        y = x * (self.sigma_data**2 * root**2 + 1).sqrt()  # x_t / sigma = root x_0 + noise
        values = torch.linspace(-1, 1, self.count, dtype=x.dtype, device=x.device)
        distance = root.unsqueeze(-1) * values - y.unsqueeze(-1)
        return torch.addcmul(self.log_prior, distance, distance, value=-0.5).softmax(-1)

    def embedded(self, p: Tensor) -> Tensor:
        """The mean embedding of each element, (B, C FEATURES, H, W)."""
        return (p @ self.embedding).permute(0, 1, 4, 2, 3).flatten(1, 2)

    def histogram(self, p: Tensor) -> Tensor:
        """The expected histogram of each picture, encoded: (B, width)."""
        return self.encoder(p.sum((2, 3)).log1p().flatten(1))

    def logits(self, p: Tensor, histogram: Tensor, conditioning: Tensor) -> Tensor:
        """The term that the histogram adds to the logits of every element's values: (B, C count, H, W).

        The log of a power of the value's count in the other elements, plus a function of the encoded histogram.
        """
        power, floor = self.to_power(conditioning).view(-1, 2, 1, 1, 1, 1).unbind(1)
        others = (p.sum((2, 3), keepdim=True) - p).clamp(min=0)
        offset = self.to_logits(histogram).unflatten(1, (p.shape[1], 1, 1, -1))
        logits = torch.addcmul(offset, power, (others + (floor - 3).clamp(min=-20).exp()).log())
        return logits.permute(0, 1, 4, 2, 3).flatten(1, 2)
