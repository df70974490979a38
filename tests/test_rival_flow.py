"""The flows: their change of variables, their inverse, what each patch depends on, and the denoising of samples."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.randomness import Given, KeyedDraw, keyed_draws
from undiffuse.rivals.flow import Coupling, TarFlow
from undiffuse.rivals.flow.flow import Flow
from undiffuse.rivals.flow.layers import Conditioner

SHAPE = (2, 4, 6)  # six patches of 2 x 2 pixels, so of 8 numbers
SMALL = {TarFlow: {"blocks": 3, "layers": 2, "width": 32}, Coupling: {"steps": 3, "layers": 1, "width": 32}}
KINDS = pytest.mark.parametrize("kind", SMALL)
EXACT = {"rtol": 0, "atol": 1e-9}  # float64 through a dozen layers loses three or four of its sixteen digits


def flow(kind: type[Flow], shape: tuple[int, int, int] = SHAPE, patch: int = 2, spread: float = 0.3, **sizes) -> Flow:
    """A flow in float64 whose every weight is disturbed, so that no part is the identity as it is before training."""
    torch.manual_seed(0)
    made = kind(shape, patch=patch, **SMALL[kind], **sizes).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight += spread / max(weight.shape[-1], 4) ** 0.5 * torch.randn_like(weight)
    return made


def pictures(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@KINDS
def test_the_log_determinant_is_that_of_autograds_jacobian(kind):
    model, y, labels = flow(kind, classes=3), pictures(2), torch.tensor([2, 0])
    _, log_det = model(y, labels)
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda x, k=k: model(x[None], labels[k : k + 1])[0][0], y[k])
        expected = torch.linalg.slogdet(jacobian.reshape(48, 48)).logabsdet
        assert abs(expected) > 0.1
        torch.testing.assert_close(log_det[k], expected, **EXACT)


@KINDS
def test_the_inverse_undoes_the_flow_on_both_sides(kind):
    model, y, labels = flow(kind, classes=3), pictures(4), torch.tensor([2, 0, 1, 2])
    with torch.no_grad():
        z = model(y, labels)[0]
        assert (z - model(y, labels.roll(1))[0]).abs().max() > 1e-3
        torch.testing.assert_close(model.inverse(z, labels), y, **EXACT)
        torch.testing.assert_close(model(model.inverse(z.flip(0), labels), labels)[0], z.flip(0), **EXACT)


def test_patches_generated_with_remembered_keys_are_those_of_the_whole_recomputed():
    model = flow(TarFlow)
    block, z = model.blocks[0], pictures(3).reshape(3, 6, 8)
    with torch.no_grad():
        x = torch.zeros_like(z)
        unmixed = torch.linalg.solve(block.mixing.matrix(), z.mT).mT
        for i in range(6):  # the fixed point of x = mean(x) + scale(x) W^-1 z, which is exact up to patch i after i + 1
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            mean, log_scale = block.conditioner(before, None)
            x[:, i] = (mean + log_scale.exp() * unmixed)[:, i]
        torch.testing.assert_close(block.inverse(z, None), x, **EXACT)


def test_each_patch_depends_on_those_before_it_alone():
    block, x = flow(TarFlow).blocks[0], pictures(1).reshape(6, 8)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None], None)[0][0], x)
    depends = jacobian.abs().amax((1, 3)) > 0
    assert torch.equal(depends, torch.ones(6, 6).tril().bool())


def test_the_blocks_of_a_tarflow_read_in_alternating_directions():
    def depends(blocks: int) -> Tensor:
        model.blocks = model.blocks[:blocks]
        jacobian = torch.autograd.functional.jacobian(lambda x: model.normalised(x[None], None)[0][0], x)
        return jacobian.abs().amax((1, 3)) > 0

    model, x = flow(TarFlow), pictures(1).reshape(6, 8)
    assert depends(2).all()  # there and back, all is known to all
    assert torch.equal(depends(1), torch.ones(6, 6).tril().bool().flip(0))


def test_a_coupling_keeps_half_and_scales_the_rest_each_by_itself():
    step, x = flow(Coupling).steps[0], pictures(1).reshape(6, 8)
    mixed = x @ step.mixing.matrix().mT

    def coupled(mixed: Tensor) -> Tensor:
        return step(torch.linalg.solve(step.mixing.matrix(), mixed.mT).mT[None], None)[0][0]

    jacobian = torch.autograd.functional.jacobian(coupled, mixed)
    eye = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(jacobian[:, :4, :, :4].reshape(24, 24), eye, **EXACT)
    torch.testing.assert_close(jacobian[:, :4, :, 4:].abs().max(), torch.tensor(0.0).double(), **EXACT)
    scales = jacobian[:, 4:, :, 4:].reshape(24, 24)
    torch.testing.assert_close(scales, scales.diag().diag(), **EXACT)
    assert scales.diag().std() > 0.01


@pytest.mark.parametrize(
    ("kind", "shape"), [(TarFlow, (1, 1, 1)), (TarFlow, (1, 1, 2)), (TarFlow, (2, 1, 1)), (Coupling, (2, 1, 1))]
)
def test_a_density_integrates_to_one(kind, shape):
    # The trapezoidal rule converges faster than any power for what is smooth and vanishes at the ends; beyond
    # sinh(4.5) = 45 there is nothing.
    model, dimensions = flow(kind, shape, patch=1, spread=0.6), math.prod(shape)
    u = torch.linspace(-4.5, 4.5, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(*[u] * dimensions).reshape(-1, dimensions)
    with torch.no_grad():
        log_density = torch.cat([model.log_density(part.sinh().reshape(-1, *shape)) for part in grid.split(4096)])
    weights = grid.cosh().log().sum(1) + dimensions * math.log(u[1] - u[0])
    assert abs(float((log_density + weights).exp().sum()) - 1) < 1e-6
    assert float((log_density - normal_log_density(grid.sinh())).std()) > 0.1


def normal_log_density(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0, 1).log_prob(x).sum(1)


@KINDS
def test_before_training_a_flow_only_moves_numbers_about_and_its_density_is_normal(kind):
    model, y = kind(SHAPE, patch=2, **SMALL[kind]).double(), pictures(3)
    with torch.no_grad():
        z, log_det = model(y)
        torch.testing.assert_close(z.flatten(1).sort().values, y.flatten(1).sort().values, rtol=0, atol=0)
        assert not log_det.any()
        normal = torch.distributions.Normal(0, 1).log_prob(y).flatten(1).sum(1)
        torch.testing.assert_close(model.log_density(y), normal, **EXACT)


def gaussian(noise: float) -> tuple[TarFlow, Tensor, Tensor]:
    """A flow whose density is N(mean, covariance) in every patch of 4 numbers, and the two."""
    model = TarFlow((1, 4, 4), patch=2, noise=noise, blocks=1, layers=1, width=32).double()
    block, generator = model.blocks[0], torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (block.mixing.lower, block.mixing.upper, block.mixing.log_diagonal):
            weight += 0.3 * torch.randn(weight.shape, dtype=torch.float64, generator=generator)
        block.conditioner.out.bias[:4] = torch.tensor([0.3, -0.1, 0.5, 0.0])
        block.conditioner.out.bias[4:] = -0.7
        unmixed = torch.linalg.inv(block.mixing.matrix()) * math.exp(3 * math.tanh(-0.7 / 3))
        return model, block.conditioner.out.bias[:4].detach(), unmixed @ unmixed.mT


def test_denoising_is_the_mean_of_what_was_there_for_a_gaussian():
    noise = 0.2
    model, mean, covariance = gaussian(noise)
    y = pictures(5, (1, 4, 4))
    # y ~ N(m, S) is x_0 ~ N(m, S - s^2) and noise of variance s^2: E[x_0 | y] = m + (S - s^2) S^-1 (y - m).
    patches = y.unfold(2, 2, 2).unfold(3, 2, 2).reshape(5, 4, 4)
    kept = torch.eye(4).double() - noise**2 * torch.linalg.inv(covariance)
    expected = mean + (patches - mean) @ kept.mT
    with torch.no_grad():
        found = model.denoised(y).unfold(2, 2, 2).unfold(3, 2, 2).reshape(5, 4, 4)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_density_is_that_of_the_gaussian():
    model, mean, covariance = gaussian(0.2)
    y = pictures(5, (1, 4, 4))
    patches = y.unfold(2, 2, 2).unfold(3, 2, 2).reshape(5, 4, 4)
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(patches).sum(1)
    torch.testing.assert_close(model.log_density(y), expected, **EXACT)


@KINDS
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_samples_are_the_draws_and_no_ones_neighbours(kind, noise):
    model, labels = flow(kind, noise=noise, classes=3), torch.tensor([0, 1, 2, 1])
    draw = keyed_draws(0, range(4))(0)
    together = model.generate(labels, draw, 4)
    assert together.dtype == torch.float32 and together.abs().max() <= 1
    alone = model.generate(labels[2:3], KeyedDraw(draw.keys[2:3]), 1)
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=1e-6)  # of float32, which samples end in
    z = draw.normal(torch.empty(4, 6, 8, dtype=torch.float64))
    y = model.inverse(z, labels).detach()
    if noise:
        inner = y.clone().requires_grad_()
        y = y + noise**2 * torch.autograd.grad(model.log_density(inner, labels).sum(), inner)[0]
    torch.testing.assert_close(together, y.clamp(-1, 1).float(), rtol=0, atol=1e-6)


@KINDS
def test_losses_and_nats_are_of_the_density_with_their_noise(kind):
    x0 = (torch.arange(96).reshape(2, *SHAPE) * 2 / 255 - 1).double()
    u = torch.rand(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        eps = pictures(2)
        noisy, exact = flow(kind, noise=0.3), flow(kind, noise=0.0)
        torch.testing.assert_close(
            noisy.losses("generator", x0, None, Given(eps)), -noisy.log_density(x0 + 0.3 * eps) / 48, **EXACT
        )
        y = (torch.arange(96).reshape(2, *SHAPE) + u) / 128 - 1  # value k is the interval from k / 128 - 1 on
        nats = exact.nats(x0, None, Given(u, is_uniform=True))
        torch.testing.assert_close(nats, -exact.log_density(y) + 48 * math.log(128), **EXACT)
        loss = exact.losses("generator", x0, None, Given(u, is_uniform=True))
        torch.testing.assert_close(nats, 48 * (loss + math.log(128)), **EXACT)


def test_causal_attention_is_of_tokens_up_to_its_own():
    torch.manual_seed(0)
    conditioner = Conditioner(5, 3, 2, width=32, layers=2, classes=0, causal=True).double()
    with torch.no_grad():
        for weight in conditioner.parameters():
            weight += 0.1 * torch.randn_like(weight)
        x = torch.randn(1, 5, 3, dtype=torch.float64)
        means = [conditioner(torch.cat([x[:, :n], x.new_full((1, 5 - n, 3), n)], 1), None)[0] for n in range(1, 6)]
        for n, (early, late) in enumerate(pairwise(means), 1):
            torch.testing.assert_close(early[:, :n], late[:, :n], rtol=0, atol=1e-12)


@KINDS
def test_a_flow_in_half_precision_is_trained_on_a_density_in_full(kind):
    model, y = flow(kind).float(), pictures(4).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.losses("generator", y, None, keyed_draws(0, range(4))(0))
    full = model.losses("generator", y, None, keyed_draws(0, range(4))(0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full, rtol=0.03, atol=0.03)  # bf16 has eight bits
    loss.mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize(
    ("kind", "evaluations"),
    [(TarFlow, {(1, 28, 28): 50, (3, 32, 32): 65}), (Coupling, {(1, 28, 28): 2, (3, 32, 32): 2})],
)
def test_the_sizes_of_the_comparison(kind, evaluations):
    for shape, count in evaluations.items():
        model = kind(shape, 10)
        assert sum(weight.numel() for weight in model.parameters()) <= 2_000_000
        assert model.evaluations == count and kind(shape, 10, noise=0.0).evaluations == count - 1
        assert model.part("generator") is model
        assert all(weight.dim() == 2 for weight in model.matrices())


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UsageError, match="28 x 28 are not full patches of 5 pixels"):
        TarFlow((1, 28, 28), patch=5)
    with pytest.raises(UsageError, match="at least two numbers"):
        Coupling((1, 28, 28), patch=1)
    with pytest.raises(UsageError, match="multiple of 32, which 40 is not"):
        TarFlow((1, 28, 28), width=40)
    with pytest.raises(UsageError, match="not -1"):
        TarFlow((1, 28, 28), noise=-1)
    with pytest.raises(UsageError, match="it needs labels"):
        TarFlow((1, 28, 28), 10)(torch.zeros(1, 1, 28, 28))
    with pytest.raises(UsageError, match="takes no labels"):
        TarFlow((1, 28, 28))(torch.zeros(1, 1, 28, 28), torch.tensor([1]))
