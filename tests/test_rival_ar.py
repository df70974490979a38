"""The autoregressive rival is a density, causal, whose probabilities sum to one, and its samples are drawn from it."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.randomness import KeyedDraw, keyed_draws
from undiffuse.rivals.pixels import Pixels

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from autoregressive import bits, train

SHAPES = ((1, 8, 8), (3, 8, 4))


def draws(*samples: int) -> KeyedDraw:
    return keyed_draws(0, samples)(0)


def tiny(
    shape: tuple[int, int, int], classes: int = 0, values: int = 256, widths: tuple[int, ...] = (8, 8, 8)
) -> Pixels:
    """A small model, none of whose weights is 0."""
    torch.manual_seed(0)
    network = Pixels(shape, classes, widths=widths, depths=(1,) * len(widths), features=8, head=16, values=values)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("shape", SHAPES)
def test_no_element_sees_itself_or_later_ones(shape: tuple[int, int, int]) -> None:
    """The gradient of the logits of pixel i, channel c, is exactly zero at later pixels and at channels c and above of
    its own, and not zero at its neighbours before and at its earlier channels."""
    network, (channels, height, width) = tiny(shape), shape
    features = torch.randn(1, channels * 8, height, width, requires_grad=True)
    each = torch.rand(1, channels, height * width, 256, requires_grad=True)
    logits = network.given(features, each).square().sum(-1)[0].flatten(1)
    for channel, pixel in itertools.product(range(channels), range(height * width)):
        gradient, counted = torch.autograd.grad(logits[channel, pixel], (features, each), retain_graph=True)
        counted = counted[0].transpose(0, 1)
        assert (counted[pixel:] == 0).all() and (counted[:pixel] != 0).any(2).all()
        seen = gradient.unflatten(1, (channels, 8)).abs().sum((0, 2)).flatten(1)
        assert (seen[:, pixel + 1 :] == 0).all() and (seen[channel:, pixel] == 0).all()
        assert (seen[:channel, pixel] > 0).all()
        row, column = divmod(pixel, width)
        assert column == 0 or (seen[:, pixel - 1] > 0).all()
        assert row == 0 or (seen[:, pixel - width : pixel - width + 2 - (column == width - 1)] > 0).all()


@pytest.mark.parametrize(
    ("shape", "values", "classes", "widths"),
    [((1, 2, 4), 2, 0, (8, 8)), ((1, 2, 4), 3, 2, (8, 8)), ((3, 2, 2), 2, 2, (8, 8)), ((3, 1, 2), 3, 0, (8,))],
)
def test_probabilities_of_all_pictures_sum_to_one(
    shape: tuple[int, int, int], values: int, classes: int, widths: tuple[int, ...]
) -> None:
    network = tiny(shape, classes, values, widths)
    every = torch.tensor(list(itertools.product(torch.linspace(-1, 1, values), repeat=math.prod(shape))))
    for label in range(classes or 1):
        labels = torch.full((len(every),), label) if classes else None
        with torch.no_grad():
            nats = network.nats(every.view(-1, *shape), labels).double()
        assert (-nats).exp().sum().item() == pytest.approx(1, abs=2e-6)  # float32 logits
        assert (-nats).exp().max() > 3 / len(every), "the model is not uniform, of which the sum would say nothing"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_walk_gives_the_logits_of_the_whole_network(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixel by pixel, with what was kept, the logits are those of one pass over the finished picture."""
    network = tiny(shape, classes=3)
    steps: list[Tensor] = []
    last = Pixels.last

    def listened(self: Pixels, *inputs: Tensor) -> Tensor:
        steps.append(last(self, *inputs))
        return steps[-1]

    monkeypatch.setattr(Pixels, "last", listened)
    labels = torch.tensor([2, 0])
    x0 = network.generate(labels, draws(4, 5), 2)
    channels, height, width = shape
    walked = torch.stack([step[:, i % channels, 0, 0] for i, step in enumerate(steps)], 1)
    with torch.no_grad():
        whole = network(((x0 + 1) * 127.5).round().long(), labels).permute(0, 2, 3, 1, 4).flatten(1, 3)
    assert walked.shape == (2, channels * height * width, 256)
    torch.testing.assert_close(walked, whole, rtol=1e-6, atol=1e-6 * whole.abs().max().item())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_inverts_each_cdf_at_its_own_number(shape: tuple[int, int, int]) -> None:
    """F(v - 1) <= u < F(v) for every element, F from one pass over the picture: to the rounding of float32 logits."""
    network, draw = tiny(shape), draws(0, 1, 2)
    x0 = network.generate(None, draw, 3)
    x, u = ((x0 + 1) * 127.5).round().long().unsqueeze(-1), draw.uniform(x0)
    with torch.no_grad():
        cdf = network(x.squeeze(-1)).double().softmax(-1).cumsum(-1)
    above = cdf.gather(-1, x).squeeze(-1)
    below = torch.where(x > 0, cdf.gather(-1, (x - 1).clamp(min=0)), 0.0).squeeze(-1)
    assert (below - 1e-5 <= u).all() and (u < above + 1e-5).all()
    assert x0.abs().max() <= 1 and x0.dtype == torch.float32


def test_frequencies_are_the_probabilities() -> None:
    """Of 4,000 samples of 2 x 2 two-valued pixels: Pearson's statistic, 15 degrees of freedom; 37.7 has p = .001."""
    network = tiny((1, 2, 2), values=2, widths=(8, 8))
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    with torch.no_grad():
        expected = 4000 * (-network.nats(every.view(-1, 1, 2, 2)).double()).exp()
    bits = network.generate(None, draws(*range(4000)), 4000).flatten(1) > 0
    counts = (bits * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16)
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network = tiny((3, 4, 4), classes=2)
    together = network.generate(torch.tensor([0, 1, 0]), draws(7, 8, 9), 3)
    alone = network.generate(torch.tensor([1]), draws(8), 1)
    assert torch.equal(together[1:2], alone)


def test_a_class_changes_the_law() -> None:
    network, x0 = tiny((1, 4, 4), classes=2), torch.zeros(2, 1, 4, 4)
    first, second = network.nats(x0, torch.tensor([0, 1]))
    assert abs(first - second) > 0.01


def test_it_starts_from_the_frequencies_of_the_values() -> None:
    """An untrained model with the prior p gives p to every element."""
    network = Pixels((3, 4, 4), widths=(8,), depths=(1,), features=8, head=16)
    log_prior = torch.randn(256).log_softmax(0)
    network.set_value_prior(log_prior)
    x = torch.randint(256, (2, 3, 4, 4))
    expected = -log_prior[x].sum((1, 2, 3))
    torch.testing.assert_close(network.nats(x / 127.5 - 1), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(network.losses("generator", x / 127.5 - 1, None, draws(0, 1)), expected / 48)


def test_the_benchmark_trains_it() -> None:
    """On pixels that are 7 or 200 at even odds, which is one bit each: what it begins with, as it has counted them."""
    images = torch.where(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5, 7, 200).byte()
    network, steps = train(images, 0.3, lambda *_: None)
    assert steps >= 1 and bits(network, images).mean().item() == pytest.approx(1, abs=0.2)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="multiples of 4, and not 30 x 28"):
        Pixels((1, 30, 28))
    with pytest.raises(ValueError, match="labels"):
        tiny((1, 4, 4), classes=2).generate(None, draws(0), 1)
    with pytest.raises(ValueError, match="labels"):
        tiny((1, 4, 4)).nats(torch.zeros(1, 1, 4, 4), torch.tensor([0]))
