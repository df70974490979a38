"""The autoregressive rival of benchmarks/autoregressive.py is a density: causal, and its probabilities sum to one."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from autoregressive import Autoregressive, nats

SIZE = 8


@pytest.fixture
def network() -> Autoregressive:
    torch.manual_seed(0)
    network = Autoregressive(SIZE, widths=(8, 8, 8), depths=(1, 1, 1), features=8, head=16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def test_no_pixel_sees_itself_or_later_ones(network: Autoregressive) -> None:
    """The gradient of the logits at pixel i is exactly zero at pixels >= i, and not zero at its neighbours before."""
    features = torch.randn(1, 8, SIZE, SIZE, requires_grad=True)
    each = torch.rand(1, SIZE**2, 256, requires_grad=True)
    logits = network.given(features, each).square().sum(1).flatten()
    for pixel in range(SIZE**2):
        gradient, counted = torch.autograd.grad(logits[pixel], (features, each), retain_graph=True)
        assert (counted[0, pixel:] == 0).all() and (counted[0, :pixel] != 0).any(1).all()
        seen = gradient.abs().sum((0, 1)).flatten()
        assert (seen[pixel:] == 0).all()
        row, column = divmod(pixel, SIZE)
        assert column == 0 or seen[pixel - 1] > 0
        assert row == 0 or (seen[pixel - SIZE : pixel - SIZE + 2 - (column == SIZE - 1)] > 0).all()


def test_probabilities_sum_to_one(network: Autoregressive) -> None:
    """Over the 256 values of the last pixel, p(x) sums to the probability of the pixels before it."""
    x = torch.randint(256, (1, 1, SIZE, SIZE), dtype=torch.uint8)
    every = x.repeat(256, 1, 1, 1)
    every[:, 0, -1, -1] = torch.arange(256)

    def before(x: Tensor) -> Tensor:
        """log p of all but the last pixel, with what nats() gives for it."""
        chances = network(x).log_softmax(1)
        return chances.gather(1, x.long()).flatten()[:-1].sum()

    with torch.no_grad():
        torch.testing.assert_close(torch.logsumexp(-nats(network, every), 0), before(x), rtol=1e-5, atol=1e-4)
