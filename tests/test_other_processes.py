"""What a network has learnt under one process it says under every other, and what it says when told a clamped log-SNR.

The networks here are exact for Gaussian data and see only what a network sees: the input at unit variance and the
log-SNR. What they say is written at unit scale, alpha^2 + sigma^2 = 1, that of the VP process they "were trained" on.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from references import SCHEDULES, as64, gaussian_x0, walk
from torch import Tensor

from undiffuse.build import make_denoiser, make_network
from undiffuse.config import make_config, read_config
from undiffuse.denoiser import LOG_SNR_LIMIT, Denoiser
from undiffuse.errors import UsageError
from undiffuse.model import load, with_process
from undiffuse.networks import UNet2D
from undiffuse.process import (
    VP,
    GaussianProcess,
    LogSNR,
    Prediction,
    Schedule,
    cosine,
    expand,
    linear,
    sigmoid,
    zero_terminal_snr,
)
from undiffuse.registry import CATEGORICAL, TARGETS
from undiffuse.sampling import SAMPLERS, make_grid
from undiffuse.targets import SCORE_OF_STATE

MEAN, STD, SD = 0.3, 0.5, 0.6  # of the data, and the sigma_data of the denoisers, which need not be its
LEAST = math.exp(-LOG_SNR_LIMIT / 2)
OTHERS: dict[str, Schedule] = SCHEDULES | {
    "linear-1000": linear(1000),
    "cosine-4000": cosine(4000),
    "knots": LogSNR([13.3, 5.0, 1.0, -8.0]),
    "cosine-zero-snr": zero_terminal_snr(cosine(1000)),
}
FAR: dict[str, Schedule] = {
    "cosine-4000": cosine(4000),
    "cosine-1e5": cosine(100_000),
    "linear-20": linear(20),
    "sigmoid-20": sigmoid(20),
    "knots": LogSNR([30.0, 0.0, -40.0]),
}
every_target = pytest.mark.parametrize("target", TARGETS)


def exact(target: str, mix: float | None = None) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The network that is exact for N(MEAN, STD^2) at the log-SNR it is told, by its formula at unit scale."""

    def network(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        told = expand(log_snr.double(), x)
        alpha, sigma = torch.sigmoid(told).sqrt(), torch.sigmoid(-told).sqrt()
        y = x * ((alpha * SD) ** 2 + sigma**2).sqrt()
        x0 = gaussian_x0(y, alpha, sigma, as64(MEAN), as64(STD))
        score = -(y - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)  # of N(alpha MEAN, alpha^2 STD^2 + sigma^2)
        u = sigma / alpha
        said = {
            "eps": -sigma * score,
            "x0": x0,
            "v": -alpha * sigma * score - sigma * x0,
            "score": score,
            "flow": -sigma * score - x0,
            "edm": (x0 - SD**2 / (u**2 + SD**2) * y / alpha) * (u**2 + SD**2).sqrt() / (u * SD),
        }[target]
        return said if mix is None else torch.cat([said, torch.full_like(said, 2 * mix - 1)], 1)

    return network


def at(schedule: Schedule, log_snrs: Tensor) -> tuple[Tensor, Tensor]:
    """The times and r = sqrt(alpha^2 + sigma^2) of a schedule at log-SNRs."""
    t = schedule.time(log_snrs)
    level = schedule.noise_level(t)
    return t, (level.alpha**2 + level.sigma**2).sqrt()[:, None]


@pytest.mark.parametrize("name", OTHERS)
@every_target
def test_every_target_means_the_same_under_every_process(target: str, name: str) -> None:
    """E[x_0 | x_t] in closed form, and the same as under VP for the same x_t / r; the log-SNR is told in float32."""
    log_snrs, schedule = as64(9.0, 4.0, 1.0, 0.0, -2.0, -5.0, -6.9), OTHERS[name]
    y = torch.linspace(-2.5, 2.5, 7 * 5, dtype=torch.float64).view(7, 5)
    t, r = at(schedule, log_snrs)
    process = GaussianProcess(schedule)
    prediction = Denoiser(exact(target), process, target, SD)(r * y, t)
    level = process.noise_level(t)
    expected = gaussian_x0(r * y, level.alpha[:, None], level.sigma[:, None], as64(MEAN), as64(STD))
    torch.testing.assert_close(prediction.x0, expected, rtol=0, atol=3e-6)
    t, r = at(VP(), log_snrs)
    native = Denoiser(exact(target), GaussianProcess(VP()), target, SD)(r * y, t)
    torch.testing.assert_close(prediction.x0, native.x0, rtol=0, atol=3e-6)
    torch.testing.assert_close(prediction.eps, native.eps, rtol=0, atol=5e-4)  # 1 / sigma at the first level is 90


@pytest.mark.parametrize("name", OTHERS)
def test_levels_and_a_learned_variance_mean_the_same_under_every_process(name: str) -> None:
    """The odds of values, and p(x_s | x_t) at unit scale, are those under VP."""
    log_snrs, after = as64(4.0, 0.0, -2.0, -5.0, -6.9), as64(5.0, 3.0, -1.0, -4.5, -3.0)
    y = torch.linspace(-2, 2, 5 * 4, dtype=torch.float64).view(5, 4)

    def levels(x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        mean, free = torch.tanh(x + 0.1 * log_snr[:, None]), torch.linspace(-3, 3, 256, dtype=torch.float64)
        return torch.cat([mean, 1 + 0.1 * x, (free * x[:, :, None]).flatten(1)], 1)

    found = []
    for schedule in (OTHERS[name], VP()):
        (t, r), (s, r_s) = at(schedule, log_snrs), at(schedule, after)
        process = GaussianProcess(schedule)
        odds = Denoiser(levels, process, CATEGORICAL, SD)(r * y, t)
        assert odds.logits is not None
        step = Denoiser(exact("v", mix=0.3), process, "v", SD, learned_variance=True)(r * y, t)
        kinds = [process.reverse(step, r * y, s, t, kind) for kind in ("small", "large", "learned")]
        found.append([odds.x0, odds.logits.softmax(-1)])
        found[-1] += [normal.mean / r_s for normal in kinds]
        found[-1] += [expand(normal.variance, y) / r_s**2 * torch.ones_like(y) for normal in kinds]
    for ours, native in zip(*found, strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "cosine", "linear-1000", "knots", "flow"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
@every_target
def test_samples_have_the_variance_of_the_data(target: str, sampler: str, name: str) -> None:
    """.25 and the mean .3, under every process, and all that the exact denoiser of that process has in 100 steps.

    The map from noise to data is affine, and is read off two of its points.
    """
    if name == "flow" and target in ("eps", "score"):
        pytest.skip("refused where no signal is left")
    process = GaussianProcess(OTHERS[name])
    start = process.prior_scale() * as64(1.0, -1.0)[:, None]
    grid = make_grid("log-snr", process.schedule, 100)
    ends = [
        list(walk(denoise, process, grid, SAMPLERS[sampler].step, torch.empty, start))[-1].x
        for denoise in (Denoiser(exact(target), process, target, SD).bind(None), _optimum(process))
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)  # the log-SNR is told in float32, the noise at most in e^10
    up, down = ends[0].flatten().tolist()
    # 100 steps of Euler leave 7 % of the variance; on the cosine table the first step, from pure noise, 3 % of any rule
    assert ((up - down) / 2) ** 2 == pytest.approx(0.25, rel=0.08 if sampler == "ddim" else 0.035)
    assert (up + down) / 2 == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("name", FAR)
@every_target
def test_an_answer_beyond_the_log_snr_that_is_told_is_read_where_it_belongs(target: str, name: str) -> None:
    """With all but no signal E[x_0 | x_t] is the mean, and with all but no noise x_t / alpha, to sigma / alpha at the
    log-SNR told or its inverse, e^-10, times what it multiplies: STD^2 and x_t / r there, and here the score."""
    schedule = FAR[name]
    process = GaussianProcess(schedule)
    t = torch.cat([1 - torch.logspace(-6, -1.2, 40, dtype=torch.float64), as64(1.0, 1e-7, 1e-9)])
    level = process.noise_level(t)
    y = torch.linspace(-3, 3, 5, dtype=torch.float64)
    x_t = (level.alpha * MEAN)[:, None] + (level.alpha**2 * STD**2 + level.sigma**2).sqrt()[:, None] * y
    prediction = Denoiser(exact(target), process, target, SD)(x_t, t)
    expected = gaussian_x0(x_t, level.alpha[:, None], level.sigma[:, None], as64(MEAN), as64(STD))
    assert (level.log_snr < -LOG_SNR_LIMIT).sum() > 3
    torch.testing.assert_close(prediction.x0, expected, rtol=0, atol=4 * LEAST)
    # float32 log-SNRs of 20 are 2e-6 off, which eps and the score multiply by sigma / alpha, and by 1 / that here
    assert prediction.eps.isfinite().all()


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("steps", [5, 20])
@every_target
def test_few_steps_from_far_beyond_keep_the_mean(target: str, steps: int, name: str) -> None:
    process = GaussianProcess(FAR[name])
    denoise = Denoiser(exact(target), process, target, SD).bind(None)
    grid = make_grid("trailing", process.schedule, steps)
    start = as64(0.0)[:, None]  # the mean of the prior, which an affine map takes to that of the samples
    ends = [
        list(walk(d, process, grid, SAMPLERS["ddim"].step, torch.empty, start))[-1].x.item()
        for d in (denoise, _optimum(process))
    ]
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def _optimum(process: GaussianProcess) -> Callable:
    def denoise(x: Tensor, t: Any) -> Prediction:
        level = process.noise_level(t)
        x0 = gaussian_x0(x, level.alpha, level.sigma, as64(MEAN), as64(STD))
        return Prediction(x0, x0).with_x0(x0, x, level)

    return denoise


@every_target
def test_a_network_that_counts_the_steps_of_a_table_is_read_at_its_last(target: str) -> None:
    """Told of no less signal than e^-5: on the cosine table, to e^-10, the mean holds to e^-5 STD^2."""
    least = linear(1000).log_snr(1.0).item()
    denoiser = Denoiser(exact(target), GaussianProcess(cosine(1000)), target, SD, least_log_snr=least)
    y = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for t in (0.97, 0.999, 1.0):
        assert (denoiser(y, t).x0 - MEAN).abs().max() < 4 * math.exp(least / 2)


def test_a_network_is_asked_of_no_more_noise_than_it_was_trained_at() -> None:
    """Of normal times three deviations: 2 (-0.5 + 3 0.5). What bounds and other times reach is not limited."""
    settings = {"denoiser.sigma_data": 0.5, "objective.mean": -0.5, "objective.std": 0.5}
    heard = []

    def network(x: torch.Tensor, log_snr: torch.Tensor, condition: Any) -> torch.Tensor:
        heard.append(log_snr[0].item())
        return x

    unlimited = ({"objective.times": "uniform"}, {"objective.loss": "continuous-bound"}, {"objective.loss": "hybrid"})
    for more in ({}, *unlimited):
        denoiser = make_denoiser(make_config(settings | more), network)
        for t in (0.5, 1.0):
            denoiser(torch.zeros(1, 1, 8, 8), t)
    middle, last = cosine(1000).log_snr(0.5).item(), cosine(1000).log_snr(1.0).item()
    assert last < -19
    assert heard == pytest.approx([middle, -2.0, *3 * [middle, last]], rel=1e-6)


def test_make_denoiser_asks_the_network_how_far_its_table_goes() -> None:
    """A unet2d's own table, whatever process it is put on; 20 for the others, trained at uniform times."""
    settings = {"process.schedule": "linear", "network.kind": "unet2d", "network.patch": 1, "network.attention": ()}
    settings |= {"objective.times": "uniform"}
    config = make_config({**settings, "network.channels": (32,), "denoiser.sigma_data": 0.5, "denoiser.target": "eps"})

    class FromOutside(torch.nn.Module):
        least_log_snr = -3.0

    network = make_network(config, 1)
    assert isinstance(network, UNet2D)
    moved = make_config({"process.schedule": "cosine"}, config)
    for network_ in (network, torch.nn.DataParallel(network)):
        assert make_denoiser(moved, network_).least_log_snr == pytest.approx(linear(1000).log_snr(1.0).item(), rel=1e-6)
    assert make_denoiser(moved, FromOutside()).least_log_snr == -3.0
    assert make_denoiser(moved, lambda *_: None).least_log_snr == -LOG_SNR_LIMIT
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000  # on its own table all is read as it was
    level = linear(1000).noise_level(t)
    c = make_denoiser(config, network).coefficients(t)
    assert torch.equal(c.c_skip, 1 / level.alpha) and torch.equal(c.c_out, -level.sigma / level.alpha)


def test_the_data_itself_is_not_asked_about() -> None:
    """At t = 0 eps is 0 / 0: ValueError, also for one sample of many."""
    for target in (*TARGETS, CATEGORICAL):
        denoiser = Denoiser(lambda x, *_: torch.zeros(len(x), 258), GaussianProcess(linear(10)), target)
        for t in (0.0, as64(0.5, 0.0)):
            with pytest.raises(ValueError, match="t = 0"):
                denoiser(torch.zeros(2, 1, dtype=torch.float64), t)


SAVED = {"target": "score", "sigma_data": 0.5, "learned_variance": False}  # as model.json had it


@pytest.mark.parametrize(
    ("schedule", "scale"), [("ve", "state"), ("sub-vp", "state"), ("edm", "state"), ("vp", "unit")]
)
def test_scores_that_were_saved_before_keep_their_meaning(schedule: str, scale: str) -> None:
    """-eps / sigma under the process they were trained on; new ones say which they are."""
    new = make_config({"denoiser.target": "score", "denoiser.sigma_data": 0.5, "process.schedule": schedule})
    written = new.model_dump(mode="json")
    assert written["denoiser"] == {**SAVED, "score_scale": "unit"}
    assert read_config(written) == new
    old = read_config({**written, "denoiser": SAVED})
    assert old.denoiser.score_scale == scale
    assert read_config(old.model_dump(mode="json")) == old
    denoiser = make_denoiser(old, lambda *_: None)
    x0, noise, t = as64(0.3), as64(-1.2), 0.4
    sigma = denoiser.process.noise_level(t).sigma
    torch.testing.assert_close(denoiser.target_of(x0, noise, t), -noise / sigma, rtol=1e-12, atol=0)
    says = Denoiser(lambda x, *_: -noise / sigma, denoiser.process, denoiser.target, 0.5)
    torch.testing.assert_close(says(denoiser.process.marginal(x0, t).at(noise), t).x0, x0, rtol=1e-9, atol=1e-9)


def test_only_a_score_is_saved_with_its_scale() -> None:
    """So that the fingerprints of all other models stay what they were."""
    assert "score_scale" not in make_config({}).model_dump(mode="json")["denoiser"]
    config = make_config({"denoiser.score_scale": "state", "denoiser.sigma_data": 0.5})
    with pytest.raises(UsageError, match=r"score_scale is for denoiser\.target=score"):
        make_denoiser(config, lambda *_: None)


def test_a_score_of_the_state_stays_on_its_process(whole: Path) -> None:
    from dataclasses import replace

    model = load(whole)
    old = replace(model, denoiser=replace(model.denoiser, target=SCORE_OF_STATE))
    with pytest.raises(UsageError, match="score_scale=state"):
        with_process(old, schedule="edm")
