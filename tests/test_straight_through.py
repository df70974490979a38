"""Values with the gradient of something else."""

import torch

from undiffuse.straight_through import straight_through, within


def test_the_value_is_exact_and_the_gradient_that_of_the_other() -> None:
    x = torch.tensor([3e8, -0.1, 7e-9], requires_grad=True)
    value = torch.tensor([1.0, 0.3, 1e-20], requires_grad=True)
    found = straight_through(value, x**2)
    assert torch.equal(found, value)
    of_x, of_value = torch.autograd.grad(found.sum(), (x, value), allow_unused=True)
    assert torch.equal(of_x, 2 * x) and of_value is None


def test_what_lies_outside_is_cut_off_and_can_come_back() -> None:
    """Inside, gradients are those of x; outside only those that lead back."""
    x = torch.tensor([-3.0, -3.0, 3.0, 3.0, 0.5, -0.5, 1.0, -1.0], requires_grad=True)
    slope = torch.tensor([-2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0])
    found = within(x)
    assert torch.equal(found, x.detach().clamp(-1, 1))
    (found * slope).sum().backward()
    assert torch.equal(x.grad, slope * torch.tensor([1, 0, 0, 1, 1, 1, 1, 1]))  # type: ignore[arg-type]


def test_an_error_ends_where_what_is_cut_off_is_right() -> None:
    x, goal = torch.tensor([-3.0, -3.0, 0.25, 1.5, -0.9]), torch.tensor([-1.0, 0.5, 0.0, 1.0, -1.0])
    x.requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad((0.5 * (within(x) - goal).square()).sum(), x)
        x = (x - 0.1 * gradient).detach().requires_grad_()
    torch.testing.assert_close(x.detach(), torch.tensor([-3.0, 0.5, 0.0, 1.5, -1.0]), rtol=0, atol=1e-6)
