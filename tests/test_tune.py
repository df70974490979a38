"""Time grids made for a model."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from references import walk
from torch import Tensor

from undiffuse.denoiser import Denoise, Prediction
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe, sample
from undiffuse.model import Model, load, with_process
from undiffuse.process import EDM, VE, FlowMatching, GaussianProcess, Schedule, Time, cosine, zero_terminal_snr
from undiffuse.sampling import at_log_snrs, ddim, dpm_solver_pp, make_grid, search_grid
from undiffuse.sampling.search import bands, difference, energy_distance


def bimodal(process: GaussianProcess, width: float = 0.1) -> Denoise:
    """The exact denoiser of data that is N(-1, width^2) or N(1, width^2) in every element, half and half."""

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        alpha, sigma = level.alpha.item(), level.sigma.item()
        variance = alpha**2 * width**2 + sigma**2
        mean = torch.tanh(alpha * x_t / variance)
        x0 = mean + alpha * width**2 / variance * (x_t - alpha * mean)
        # E[x_0 | x_t] = sum over modes of weight (m + gain (x_t - alpha m)), and the weights' mean is tanh.
        return Prediction(x0, x0).with_x0(x0, x_t, level)

    return denoise


def test_energy_distance_is_that_of_two_normals() -> None:
    """X ~ N(0, 1), Y ~ N(m, 1): X - Y ~ N(-m, 2), whose mean absolute value is a folded normal's mean."""
    m = 1.5
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, 1, generator=generator, dtype=torch.float64) + mean for mean in (0.0, m))

    def folded(mean: float) -> float:  # E|Z| for Z ~ N(mean, 2)
        return 2 / math.sqrt(math.pi) * math.exp(-(mean**2) / 4) + mean * math.erf(mean / 2)

    expected = 2 * (folded(m) - folded(0)) / folded(0)
    assert energy_distance(x, y) == pytest.approx(expected, rel=0.05)


def test_equal_sets_are_at_distance_zero_and_blurred_ones_are_not() -> None:
    x = torch.randn(32, 3, 17, 12)
    assert abs(difference(x, x)) < 1e-12
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert difference(blurred, x) > 0.1


def test_bands_lose_nothing() -> None:
    """The finest scales and the coarse rest add up to the image, odd sides included."""
    x = torch.randn(2, 1, 17, 12, dtype=torch.float64)
    fine, middle, coarse = bands(x)
    up = torch.nn.functional.interpolate(coarse.view(2, 1, 5, 3), size=(9, 6)) + middle.view(2, 1, 9, 6)
    again = torch.nn.functional.interpolate(up, size=(17, 12)) + fine.view_as(x)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("step", [ddim, dpm_solver_pp])
def test_a_searched_grid_is_better_and_reports_what_it_does(step: object) -> None:
    """On a density with a known denoiser; its own trajectory, run anew, ends where the search said."""
    process = GaussianProcess(cosine())
    denoise = bimodal(process)
    start = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = make_grid("log-snr", process.schedule, 400)
    target = list(walk(denoise, process, fine, step, lambda n: start))[-1].x  # type: ignore[arg-type]
    grid = make_grid("log-snr", process.schedule, 5)
    log_snrs, differences = search_grid(denoise, process, step, grid, start, target)  # type: ignore[arg-type]
    assert differences[-1] < 0.5 * differences[0]
    assert all(a > b for a, b in itertools.pairwise(differences))
    found = at_log_snrs(process.schedule, log_snrs)
    assert len(found) == 6 and found[0] == 1 and found[-1] == 0 and (found.diff() < 0).all()
    end = list(walk(denoise, process, found, step, lambda n: start))[-1].x  # type: ignore[arg-type]
    assert difference(end, target) == pytest.approx(differences[-1], rel=1e-6)


def test_tune_writes_grids_that_sampling_uses(command: Command, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = load(run)
    code, out, err = command("tune", run, "--sampler", "dpm++2m", "--steps", "1,3", "--samples", "8")
    assert code == 0, err
    assert "dpm++2m:3" in out
    model = load(run)
    schedule = model.denoiser.process.schedule
    times = Recipe("dpm++2m", 3).times(model)
    assert schedule.log_snr(times[1:-1]).tolist() == pytest.approx(list(model.grids["dpm++2m:3"]), abs=1e-6)
    assert torch.equal(Recipe("dpm++2m", 3, grid="karras").times(model), Recipe("dpm++2m", 3).times(before))
    assert torch.equal(Recipe("dpm++2m", 4).times(model), Recipe("dpm++2m", 4).times(before))
    code, _, err = command("tune", run, "--sampler", "ddpm")
    assert code == 2 and "no grid is searched for ddpm" in err


@pytest.mark.parametrize("content", ["[]", '{"dpm++2m:3": {"log_snr": [1.0]}}', '{"dpm++2m:3": {"log_snr": [2, 1]}}'])
def test_a_damaged_file_of_grids_is_named(whole: Path, tmp_path: Path, content: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (sorted(run.glob("checkpoints/*"))[-1] / "grids.json").write_text(content)
    with pytest.raises(UndiffuseError, match=r"grids\.json is damaged"):
        load(run)


def with_grid(whole: Path, folder: Path, log_snrs: list[float]) -> Model:
    """The run's model with a grid for unipc in as many steps."""
    shutil.copytree(whole, folder)
    grids = {f"unipc:{len(log_snrs) + 1}": {"log_snr": log_snrs}}
    (sorted(folder.glob("checkpoints/*"))[-1] / "grids.json").write_text(json.dumps(grids))
    return load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "edm", "options": {"sigma_max": 2.0}},
        {"schedule": "ve", "options": {"sigma_max": 1.0}},
        {"schedule": "vp", "options": {"beta_max": 3.0}},
        {"schedule": "linear", "options": {"beta_max": 0.001}},
    ],
    ids=lambda settings: settings["schedule"],
)
def test_a_grid_does_not_go_to_a_process_without_its_noise(
    whole: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Their log-SNRs at t = 1 are above the grid's first, -3.4: UsageError, which names the grid to ask for instead."""
    model = with_process(with_grid(whole, tmp_path / "run", [-3.4, -0.2, 3.9, 9.5]), **settings)
    assert model.denoiser.process.schedule.log_snr(1.0) > -3.4
    with pytest.raises(UsageError, match=r"unipc:5, does not fit the process .*--grid karras"):
        sample(model, 1, steps=5)
    assert sample(model, 1, steps=5, grid="karras").shape == (1, 16, 16, 1)
    assert sample(model, 1, steps=4).shape == (1, 16, 16, 1)


@pytest.mark.parametrize("schedule", ["edm", "ve", "vp", "sub-vp", "flow", "linear"])
def test_a_grid_goes_to_every_process_that_has_its_noise(whole: Path, tmp_path: Path, schedule: str) -> None:
    """At the same log-SNRs: what a network sees there is the same."""
    log_snrs = [-3.4, -0.2, 3.9, 9.5]
    model = with_process(with_grid(whole, tmp_path / "run", log_snrs), schedule=schedule)
    times = Recipe("unipc", 5).times(model)
    assert model.denoiser.process.schedule.log_snr(times[1:-1]).tolist() == pytest.approx(log_snrs, abs=1e-9)
    assert len(sample(model, 1, steps=5)) == 1


def test_a_grid_beyond_the_models_own_process_is_refused(whole: Path, tmp_path: Path) -> None:
    """As from a file that another model's was copied to."""
    model = with_grid(whole, tmp_path / "run", [-40.0, -30.0, 1.0])
    with pytest.raises(UsageError, match=r"-40, -30, 1 are not a grid here.*above the schedule's last, -19\.8"):
        sample(model, 1, steps=4)


@pytest.mark.parametrize("log_snrs", [[-9.0], [1.0, 1.0], [2.0, 1.0], [math.nan], [1.0, math.inf], [-math.inf, 1.0]])
def test_at_log_snrs_makes_grids_alone(log_snrs: list[float]) -> None:
    """Strictly decreasing from 1 to 0: ValueError where the log-SNRs are out of reach or out of order."""
    for schedule in (EDM(), EDM(sigma_max=2.0), VE()):
        with pytest.raises(ValueError, match="are not a grid here"):
            at_log_snrs(schedule, log_snrs)
    assert at_log_snrs(EDM(), []).tolist() == [1, 0]


@pytest.mark.parametrize("schedule", [zero_terminal_snr(cosine()), FlowMatching()], ids=["cosine", "flow"])
def test_a_grid_is_searched_where_no_signal_is_left_too(schedule: Schedule) -> None:
    process = GaussianProcess(schedule)
    start = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = make_grid("karras", schedule, 4)
    found, differences = search_grid(bimodal(process), process, ddim, grid, start, start.sign(), 100)
    assert differences[-1] < differences[0] and (at_log_snrs(schedule, found).diff() < 0).all()
