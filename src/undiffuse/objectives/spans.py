"""Objectives of texts that are written in order: span by span, or token by token. In nats per token."""

import torch
from torch import Tensor

from undiffuse.conditions import Condition
from undiffuse.randomness import Draw
from undiffuse.token_denoiser import TokenDenoiser


def spans(
    denoiser: TokenDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw, span: int = 0
) -> Tensor:
    """The bound of block diffusion (Arriola et al. 2025, eq. 8) with absorbing noise, as `count` estimates it.

    Of a span of S tokens l are masked, l uniform in 1 .. S; all spans of a text are trained at once, each given the
    clean text before it. With S = 1 this is the log-likelihood of an autoregressive model exactly.

    Args:
        x0: (B, L), with L a multiple of `span`.
    """
    batch, length = x0.shape
    count = length // span
    # One u for every span, evenly spaced: each is uniform, and the mean over spans varies less.
    shifted = (u[:, None] + torch.arange(count, dtype=u.dtype) / count) % 1
    masked = 1 + (shifted * span).floor().clamp(max=span - 1).to(x0.device)
    ranks = draw.uniform(x0).view(batch, count, span).argsort(-1).argsort(-1)
    hidden = (ranks < masked[..., None]).view(batch, length)
    x_t = x0.masked_fill(hidden, denoiser.process.values)
    errors = denoiser.errors(x_t, 0.5, x0, hidden, condition, clean=x0)
    of_spans = errors.view(batch, count, span).sum(-1) / masked
    return of_spans.mean(1).to(errors)


def next_token(denoiser: TokenDenoiser, x0: Tensor, condition: Condition | None, u: Tensor, draw: Draw) -> Tensor:
    """-ln p(x_0i | x_0j, j < i), the mean over i: the autoregressive rival. The denoiser is one that `shifts`."""
    return denoiser.errors(x0, 0.5, x0, torch.ones_like(x0, dtype=torch.bool), condition).mean(1)
