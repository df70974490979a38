"""What a network reads of values: Bayes' rule element by element, and the histogram of a picture."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from undiffuse.networks import PixelUNet
from undiffuse.networks.values import FEATURES, Values

COUNT, SIGMA_DATA = 7, 0.6
GRID = np.linspace(-1, 1, COUNT)


@pytest.fixture
def values() -> Values:
    torch.manual_seed(0)
    values = Values(2, COUNT, 16, SIGMA_DATA).double()
    for parameter in values.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return values


def unit(x0: np.ndarray, log_snr: float, seed: int = 0) -> torch.Tensor:
    """x_t of unit variance, as a denoiser makes it: of the variance-preserving process and of that with alpha = 1."""
    noise = np.random.default_rng(seed).standard_normal(x0.shape)
    sigma = np.exp(-log_snr / 2)
    return torch.from_numpy((x0 + sigma * noise) / np.sqrt(SIGMA_DATA**2 + sigma**2))


@pytest.mark.parametrize("log_snr", [-20.0, -3.0, 0.0, 4.0, 9.0])
def test_an_element_is_read_by_bayes_rule(values: Values, log_snr: float) -> None:
    """p(v | x_t) is the prior times a Gaussian's density at x_t / alpha; the embedding is its mean under that."""
    x0 = np.random.default_rng(1).choice(GRID, (3, 2, 4, 5))
    x, sigma = unit(x0, log_snr), np.exp(-log_snr / 2)
    y = x.numpy() * np.sqrt(SIGMA_DATA**2 + sigma**2)
    density = norm.pdf(y[..., None], GRID, sigma) * np.exp(values.log_prior.detach().numpy())
    expected = density / density.sum(-1, keepdims=True)
    p = values.posterior(x, torch.full((3,), log_snr))
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    told = values.embedded(p).detach().numpy()
    embedding = values.embedding.detach().numpy()
    np.testing.assert_allclose(told[:, FEATURES + 3], expected[:, 1] @ embedding[:, 3], rtol=1e-5, atol=1e-9)


def test_the_histogram_counts_the_others(values: Values) -> None:
    """Without noise, an element's odds rise with a power of how many others of its channel have the value."""
    torch.nn.init.zeros_(values.to_logits.weight)
    torch.nn.init.zeros_(values.to_logits.bias)
    x0 = np.random.default_rng(2).choice(GRID, (3, 2, 4, 5))
    conditioning = torch.randn(3, 16, dtype=torch.float64)
    p = values.posterior(unit(x0, 20.0), torch.full((3,), 20.0))
    found = values.logits(p, values.histogram(p), conditioning).detach().numpy()
    for image in range(3):
        power, floor = values.to_power(conditioning[image]).tolist()
        for channel in range(2):
            for v in range(COUNT):
                here = x0[image, channel] == GRID[v]
                expected = power * np.log(here.sum() - here + np.exp(floor - 3))
                np.testing.assert_allclose(found[image, channel * COUNT + v], expected, rtol=1e-9, atol=1e-9)


def test_the_histogram_is_of_one_picture(values: Values) -> None:
    """What a picture is told depends on no other of the batch, and on the values, not on where they are."""
    x0 = np.random.default_rng(3).choice(GRID, (2, 2, 4, 5))
    log_snr = torch.full((2,), 6.0)
    told = values.histogram(values.posterior(unit(x0, 6.0), log_snr))
    alone = values.histogram(values.posterior(unit(x0, 6.0)[1:], log_snr[1:]))
    turned = values.histogram(values.posterior(unit(x0, 6.0).flip(2, 3), log_snr))
    torch.testing.assert_close(told[1:], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(told, turned, rtol=0, atol=1e-12)
    assert (told[0] - told[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("head", "patch", "channels", "kernel"), [(0, 1, 1, 0), (0, 2, 3, 3), (8, 2, 3, 0), (8, 1, 1, 3)]
)
def test_a_network_begins_with_the_prior_of_the_data(head: int, patch: int, channels: int, kernel: int) -> None:
    """Untrained, its logits are what it was told to expect, at every pixel of every channel; the rest says nothing."""
    torch.manual_seed(0)
    outputs = channels * (2 + COUNT)
    network = PixelUNet(
        channels,
        outputs,
        patch=patch,
        channels=(16,),
        attention=(),
        head=head,
        kernel=kernel,
        values=COUNT,
        sigma_data=SIGMA_DATA,
    ).double()
    log_prior = torch.linspace(-3, 1, COUNT, dtype=torch.float64)
    network.set_value_prior(log_prior)
    x = torch.randn(2, channels, 4, 6, dtype=torch.float64)
    said = network(x, torch.tensor([0.0, 9.0]))
    expected = torch.cat([torch.zeros(2 * channels, dtype=torch.float64), log_prior.repeat(channels)])
    torch.testing.assert_close(said, expected.view(1, -1, 1, 1).expand_as(said), rtol=0, atol=1e-6)
    assert network.values is not None
    torch.testing.assert_close(network.values.log_prior.data, log_prior)
    assert not network.values.log_prior.requires_grad  # they stay the data's


def test_a_network_adds_the_histogram_to_its_logits() -> None:
    """What the histogram says of value v of channel c is added to that logit alone, pixels folded or not."""
    torch.manual_seed(0)
    outputs = 3 * (2 + COUNT)
    network = PixelUNet(
        3, outputs, patch=2, channels=(16,), attention=(), kernel=3, values=COUNT, sigma_data=SIGMA_DATA
    ).double()
    assert network.values is not None
    x0 = np.random.default_rng(4).choice(GRID, (2, 3, 4, 6))
    x, log_snr = unit(x0, 7.0), torch.full((2,), 7.0)
    silent = network(x, log_snr)
    for layer in (network.values.to_logits, network.values.to_power):
        torch.nn.init.normal_(layer.weight, std=0.5)
    p = network.values.posterior(x, log_snr)
    odds = network.values.logits(p, network.values.histogram(p), network.conditioning(log_snr, None))
    assert odds.std() > 0.1
    added = network(x, log_snr) - silent
    torch.testing.assert_close(added[:, 6:], odds, rtol=0, atol=1e-12)
    assert (added[:, :6] == 0).all()


def test_the_histogram_is_differentiable_where_that_is_asked_for() -> None:
    """The divergence of a flow needs all of the derivative, checked by differences; training needs none in x."""
    torch.manual_seed(0)
    network = PixelUNet(
        1, 2 + COUNT, patch=1, channels=(16,), attention=(), values=COUNT, sigma_data=SIGMA_DATA
    ).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([1.0])), x, rtol=1e-5, atol=1e-7)
