"""The rival of quantised codes: levels, gradients past the rounding, a prior that sums to one, and its samples."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undiffuse.errors import UsageError
from undiffuse.randomness import KeyedDraw, keyed_draws
from undiffuse.rivals.coded import Coded
from undiffuse.rivals.coded.critic import PENALTY, Critic
from undiffuse.rivals.coded.prior import Prior
from undiffuse.rivals.coded.quantiser import Quantiser
from undiffuse.rivals.pixels import Pixels

LEVELS = ((8, 5, 5, 5), (4, 3), (7,))


def draws(*samples: int) -> KeyedDraw:
    return keyed_draws(0, samples)(0)


def stirred(network: nn.Module) -> nn.Module:
    """With weights none of which is 0."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def tiny_prior(classes: int = 0, length: int = 3, levels: tuple[int, ...] = (4, 3)) -> Prior:
    prior = stirred(Prior(Quantiser(levels), length, classes, width=64, layers=2))
    assert isinstance(prior, Prior)
    return prior


def tiny(classes: int = 0, critic: int = 0) -> Coded:
    sizes = {"levels": (4, 3), "widths": (16, 16), "depths": (1, 1), "width": 32, "layers": 2, "critic": critic}
    network = stirred(Coded((1, 8, 8), classes, **sizes))
    assert isinstance(network, Coded)
    return network


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_values_correspond_one_to_one(levels: tuple[int, ...]) -> None:
    quantiser, count = Quantiser(levels), int(np.prod(levels))
    numbers = torch.arange(count)
    values = quantiser.values(numbers)
    assert quantiser.codes == count == len(values.unique(dim=0))
    assert torch.equal(quantiser.numbers(values), numbers)
    assert values.min() == -1 and values.max() <= 1
    for column, level in zip(values.T, levels, strict=True):
        torch.testing.assert_close(column.unique(), (torch.arange(level) - level // 2) / (level // 2))


@pytest.mark.parametrize("levels", LEVELS)
def test_numbers_are_rounded_to_the_nearest_level_and_every_level_is_reached(levels: tuple[int, ...]) -> None:
    """Against the paper's formula in NumPy, whose derivative is the gradient: rounding passes it unchanged."""
    quantiser = Quantiser(levels)
    z = torch.linspace(-12, 12, 2003)[:, None].repeat(1, len(levels)).requires_grad_()
    values = quantiser(z)
    for d, level in enumerate(levels):
        reach, offset = 0.999 * (level - 1) / 2, (level + 1) % 2 / 2
        turned = np.tanh(z[:, d].detach().double().numpy() + np.arctanh(offset / reach))
        bounded = reach * turned - offset
        sure = np.abs(bounded % 1 - 0.5) > 1e-5  # float32 may round the others either way
        expected = np.rint(bounded) / (level // 2)
        np.testing.assert_allclose(values[:, d].detach().numpy()[sure], expected[sure], atol=1e-6)
        assert len(np.unique(expected)) == level == len(values[:, d].unique(sorted=True).round(decimals=4).unique())
        (gradient,) = torch.autograd.grad(values[:, d].sum(), z, retain_graph=True)
        np.testing.assert_allclose(gradient[:, d], reach * (1 - turned**2) / (level // 2), atol=2e-6)
    torch.testing.assert_close(quantiser.bounded(torch.zeros(len(levels))), torch.zeros(len(levels)), rtol=0, atol=1e-6)


def test_no_code_sees_itself_or_later_ones() -> None:
    prior = tiny_prior(length=6)
    start, embedded = torch.randn(1, 1, 64), torch.randn(1, 6, 64, requires_grad=True)
    logits = prior.given(start, embedded).square().sum(-1)[0]
    for place in range(6):
        (gradient,) = torch.autograd.grad(logits[place], embedded, retain_graph=True)
        assert (gradient[0, place:] == 0).all() and (gradient[0, :place] != 0).any(1).all()


@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_of_all_codes_sum_to_one(classes: int) -> None:
    prior = tiny_prior(classes)
    every = torch.tensor(list(itertools.product(range(12), repeat=3)))
    for label in range(classes or 1):
        labels = torch.full((len(every),), label) if classes else None
        with torch.no_grad():
            nats = prior.nats(every, labels).double()
        assert (-nats).exp().sum().item() == pytest.approx(1, abs=2e-6)  # float32 logits
        assert (-nats).exp().max() > 3 / len(every), "the prior is not uniform, of which the sum would say nothing"


def test_keeping_keys_and_values_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place by place the logits are those of one pass over the finished codes, and each code inverts its CDF."""
    prior, draw, labels = tiny_prior(classes=3, length=9), draws(4, 5), torch.tensor([2, 0])
    steps: list[Tensor] = []
    last = Prior.last

    def listened(self: Prior, h: Tensor) -> Tensor:
        steps.append(last(self, h))
        return steps[-1]

    monkeypatch.setattr(Prior, "last", listened)
    codes = prior.generate(labels, draw, 2)
    walked = torch.stack(steps, 1)
    with torch.no_grad():
        whole = prior(codes, labels)
    torch.testing.assert_close(walked, whole, rtol=1e-6, atol=1e-6 * whole.abs().max().item())
    cdf = whole.double().softmax(-1).cumsum(-1)
    u = draw.uniform(torch.empty(2, 9)).unsqueeze(-1)
    assert torch.equal(codes, (cdf <= u).sum(-1)) and len(codes.unique()) > 2


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network = tiny(classes=2)
    together = network.generate(torch.tensor([0, 1, 0]), draws(7, 8, 9), 3)
    alone = network.generate(torch.tensor([1]), draws(8), 1)
    assert together.shape == (3, 1, 8, 8) and together.abs().max() <= 1
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)


def test_a_sample_is_its_decoded_code() -> None:
    network, draw = tiny(), draws(0, 1)
    codes = network.prior.generate(None, draw, 2).view(2, 2, 2)
    with torch.no_grad():
        expected = network.code.decode(network.code.quantiser.values(codes)).clamp(-1, 1)
    assert torch.equal(network.generate(None, draw, 2), expected)


def test_codes_are_those_that_the_decoder_is_trained_on() -> None:
    network, x0 = tiny(), torch.rand(5, 1, 8, 8) * 2 - 1
    values = network.code.encode(x0)
    torch.testing.assert_close(network.code.quantiser.values(network.code.codes(x0)), values.detach())


def test_the_loss_of_the_code_is_the_error_and_its_square() -> None:
    network, x0 = tiny(), torch.rand(3, 1, 8, 8) * 2 - 1
    last = network.code.to_picture[0]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.25)
    error = 0.25 - x0.double()
    expected = (error.abs() + error**2).flatten(1).mean(1)
    torch.testing.assert_close(network.losses("code", x0, None, draws(0, 1, 2)).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("critic", [0, 8])
def test_each_phase_reaches_all_of_its_part_and_nothing_else(critic: int) -> None:
    """The prior trains on codes that are given: its loss moves no autoencoder; and the code's passes the rounding."""
    network, x0 = tiny(classes=2, critic=critic), torch.rand(4, 1, 8, 8) * 2 - 1
    for phase in network.phases:
        network.zero_grad()
        network.losses(phase, x0, torch.tensor([0, 1, 0, 1]), draws(0, 1, 2, 3)).sum().backward()
        own = {id(parameter) for parameter in network.part(phase).parameters()}
        for name, parameter in network.named_parameters():
            moved = parameter.grad is not None and bool((parameter.grad != 0).any())
            # A constant added to all numbers of a critic cancels: it compares them.
            assert moved == (id(parameter) in own and name != "critic.layers.7.bias"), (phase, name)


def test_a_critic_that_is_linear() -> None:
    """D_p(x) = <w, patch p>, of disjoint patches: softplus of the differences, and a gradient of w in every patch."""
    critic, w = Critic(1, 4), torch.randn(1, 1, 4, 4)
    critic.layers = nn.Sequential(nn.Conv2d(1, 1, 4, 4, bias=False))
    critic.layers[0].weight = nn.Parameter(w)
    real, made = torch.randn(3, 1, 8, 12), torch.randn(3, 1, 8, 12)
    patches = (x.unfold(2, 4, 4).unfold(3, 4, 4).double().flatten(4) for x in (made, real))
    of_made, of_real = ((patch @ w.double().flatten()).flatten(1) for patch in patches)
    penalty = PENALTY / 2 * 2 * w.double().square().sum()
    expected = (1 + (of_made - of_real).exp()).log().mean(1) + penalty
    torch.testing.assert_close(critic.losses(real, made).double(), expected, rtol=1e-5, atol=1e-6)
    expected = (1 + (of_real - of_made).exp()).log().mean(1)
    torch.testing.assert_close(critic.doubts(real, made).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_critic_is_taught_by_its_penalty() -> None:
    """Of the linear one at real = made, the gradient of the losses is that of the penalty: PENALTY 2 w per picture."""
    critic, x = Critic(1, 4), torch.randn(1, 1, 4, 4)
    critic.layers = nn.Sequential(nn.Conv2d(1, 1, 4, 4, bias=False))
    (gradient,) = torch.autograd.grad(critic.losses(x, x).sum(), critic.layers[0].weight)
    torch.testing.assert_close(gradient, 2 * PENALTY * critic.layers[0].weight)


def test_the_code_heeds_the_critic_by_its_weight() -> None:
    network, x0 = tiny(critic=8), torch.rand(3, 1, 8, 8) * 2 - 1
    assert network.critic is not None
    both = network.losses("code", x0, None, draws(0, 1, 2))
    doubts = network.critic.doubts(x0, network.code(x0))
    network.critic = None
    torch.testing.assert_close(both, network.losses("code", x0, None, draws(0, 1, 2)) + 0.1 * doubts)


def test_matrices_are_weights_of_the_network() -> None:
    network = tiny()
    own = {id(parameter) for parameter in network.parameters()}
    matrices = [id(weight) for weight in network.matrices()]
    assert len(set(matrices)) == len(matrices) and set(matrices) <= own


@pytest.mark.parametrize("kind", [Coded, Pixels])
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 10)])
def test_rivals_have_at_most_two_million_parameters(
    kind: type[Coded] | type[Pixels], shape: tuple[int, int, int], classes: int
) -> None:
    assert sum(parameter.numel() for parameter in kind(shape, classes).parameters()) < 2e6


def test_refusals() -> None:
    with pytest.raises(UsageError, match="multiples of 4, and not 30 x 28"):
        Coded((1, 30, 28))
    with pytest.raises(ValueError, match="at least 3 levels"):
        Quantiser((5, 2))
    with pytest.raises(ValueError, match="labels"):
        tiny(classes=2).generate(None, draws(0), 1)
    with pytest.raises(ValueError, match="labels"):
        tiny().losses("prior", torch.zeros(1, 1, 8, 8), torch.tensor([0]), draws(0))
