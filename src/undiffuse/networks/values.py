"""What pictures of 8 bits give away at little noise: the exact values that their elements have in common.

Stretched contrast leaves every other value out, a scan has its own white, an edge five greys. Convolutions of a noisy
picture see none of that. Here each element is first read by itself, as the probabilities of its values (Bayes' rule on
x_t); the mean of an embedding under them goes into the network, and the histogram of the picture's values makes those
values likelier that the picture has elsewhere.
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
"""Of the parts of `Values`, in model folders written by version 0.1."""


def current_name(name: str) -> str:
    """The name of a weight today, from the one that a model folder has it under."""
    return _renamed(name, OLD_NAMES)


def first_name(name: str) -> str:
    """The name that a weight had first, from today's: fingerprints are taken under it, and so stay what they were."""
    return _renamed(name, {new: old for old, new in OLD_NAMES.items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    return re.sub(rf"(?<=\bvalues\.)({'|'.join(names)})\b", lambda match: names[match[1]], name)


class Values(nn.Module):
    """For inputs x (B, C, H, W): x_t at unit variance, where elements of x_0 take `count` values, even on [-1, 1].

    Whatever needs 256 values is computed in float32 or better, also under autocast.

    Args:
        channels: C.
        count: how many values there are.
        width: of the conditioning vector.
        sigma_data: the root mean square of the data, which says what unit variance has made of x_t.
    """

    def __init__(self, channels: int, count: int, width: int, sigma_data: float):
        super().__init__()
        self.count, self.sigma_data = count, sigma_data
        self.features = channels * FEATURES
        self.log_prior = nn.Parameter(torch.zeros(count), requires_grad=False)  # the data's, not learnt
        angles = torch.linspace(-1, 1, count)[:, None] * math.pi / 2 * 2.0 ** torch.arange(FEATURES // 2)
        self.embedding = nn.Parameter(torch.cat([angles.sin(), angles.cos()], 1))
        self.encoder = nn.Sequential(nn.Linear(channels * count, width), nn.SiLU())
        self.to_conditioning, self.to_logits = zero_(nn.Linear(width, width)), zero_(nn.Linear(width, channels * count))
        self.to_power = zero_(nn.Linear(width, 2))

    def posterior(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """p(v | x_t) of every element by itself, exp(log_prior) being the prior: (B, C, H, W, count)."""
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
        """What the histogram adds to the logits of every element's values: (B, C count, H, W).

        A power of how often the other elements have the value, and what else the histogram says.
        """
        power, floor = self.to_power(conditioning).view(-1, 2, 1, 1, 1, 1).unbind(1)
        others = (p.sum((2, 3), keepdim=True) - p).clamp(min=0)
        offset = self.to_logits(histogram).unflatten(1, (p.shape[1], 1, 1, -1))
        logits = torch.addcmul(offset, power, (others + (floor - 3).clamp(min=-20).exp()).log())
        return logits.permute(0, 1, 4, 2, 3).flatten(1, 2)
