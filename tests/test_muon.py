"""Muon against singular values, AdamW and its own definition."""

import pytest
import torch
from torch import nn

from undiffuse.config import TrainingConfig
from undiffuse.errors import UsageError
from undiffuse.networks import MLP, UNet
from undiffuse.training.muon import QUINTIC, Muon, make_optimizer, orthogonalised


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 90), (2, 70, 24)])
def test_singular_vectors_are_kept_and_values_are_those_of_the_iterated_quintic(shape: tuple[int, ...]) -> None:
    """Against the singular value decomposition: U p(S) V^T, with p iterated on the numbers themselves."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    values = s / (x.norm(dim=(1, 2)) + 1e-7)[:, None]
    for _ in range(5):
        a, b, c = QUINTIC
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalised(x), u @ torch.diag_embed(values) @ vh, rtol=0, atol=1e-10)
    assert (values > 0.3).all() and (values < 1.3).all()


def test_single_precision_is_enough() -> None:
    """Matrices as gradients are, with singular values over four decades."""
    generator = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(576, 64, generator=generator, dtype=torch.float64)).Q
    x = (u * torch.logspace(0, -4, 64, dtype=torch.float64)) @ v.mT
    difference = orthogonalised(x.float()[None])[0] - orthogonalised(x[None])[0]
    assert difference.abs().max() < 1e-3


def test_a_first_step_has_the_root_mean_square_of_the_learning_rate_times_a_fifth() -> None:
    """Semi-orthogonal (A, B) has the root mean square 1 / sqrt(max(A, B)); within what the quintic leaves."""
    weight = nn.Parameter(torch.zeros(32, 8, 3, 3))
    weight.grad = torch.randn(32, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    Muon([weight], [], lr=0.01).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def _quintic(x: torch.Tensor) -> torch.Tensor:
    """x with its singular values put through the quintic five times, by the singular value decomposition."""
    u, s, vh = torch.linalg.svd(x / (x.norm() + 1e-7), full_matrices=False)
    for _ in range(5):
        a, b, c = QUINTIC
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vh


def test_steps_are_those_of_nesterovs_momentum() -> None:
    """m <- mu m + (1 - mu) g, and the update is that of (1 - mu) g + mu m, seen as a matrix (Jordan et al. 2024)."""
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(4, 24, 4, 3, 3, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(24, 4, 3, 3, generator=generator, dtype=torch.float64))
    expected, momentum, mu = weight.detach().clone(), torch.zeros_like(weight), 0.8
    optimizer = Muon([weight], [], lr=0.01, weight_decay=0.5, momentum=mu)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = mu * momentum + (1 - mu) * gradient
        ahead = (1 - mu) * gradient + mu * momentum
        update = _quintic(ahead.reshape(24, 36)).reshape_as(expected)
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 36**0.5 * update
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-10)


class Named(nn.Sequential):
    """A network that names its first layer's weight as a matrix, and its last layer's, which is too thin to be one."""

    def matrices(self) -> list[torch.Tensor]:
        return [layer.weight for layer in self if isinstance(layer, (nn.Linear, nn.Conv2d))]


def test_muon_has_the_thick_matrices_and_adamw_the_rest() -> None:
    """Each parameter once; thin matrices, embeddings, norms and biases are AdamW's; both have the run's settings."""
    thick, pointwise, deep = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 32, 1), nn.Linear(64, 64)
    thin, shallow = nn.Conv2d(16, 15, 3), nn.Conv2d(15, 64, 1)
    network = Named(thick, pointwise, deep, thin, shallow, nn.Embedding(64, 64), nn.GroupNorm(4, 64))
    config = TrainingConfig(learning_rate=0.01, weight_decay=0.3, betas=(0.7, 0.8))
    ours, *rest = make_optimizer(config, network).param_groups
    assert {id(p) for p in ours["params"]} == {id(layer.weight) for layer in (thick, pointwise, deep)}
    others = [id(p) for group in rest for p in group["params"]]
    assert sorted(others) == sorted({id(p) for p in network.parameters()} - {id(p) for p in ours["params"]})
    assert [group["weight_decay"] for group in (ours, *rest)] == [0.3, 0.3] and rest[0]["betas"] == (0.7, 0.8)
    adamw = make_optimizer(config.model_copy(update={"optimizer": "adamw"}), network).param_groups
    assert [id(p) for group in adamw for p in group["params"]] == [id(p) for p in network.parameters()]
    assert (adamw[0]["betas"], adamw[0]["weight_decay"], adamw[0]["lr"]) == ((0.7, 0.8), 0.3, 0.01)


def test_what_is_no_matrix_goes_as_adamw_goes() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 32)
    networks = [Named(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 2)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    config = TrainingConfig(learning_rate=0.01, weight_decay=0.1)
    ours = make_optimizer(config, networks[0])
    first, norm, last = networks[1]
    theirs = torch.optim.AdamW(
        [first.bias, *norm.parameters(), *last.parameters()], lr=0.01, betas=config.betas, weight_decay=0.1
    )
    for _ in range(3):
        first.weight.data.copy_(networks[0][0].weight.data)  # so that both have the same gradients
        for network, optimizer in zip(networks, (ours, theirs), strict=True):
            network.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    for name, parameter in networks[0].named_parameters():
        if name != "0.weight":
            torch.testing.assert_close(parameter, networks[1].get_parameter(name), rtol=1e-5, atol=1e-7)


def test_a_network_without_matrices_and_one_with_nothing_else_both_learn() -> None:
    for layer in (nn.Conv2d(1, 4, 3), nn.Linear(32, 32, bias=False)):
        optimizer = make_optimizer(TrainingConfig(), Named(layer))
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
        assert (layer.weight != before).any()


def test_the_network_says_which_weights_are_matrices() -> None:
    """Convolutions of U-Nets in 1 and 2 dimensions, layers of the MLP's blocks; who does not say is refused."""
    settings = {"channels": (32,), "attention": (0,)}
    for network in (UNet(16, 16, dims=1, patch=1, **settings), UNet(16, 16, dims=2, patch=1, **settings)):  # type: ignore[arg-type]
        ours = {id(p) for p in make_optimizer(TrainingConfig(), network).param_groups[0]["params"]}
        expected = {name for name, p in network.named_parameters() if p.ndim > 2}
        assert {name for name, p in network.named_parameters() if id(p) in ours} == expected
    mlp = MLP(2, 2, width=32, blocks=1)
    ours = {id(p) for p in make_optimizer(TrainingConfig(), mlp).param_groups[0]["params"]}
    assert {name for name, p in mlp.named_parameters() if id(p) in ours} == {"blocks.0.1.weight", "blocks.0.3.weight"}
    with pytest.raises(UsageError, match=r"matrices\(\).*training.optimizer=adamw"):
        make_optimizer(TrainingConfig(), nn.Linear(32, 32))
