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
    """An error has the gradient that brings it inside, and none where what is cut off is right."""
    x, goal = torch.tensor([-3.0, -3.0, 0.25, 1.5], requires_grad=True), torch.tensor([-1.0, 0.5, 0.0, 1.0])
    error = within(x) - goal
    assert torch.equal(error, torch.tensor([0.0, -1.5, 0.25, 0.0]))
    (0.5 * error.square()).sum().backward()
    assert torch.equal(x.grad, error)  # type: ignore[arg-type]
