"""Editing where the answer is known: strength, SDEdit, replacement and resampling on Gaussians; what stays."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomised
from references import SCHEDULES, as64, gaussian_x0
from torch import Tensor, nn

from undiffuse.denoiser import Denoiser
from undiffuse.editing.known import keeping, resampled
from undiffuse.editing.rows import edit, placed
from undiffuse.editing.sdedit import sdedit
from undiffuse.editing.strength import time_of, times_below
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, states
from undiffuse.model import Model, load
from undiffuse.process import EDM, GaussianProcess, Prediction, Time, cosine
from undiffuse.randomness import keyed_draws
from undiffuse.sampling import GRIDS, State, ancestral

MEAN, STD = 0.3, 0.4


class Exact(nn.Module):
    """The network of target edm for data N(MEAN, STD^2), in float64, and how often it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.calls = nn.Parameter(torch.zeros(1)), 0

    def forward(self, x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        self.calls += 1
        ratio = (-0.5 * log_snr.double()).exp().view(-1, 1, 1, 1)
        noisy = x * (0.25 + ratio**2).sqrt()
        x0 = gaussian_x0(noisy, torch.ones_like(ratio), ratio, as64(MEAN), as64(STD))
        return (x0 - 0.25 / (0.25 + ratio**2) * noisy) / (0.5 * ratio / (0.25 + ratio**2).sqrt())


@pytest.fixture(scope="module")
def tiny_model(whole: Path) -> Model:
    model = load(whole)
    randomised(model.network, 0.1)
    return model


def exact(model: Model, schedule: Any) -> Model:
    denoiser = Denoiser(Exact().eval(), GaussianProcess(schedule))
    return dataclasses.replace(
        model, denoiser=denoiser, data=dataclasses.replace(model.data, classes=(), class_share=())
    )


# Strength.


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("strength", [0.05, 0.4, 0.5, 0.9])
def test_strength_is_a_noise_level(name: str, strength: float) -> None:
    """sigma / (alpha + sigma), whatever the schedule, wherever its table has that much noise."""
    schedule = SCHEDULES[name]
    level = schedule.noise_level(time_of(schedule, strength))
    most = schedule.noise_level(1.0)
    least = schedule.noise_level(schedule.t_min)
    low, high = ((at.sigma / (at.alpha + at.sigma)).item() for at in (least, most))
    found = (level.sigma / (level.alpha + level.sigma)).item()
    if strength > low:
        assert found == pytest.approx(min(strength, high), rel=1e-9)
    assert (time_of(schedule, 0), time_of(schedule, 1)) == (0.0, 1.0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.6, 0.95, 1.0])
def test_all_steps_are_spent_below_the_strength(tiny_model: Model, grid: str, strength: float) -> None:
    recipe = Recipe("ddim", 7, grid=grid)
    times = times_below(tiny_model, recipe, strength)
    schedule = tiny_model.denoiser.process.schedule
    assert len(times) == 8
    assert times[0].item() == pytest.approx(time_of(schedule, strength), rel=1e-12)
    assert times[-1] == 0 and (times.diff() < 0).all()
    if strength == 1:
        assert torch.equal(times, recipe.times(tiny_model))


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_strengths_out_of_range(tiny_model: Model, strength: float) -> None:
    with pytest.raises(UsageError, match="between 0, which changes nothing, and 1"):
        sdedit(tiny_model, Recipe(), torch.zeros(1, 1, 16, 16), [0], tiny_model.unconditional(1), strength=strength)


def test_a_strength_too_small_for_the_steps_is_refused(tiny_model: Model) -> None:
    with pytest.raises(UsageError, match=r"strength = 1e-06 leaves no room for 20 steps"):
        times_below(tiny_model, Recipe(), 1e-6)


# SDEdit.


def test_strength_one_is_sample_and_zero_is_the_input(tiny_model: Model) -> None:
    """To the bit, with a class; the evaluations asked for are spent at every strength."""
    rows = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    x0, condition, recipe = tiny_model.domain.encode(rows), tiny_model.of_class(1, 3), Recipe(steps=5)
    *_, sampled = states(tiny_model, recipe, range(3), condition)
    assert torch.equal(sdedit(tiny_model, recipe, x0, range(3), condition, strength=1), sampled.x)
    assert torch.equal(sdedit(tiny_model, recipe, x0, range(3), condition, strength=0), x0)
    np.testing.assert_array_equal(edit(tiny_model, rows, recipe, condition, strength=0), rows)
    np.testing.assert_array_equal(
        edit(tiny_model, rows, recipe, condition, strength=1), tiny_model.domain.decode(sampled.x)
    )
    model = exact(tiny_model, cosine(1000))
    network = model.network
    assert isinstance(network, Exact)
    for strength in (0.1, 0.6, 1.0):
        network.calls = 0
        sdedit(model, recipe, x0.double(), range(3), strength=strength, passes=2)
        assert network.calls == 10


def test_each_pass_has_noise_of_its_own(tiny_model: Model) -> None:
    """Two passes begin as one does, and are not the same edit twice."""
    x0, condition = torch.zeros(2, 1, 16, 16), tiny_model.of_class(1, 2)

    def edited(x0: Tensor, passes: int) -> Tensor:
        return sdedit(tiny_model, Recipe(steps=4), x0, range(2), condition, strength=0.7, passes=passes)

    assert not torch.allclose(edited(x0, 2), edited(edited(x0, 1), 1), atol=1e-2)


@pytest.mark.parametrize("strength", [0.3, 0.6])
@pytest.mark.parametrize("schedule", [cosine(1000), EDM()], ids=["cosine", "edm"])
def test_sdedit_of_a_gaussian(tiny_model: Model, schedule: Any, strength: float) -> None:
    """From x_0: mean MEAN + s alpha (x_0 - MEAN) / sqrt(V), std s sigma / sqrt(V), V = alpha^2 s^2 + sigma^2.

    The edit is affine in x_0 and in the noise, so two inputs with one noise give the first slope and the rest the
    second: against the noise itself, which is keyed.
    """
    model, recipe = exact(tiny_model, schedule), Recipe("dpm++3m", 400, threshold="none", seed=3)
    level = schedule.noise_level(time_of(schedule, strength))
    alpha, sigma = level.alpha.item(), level.sigma.item()
    root = math.sqrt(alpha**2 * STD**2 + sigma**2)
    x0 = torch.linspace(-1, 1, 16 * 16, dtype=torch.float64).view(1, 1, 16, 16)
    found = sdedit(model, recipe, x0, [0], strength=strength)
    noise = keyed_draws(3, [0])(0).normal(x0)
    expected = MEAN + STD * (alpha * (x0 - MEAN) + sigma * noise) / root
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # log-SNRs reach the network in float32


def test_an_edit_is_the_same_in_any_batch(tiny_model: Model) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:9, 2:14] = True
    options: dict[str, Any] = {"strength": 0.7, "repaint": mask, "resampling": 2, "passes": 2}
    condition, recipe = tiny_model.of_class(0, 5), Recipe("ddim", 4, eta=1.0)
    crowd = edit(tiny_model, rows, recipe, condition, **options)
    some = edit(tiny_model, rows, recipe, condition, batch_size=2, **options)
    alone = edit(tiny_model, rows[3:4], recipe, tiny_model.of_class(0, 1), numbers=[3], **options)
    for other in (some, np.concatenate([crowd[:3], alone, crowd[4:]])):
        assert abs(crowd.astype(int) - other).max() <= 1
    np.testing.assert_array_equal(crowd[:, ~mask], rows[:, ~mask])
    assert (crowd[:, mask] != rows[:, mask]).mean() > 0.5


# Replacement and resampling.

RHO = 0.8


def pair(x_t: Tensor, t: Time, process: GaussianProcess) -> Prediction:
    """The denoiser of a pair of unit variances and correlation RHO, (B, 2)."""
    level = process.noise_level(t)
    covariance = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
    noisy = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2, dtype=torch.float64)
    x0 = x_t @ (level.alpha * covariance @ noisy.inverse()).T
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)


def test_resampling_ends_where_its_fixed_point_is() -> None:
    """At a fixed t, many small steps down and back: N(alpha^3 rho y, 1 - alpha^4 rho^2) of the unknown half.

    The right law of x_t given y is N(alpha rho y, 1 - alpha^2 rho^2): resampling pulls the mean to zero. 20,000
    chains: the mean has a standard error of 0.007 and the variance one of 1%; the step's length adds as much.
    """

    class Fresh:  # keys for 20,000 chains would take a minute
        random = torch.Generator().manual_seed(0)

        def normal(self, like: Tensor) -> Tensor:
            return torch.randn(like.shape, dtype=like.dtype, generator=self.random)

        uniform = normal

        def fold(self, number: int) -> "Fresh":
            return self

    process, y, n = GaussianProcess(cosine(1000)), 1.5, 20_000
    t, s = 0.5, 0.48
    alpha = process.noise_level(t).alpha.item()
    known = torch.tensor([[0.0, y]], dtype=torch.float64).expand(n, 2)
    step = resampled(keeping(ancestral, known, torch.tensor([True, False])), 120)
    start = process.marginal(known, t).sample(Fresh())
    seen: list[Tensor] = []

    def denoise(x: Tensor, time: Time) -> Prediction:
        seen.append(x)
        return pair(x, time, process)

    step(State(start, t), s, denoise, process, Fresh())
    unknown = seen[-1][:, 0]
    assert unknown.mean().item() == pytest.approx(alpha**3 * RHO * y, abs=0.03)
    assert unknown.var().item() == pytest.approx(1 - alpha**4 * RHO**2, rel=0.05)
    assert abs(unknown.mean().item() - alpha * RHO * y) > 0.2


def test_the_known_part_is_the_data_noised(tiny_model: Model) -> None:
    """One noise all along, or new noise at every step; the data itself at the end."""
    process, known = GaussianProcess(cosine(1000)), torch.full((1, 2), 0.5, dtype=torch.float64)
    draws, repaint = keyed_draws(0, [0]), torch.tensor([True, False])
    for noise in (draws(0), None):
        step = keeping(ancestral, known, repaint, noise)
        x = step(State(known, 0.9), 0.5, lambda x, t: pair(x, t, process), process, draws(1)).x
        expected = process.corrupt(known, 0.5, noise or draws(1).fold(1))
        assert x[0, 1] == expected[0, 1]
        assert step(State(known, 0.9), 0.0, lambda x, t: pair(x, t, process), process, draws(1)).x[0, 1] == 0.5


def test_outpainting_makes_room() -> None:
    rows = np.full((2, 10, 20, 3), 200, dtype=np.uint8)
    canvas, around = placed(rows, 0.5)
    assert canvas.shape == rows.shape and around.shape == (10, 20)
    assert (~around).sum() == 5 * 10
    assert (canvas[:, ~around] == 200).all()
    with pytest.raises(UsageError, match="between 0 and 1"):
        placed(rows, 1.0)
