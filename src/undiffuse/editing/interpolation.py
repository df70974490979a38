"""Between two pictures, and one picture's coarse with another's fine structure."""

from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.editing.inversion import NoiseMaps
from undiffuse.process import Denoise, GaussianProcess, Prediction, Time, expand, float64_device


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of each sample from a (0) to b (1) (Shoemake 1985): along the arc, so that what is normal
    noise at both ends has its norm between them too."""
    flat_a, flat_b = (float64_device(x.flatten(1)).double() for x in (a, b))
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]
    parallel = angle.sin() < 1e-6  # no arc, or no one arc: along the chord
    weights = torch.where(parallel, 1 - share, ((1 - share) * angle).sin() / angle.sin())
    others = torch.where(parallel, share, (share * angle).sin() / angle.sin())
    return (weights * flat_a + others * flat_b).view_as(a).to(a)


def mean_path(
    process: GaussianProcess, a: Tensor, b: Tensor, t: float, shares: Sequence[float], noise: Tensor
) -> Tensor:
    """x_t of the pictures (1 - share) a + share b, all with one noise (Ho et al. 2020, section 4.3 and figure 8).

    Denoised from there, the noise that the mean of two pictures lacks is filled in. a, b and `noise`: (1, ...); the
    result (len(shares), ...).
    """
    weights = expand(torch.tensor(shares, dtype=torch.float64), a)
    level = process.noise_level(t)
    return level.alpha * ((1 - weights) * a + weights * b) + level.sigma * noise


def mixed(coarse: NoiseMaps, fine: NoiseMaps, step: int) -> NoiseMaps:
    """The start and the noise of `coarse` for the first steps, the noise of `fine` from `step` on.

    Early steps make the layout and late ones the texture, as the style mixing of generative adversarial networks does
    by layers (Karras et al. 2019).
    """
    remainder = fine.remainder if step <= len(fine.noise) else coarse.remainder
    return NoiseMaps(coarse.x, (*coarse.noise[:step], *fine.noise[step:]), remainder)


def switched(early: Denoise, late: Denoise, process: GaussianProcess, level: float) -> Denoise:
    """`early` while sigma / alpha is above `level`, `late` below: another class for the layout than for the texture."""

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        at = process.noise_level(t)
        above = at.sigma > level * at.alpha
        if above.ndim:
            raise ValueError("a switched denoiser takes one time for the batch")
        prediction: Prediction = (early if above else late)(x_t, t)
        return prediction

    return denoise
