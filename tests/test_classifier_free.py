"""Guidance by a difference: classifier-free, intervals, composition, rescaling, APG, CFG++, where the law is known."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from references import SCHEDULES, as64, gaussian_denoiser, gaussian_x0, levels, walk
from scipy.integrate import quad
from torch import Tensor

from undiffuse.conditions import Composition, Labels
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UsageError
from undiffuse.guidance import (
    Guidance,
    composed,
    guided,
    linear,
    of_two,
    projected,
    rescaled,
    with_and_without,
    within,
)
from undiffuse.process import EDM, Denoise, GaussianProcess, Prediction
from undiffuse.sampling import SAMPLERS, ancestral, cfg_plus_plus, ddim, make_grid

MEAN, STD = as64(0.4, -0.8), as64(0.3, 0.9)  # of class 0, element by element
MEAN_ALL, STD_ALL = as64(-0.1, 0.2), as64(0.7, 1.1)  # of any class


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Net:
    """A network of EDM's target that is exact for the Gaussians above: class 0 (or 1, its mirror) and any class."""

    def __init__(self, process: GaussianProcess):
        self.process, self.rows = process, 0

    def __call__(self, x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        self.rows += len(x)
        ratio = (-0.5 * log_snr.double()).exp()[:, None]  # the same x at alpha = 1
        sign = torch.where(condition.index == 1, -1.0, 1.0)[:, None]
        any_class = (condition.index == 2)[:, None]
        mean = torch.where(any_class, MEAN_ALL, sign * MEAN)
        std = torch.where(any_class, STD_ALL, STD)
        noisy = x * (0.25 + ratio**2).sqrt()
        x0 = gaussian_x0(noisy, torch.ones_like(ratio), ratio, mean, std)
        skip, out = 0.25 / (0.25 + ratio**2), 0.5 * ratio / (0.25 + ratio**2).sqrt()
        return (x0 - skip * noisy) / out


def exact(schedule: str) -> tuple[Denoiser, Net]:
    process = GaussianProcess(SCHEDULES[schedule])
    net = Net(process)
    return Denoiser(net, process), net


def labels(*index: int) -> Labels:
    return Labels(torch.tensor(index), 2)


def both(process: GaussianProcess) -> tuple[Denoise, Denoise]:
    return gaussian_denoiser(process, MEAN, STD), gaussian_denoiser(process, MEAN_ALL, STD_ALL)


# The denoiser.


@pytest.mark.parametrize("schedule", ["linear", "sub-vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_one_batch_is_the_formula(schedule: str, scale: float) -> None:
    """D_u + w (D_c - D_u) with D in closed form, at one time and at one per sample; x_t = alpha x_0 + sigma eps.

    The network's log-SNR is float32, which limits the agreement.
    """
    denoiser, net = exact(schedule)
    process, x_t = denoiser.process, seeded(3, 2)
    condition = labels(0, 0, 0)
    denoise = guided(with_and_without(denoiser, condition, condition.dropped()), process, linear(scale))
    for t in (0.3, as64(0.05, 0.4, 0.9)):
        at = levels(process, torch.as_tensor(t, dtype=torch.float64).expand(3))
        net.rows = 0
        prediction = denoise(x_t, t)
        assert net.rows == 6
        for row, (alpha, sigma) in enumerate(at):
            c, u = (
                gaussian_x0(x_t[row], as64(alpha), as64(sigma), mean, std)
                for mean, std in ((MEAN, STD), (MEAN_ALL, STD_ALL))
            )
            torch.testing.assert_close(prediction.x0[row], u + scale * (c - u), rtol=2e-6, atol=2e-6)
            again = alpha * prediction.x0[row] + sigma * prediction.eps[row]
            torch.testing.assert_close(again, x_t[row], rtol=1e-12, atol=1e-12)


def test_the_same_twice_makes_the_scale_irrelevant() -> None:
    process, x_t = GaussianProcess(SCHEDULES["cosine"]), seeded(5, 2)
    same, _ = both(process)
    for rule in (linear(7.5), projected(7.5, 0.3, 0.1, -0.5), rescaled(linear(-2), 0.7)):
        torch.testing.assert_close(guided(of_two(same, same), process, rule)(x_t, 0.6).x0, same(x_t, 0.6).x0)


@pytest.mark.parametrize(
    "make", [lambda: linear(3), lambda: rescaled(linear(3), 0.7), lambda: projected(3, 0, 0.2, -0.5)]
)
def test_a_batch_is_its_samples(make: Callable) -> None:
    """No rule mixes samples: each alone, over two evaluations, but for sums in another order."""
    process, x_t = GaussianProcess(SCHEDULES["cosine"]), seeded(8, 2)
    together = guided(of_two(*both(process)), process, make())
    crowd = [together(x_t, t).x0 for t in (0.9, 0.6)]
    for row in range(8):
        alone = guided(of_two(*both(process)), process, make())
        for t, expected in zip((0.9, 0.6), crowd, strict=True):
            torch.testing.assert_close(alone(x_t[row : row + 1], t).x0[0], expected[row], rtol=1e-14, atol=1e-14)


def test_an_interval_costs_one_evaluation_outside() -> None:
    """Guided at LOW < sigma / alpha <= HIGH, conditional elsewhere; rows of a batch with times of their own too."""
    denoiser, net = exact("edm")  # sigma / alpha = 80 t
    process, condition, x_t = denoiser.process, labels(0, 0, 0), seeded(3, 2)
    inside = guided(with_and_without(denoiser, condition, condition.dropped()), process, linear(3))
    outside = denoiser.bind(condition)
    denoise = within(inside, outside, process, (8.0, 40.0))
    for t, rows, expected in ((0.1, 3, outside), (0.100001, 6, inside), (0.5, 6, inside), (0.500001, 3, outside)):
        net.rows = 0
        found = denoise(x_t, t)
        assert net.rows == rows
        assert torch.equal(found.x0, expected(x_t, t).x0)
        assert torch.equal(found.eps, expected(x_t, t).eps)
    t = as64(0.05, 0.3, 0.9)
    mixed = torch.stack([outside(x_t, t).x0[0], inside(x_t, t).x0[1], outside(x_t, t).x0[2]])
    assert torch.equal(denoise(x_t, t).x0, mixed)


def test_a_composition_of_independent_conditions_is_the_posterior() -> None:
    """Class 0 tells the first element alone, class 1 the second alone: both together, at scale 1, give both exactly."""
    process = GaussianProcess(SCHEDULES["cosine"])

    class Halves(Net):
        def __call__(self, x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
            each = [super(Halves, self).__call__(x, log_snr, labels(*[k] * len(x))) for k in (0, 2)]
            known = torch.stack([condition.index == 0, condition.index == 1], 1)
            return torch.where(known, *each)

    denoiser = Denoiser(Halves(process), process)
    x_t, parts = seeded(3, 2), (labels(0, 0, 0), labels(1, 1, 1))
    found = composed(denoiser, process, parts, parts[0].dropped(), [1.0, 1.0])(x_t, 0.4)
    torch.testing.assert_close(found.x0, gaussian_denoiser(process, MEAN, STD)(x_t, 0.4).x0, rtol=2e-6, atol=2e-6)
    thrice = composed(denoiser, process, parts, parts[0].dropped(), [3.0, 0.0])(x_t, 0.4)
    alone = guided(with_and_without(denoiser, parts[0], parts[0].dropped()), process, linear(3))(x_t, 0.4)
    torch.testing.assert_close(thrice.x0, alone.x0, rtol=1e-12, atol=1e-12)


# The rules.


def test_rescaling_is_lins() -> None:
    """Lin et al. 2024, eq. 15 and 16, in NumPy, sample by sample; a constant sample is left alone."""
    c, u = seeded(3, 4, 5), seeded(3, 4, 5, seed=1)
    c[2], u[2] = 0.5, 0.25
    for share in (0.0, 0.7, 1.0):
        found = rescaled(linear(2.5), share)(c, u).numpy()
        for row in range(3):
            pos, cfg = c[row].numpy(), (u + 2.5 * (c - u))[row].numpy()
            factor = pos.std() / cfg.std() if row < 2 else 1
            np.testing.assert_allclose(found[row], share * cfg * factor + (1 - share) * cfg, rtol=1e-12)


def test_projection_is_sadats() -> None:
    """Algorithm 1 of Sadat et al. 2024 in NumPy over three steps, their norm divided by sqrt(elements)."""
    for eta, norm, momentum in ((1.0, None, 0.0), (0.0, None, 0.0), (0.3, 0.4, 0.0), (0.0, 0.2, -0.75)):
        rule, average = projected(4.0, eta, norm, momentum), np.zeros(12)
        for step in range(3):
            c, u = seeded(1, 3, 4, seed=step), seeded(1, 3, 4, seed=9 + step)
            average = (c - u).numpy().ravel() + momentum * average
            diff, along = average.copy(), c.numpy().ravel()
            if norm is not None:
                diff *= min(1, norm * math.sqrt(12) / np.linalg.norm(diff))
            along = along / np.linalg.norm(along)
            parallel = diff @ along * along
            expected = c.numpy().ravel() + 3 * (diff - parallel + eta * parallel)
            np.testing.assert_allclose(rule(c, u).numpy().ravel(), expected, rtol=1e-11, atol=1e-12)
    c, u = seeded(2, 6), seeded(2, 6, seed=1)
    torch.testing.assert_close(projected(4.0, 1.0)(c, u), linear(4.0)(c, u), rtol=1e-12, atol=1e-12)
    assert projected(4.0)(torch.zeros(1, 3), torch.ones(1, 3)).isfinite().all()


# Laws at the end of sampling.


def end_of_ode(denoise: Denoise, process: GaussianProcess, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element: the sampler is an affine map of Gaussian noise."""
    start = process.prior_scale() * torch.stack([as64(0.0, 0.0), as64(1.0, 1.0)])
    grid = make_grid("karras", process.schedule, steps)
    *_, last = walk(denoise, process, grid, SAMPLERS["heun"].step, torch.empty, start)
    return last.x[0], last.x[1] - last.x[0]


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 2.0, 4.0])
def test_under_the_ode_the_spread_is_a_geometric_mean(scale: float) -> None:
    """One-dimensional Gaussians: std = s_c^w s_u^(1 - w), from enough noise; not that of p(x | c)^w p(x)^(1 - w).

    Heun's second order shows in the error; what is left at the end, of noise sigma = 0.002 and 2,000 at the start, is
    below 1e-5.
    """
    process = GaussianProcess(EDM(sigma_max=2000.0))
    denoise = guided(of_two(*both(process)), process, linear(scale))
    expected = STD**scale * STD_ALL ** (1 - scale)
    errors = [(end_of_ode(denoise, process, steps)[1] / expected - 1).abs().max().item() for steps in (100, 400, 1600)]
    assert errors[2] < 1e-4
    assert errors[0] / errors[1] > 8  # 16 for second order
    if scale in (2.0, 4.0):
        precision = scale / STD**2 + (1 - scale) / STD_ALL**2
        assert ((precision.clamp(min=1e-9) ** -0.5 / expected - 1).abs() > 0.05).all()


def test_under_the_sde_the_spread_is_another() -> None:
    """The reverse SDE is linear, so its variance at the end is an integral: scipy's, with the decay in closed form.

    In r = sigma / alpha, downwards: dx = 2 r g x dr + sqrt(2 r) dw, g = w / (s_c^2 + r^2) + (1 - w) / (s_u^2 + r^2).
    """
    scale, top = 2.0, 50.0
    process = GaussianProcess(EDM(sigma_max=top))
    denoise = guided(of_two(*both(process)), process, linear(scale))
    steps = 1000
    grid = make_grid("karras", process.schedule, steps)
    zeros = torch.zeros(steps + 1, 2, dtype=torch.float64)

    def impulse(k: int) -> Tensor:  # row k is kicked at step k alone: the responses' squares sum up to the variance
        noise = zeros.clone()
        noise[k] = 1
        return noise

    *_, rest = walk(denoise, process, grid, ancestral, lambda k: torch.zeros(1, 2, dtype=torch.float64))
    *_, last = walk(denoise, process, grid, ancestral, impulse)
    found = (last.x - rest.x).square().sum(0)

    for k in range(2):
        c, u = STD[k].item(), STD_ALL[k].item()

        def decay(low: float, high: float, c: float = c, u: float = u) -> float:
            """exp(-int 4 r g dr), the variance's factor from high to low, in closed form."""
            return ((c**2 + low**2) / (c**2 + high**2)) ** (2 * scale) * ((u**2 + low**2) / (u**2 + high**2)) ** (
                2 * (1 - scale)
            )

        added = quad(lambda r, decay=decay: 2 * r * decay(0.0, r), 0, top, limit=500)[0]
        expected = top**2 * decay(0.0, top) + added
        assert found[k].item() == pytest.approx(expected, rel=0.02)
        ode = c**scale * u ** (1 - scale)
        assert abs(math.sqrt(expected) / ode - 1) > 0.02


def test_cfg_plus_plus_is_its_algorithm() -> None:
    """Chung et al. 2024 in NumPy; it is classifier-free guidance of lambda / (1 - r_s / r_t), which depends on the
    step, as guiding x_0 without its eps does."""
    process = GaussianProcess(SCHEDULES["cosine"])
    grid, (cond, free) = make_grid("trailing", process.schedule, 5), both(process)
    at = levels(process, grid)
    start = seeded(4, 2)
    denoise = guided(of_two(cond, free), process, linear(0.6))
    states = list(walk(denoise, process, grid, cfg_plus_plus, torch.empty, start))
    x = start.numpy()
    for k in range(5):
        (alpha, sigma), (alpha_s, sigma_s) = at[k], at[k + 1]
        t = grid[k].item()
        c, u = (d(torch.from_numpy(x), t).x0.numpy() for d in (cond, free))
        if k < 4:
            scale = 0.6 / (1 - (sigma_s / alpha_s) / (sigma / alpha))
            step = guided(of_two(cond, free), process, linear(scale))(torch.from_numpy(x), t)
            other = alpha_s * step.x0.numpy() + sigma_s * step.eps.numpy()
        x = alpha_s * (u + 0.6 * (c - u)) + sigma_s * (x - alpha * u) / sigma
        np.testing.assert_allclose(states[k + 1].x.numpy(), x, rtol=1e-10, atol=1e-12)
        if k < 4:
            np.testing.assert_allclose(other, x, rtol=1e-10, atol=1e-12)
    plain = list(walk(free, process, grid, cfg_plus_plus, torch.empty, start))
    for one, other in zip(plain, walk(free, process, grid, ddim, torch.empty, start), strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=1e-12, atol=1e-12)


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": math.nan}, "finite"),
        ({"interval": (1.0, 1.0)}, "interval 1,1 must"),
        ({"interval": (-1.0, 1.0)}, "0 <= low < high"),
        ({"interval": (math.nan, 1.0)}, "0 <= low < high"),
        ({"rescale": 1.1}, "between 0 and 1"),
        ({"norm": 0.0}, "norm above 0"),
        ({"momentum": 1.0}, "between -1 and 1"),
        ({"eta": math.inf}, "any eta"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Guidance(**settings)


def test_a_composition_is_rows_and_devices() -> None:
    composition = Composition((labels(0, 1, 0), labels(1, 1, 0)), labels(0, 0, 1))
    part = composition[torch.tensor([2, 0])].to(torch.device("cpu"))
    assert [one.index.tolist() for one in (*part.parts, part.away)] == [[0, 0], [0, 1], [1, 0]]
    assert composition.dropped().index.tolist() == [2, 2, 2]
    assert Composition((labels(0),)).away.index.tolist() == [2]
    with pytest.raises(ValueError, match="same number"):
        Composition((labels(0), labels(0, 1)))
    with pytest.raises(ValueError, match="cannot be joined"):
        labels(0).joined(Labels(torch.tensor([0]), 3))


def test_predictions_split_as_they_were_joined() -> None:
    whole = Prediction(*(seeded(6, 2, seed=k) for k in range(3)), unguided=seeded(6, 2, seed=3))
    parts = whole.split(3)
    for name in ("x0", "eps", "v", "unguided"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert parts[0].logits is None
