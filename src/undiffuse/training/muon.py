"""Muon (Jordan et al. 2024): orthogonalised momentum for weights that are matrices; AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.config import TrainingConfig
from undiffuse.errors import UsageError

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a s + b s^3 + c s^5, applied five times, brings the singular values s of a matrix of norm 1 near 1 (to 0.7 .. 1.2,
except the smallest)."""
SMALLEST = 16  # side of a matrix for which orthogonality is meaningful


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, A, B) -> the same with all singular values near 1, the singular vectors kept: Newton-Schulz iterations.

    x <- (a + b G + c G^2) x with G = x x^T. All the factors are polynomials of the first G, whose side is the smaller
    one of x: they are multiplied with one another first, and with x at the end.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    gram = x @ x.mT
    identity = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    return (product @ x).mT if tall else product @ x


def make_optimizer(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run. Muon updates the weights in the network's `matrices()`, except the thinnest; AdamW the
    rest: embeddings, norms, biases, and linear layers that only carry conditioning. Adapters are all AdamW's: of the
    thin factors A and B, orthogonal updates say nothing about B A.

    Raises UsageError for Muon with a network that does not say which of its weights are matrices.
    """
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw" or config.lora:
        return torch.optim.AdamW(network.parameters(), fused=True, **options)
    named: Callable[[], list[Tensor]] | None = getattr(network, "matrices", None)
    if named is None:
        raise UsageError(
            f"the network {type(network).__name__} does not say which of its weights are matrices: give it a method "
            "matrices() for Muon, or set training.optimizer=adamw"
        )
    matrices = {id(w): w for w in named() if min(len(w), w[0].numel()) >= SMALLEST}
    return Muon(list(matrices.values()), [p for p in network.parameters() if id(p) not in matrices], **options)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions, viewed as matrices (outputs, the rest); AdamW for the others.

    An update has the root mean square of AdamW's, about 0.2 (Liu et al. 2025, section 2.2), so one learning rate suits
    both.

    Args:
        matrices: weights updated by Muon.
        others: parameters updated by AdamW.
        momentum: Muon's momentum, of Nesterov's kind.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: Sequence[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        self._adamw = torch.optim.AdamW(
            [{"params": list(others)}], lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self._momentum = momentum
        super().__init__(
            [{"params": list(matrices), "weight_decay": weight_decay}, *self._adamw.param_groups], {"lr": lr}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates everything once; `closure` is not used."""
        ours, *rest = self.param_groups
        self._adamw.param_groups, self._adamw.state = rest, self.state
        self._adamw.step()
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in ours["params"]:
            if parameter.grad is None:  # of a part that this update leaves as it is
                continue
            alike[len(parameter), parameter[0].numel()].append(parameter)
        for shape, parameters in alike.items():
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [p.grad for p in parameters if p.grad is not None]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
            ahead = torch._foreach_lerp(gradients, momenta, self._momentum)
            updates = orthogonalised(torch.stack([update.reshape(shape) for update in ahead]))
            scale = -ours["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_mul_(parameters, 1 - ours["lr"] * ours["weight_decay"])
            shaped = [update.view_as(parameter) for update, parameter in zip(updates, parameters, strict=True)]
            torch._foreach_add_(parameters, shaped, alpha=scale)
