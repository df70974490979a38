"""Density as a user meets it: training the bound, `evaluate --metrics bpd` and `ode`, what they say and refuse."""

import dataclasses
import importlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, ignore, run_state
from safetensors.torch import load_file
from scipy.stats import norm

from undiffuse.config import preset
from undiffuse.data import load as load_data
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.evaluation import density, ode_density
from undiffuse.evaluation.density import BITS, pixels
from undiffuse.evaluation.density_report import sentence
from undiffuse.files import read_json
from undiffuse.generate import sample
from undiffuse.likelihood import Solver
from undiffuse.model import BUILT_IN, load
from undiffuse.process import GaussianProcess, LogSNR
from undiffuse.randomness import Purpose, normal
from undiffuse.training import train

odes = importlib.import_module("undiffuse.evaluation.ode_density")
densities = importlib.import_module("undiffuse.evaluation.density")  # the package has functions of these names


def test_the_preset_learns_and_its_schedule_is_kept(likelihood: Path) -> None:
    """Below the 8 bits of a network that knows nothing; the saved schedule is learnt, and its ends are as asked for."""
    model = load(likelihood)
    assert model.config.process.log_snrs is not None
    knots = np.array(model.config.process.log_snrs)
    assert len(knots) == 65 and (np.diff(knots) < 0).all()
    assert knots[[0, -1]].tolist() == [13.3, -6.0]
    assert np.abs(np.diff(knots, 2)).max() > 1e-3  # no longer the straight line it began as
    assert density(model, n=7).parts["bits_per_dim"].mean < 7.9  # uniform noise over 128 values, at three levels
    assert model.config.training.conditional is False and model.condition(range(3)) is None


def test_a_model_of_levels_samples(likelihood: Path) -> None:
    """Any sampler takes it: its x_0 lies in the range of the data by itself."""
    for sampler in ("dpm++2m", "ddpm", "heun"):
        assert sample(likelihood, 2, sampler=sampler, steps=4, threshold="none").shape == (2, 16, 16, 1)


def test_importance_is_part_of_a_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A run stopped and resumed is the same bit for bit, with its losses' sizes cached_by_time."""
    values = {**preset("likelihood"), **tiny, "network.head": 8, "training.steps": 6, "training.keep": 5}
    train(values, tmp_path / "whole", report=ignore)
    for step in (3, 6):
        state = load_file(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}" / "training.safetensors")
        assert state["importance.seen"].sum() == 16 * step
    parted = tmp_path / "parted"
    train(values, parted, report=ignore)
    shutil.rmtree(parted / "checkpoints" / "step-00000006")
    train(values, parted, resume=True, report=ignore)
    assert run_state(tmp_path / "whole") == run_state(parted)


def test_the_continuous_estimate_bound_a_model(likelihood: Path, data: str) -> None:
    """The parts add up, per image and in the mean; an independent sum of the same integral agrees with its error."""
    model = load(likelihood)
    found = density(model, n=7, draws=60)
    parts = {name: part.mean for name, part in found.parts.items()}
    assert parts["bits_per_dim"] == pytest.approx(parts["prior"] + parts["diffusion"] + parts["reconstruction"])
    assert found.per_image.mean() == pytest.approx(parts["bits_per_dim"])
    assert found.bytes_per_image == (pytest.approx(parts["bits_per_dim"] * 256 / 8), 256)
    # 1/2 integral of SNR ||x_0 - x_0_hat||^2 d lambda, by the trapezoid over log-SNR and noise of its own
    images = load_data(data, "test")
    x0 = pixels(images, np.arange(7))
    lambdas = torch.linspace(13.3, -6.0, 150, dtype=torch.float64)
    values = []
    for k, value in enumerate(lambdas):
        alpha, sigma = torch.sigmoid(value).sqrt().float(), torch.sigmoid(-value).sqrt().float()
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(k))
        with torch.no_grad():
            x0_hat = model.denoiser(alpha * x0 + sigma * noise, model.denoiser.process.schedule.time(value)).x0
        values.append(0.5 * value.exp().item() * (x0 - x0_hat).double().square().mean().item())
    expected = -np.trapezoid(values, lambdas.numpy()) * BITS
    assert parts["diffusion"] == pytest.approx(expected, rel=0.03)  # 7 images, 60 draws each
    curve = found.curve
    assert curve is not None
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(parts["diffusion"], rel=0.1)


def test_all_terms_of_a_discrete_bound(whole: Path, data: str) -> None:
    """With as many draws as steps the sum is that of the terms, each computed here from the betas' closed forms."""
    model = load(whole)
    images = load_data(data, "test")
    found = density(model, n=3, bound=10, variance="large", draws=99)
    assert found.conditions["draws"] == 9 and found.conditions["steps"] == 10
    process, x0 = model.denoiser.process, pixels(images, np.arange(3))
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(1, 10):
        s, t = i / 10, (i + 1) / 10
        at = map(process.noise_level, (s, t))
        (a_s, s_s), (a_t, s_t) = ((float(level.alpha), float(level.sigma)) for level in at)
        noise = normal([(0, Purpose.BOUND, k, i) for k in range(3)], x0.shape[1:])
        with torch.no_grad():
            t_each = torch.full((3,), t, dtype=torch.float64)
            x0_hat = model.denoiser(a_t * x0 + s_t * noise, t_each, model.unconditional(3)).x0
        beta = 1 - (a_t / a_s) ** 2
        tilde = s_s**2 / s_t**2 * beta
        mean = a_s * beta / s_t**2 * (x0 - x0_hat).double()
        total += (0.5 * (mean**2 / beta + tilde / beta - 1 - math.log(tilde / beta))).flatten(1).mean(1)
    assert found.parts["diffusion"].mean == pytest.approx(total.mean().item() * BITS, rel=1e-5)  # float32 networks


def test_other_data_is_brought_to_the_models_size(whole: Path) -> None:
    """As the other metrics have it; and the page says that the model learnt other data."""
    found = density(load(whole), "emoji", n=2, draws=2)
    assert found.images.shape == (2, 16, 16, 1) and not found.conditions["learnt_this_data"]
    assert "was trained on other data" in sentence(found) and "2 draws" in sentence(found)


def test_a_density_says_one_of_one(whole: Path) -> None:
    """Step and draw, not steps and draws."""
    said = sentence(density(load(whole), n=2, bound=1, draws=1))
    assert "bound of 1 step," in said
    assert "1 draw per image" in sentence(density(load(whole), n=2, bound=5, draws=1))


def test_pictures_of_any_size_fit_the_memory(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches hold so many elements, one image at least; what is found does not depend on them."""
    model = load(whole)
    together = density(model, n=5, bound=6, draws=2).per_image
    sizes: list[int] = []
    real = densities.estimate_bound
    monkeypatch.setattr(densities, "estimate_bound", lambda *args: sizes.append(len(args[1])) or real(*args))
    for elements, expected in ((2 * 256, [2, 2, 1]), (10, [1] * 5)):
        sizes.clear()
        monkeypatch.setattr(densities, "BATCH", elements)
        np.testing.assert_allclose(density(model, n=5, bound=6, draws=2).per_image, together, rtol=1e-5)
        assert sizes == expected


def test_one_step_is_a_bound_too(whole: Path) -> None:
    """Only the prior and the decoder are left of it, and no curve."""
    found = density(load(whole), n=3, bound=1)
    assert found.parts["diffusion"].mean == 0 and found.curve is None
    assert math.isfinite(found.parts["bits_per_dim"].mean)


def test_optimal_variances_lower_the_bound(whole: Path) -> None:
    """One fitted number for each step is better than beta or the posterior's, on images it was not fitted on."""
    totals = {
        name: density(load(whole), n=7, bound=10, variance=name, draws=9).parts["bits_per_dim"].mean
        for name in ("small", "large", "optimal")
    }
    assert totals["optimal"] < min(totals["small"], totals["large"])


def test_variances_are_never_measured_on_the_images_they_are_judged_by(
    whole: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the training split, only images beyond the first n; of the test split, any. None left is refused."""
    model, count = load(whole), len(load_data(data, "train"))
    seen: list[int] = []
    real = densities.stratified
    monkeypatch.setattr(
        densities, "stratified", lambda numbers, draws: seen.extend(numbers.tolist()) or real(numbers, draws)
    )
    density(model, n=count - 3, split="train", bound=5, variance="optimal", draws=1)
    assert seen == [*range(count - 3, count), *range(count - 3)]
    seen.clear()
    density(model, n=2, bound=5, variance="optimal", draws=1)
    assert seen == [*range(count), 0, 1]
    with pytest.raises(UsageError, match=f"-n below {count}"):
        density(model, n=count, split="train", bound=5, variance="optimal")
    with pytest.raises(UsageError, match="--split all"):
        density(model, split="all", bound=5, variance="optimal")


def test_what_python_may_ask_for(whole: Path, tmp_path: Path) -> None:
    """Any integer is a number of steps; words that are none, and a single image, are refused."""
    model = load(whole)
    assert density(model, n=2, bound=np.int64(3), draws=1).conditions["steps"] == 3
    with pytest.raises(UsageError, match="number of steps, or continuous"):
        density(model, bound="100")
    np.savez(tmp_path / "few.npz", images=np.zeros((10, 16, 16), np.uint8))
    with pytest.raises(UsageError, match="a standard error needs two"):
        density(model, str(tmp_path / "few.npz"))


def test_the_built_in_model_has_the_number_of_its_card() -> None:
    """The card's mean is that of 10,000 images in docs/, of which the first 50 are found again, image by image."""
    card = read_json(BUILT_IN / "fashion-mnist-likelihood" / "model.json")["measured"]
    each = read_json(Path(__file__).parents[1] / "docs" / "likelihood" / "fashion-mnist.json")["per_image"]
    assert len(each) == card["n"] == 10_000
    assert np.mean(each) == pytest.approx(card["bits_per_dim"]["mean"], abs=1e-5)
    try:
        found = density(load("fashion-mnist-likelihood"), n=50, draws=card["draws"], seed=card["seed"])
    except UndiffuseError:
        pytest.skip("Fashion-MNIST is not here")
    assert found.conditions["data"] == card["data"] == "fashion-mnist" and found.conditions["learnt_this_data"]
    np.testing.assert_allclose(found.per_image, each[:50], rtol=0, atol=2e-3)


def test_the_ode_of_a_model(whole: Path) -> None:
    """The parts add up with exactly 7 bits for the bins; the same again is the same."""
    model = load(whole)
    found = ode_density(model, n=2)
    parts = {name: part.mean for name, part in found.parts.items()}
    assert parts["dequantisation"] == 7
    assert sum(parts.values()) == pytest.approx(2 * parts["bits_per_dim"], abs=1e-9)
    assert (ode_density(model, n=2).per_image == found.per_image).all()


def test_a_dequantiser_is_fitted_to_other_images(whole: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the training split, only to images beyond the first n; none left is refused. The parts still add up."""
    monkeypatch.setattr(odes, "FIT_STEPS", 60)
    model, count = load(whole), len(load_data(data, "train"))
    seen: list[set[int]] = []
    real = odes.pixels
    monkeypatch.setattr(odes, "pixels", lambda images, numbers: seen.append(set(numbers)) or real(images, numbers))
    found = ode_density(model, n=8, split="train", dequantiser="learned")
    assert set.union(*seen[:60]) == set(range(8, count)) and seen[60:] == [set(range(8))]
    parts = {name: part.mean for name, part in found.parts.items()}
    assert sum(parts.values()) == pytest.approx(2 * parts["bits_per_dim"], abs=1e-9)
    with pytest.raises(UsageError, match=f"-n below {count}"):
        ode_density(model, split="train", n=count, dequantiser="learned")
    with pytest.raises(UsageError, match="--split all"):
        ode_density(model, split="all", dequantiser="learned")
    with pytest.raises(UsageError, match="uniform, learned"):
        ode_density(model, dequantiser="logistic")


def test_a_learned_dequantiser_reaches_the_probability_of_the_bin(whole: Path, tmp_path: Path) -> None:
    """Pixels of one value under a normal density as narrow as its bin: uniform noise misses -log2 of the bin's mass by
    its divergence from the density within, in closed form; the fitted one closes nine tenths of that.
    """
    width, std = 2 / 256, 0.0016
    low = 77 * width - 1
    mean = low + 0.6 * width

    class Network(torch.nn.Linear):  # a model wants parameters, to know its device
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: Any) -> torch.Tensor:  # type: ignore[override]
            told = log_snr.exp().view(-1, 1, 1, 1)
            y = x * (0.25 + 1 / told).sqrt()  # x_t / alpha = x_0 + noise of variance 1 / told
            return (mean / std**2 + told * y) / (1 / std**2 + told)

    process, fine = GaussianProcess(LogSNR([17.0, -6.0])), Solver(rtol=1e-6, atol=1e-6)
    model = dataclasses.replace(load(whole), denoiser=Denoiser(Network(1, 1), process, "x0", 0.5))
    np.savez(tmp_path / "flat.npz", images=np.full((1000, 16, 16), 77, np.uint8))
    uniform, learned = (
        ode_density(model, str(tmp_path / "flat.npz"), dequantiser=name, solver=fine).parts["bits_per_dim"].mean
        for name in ("uniform", "learned")
    )
    wide = math.hypot(std, math.exp(-17 / 2))  # at t_min
    best = -math.log2(norm.cdf(low + width, mean, wide) - norm.cdf(low, mean, wide))
    second = width**2 / 12 + (0.1 * width) ** 2
    plain = math.log2(math.sqrt(2 * math.pi) * wide / width) + second / (2 * wide**2) * BITS
    assert plain - best > 0.3
    assert uniform == pytest.approx(plain, abs=0.03)  # three standard errors
    assert best - 0.01 < learned < best + 0.1 * (plain - best)


def test_the_commands(
    likelihood: Path, whole: Path, data: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, a page and JSON of both; nothing is sampled for them."""
    code, out, _ = command("evaluate", likelihood, "--metrics", "bpd", "--json", "d.json", "--report", "d.html")
    assert code == 0 and "ideal coder" in out and "bits per dim" in out and "7 images" in out
    written = json.loads(Path("d.json").read_text())
    assert written["conditions"]["bound"] == "continuous" and written["conditions"]["classes"] == "not given"
    assert Path("d.html").read_text().count("<img") == 2
    code, out, _ = command("evaluate", whole, "--metrics", "ode", "-n", 10, "--report", "o.html")
    assert code == 0 and "probability-flow ODE" in out and Path("o.html").read_text().count("<img") == 1
    monkeypatch.setattr(odes, "FIT_STEPS", 2)
    given = {"--split": "train", "--seed": 3, "--dequantiser": "learned", "--json": "o.json", "-n": 10}
    code, out, _ = command("evaluate", whole, "--metrics", "ode", *itertools.chain(*given.items()))
    conditions = json.loads(Path("o.json").read_text())["conditions"]
    assert code == 0 and "dequantisation learned in 2 steps" in out
    assert (conditions["split"], conditions["seed"], conditions["dequantisation"]) == ("train", 3, "learned in 2 steps")
    given = {"--draws": 2, "--bound": 5, "--variance": "large", "--json": "b.json", "-n": 10, "--data": data}
    code, out, _ = command("evaluate", whole, "--metrics", "bpd", *itertools.chain(*given.items()))
    conditions = json.loads(Path("b.json").read_text())["conditions"]
    assert code == 0 and "bound of 5 steps, large variance" in out
    assert (conditions["draws"], conditions["steps"], conditions["variance"]) == (2, 5, "large")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "bpd,frechet"], "use it alone"),
        (["--metrics", "bpd", "--bound", "many"], "a number of steps, or continuous"),
        (["--metrics", "bpd", "--variance", "learned"], "has not learnt its variance"),
        (["--metrics", "bpd", "--variance", "tiny"], "choose from auto, small"),
        (["--metrics", "bpd", "--bound", "continuous", "--variance", "small"], "no variance to choose"),
        (["--metrics", "bpd", "--bound", "100001"], "1 to 100,000 steps"),
        (["--metrics", "bpd", "--sampler", "ddim"], "--sampler has no effect on --metrics bpd"),
        (["--metrics", "ode", "--draws", "3"], "--draws has no effect on --metrics ode"),
        (["--metrics", "frechet", "--bound", "10"], "--bound has no effect on --metrics frechet"),
        (["--bound", "10"], "--bound has no effect on --metrics all"),
        (["--metrics", "bpd", "--dequantiser", "learned"], "--dequantiser has no effect on --metrics bpd"),
    ],
)
def test_what_is_refused(whole: Path, command: Command, arguments: list[str], message: str) -> None:
    """In one line, with what to do, and nothing written."""
    code, out, error = command("evaluate", whole, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1 and not out
    assert not list(Path().glob("*.html"))


def test_an_ode_needs_a_density(likelihood: Path) -> None:
    """A model of whole values has none between them."""
    with pytest.raises(UsageError, match="use --metrics bpd"):
        ode_density(load(likelihood), n=2)


@pytest.mark.parametrize("measure", [density, ode_density])
def test_a_model_that_always_knew_the_class_has_no_density(whole: Path, data: str, measure: Any) -> None:
    """Its network was never asked without one, whether it was trained so or imported: what it says then is nothing."""
    model = load(whole)
    assert model.data.classes
    always = model.config.model_copy(update={"training": model.config.training.model_copy(update={"label_dropout": 0})})
    for other in (dataclasses.replace(model, config=always), dataclasses.replace(model, training={"imported": {}})):
        with pytest.raises(UsageError, match="always trained with classes"):
            measure(other, data, n=2)


def test_colour(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Three dimensions to a pixel; where colours are of four values, a run of seconds comes near 2 bits for each."""
    images = np.random.default_rng(0).choice(np.array([0, 17, 100, 255], np.uint8), (60, 8, 8, 3))
    np.savez(tmp_path / "colours.npz", images=images)
    values = {"data.source": str(tmp_path / "colours.npz"), "network.head": 8, "training.steps": 60}
    train({**preset("likelihood"), **tiny, **values}, tmp_path / "run", report=ignore)
    found = density(load(tmp_path / "run"), split="train", draws=100)
    assert found.conditions["dimensions"] == 192 and found.bytes_per_image[1] == 192
    total = found.parts["bits_per_dim"]
    assert 2 - 4 * total.error < total.mean < 2.05 and total.error < 0.01


def test_a_learnt_variance_is_used(tiny: dict[str, Any], tmp_path: Path) -> None:
    """IDDPM's preset trains, its bound uses the learnt variance by itself, and so does ancestral sampling."""
    train({**preset("iddpm"), **tiny, "training.steps": 3}, tmp_path / "run", report=ignore)
    model = load(tmp_path / "run")
    assert density(model, n=3, bound=20, draws=4).conditions["variance"] == "learned"
    assert sample(model, 2, sampler="ddpm-learned", steps=5).shape == (2, 16, 16, 1)


def test_the_bound_itself_trains_with_importance(tiny: dict[str, Any], tmp_path: Path) -> None:
    """L_vlb with loss-aware times: the discrete bound of a learnt variance, over its table's steps."""
    values = {"objective.loss": "bound", "objective.variance": "learned", "objective.importance": True}
    train({**preset("iddpm"), **tiny, **values, "training.steps": 20}, tmp_path / "run", report=ignore)
    assert load(tmp_path / "run").config.process.steps == 4000
