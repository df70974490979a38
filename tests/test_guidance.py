"""Denoisers that wrap denoisers: clipping and dynamic thresholding."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from references import SCHEDULES, as64, gaussian_denoiser, levels, oracle, walk
from torch import Tensor

from undiffuse.denoiser import Prediction
from undiffuse.guidance import clip, dynamic_threshold
from undiffuse.process import GaussianProcess, linear
from undiffuse.sampling import SAMPLERS, make_grid

SCALES = as64(0.1, 0.9, 1.5, 40.0)[:, None, None]


def wild(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """A prediction of x_0 far beyond the data for some samples, and well inside for others."""
    return SCALES * torch.sin(3 * x)


def noisy(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("wrap", [clip, partial(clip, low=0.0, high=0.5), dynamic_threshold])
@pytest.mark.parametrize("name", ["linear", "zero-snr", "vp", "edm", "flow"])
def test_the_state_stays_what_it_is(wrap: Callable, name: str) -> None:
    """Whatever is done to x_0, x_t = alpha x_0 + sigma eps holds, for one time and for one per sample."""
    process = GaussianProcess(SCHEDULES[name])
    denoise, x_t = wrap(oracle(process, wild), process), noisy()
    for t in (0.05, 1.0, as64(0.05, 0.3, 0.8, 1.0)):
        prediction = denoise(x_t, t)
        at = levels(process, torch.as_tensor(t, dtype=torch.float64).expand(4))
        again = torch.stack([a * x + s * e for (a, s), x, e in zip(at, prediction.x0, prediction.eps, strict=True)])
        torch.testing.assert_close(again, x_t, rtol=1e-12, atol=1e-12)


def test_clip_is_numpys() -> None:
    """x_0 becomes np.clip(x_0, low, high); the learned variance is kept."""
    process, x_t = GaussianProcess(linear(20)), noisy()
    raw = wild(x_t, as64(1.0), as64(1.0))

    def denoise(x: Tensor, t: float | Tensor) -> Prediction:
        return Prediction(raw, raw, x)

    for low, high in ((-1.0, 1.0), (0.0, 0.5)):
        clipped = clip(denoise, process, low, high)(x_t, 0.4)
        np.testing.assert_array_equal(clipped.x0.numpy(), np.clip(raw.numpy(), low, high))
        assert clipped.v is x_t


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_is_imagens(quantile: float) -> None:
    """s = max(1, np.quantile(|x_0|, p)) of each sample alone; x_0 = clip(x_0, -s, s) / s (Saharia et al. 2022)."""
    process, x_t = GaussianProcess(linear(20)), noisy(1)
    raw = wild(x_t, as64(1.0), as64(1.0)).numpy()
    ours = dynamic_threshold(oracle(process, wild), process, quantile)(x_t, 0.4).x0
    assert ours.abs().max() <= 1 + 1e-6
    for k in range(4):
        s = max(1.0, np.quantile(np.abs(raw[k]), quantile))
        np.testing.assert_allclose(ours[k].numpy(), np.clip(raw[k], -s, s) / s, rtol=1e-6)  # the quantile is float32
    assert (ours[0].numpy() == raw[0]).all()


def test_what_is_inside_the_range_is_untouched() -> None:
    """Both leave a prediction within [-1, 1] as it was, and eps to rounding."""
    process, x_t = GaussianProcess(linear(20)), noisy()
    inner = oracle(process, lambda x, alpha, sigma: torch.tanh(x))
    for wrap in (clip, dynamic_threshold):
        ours, expected = wrap(inner, process)(x_t, 0.3), inner(x_t, 0.3)
        assert (ours.x0 == expected.x0).all()
        torch.testing.assert_close(ours.eps, expected.eps, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddpm-learned"])
def test_every_sampler_stays_in_the_range_of_a_clipped_denoiser(name: str) -> None:
    """The end is a prediction of x_0, so it is within [-1, 1]; without the clip data of scale 3 leaves it."""
    process = GaussianProcess(linear(50))
    inner = gaussian_denoiser(process, as64(0.0), as64(3.0))
    grid = make_grid(SAMPLERS[name].grid, process.schedule, 10)
    ends = []
    for denoise in (inner, clip(inner, process)):
        *_, last = walk(denoise, process, grid, SAMPLERS[name].step, noisy)
        ends.append(last.x.abs().max())
    assert ends[1] <= 1 < ends[0]
