"""R3GAN: its losses and penalties against closed forms, its initialisation, and the dynamics of the Dirac-GAN."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import UsageError
from undiffuse.randomness import keyed_draws
from undiffuse.rivals.gan import R3GAN, penalty, relativistic
from undiffuse.rivals.gan.grouped import Mix
from undiffuse.rivals.gan.networks import SLOPE, Block, Resample

DRAWS = keyed_draws(0, range(4))


def small(classes: int = 3, **options: object) -> R3GAN:
    """A model of 6 x 10, 3 x 5 and 2 x 3 places, in float64, none of whose weights are still 0."""
    torch.manual_seed(0)
    model = R3GAN(
        (2, 6, 10), classes, **{"widths": (8, 12, 16), "blocks": 1, "group": 4, "latent": 5, **options}
    ).double()
    for block in model.modules():
        if isinstance(block, Block):
            nn.init.normal_(block.narrow.weight, std=0.2)
            nn.init.normal_(block.widen.bias, std=0.2)
            nn.init.normal_(block.mix.bias, std=0.2)
    return model


def pictures(count: int = 4) -> Tensor:
    """float64 (count, 2, 6, 10) in [-1, 1]."""
    return torch.rand(count, 2, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


LABELS = torch.tensor([0, 2, 1, 2])


class Scored(nn.Module):
    """A critic with a formula of its weight and the picture in place of a network."""

    def __init__(self, weight: Tensor, score: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.weight, self.score = nn.Parameter(weight), score

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.score(self.weight, x.flatten(1))


class Point(nn.Module):
    """A generator of one picture of one pixel, whatever z is: the Dirac-GAN's."""

    def __init__(self, at: float):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([at], dtype=torch.float64))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.at.expand(len(z), 1, 1, 1)


def test_the_losses_of_equal_scores_are_ln_2_and_their_gradients_are_opposite() -> None:
    real = torch.tensor([0.3, -5.0, 40.0], dtype=torch.float64, requires_grad=True)
    fake = real.detach().clone().requires_grad_()
    critic, generator = relativistic(real, fake), relativistic(fake, real)
    assert torch.allclose(critic, torch.full_like(critic, math.log(2)), rtol=1e-15)
    assert torch.allclose(generator, critic, rtol=1e-15)
    ours = torch.autograd.grad(critic.sum(), (real, fake))
    theirs = torch.autograd.grad(generator.sum(), (real, fake))
    assert all(torch.equal(one, -other) for one, other in zip(ours, theirs, strict=True))
    assert torch.equal(ours[0], torch.full_like(real, -0.5))


def test_a_large_difference_of_scores_costs_itself() -> None:
    """softplus(d) - softplus(-d) = d, also where exp(d) overflows."""
    d = torch.tensor([-2000.0, -1.0, 0.5, 2000.0], dtype=torch.float64)
    assert torch.allclose(relativistic(torch.zeros_like(d), d) - relativistic(d, torch.zeros_like(d)), d, rtol=1e-14)


def test_the_penalty_of_a_linear_critic_is_the_square_of_its_weight_and_of_a_quadratic_one_that_of_its_gradient() -> (
    None
):
    random = torch.Generator().manual_seed(0)
    w = torch.randn(6, dtype=torch.float64, generator=random, requires_grad=True)
    a = torch.randn(6, 6, dtype=torch.float64, generator=random, requires_grad=True)
    x = torch.randn(5, 6, dtype=torch.float64, generator=random, requires_grad=True)
    assert torch.allclose(penalty(x @ w, x), w.square().sum().expand(5), rtol=1e-14)
    got = penalty((x @ a * x).sum(1), x)  # x^T A x has the gradient (A + A^T) x
    assert torch.allclose(got, (x @ (a + a.T)).square().sum(1), rtol=1e-13)
    (by_a,) = torch.autograd.grad(got.sum(), a)
    outer = 2 * (a + a.T) @ (x.T @ x)  # d ||S x||^2 = 2 <S x x^T, dA + dA^T>
    assert torch.allclose(by_a, outer + outer.T, rtol=1e-12)


def test_the_critics_loss_of_a_linear_critic_has_both_penalties() -> None:
    model = R3GAN((1, 1, 1), widths=(2,), gamma=0.6, last_gamma=0.2).double()
    w = torch.tensor([1.7], dtype=torch.float64)
    model.critic, model.generator = Scored(w, lambda w, x: x @ w), Point(0.4)
    x = torch.tensor([-0.5, 0.1, 0.9, 0.4], dtype=torch.float64)
    for progress, gamma in ((0.0, 0.6), (0.5, 0.4), (1.0, 0.2)):
        model.progress = progress
        got = model.losses("critic", x[:, None, None, None], None, DRAWS(0))
        want = (1 + (1.7 * (0.4 - x)).exp()).log() + gamma / 2 * (1.7**2 + 1.7**2)
        assert torch.allclose(got, want, rtol=1e-13)
    got = model.losses("generator", x[:, None, None, None], None, DRAWS(0))
    assert torch.allclose(got, (1 + (1.7 * (x - 0.4)).exp()).log(), rtol=1e-13)


@pytest.mark.parametrize("phase", R3GAN.phases)
def test_the_gradients_of_the_losses_in_the_weights_are_finite_differences(phase: str) -> None:
    """With the penalties, of the whole networks. Kinks are far enough from these weights for a step of 1e-6, whose
    error is about 1e-10 / 1e-6 of rounding divided by the step. Pictures stay inside the range at which they would be
    cut off."""
    model, x = small(), pictures()
    with torch.no_grad():
        model.generator.out.weight /= 20

    def loss() -> Tensor:
        return model.losses(phase, x, LABELS, DRAWS(0)).mean()

    model.zero_grad()
    loss().backward()
    own, other = model.part(phase), model.part(next(p for p in R3GAN.phases if p != phase))
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    random = torch.Generator().manual_seed(2)
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        start, values = parameter.detach().clone(), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.copy_(start + step * direction)
            values.append(loss().item())
        with torch.no_grad():
            parameter.copy_(start)
        assert (parameter.grad * direction).sum().item() == pytest.approx(
            (values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8
        ), name


def test_a_convolution_in_groups_is_the_sum_of_its_groups() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=random)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=random)
    bias = torch.randn(6, dtype=torch.float64, generator=random)
    want = bias[:, None, None].expand(2, 6, 5, 4).clone()
    for group in range(3):
        dense = torch.zeros(6, 6, 3, 3, dtype=torch.float64)
        here = slice(2 * group, 2 * group + 2)
        dense[here, here] = weight[here]
        want += functional.conv2d(x, dense, padding=1)
    assert torch.allclose(Mix.apply(x, weight, bias, 3), want, rtol=1e-12, atol=1e-12)


def test_the_convolutions_derivatives_are_torchs_own() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=random, requires_grad=True)
        for shape in ((2, 6, 5, 4), (6, 2, 3, 3), (6,))
    )

    def derivatives(convolved: Tensor) -> list[Tensor]:
        loss = convolved.sin().sum() + penalty(convolved.pow(3).sum((1, 2, 3)), x).sum()
        return list(torch.autograd.grad(loss, (x, weight, bias)))

    ours = derivatives(Mix.apply(x, weight, bias, 3))
    theirs = derivatives(functional.conv2d(x, weight, bias, padding=1, groups=3))
    assert all(torch.allclose(one, other, rtol=1e-10, atol=1e-9) for one, other in zip(ours, theirs, strict=True))


def test_resampling_is_torchs_and_keeps_constants() -> None:
    x = torch.randn(2, 7, 5, 3, generator=torch.Generator().manual_seed(0))
    for to in ((4, 3), (14, 10)):
        want = functional.interpolate(x.permute(0, 3, 1, 2), to, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        assert torch.allclose(Resample((7, 5), to)(x), want, atol=1e-6)
        assert torch.allclose(Resample((7, 5), to)(torch.ones(1, 7, 5, 1)), torch.ones(1, *to, 1), atol=1e-6)


def test_a_block_is_the_identity_at_the_start() -> None:
    x = torch.randn(2, 5, 4, 16)
    assert torch.equal(Block(16, 4, 3)(x), x)


def changed_by_one_update(depth: int, of_depth: int) -> float:
    """The root mean square of what one step of gradient descent on <output, y> changes in a stack of blocks' output."""
    torch.manual_seed(0)
    stack = nn.Sequential(*(Block(32, 8, of_depth) for _ in range(depth))).double()
    x, y = torch.randn(2, 64, 4, 4, 32, dtype=torch.float64).unbind(0)
    before = stack(x)
    (before * y).mean().backward()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter -= 1e-2 * parameter.grad if parameter.grad is not None else 0
    return (stack(x) - before).square().mean().sqrt().item()


def test_the_first_update_of_a_network_does_not_grow_with_its_depth() -> None:
    """Zhang et al. 2019, section 3. Without their scale that of 32 blocks is 16 times that of 2.

    The mean over the random weights of two blocks is known to about a tenth.
    """
    assert changed_by_one_update(32, 32) == pytest.approx(changed_by_one_update(2, 2), rel=0.2)
    assert changed_by_one_update(32, 1) == pytest.approx(16 * changed_by_one_update(2, 1), rel=0.2)


def test_the_critic_judges_pictures_as_they_are_shown() -> None:
    """In their range, and the generator still learns."""
    model = small()
    with torch.no_grad():
        model.generator.out.weight *= 20
    x = model.generator(torch.randn(4, model.latent, dtype=torch.float64), LABELS[:4])
    assert x.abs().max() == 1 and (x.abs() == 1).double().mean() > 0.5
    x.square().sum().backward()
    assert model.generator.out.weight.grad.abs().max() > 0  # type: ignore[union-attr]


def test_the_features_inside_a_block_have_the_variance_of_its_depth() -> None:
    """E h^2 = E x^2 / sqrt(depth) after each of the first two layers: the gain undoes the leaky ReLU."""
    torch.manual_seed(0)
    block, x = Block(256, 512, 16), torch.randn(64, 8, 8, 256)
    with torch.no_grad():
        first = functional.leaky_relu(block.widen(x), SLOPE)
        assert first.square().mean().item() == pytest.approx(1 / 4, rel=0.05)
        second = functional.leaky_relu(block.mix(first.permute(0, 3, 1, 2)), SLOPE)[:, :, 1:-1, 1:-1]
        assert second.square().mean().item() == pytest.approx(1 / 16, rel=0.05)


def test_the_first_pictures_of_deep_and_shallow_generators_have_the_same_variance() -> None:
    """About that of one linear layer of a product of normal numbers, resampled: at most 1."""
    for blocks in (1, 8):
        torch.manual_seed(0)
        model = R3GAN((1, 14, 14), widths=(64, 128), blocks=blocks)
        variance = model.generator(torch.randn(64, 64), None).var().item()
        assert 0.3 < variance < 1


def dirac(gamma: float, steps: int, rate: float = 0.2, turns: bool = True) -> Tensor:
    """The distances of (generator, critic) from (0, 0) in a Dirac-GAN with the data at 0, float64 (steps,).

    `turns`: updated one after the other as in training, or both at once as in Mescheder et al. 2018.
    """
    model = R3GAN((1, 1, 1), widths=(2,), gamma=gamma, last_gamma=gamma).double()
    model.critic, model.generator = Scored(torch.tensor([0.3], dtype=torch.float64), lambda w, x: x @ w), Point(0.5)
    x0, draw, distances = torch.zeros(1, 1, 1, 1, dtype=torch.float64), keyed_draws(0, [0])(0), []
    for _ in range(steps):
        for phases in [[phase] for phase in model.phases] if turns else [model.phases]:
            for phase in phases:
                model.part(phase).zero_grad()
                model.losses(phase, x0, None, draw).mean().backward()
            with torch.no_grad():
                for phase in phases:
                    for parameter in model.part(phase).parameters():
                        parameter -= rate * parameter.grad
        distances.append(math.hypot(model.generator.at.item(), model.critic.weight.item()))
    return torch.tensor(distances, dtype=torch.float64)


def test_the_dirac_gan_converges_at_its_linear_rate_with_penalties() -> None:
    """Mescheder et al. 2018, sections 2 and 4.1, for this loss: near (0, 0) each slope of the softplus is 1/2.

    In turn, psi <- (1 - 2 h gamma) psi - h / 2 theta, then theta <- theta + h / 2 psi; the determinant of that map is
    1 - 2 h gamma, so complex eigenvalues have its square root as their modulus. (R1 and R2 are both psi^2.)
    """
    rate, gamma, half = 0.2, 0.2, 200
    distances = dirac(gamma, 2 * half, rate)
    assert distances[-1] < 1e-7
    measured = (distances[-1] / distances[half - 1]).item() ** (1 / half)
    # The distance also oscillates with the angle, by a factor of at most 3: the ellipse of these eigenvectors.
    assert measured == pytest.approx(math.sqrt(1 - 2 * rate * gamma), rel=math.log(3) / half)


def test_the_dirac_gan_without_penalties_has_no_linear_rate() -> None:
    """The eigenvalues are on the unit circle, and what is left is of higher order: with r^2 = theta^2 + psi^2, in
    continuous time d r^2 / dt = -2 theta psi tanh(theta psi / 2), which is about -r^4 / 8 in the mean over a turn, so
    1 / r^2 grows as t / 8.
    """
    distances = dirac(0.0, 600)
    for steps in (300, 600):
        turn = distances[steps - 63 : steps].square().mean()  # one turn takes 4 pi / h steps
        assert 1 / turn.item() == pytest.approx(1 / (0.5**2 + 0.3**2) + 0.2 * (steps - 31) / 8, rel=0.05)


def test_the_dirac_gan_without_penalties_circles_if_both_players_move_at_once() -> None:
    """Each step then multiplies r^2 by 1 + h^2 / 4, against -h r^4 / 8: a circle with r^2 = 2 h, and no convergence."""
    assert dirac(0.0, 500, turns=False)[-63:].square().mean().item() == pytest.approx(0.4, rel=0.1)
    assert dirac(0.3, 400, turns=False)[-1] < 1e-7


def test_the_phases_take_different_latents() -> None:
    model, x, seen = small(), pictures(), []

    def score(weight: Tensor, x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x @ weight

    model.critic = Scored(torch.zeros(120, dtype=torch.float64), score)
    for phase in ("critic", "generator", "critic"):
        model.losses(phase, x, LABELS, DRAWS(0))
    assert all(torch.equal(both[:4], x.flatten(1)) for both in seen)
    critics, generators, again = (both[4:] for both in seen)
    assert torch.equal(critics, again)
    assert (critics - generators).abs().amax(1).min() > 0.01


def test_a_sample_depends_on_its_own_key_and_label() -> None:
    model = small()
    four = model.generate(LABELS, DRAWS(0), 4)
    assert four.min() >= -1 and four.max() <= 1
    for k in range(4):
        alone = model.generate(LABELS[k : k + 1], keyed_draws(0, [k])(0), 1)
        assert torch.allclose(alone[0], four[k], rtol=0, atol=1e-12)
    others = model.generate((LABELS + 1) % 3, DRAWS(0), 4)
    assert (others - four).abs().amax((1, 2, 3)).min() > 0.01


def test_autocast_changes_little_and_scores_stay_in_float32() -> None:
    model, x = small().float(), pictures().float()
    plain = [model.losses(phase, x, LABELS, DRAWS(0)) for phase in model.phases]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [model.losses(phase, x, LABELS, DRAWS(0)) for phase in model.phases]
    for one, other in zip(plain, rounded, strict=True):
        assert other.dtype == torch.float32
        assert torch.allclose(one, other, rtol=0.05)  # bfloat16 rounds by up to 1 / 256, here through six layers
    sum(loss.mean() for loss in rounded).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_moves_the_pictures_to_the_data() -> None:
    """Data of two classes, black and white: a few steps of Adam find both."""
    torch.manual_seed(0)
    model = R3GAN((1, 6, 6), 2, widths=(16,), blocks=1, latent=4, gamma=0.1, last_gamma=0.1)
    optimizers = {p: torch.optim.Adam(model.part(p).parameters(), 6e-3, (0.0, 0.9)) for p in model.phases}
    labels = torch.arange(8) % 2
    x0 = (labels * 1.6 - 0.8)[:, None, None, None].expand(8, 1, 6, 6).contiguous()
    draws = keyed_draws(0, range(8))
    for step in range(60):
        for phase in model.phases:
            optimizers[phase].zero_grad()
            model.losses(phase, x0, labels, draws(step)).mean().backward()
            optimizers[phase].step()
    made = model.generate(labels, draws(1000), 8)
    assert (made - x0).abs().mean() < 0.3  # 0.8 is grey, 1.6 the other class


def test_bad_input_is_told() -> None:
    with pytest.raises(UsageError, match="needs labels"):
        small().generate(None, DRAWS(0), 4)
    with pytest.raises(UsageError, match="without classes"):
        small(classes=0).losses("critic", pictures(), LABELS, DRAWS(0))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_model_has_less_than_two_million_weights(shape: tuple[int, int, int]) -> None:
    model = R3GAN(shape, 10)
    for phase in model.phases:
        assert 0.5e6 < sum(parameter.numel() for parameter in model.part(phase).parameters()) < 1e6
    made = copy.deepcopy(model).generate(torch.arange(4), DRAWS(0), 4)
    assert made.shape == (4, *shape) and made.dtype == torch.float32
