"""Inversion, interpolation and mixing against exact maps: round trips, orders, reconstruction, arcs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from references import as64, gaussian_denoiser, mixture_denoiser, walk
from torch import Tensor

from undiffuse.editing.interpolation import mean_path, mixed, slerp, switched
from undiffuse.editing.inversion import invert, invert_order_1, noise_maps, replaying
from undiffuse.editing.rows import interpolate, mix, regenerate
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.model import Model, load
from undiffuse.process import EDM, FlowMatching, GaussianProcess, Schedule, cosine, linear, zero_terminal_snr
from undiffuse.randomness import keyed_draws
from undiffuse.sampling import ddim, make_grid, trajectory

PROCESSES: dict[str, Schedule] = {
    "cosine": cosine(1000),
    "zero-snr": zero_terminal_snr(linear(1000)),
    "edm": EDM(),
    "flow": FlowMatching(),
}
DATA = as64(-1.1, -0.4, 0.2, 0.6, 0.9)[:, None]


def forward(denoise, process: GaussianProcess, grid: Tensor, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    *_, last = walk(denoise, process, grid, ddim, torch.empty, x)
    return last.x


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize("make", [mixture_denoiser, lambda p: gaussian_denoiser(p, as64(0.2), as64(0.5))])
def test_the_round_trip_is_exact(name: str, grid: str, make) -> None:  # type: ignore[no-untyped-def]
    """DDIM from the inverted noise ends at the data to 1e-12, with 10 steps, with signal left at t = 1 or without."""
    process = GaussianProcess(PROCESSES[name])
    denoise, times = make(process), make_grid(grid, process.schedule, 10)
    found = invert(denoise, process, DATA, times)
    assert found.error.max() <= 1e-12
    torch.testing.assert_close(forward(denoise, process, times, found.x) + found.remainder, DATA, rtol=0, atol=1e-11)
    assert found.remainder.abs().max() < 1e-3  # of the last step alone, which may have no solution


def test_the_inverse_is_the_flow() -> None:
    """A Gaussian's: x_1 = alpha_1 m + sqrt(V_1) (x_0 - m) / s, approached at first order in the steps."""
    process, mean, std = GaussianProcess(EDM()), 0.2, 0.5
    denoise = gaussian_denoiser(process, as64(mean), as64(std))
    exact = mean + math.sqrt(std**2 + 80**2) * (DATA - mean) / std
    errors = [
        (invert(denoise, process, DATA, make_grid("karras", process.schedule, n)).x / exact - 1).abs().max().item()
        for n in (100, 200, 400)
    ]
    assert errors[2] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3 and 1.7 < errors[1] / errors[2] < 2.3


def test_ddims_own_inversion_misses_at_first_order() -> None:
    process = GaussianProcess(cosine(1000))
    denoise = mixture_denoiser(process)
    errors = []
    for n in (50, 100, 200):
        times = make_grid("trailing", process.schedule, n)
        noise = invert_order_1(denoise, process, DATA, times)
        errors.append((forward(denoise, process, times, noise) - DATA).abs().max().item())
    assert errors[0] > 1e-3  # so it is no round trip
    assert 1.5 < errors[0] / errors[1] < 3 and 1.5 < errors[1] / errors[2] < 3


def test_samples_do_not_hold_each_other_up() -> None:
    process = GaussianProcess(cosine(1000))
    denoise, times = mixture_denoiser(process), make_grid("trailing", process.schedule, 10)
    crowd = invert(denoise, process, DATA, times)
    alone = invert(denoise, process, DATA[2:3], times)
    torch.testing.assert_close(crowd.x[2:3], alone.x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_maps_reconstruct(name: str) -> None:
    """With the denoiser of the inversion to 1e-12; with another not; any grid."""
    process = GaussianProcess(PROCESSES[name])
    denoise, times = mixture_denoiser(process), make_grid("trailing", process.schedule, 12)
    draws = keyed_draws(0, range(len(DATA)))
    maps = noise_maps(denoise, process, DATA, times, [draws(k) for k in range(12)])
    step, replayed = replaying(maps)
    for other, same in ((denoise, True), (gaussian_denoiser(process, as64(0.5), as64(0.2)), False)):
        *_, last = trajectory(other, process, times, step, maps.x, lambda k: replayed[k - 1])
        assert ((last.x - DATA).abs().max() < 1e-12) == same
    assert len(maps.noise) == 11
    passed = list(trajectory(denoise, process, times, step, maps.x, lambda k: replayed[k - 1]))
    for k, state in enumerate(passed[:-1]):  # through states that were each drawn from x_0 alone
        torch.testing.assert_close(state.x, process.corrupt(DATA, times[k].item(), draws(k)), rtol=1e-9, atol=1e-9)
    half = mixed(maps, noise_maps(denoise, process, -DATA, times, [draws(k) for k in range(12)]), 12)
    assert all(torch.equal(a, b) for a, b in zip(half.noise, maps.noise, strict=True))
    assert torch.equal(half.remainder, maps.remainder)


def test_slerp_follows_the_arc() -> None:
    a, b = as64(2.0, 0.0)[None], as64(0.0, 2.0)[None]
    torch.testing.assert_close(slerp(a, b, 0.5), as64(math.sqrt(2), math.sqrt(2))[None])
    torch.testing.assert_close(slerp(a, b, 1 / 3), 2 * as64(math.cos(math.pi / 6), math.sin(math.pi / 6))[None])
    random = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = random.flip(0)
    for share, end in ((0.0, random), (1.0, other)):
        torch.testing.assert_close(slerp(random, other, share), end)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)  # parallel: along the chord
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)


def test_a_mean_path_is_the_mean_noised() -> None:
    process, noise = GaussianProcess(cosine(1000)), as64(0.7, -1.0)[None]
    a, b = as64(0.0, 1.0)[None], as64(1.0, -1.0)[None]
    level = process.noise_level(0.4)
    found = mean_path(process, a, b, 0.4, [0.0, 0.25], noise)
    for row, x0 in zip(found, ([0.0, 1.0], [0.25, 0.5]), strict=True):
        torch.testing.assert_close(row, level.alpha * as64(*x0) + level.sigma * noise[0])


def test_a_switched_denoiser_changes_at_its_level() -> None:
    process = GaussianProcess(EDM())  # sigma = 80 t
    early, late = (gaussian_denoiser(process, as64(mean), as64(0.5)) for mean in (-1.0, 1.0))
    denoise, x = switched(early, late, process, 8.0), torch.zeros(2, 1, dtype=torch.float64)
    assert torch.equal(denoise(x, 0.1).x0, late(x, 0.1).x0)
    assert torch.equal(denoise(x, 0.1001).x0, early(x, 0.1001).x0)
    with pytest.raises(ValueError, match="one time"):
        denoise(x, as64(0.1, 0.2))


# With a model.


@pytest.fixture(scope="module")
def model(whole: Path) -> Model:
    return load(whole)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)


@pytest.mark.parametrize("method", ["exact", "friendly"])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_the_same_class_gives_the_same_bytes(model: Model, rows: np.ndarray, method: str, strength: float) -> None:
    source, recipe = model.of_class(0, 3), Recipe(steps=8)
    same = regenerate(model, rows, recipe, source, source, method=method, strength=strength)
    np.testing.assert_array_equal(same, rows)
    other = regenerate(model, rows, recipe, source, model.of_class(2, 3), method=method, strength=strength)
    assert (other == rows).all() == (strength == 0)


@pytest.mark.parametrize("method", ["slerp", "mean"])
def test_an_interpolation_has_its_ends(model: Model, rows: np.ndarray, method: str) -> None:
    frames = interpolate(model, rows[0], rows[1], Recipe(steps=4), model.unconditional(1), 5, method=method)
    assert frames.shape == (5, 16, 16, 1)
    np.testing.assert_array_equal(frames[[0, -1]], rows[:2])
    assert len({frame.tobytes() for frame in frames}) == 5


def test_mixing_has_its_ends(model: Model, rows: np.ndarray) -> None:
    """Switched at 0 all is of the first, at 1 of the second; between it is neither."""
    condition = model.unconditional(1)
    found = [mix(model, rows[:1], rows[1:2], Recipe(steps=6), condition, switch=switch) for switch in (0.0, 0.5, 1.0)]
    np.testing.assert_array_equal(found[0], rows[:1])
    np.testing.assert_array_equal(found[2], rows[1:2])
    assert not any((found[1] == row).all() for row in rows[:2])


def test_what_there_is_not(model: Model, rows: np.ndarray) -> None:
    condition = model.unconditional(3)
    with pytest.raises(UsageError, match="no inversion is called 'x'"):
        regenerate(model, rows, Recipe(), condition, condition, method="x")
    with pytest.raises(UsageError, match="no interpolation is called 'x'"):
        interpolate(model, rows[0], rows[1], Recipe(), model.unconditional(1), 3, method="x")
    with pytest.raises(UsageError, match="2 at least"):
        interpolate(model, rows[0], rows[1], Recipe(), model.unconditional(1), 1)
    with pytest.raises(UsageError, match="between 0"):
        mix(model, rows, rows, Recipe(), condition, switch=2)
