"""The hierarchical VAE and its law of pixels, against integrals, exact posteriors, enumeration and scipy."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.discretised import VALUES, grid
from undiffuse.errors import UsageError
from undiffuse.process import Normal
from undiffuse.randomness import Given, keyed_draws
from undiffuse.rivals.logistics import Logistics, size_of_component
from undiffuse.rivals.vae import VAE
from undiffuse.rivals.vae.layers import Residual, law
from undiffuse.rivals.vae.vae import resolutions

ALL = grid(VALUES, torch.zeros(1, dtype=torch.float64))


def logistics(channels: int, components: int, seed: int = 0) -> Logistics:
    """A law for one pixel, of scales from .01 to 1."""
    output = torch.randn(1, size_of_component(channels) * components, 1, 1, generator=random(seed), dtype=torch.float64)
    output.unflatten(1, (-1, components))[:, 1 + channels : 1 + 2 * channels] -= 2
    return Logistics.of(output, channels)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Of the 256 values, 0 and 255 among them."""
    values = torch.randint(0, VALUES, (count, *shape), generator=random(1))
    values[0], values[-1] = 0, VALUES - 1
    return values.to(dtype) / 127.5 - 1


def of_pixels(law: Logistics, colours: Tensor) -> Tensor:
    """The probabilities of colours (N, C)."""
    for_all = Logistics(*(part.expand(len(colours), *part.shape[1:]) for part in vars(law).values()))
    return for_all.log_prob(colours[:, :, None, None]).exp().flatten()


def test_the_first_channels_of_a_colour_have_a_law_of_their_own_and_all_values_add_up_to_one() -> None:
    """The sum over the 256 values of the last channel is the law of the others, down to 1 for the sum over a grey."""
    whole, colours = logistics(3, 4), pictures(6, (3, 1, 1))[:, :, 0, 0]
    for channels in (3, 2, 1):
        pairs = channels * (channels - 1) // 2
        rest = Logistics(
            whole.log_weights,
            whole.means[:, :channels],
            whole.log_scales[:, :channels],
            whole.coefficients[:, :pairs],
        )
        before = (channels - 1) * (channels - 2) // 2
        fewer = Logistics(rest.log_weights, rest.means[:, :-1], rest.log_scales[:, :-1], rest.coefficients[:, :before])
        for colour in colours:
            every = torch.cat([colour[: channels - 1].expand(VALUES, -1), ALL[:, None]], 1)
            total = of_pixels(fewer, colour[None, : channels - 1]) if channels > 1 else torch.ones(1)
            assert of_pixels(rest, every).sum().item() == pytest.approx(total.item(), rel=1e-12)


def test_logistics_are_differences_of_distribution_functions() -> None:
    """Against scipy's, channel by channel and component by component, for pixels at both ends and between."""
    law = logistics(3, 4, seed=2)
    for x in pictures(20, (3, 1, 1))[:, :, 0, 0].numpy():
        total = 0.0
        for k in range(4):
            weight = law.log_weights[0, 0, k].exp().item()
            coefficients = law.coefficients[0, :, k, 0, 0].tolist()
            shifts = [0, coefficients[0] * x[0], coefficients[1] * x[0] + coefficients[2] * x[1]]
            for c in range(3):
                component = stats.logistic(law.means[0, c, k].item() + shifts[c], law.log_scales[0, c, k].exp().item())
                upper = 1.0 if x[c] == 1 else component.cdf(x[c] + 1 / 255)
                weight *= upper - (0.0 if x[c] == -1 else component.cdf(x[c] - 1 / 255))
            total += weight
        assert of_pixels(law, torch.from_numpy(x)[None]).item() == pytest.approx(total, rel=1e-9)


def test_far_from_its_mean_a_narrow_component_has_a_finite_log_probability_with_a_gradient() -> None:
    """The tail of a logistic law of mean 1 and scale exp(-7), at 0: ln of exp(-z) (exp(h / s) - exp(-h / s))."""
    output = torch.tensor([0.0, 1.0, -9.0]).view(1, 3, 1, 1).requires_grad_()
    value = Logistics.of(output, 1).log_prob(torch.full((1, 1, 1, 1), 1 / 255))
    scale = math.exp(-7)
    expected = -(1 - 1 / 255) / scale + 1 / 255 / scale + math.log1p(-math.exp(-2 / 255 / scale))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.sum().backward()
    assert output.grad is not None and output.grad.isfinite().all() and output.grad[0, 1].item() < 0


def test_samples_come_as_often_as_the_law_says() -> None:
    """Numbers evenly spaced in [0, 1) in place of random ones: within the spacing at either side of an interval."""
    law, fine = logistics(1, 3, seed=3), 4000
    law = Logistics(torch.tensor([0.2, 0.5, 0.3]).double().log().view(1, 1, 3, 1, 1), *list(vars(law).values())[1:])
    choice, quantile = torch.meshgrid(
        (torch.arange(10).double() + 0.5) / 10, (torch.arange(fine).double() + 0.5) / fine, indexing="ij"
    )
    samples = law_everywhere(law, 10, fine).at(torch.stack([choice, quantile])[None])
    often = torch.bincount(((samples.flatten() + 1) * 127.5).round().long(), minlength=VALUES) / samples.numel()
    torch.testing.assert_close(often, of_pixels(law, ALL[:, None]), rtol=0, atol=1 / fine, check_dtype=False)


def test_a_sample_s_second_channel_follows_its_first() -> None:
    law, fine = logistics(2, 1, seed=4), 4000
    quantile = (torch.arange(fine).double() + 0.5) / fine
    u = torch.stack([quantile, torch.full_like(quantile, 0.8), quantile])[None, :, None]
    first, second = law_everywhere(law, 1, fine).at(u)[0, :, 0]
    assert (first == first[0]).all()
    often = torch.bincount(((second + 1) * 127.5).round().long(), minlength=VALUES) / fine
    both = of_pixels(law, torch.stack([first[0].expand(VALUES), ALL], 1))
    torch.testing.assert_close(often, both / both.sum(), rtol=0, atol=1 / fine, check_dtype=False)


def test_the_centre_of_narrow_components_is_their_average_and_of_one_alone_its_sample() -> None:
    law = logistics(2, 1, seed=4)
    narrow = Logistics(law.log_weights, law.means / 2, law.log_scales - 9, law.coefficients)
    torch.testing.assert_close(narrow.centre(), narrow.at(torch.full((1, 3, 1, 1), 0.4).double()), rtol=0, atol=1e-12)
    weights, means = torch.tensor([0.25, 0.75]).double(), torch.tensor([-3.0, 0.6]).double()  # -3 is seen as -1
    pair = Logistics(*(part.view(1, len(part) // 2, 2, 1, 1) for part in (weights.log(), means, means, means[:0])))
    assert pair.centre().item() == pytest.approx(0.25 * -1 + 0.75 * 0.6, abs=1 / 255)


def law_everywhere(law: Logistics, height: int, width: int) -> Logistics:
    return Logistics(*(part.expand(*part.shape[:3], height, width) for part in vars(law).values()))


def test_the_divergence_of_two_latents_is_its_integral() -> None:
    q, p = torch.tensor([0.7, -1.3]).double(), torch.tensor([-0.4, 0.6]).double()
    laws = [law(part.view(1, 2, 1, 1)) for part in (q, p)]
    of_q, of_p = (stats.norm(part[0].item(), math.log2(1 + 2 ** part[1].item())) for part in (q, p))
    integral, _ = integrate.quad(lambda z: of_q.pdf(z) * (of_q.logpdf(z) - of_p.logpdf(z)), -12, 12, epsabs=1e-12)
    assert laws[0].kl(laws[1]).item() == pytest.approx(integral, abs=1e-10)


A, B, S = 0.8, 0.6, 0.5
W, MU = np.array([1.2, -0.7]), np.array([0.1, 0.4])


def linear_vae(shift: float, factor: float) -> tuple[VAE, np.ndarray]:
    """z_1 ~ N(0, 1), z_2 ~ N(A z_1, B^2), x ~ N(W z_2 + MU, S^2 I) with its exact posterior, but for z_1's mean, moved
    by `shift`, and its deviation, multiplied by `factor`. And the precision of the posterior of (z_1, z_2)."""
    precision = np.array([[1 + (A / B) ** 2, -A / B**2], [-A / B**2, 1 / B**2 + W @ W / S**2]])
    covariance = np.linalg.inv(precision)
    vae = VAE((2, 1, 1), patch=1, widths=(4,), blocks=(0,), layers=(2,), latents=(1,), narrowing=1).double()
    vae.stem = nn.Identity()  # type: ignore[assignment]
    vae.pixels = (
        lambda h: Normal(  # type: ignore[assignment,method-assign,return-value]
            h[:, 1:2] * torch.from_numpy(W).view(1, 2, 1, 1) + torch.from_numpy(MU).view(1, 2, 1, 1),
            torch.tensor(S**2).double(),
        )
    )
    evidence = W / S**2  # of x about z_2
    first, second = vae.latent_layers
    # Channel 0 of the state is z_1, channel 1 is z_2; the posterior also sees x as channels 4 and 5.
    rows = [0.0] * 4 + list(covariance[0, 1] * evidence)
    set_law(first.posterior_law, rows, shift - covariance[0, 1] * evidence @ MU, factor * covariance[0, 0] ** 0.5)
    set_law(second.prior_law, [A, 0.0, 0.0, 0.0], 0.0, B)
    rows = [A / B**2 / precision[1, 1], 0.0, 0.0, 0.0, *(evidence / precision[1, 1])]
    set_law(second.posterior_law, rows, -evidence @ MU / precision[1, 1], precision[1, 1] ** -0.5)
    for channel, layer in enumerate((first, second)):
        layer.prior = layer.posterior = layer.residual = nn.Identity()
        layer.of_latent.weight.data = torch.eye(4).double()[:, channel].view(4, 1, 1, 1)
    return vae, precision


def set_law(layer: nn.Conv2d, row: list[float], bias: float, deviation: float) -> None:
    layer.weight.data = torch.tensor([row, [0.0] * len(row)], dtype=torch.float64)[:, :, None, None]
    layer.bias.data = torch.tensor([bias, math.log2(2**deviation - 1)], dtype=torch.float64)  # type: ignore[union-attr]


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.7, 1.0), (0.0, 1.5), (-0.4, 0.6)])
def test_the_bound_of_a_linear_vae_is_exact_with_the_exact_posterior_and_else_misses_its_divergence(
    shift: float, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is quadratic in the noise: Gauss-Hermite nodes give its expectation."""
    monkeypatch.setattr(functional, "gelu", lambda x: x)
    vae, precision = linear_vae(shift, factor)
    nodes, weights = hermegauss(3)
    weights = np.outer(weights, weights).ravel() / (2 * math.pi)
    noise = torch.tensor([(a, b) for a in nodes for b in nodes])
    x = np.array([0.9, -1.1])
    x0 = torch.from_numpy(x).view(1, 2, 1, 1).expand(len(noise), -1, -1, -1)
    bound = float(vae.nats(x0, None, Given(noise)).detach().numpy() @ weights)
    evidence = -stats.multivariate_normal(MU, (A**2 + B**2) * np.outer(W, W) + S**2 * np.eye(2)).logpdf(x)
    # q(z_2 | z_1) is exact, so the divergence is that of q(z_1).
    deviation = np.linalg.inv(precision)[0, 0] ** 0.5
    divergence = -math.log(factor) + (factor**2 + (shift / deviation) ** 2 - 1) / 2
    assert bound - evidence == pytest.approx(divergence, abs=1e-9)


def test_a_model_of_two_pixels_adds_up_to_one_and_its_bound_lies_just_below_the_likelihood() -> None:
    """All 65,536 pictures, with the only latent on a fine grid; after a short training the bound is close."""
    torch.manual_seed(0)
    vae = VAE(
        (1, 1, 2), patch=1, widths=(16,), blocks=(1,), layers=(0, 1), latents=(1,), narrowing=1, components=2
    ).double()
    data = torch.tensor([[-1.0, 0.2], [-0.6, 0.6], [0.2, 0.2], [1.0, -1.0]]).double().view(4, 1, 1, 2)
    data = ((data + 1) * 127.5).round() / 127.5 - 1
    optimizer = torch.optim.Adam(vae.parameters(), 0.01)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 300)
        optimizer.zero_grad()
        vae.losses("vae", data.repeat(8, 1, 1, 1), None, keyed_draws(0, range(32))(step)).mean().backward()
        optimizer.step()
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    prior = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    with torch.no_grad():
        pixels = vae.pixels(vae.top_down(z[:, None], None, None)[0])
        of_value = torch.stack([pixels.log_prob(v.expand(len(z), 1, 1, 2)).exp()[:, 0] for v in ALL])  # value, z, pixel
        likelihood = (of_value[:, :, 0] * prior) @ of_value[:, :, 1].T
        assert likelihood.sum().item() == pytest.approx(1, abs=1e-9)
        nodes, weights = hermegauss(80)
        noise, weights = torch.from_numpy(nodes)[:, None], torch.from_numpy(weights) / math.sqrt(2 * math.pi)
        for x0 in data:
            bound = vae.nats(x0.expand(len(noise), -1, -1, -1), None, Given(noise)) @ weights
            first, second = ((x0.flatten() + 1) * 127.5).round().long()
            gap = (bound + likelihood[first, second].log()).item()
            assert 0 < gap < 0.6  # nats; -ln p is 2 to 8


def test_a_sample_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    vae = VAE((3, 6, 5), classes=4, patch=1, widths=(8,), blocks=(1,), layers=(1,), latents=(2,)).double()
    perturbed(vae)
    draws, labels = keyed_draws(3, range(7)), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    together = vae.generate(labels, draws(0), 7)
    for k in range(7):
        alone = vae.generate(labels[k : k + 1], keyed_draws(3, [k])(0), 1)
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=0)
    assert ((together + 1) * 127.5).frac().abs().sub(0.5).abs().min() > 0.49  # all of the 256 values
    changed = vae.generate(labels.roll(1), draws(0), 7)
    assert (changed != together).flatten(1).any(1).all()


def perturbed(vae: VAE) -> None:
    """Moves every parameter, so that nothing is zero as it is at first."""
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def test_at_temperature_zero_only_the_pixels_are_drawn() -> None:
    torch.manual_seed(1)
    vae = VAE((1, 4, 4), widths=(8,), patch=1, blocks=(1,), layers=(1,), latents=(2,)).double()
    perturbed(vae)
    noise = torch.randn(2, 2 * 16 + 2, generator=random(0)).double()
    (first, second), _ = vae.top_down(noise, None, None, temperature=0.0)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    (mean, half, whole), _ = vae.top_down(noise[:1] * torch.tensor([[0.0], [0.5], [1.0]]), None, None)
    torch.testing.assert_close(first, mean, rtol=0, atol=1e-12)
    tempered, _ = vae.top_down(noise[:1], None, None, temperature=0.5)
    torch.testing.assert_close(tempered[0], half, rtol=0, atol=1e-12)
    assert (half - whole).abs().max() > 1e-3


def test_n_blocks_start_as_far_from_the_identity_as_one() -> None:
    """The last layer of each is smaller by sqrt(N): exactly, from the same seed."""
    x = torch.randn(8, 32, 6, 6, generator=random(0))
    steps = []
    for blocks in (1, 16):
        torch.manual_seed(5)
        steps.append(Residual(32, 16, (6, 6), 1 / math.sqrt(blocks))(x) - x)
    torch.testing.assert_close(steps[0], 4 * steps[1], rtol=1e-4, atol=1e-5)
    assert 0.1 < steps[0].square().mean().item() < 2  # of inputs whose mean square is 1; the border costs some of it


def test_every_prior_starts_as_the_standard_one() -> None:
    """So the divergence of a layer is that of its posterior from N(0, I)."""
    vae = VAE((1, 8, 8), widths=(8,), latents=(2,))
    x = torch.randn(3, 8, 4, 4)
    prior = law(vae.latent_layers[1].prior_law(torch.randn(3, 4, 4, 4)))
    assert (prior.mean == 0).all()
    torch.testing.assert_close(prior.variance, torch.ones_like(prior.mean), rtol=1e-6, atol=0)
    noise = torch.randn(3, 2, 4, 4)
    layer = vae.latent_layers[1]
    h = x + layer.of_latent(noise)
    torch.testing.assert_close(layer(x, noise, None, None, 1.0)[0], layer.residual(h), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_two_million_parameters_do_and_bf16_changes_the_bound_little(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    vae = VAE(shape, classes=10)
    assert sum(p.numel() for p in vae.parameters()) <= 2_000_000
    x0, labels, draw = pictures(4, shape, torch.float32), torch.arange(4), keyed_draws(0, range(4))(0)
    with torch.no_grad():
        exact = vae.nats(x0, labels, draw)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = vae.nats(x0, labels, draw)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    torch.testing.assert_close(vae.losses("vae", x0, labels, draw), exact / math.prod(shape))


def test_resolutions_halve_to_one_pixel() -> None:
    assert resolutions(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4), (1, 1)]
    assert resolutions(32, 32) == [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)]
    assert resolutions(1, 1) == [(1, 1)]


def test_patches_must_fit() -> None:
    with pytest.raises(UsageError, match="28 x 27 do not divide into patches of side 2"):
        VAE((1, 28, 27))


@pytest.mark.parametrize("classes", [0, 3])
def test_labels_belong_to_classes(classes: int) -> None:
    vae = VAE((1, 4, 4), classes=classes, widths=(8,))
    labels = None if classes else torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="labels"):
        vae.generate(labels, keyed_draws(0, range(2))(0), 2)
