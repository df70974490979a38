"""Companding: the signed root, which evens out the heavy tails of spectral coefficients before a network sees them.

c = s sign(u) u^2 with one scale s > 0 per band. Speech is quiet most of the time: its coefficients have many small
values and few large ones. With the root, quiet detail and loud peaks are both of about unit size.
"""

from torch import Tensor

LEVEL = 0.5
"""The root mean square of u in every band, over the coefficients that `scales` measures."""
LEAST = 2.0**-15
"""The least mean of |c|: one step of 16 bits. Bands that hold only rounding noise are not blown up to full level."""


def compress(coefficients: Tensor, scale: Tensor) -> Tensor:
    """c (B, M, K) -> u, the signed root of c / s; `scale` (M,)."""
    ratio = coefficients / scale[:, None]
    return ratio.sign() * ratio.abs().sqrt()


def expand(u: Tensor, scale: Tensor) -> Tensor:
    """u (B, M, K) -> c = s sign(u) u^2, the inverse of `compress`."""
    return scale[:, None] * u * u.abs()


def log_slope(u: Tensor, scale: Tensor) -> Tensor:
    """ln |dc / du| = ln(2 s |u|) of each element, like u; minus infinity at u = 0."""
    return (2 * scale[:, None] * u.abs()).log()


def scales(mean_magnitude: Tensor) -> tuple[float, ...]:
    """The scale of each band from the mean of |c| in it (M,): then E[u^2] = E|c| / s = LEVEL^2.

    Rounded to four digits: short numbers, which JSON keeps exactly.
    """
    exact = mean_magnitude.double().clamp(min=LEAST) / LEVEL**2
    return tuple(float(f"{scale:.4g}") for scale in exact.tolist())
