"""Guidance by linear observations with the covariance of x_0 that the network itself implies (Rozet et al. 2024)."""

from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.guidance.observations import Observation
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand, per_sample


def moment_matching(
    denoise: Denoise,
    process: GaussianProcess,
    observation: Observation,
    tolerance: float = 1e-3,
    iterations: int = 100,
    tell: Callable[[Tensor], object] = lambda residuals: None,
) -> Denoise:
    """MMPS (Rozet et al. 2024, eq. 16-18): S = (sigma^2 / alpha) dD/dx_t, which is the covariance of x_0 given x_t.

    S is never formed: vectors are multiplied by the network's derivative. In pure noise without signal (alpha = 0) that
    says nothing, and D stays as it is.

    The system is solved by conjugate gradients for each sample, until |residual| <= tolerance |y - H D|. They end
    earlier after so many `iterations`, or where a network's derivative shows that it is not symmetric or not positive
    as a covariance is; then the best that was found is taken. `tell` is given the relative residuals (B,) of every
    evaluation.
    """
    variance = observation.variance

    def guided(x_t: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        prediction, pull = differentiated(denoise, x_t, t)
        ratio = expand(torch.where(level.alpha > 0, level.sigma**2 / level.alpha, 0), x_t)

        def spread(w: Tensor) -> Tensor:
            """S H^T w, float64 (B, *shape of x_0)."""
            pulled = pull(observation.map.adjoint(w.unflatten(1, observation.map.observed)).to(x_t))
            return (ratio * pulled).to(w.device).double()

        def observe(x: Tensor) -> Tensor:
            return observation.map.forward(x).flatten(1)

        misfit = observation.misfit(prediction.x0)
        start = misfit.new_zeros(x_t.shape)
        change, residuals = conjugate_gradients(spread, observe, variance, misfit, start, tolerance, iterations)
        tell(residuals)
        return prediction.with_x0(prediction.x0 + change.to(x_t), x_t, level)

    return guided


def differentiated(denoise: Denoise, x_t: Tensor, t: Time) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """The prediction at x_t, and w -> (dD/dx_t)^T w for w shaped like x_t.

    Raises UsageError where the denoiser cannot be differentiated, as ONNX Runtime's cannot.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        prediction = denoise(x, t)
    if not prediction.x0.requires_grad:
        raise UsageError("this method differentiates the network, which its engine cannot do: take --engine torch")
    v, logits = (part if part is None else part.detach() for part in (prediction.v, prediction.logits))
    detached = Prediction(prediction.x0.detach(), prediction.eps.detach(), v, logits)
    return detached, lambda w: torch.autograd.grad(prediction.x0, x, w, retain_graph=True)[0]


def conjugate_gradients(
    spread: Callable[[Tensor], Tensor],
    observe: Callable[[Tensor], Tensor],
    variance: Tensor,
    misfit: Tensor,
    start: Tensor,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """S H^T w, where (H S H^T + R) w = misfit, and |misfit - (H S H^T + R) w| / |misfit| (B,): each sample by itself.

    Residuals are kept orthogonal to all before them. Without that, rounding is amplified from step to step, and what a
    sample becomes depends on the batch it is in.

    Args:
        spread: w (B, M) -> S H^T w (B, *shape).
        observe: x (B, *shape) -> H x (B, M).
        variance: the diagonal of R (M,).
        misfit: (B, M), float64.
        start: zeros (B, *shape), float64.
    """
    residual, direction, w = misfit, misfit, torch.zeros_like(misfit)
    change, best = start, start
    square = whole = least = misfit.square().sum(1)
    active, before = square > 0, []
    for _ in range(iterations):
        if not active.any():
            break
        step = spread(direction)
        product = observe(step) + variance * direction
        curvature = (direction * product).sum(1)
        active = active & (curvature > 0)
        length = torch.where(active, square / curvature, 0)
        w, change = w + length[:, None] * direction, change + per_sample(length, start) * step
        left = (misfit - observe(change) - variance * w).square().sum(1)
        best = torch.where(per_sample(left < least, start), change, best)
        least = torch.minimum(left, least)
        before.append(torch.nn.functional.normalize(residual, dim=1))
        residual = residual - length[:, None] * product
        for q in before:
            residual = residual - (q * residual).sum(1, keepdim=True) * q
        last, square = square, residual.square().sum(1)
        active = active & (torch.minimum(least, square) > tolerance**2 * whole)
        direction = residual + torch.where(active, square / last, 0)[:, None] * direction
    return best, torch.where(whole > 0, least / whole, 0).sqrt()
