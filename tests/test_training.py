"""The training loop and its listeners: rates, averages, checkpoints."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, ignore, metrics, run_state
from PIL import Image
from safetensors.torch import load_file
from scipy.integrate import quad

import undiffuse.data
from undiffuse.build import make_data, make_denoiser, make_network, make_objective
from undiffuse.card import label_facts
from undiffuse.config import Config, TrainingConfig, make_config
from undiffuse.model import checkpoints, load
from undiffuse.objectives import Importance
from undiffuse.training import loop, state, train
from undiffuse.training.batches import make_batch
from undiffuse.training.ema import EMA, exponent
from undiffuse.training.loop import learning_rate

Values = dict[str, Any]


# The learning rate and the average.


def test_learning_rate_is_a_trapezium() -> None:
    """Up over the warm-up, level, down over the last share, to reach 0 one step after the last."""
    training = TrainingConfig(learning_rate=0.01, warmup=10, decay=0.25)
    rates = np.array([learning_rate(training, step, 100) for step in range(100)])
    corners = np.interp(np.arange(101), [-1, 9, 75, 100], [0, 0.01, 0.01, 0])
    np.testing.assert_allclose(rates, corners[:100], rtol=1e-12)


@pytest.mark.parametrize("total", [None, 1000])
def test_learning_rate_without_decay_is_level(total: int | None) -> None:
    """While the end is unknown, or without decay, the rate stays."""
    training = TrainingConfig(learning_rate=0.01, warmup=0, decay=0.4 if total is None else 0.0)
    assert {learning_rate(training, step, total) for step in (0, 1, 500, 999)} == {0.01}


def test_a_planned_rate_goes_on_where_the_level_one_was() -> None:
    """A budget that is planned at 1 - decay of the run changes nothing of the steps before."""
    training = TrainingConfig(learning_rate=0.01, warmup=5, decay=0.4)
    for step in range(60):
        assert learning_rate(training, step, 100) == pytest.approx(learning_rate(training, step, None), rel=1e-12)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_ema_profile_has_the_width_asked_for(width: float) -> None:
    """The standard deviation of t^gamma on [0, 1], by integration, is the width (EDM2, section 3.1)."""
    gamma = exponent(width)
    moments = [quad(lambda t, k=k: t ** (gamma + k), 0, 1, epsabs=1e-12)[0] for k in range(3)]
    mean = moments[1] / moments[0]
    assert np.sqrt(moments[2] / moments[0] - mean**2) == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_the_ema_is_the_power_function_average(width: float) -> None:
    """After n steps the weight of step i is (i^(gamma+1) - (i-1)^(gamma+1)) / n^(gamma+1): the profile's integral."""
    steps, random = 200, np.random.default_rng(0)
    sequence = random.standard_normal((steps, 7))
    parameter = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
    ema = EMA([parameter], width)
    for step, value in enumerate(sequence, 1):
        parameter.data.copy_(torch.from_numpy(value))
        ema.update([parameter], step)
        assert np.array_equal(parameter.detach().numpy(), value), "live weights were touched"
    edges = (np.arange(steps + 1) / steps) ** (exponent(width) + 1)
    np.testing.assert_allclose(ema.average[0].numpy(), np.diff(edges) @ sequence, rtol=1e-10)


def test_the_ema_of_a_run_is_of_its_own_weights(tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights saved are the average, in float64 by the closed form, of the weights after every step."""
    seen: list[torch.Tensor] = []
    update = EMA.update

    def spy(self: EMA, parameters: list[torch.Tensor], step: int) -> None:
        seen.append(torch.cat([p.detach().double().flatten() for p in parameters]))
        update(self, parameters, step)

    monkeypatch.setattr(EMA, "update", spy)
    train(tiny, tmp_path, report=ignore)
    edges = (np.arange(13) / 12) ** (exponent(0.05) + 1)
    expected = np.diff(edges) @ torch.stack(seen).numpy()
    names = [name.removeprefix("network.") for name in _training(tmp_path) if name.startswith("network.")]
    averages = load_file(checkpoints(tmp_path)[-1] / "weights.safetensors")
    assert set(names) == set(averages)
    order = [name for name, _ in load(tmp_path).network.named_parameters()]
    saved = torch.cat([averages[name].flatten() for name in order]).numpy()
    np.testing.assert_allclose(saved, expected, atol=1e-6)


def _training(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "training.safetensors")


# The run.


def test_a_run_leaves_what_it_says(whole: Path) -> None:
    """Checkpoints pruned to `keep`, one metrics row per `log_every`, previews, TensorBoard, and the configuration."""
    assert [folder.name for folder in checkpoints(whole)] == ["step-00000009", "step-00000012"]
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["images"] for row in rows] == [16 * row["step"] for row in rows]
    assert all(np.isfinite(row[key]) for row in rows for key in ("loss", "gradient_norm", "learning_rate"))
    previews = sorted((whole / "previews").iterdir())
    assert [path.name for path in previews] == ["step-00000006.png", "step-00000012.png"]
    for path in previews:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture))) > 2
    assert bool(list(whole.glob("tensorboard/events.*"))) == (find_spec("tensorboard") is not None)
    saved = json.loads((whole / "run.json").read_text())
    assert Config.model_validate(saved["config"]).network.channels == (8, 16)


def test_previews_are_samples_0_to_15_of_the_averaged_weights(whole: Path) -> None:
    """A preview is, pixel for pixel, what the checkpoint of its step gives when it is sampled from in 10 steps."""
    with Image.open(whole / "previews" / "step-00000012.png") as picture:
        shown = np.asarray(picture)
    samples = undiffuse.sample(str(whole), 16, steps=10, engine="torch")[..., 0]
    scale, left = divmod(shown.shape[0], 4 * 18 + 2)  # 4 rows of 16 pixels with a margin of 2, enlarged
    assert left == 0
    sheet = shown[::scale, ::scale]
    for number, sample in enumerate(samples):
        y, x = (2 + place * 18 for place in divmod(number, 4))
        assert np.array_equal(sheet[y : y + 16, x : x + 16], sample)


def test_a_run_without_tensorboard_is_the_same_run(
    tiny: Values, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not installed, one line says how to get it; metrics, previews and checkpoints are all there."""
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an ImportError then
    said: list[str] = []
    assert train(tiny, tmp_path, report=said.append).finished
    assert [line for line in said if "undiffuse[trackers]" in line] == [said[1]]
    assert run_state(tmp_path) == run_state(whole)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs TensorBoard")
def test_tensorboard_is_told_what_metrics_jsonl_is(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of every row, and the previews."""
    from torch.utils.tensorboard import SummaryWriter

    told: list[tuple[str, float, int]] = []
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, *args: told.append(args))
    monkeypatch.setattr(SummaryWriter, "add_images", lambda self, name, images, step, **k: told.append((name, 0, step)))
    said: list[str] = []
    train(tiny, tmp_path, report=said.append)
    assert not any("trackers" in line for line in said)
    names = ("loss", "gradient_norm", "learning_rate", "images_per_second")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {(name, row[name], row["step"]) for row in rows for name in names}
    assert {(name, round(value, 1) if name == names[3] else value, step) for name, value, step in told} == expected | {
        ("preview", 0, 6),
        ("preview", 0, 12),
    }


def test_the_rates_of_a_run_are_the_schedule(tiny: Values, whole: Path) -> None:
    """What the optimiser was given is what the schedule says."""
    training = make_config(tiny).training
    for row in metrics(whole):
        assert row["learning_rate"] == pytest.approx(learning_rate(training, row["step"] - 1, 12))


def test_nothing_is_pickled(whole: Path) -> None:
    """A run folder holds JSON, safetensors, pictures and TensorBoard's events, and nothing that unpickles."""
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "tfevents" not in path.name} == {".json", ".jsonl", ".safetensors", ".png"}
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")]


def test_checkpoints_can_be_read_by_whoever_may_read_the_run(whole: Path) -> None:
    """Every file has the permissions that the umask gives, so that a colleague can sample from a run."""
    modes = {oct(path.stat().st_mode & 0o777) for path in checkpoints(whole)[-1].iterdir()}
    assert modes == {oct((whole / "run.json").stat().st_mode & 0o777)}


@pytest.mark.parametrize("keep", [1, 3])
def test_pruning_keeps_exactly_so_many(tiny: Values, tmp_path: Path, keep: int) -> None:
    """The newest `keep` checkpoints stay."""
    train({**tiny, "training.checkpoint_every": 2, "training.keep": keep}, tmp_path, report=ignore)
    assert [int(folder.name[-8:]) for folder in checkpoints(tmp_path)] == [8, 10, 12][-keep:]
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_micro_batches_add_up_to_the_batch(tiny: Values, tmp_path: Path) -> None:
    """Accumulation 4 takes the steps of accumulation 1, but for the order of float32 sums.

    AdamW divides by the gradient's own size, so where a gradient is all rounding the update is, too: most weights
    agree to 1e-5, and none may differ by more than a step or two of the rate.
    """
    values = {**tiny, "training.steps": 8}
    train(values, tmp_path / "one", report=ignore)
    train({**values, "training.accumulation": 4}, tmp_path / "four", report=ignore)
    assert_same_up_to_summation(tmp_path / "one", tmp_path / "four")


def assert_same_up_to_summation(one: Path, other: Path, rate: float = 1e-3) -> None:
    mine, theirs = _training(one), _training(other)
    weights = [name for name in mine if name.startswith("network.")]
    difference = torch.cat([(mine[name] - theirs[name]).abs().flatten() for name in weights])
    assert difference.max() < 2 * rate
    assert difference.quantile(0.99) < 1e-5
    ours, its = ([row["loss"] for row in metrics(run)] for run in (one, other))
    assert ours == pytest.approx(its, rel=1e-4)


@pytest.mark.parametrize("importance", [False, True])
def test_a_run_is_the_plain_loop(tiny: Values, tmp_path: Path, importance: bool) -> None:
    """The run's weights and averages are those of the loop written out here, with torch's own AdamW and a norm by hand.

    From the weights that the seed gives: warm-up, decay, clipping, weight decay and the width of the average all tell.
    """
    values: Values = {
        "training.optimizer": "adamw",
        "training.betas": (0.8, 0.9),
        "training.weight_decay": 0.3,
        "training.warmup": 3,
        "training.decay": 0.5,
        "training.clip": 0.05,
        "training.ema": 0.2,
        "training.seed": 7,
        "objective.importance": importance,
    }
    train({**tiny, **values}, tmp_path, report=ignore)
    config = Config.model_validate(json.loads((tmp_path / "run.json").read_text())["config"])
    data = make_data(config.data)
    torch.manual_seed(7)
    network = make_network(config, 1, label_facts([1 / 3] * 3))
    denoiser, objective = make_denoiser(config, network), make_objective(config)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.8, 0.9), weight_decay=0.3)
    rates = np.interp(np.arange(12), [-1, 2, 6, 12], [0, 1e-3, 1e-3, 0])
    shares = np.diff((np.arange(13) / 12) ** (exponent(0.2) + 1))
    averages = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in network.named_parameters()}
    memory, clipped, told = Importance(bins=128), 0, np.zeros(12)
    for step in range(12):
        batch = make_batch(config, data, step, slice(None))
        u, weight = memory.warp(batch.u) if importance else (batch.u, torch.ones(16, dtype=torch.float64))
        losses = objective(denoiser, batch.x0, batch.condition, u, batch.draw)
        memory.update(u, losses)
        loss = (losses * weight.float()).sum() / 16
        told[step] = loss.item()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = sum(gradient.double().square().sum() for gradient in gradients) ** 0.5
        clipped += bool(norm > 0.05)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient * min(1.0, float(0.05 / norm))
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        for name, parameter in network.named_parameters():
            averages[name] += shares[step] * parameter.detach().double()
    assert clipped == 12
    np.testing.assert_allclose([row["loss"] for row in metrics(tmp_path)], told.reshape(6, 2).mean(1), rtol=1e-4)
    saved, averaged = _training(tmp_path), load_file(checkpoints(tmp_path)[-1] / "weights.safetensors")
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(saved[f"network.{name}"], parameter.detach(), rtol=0, atol=2e-5)
        torch.testing.assert_close(averaged[name].double(), averages[name], rtol=0, atol=2e-5)
    if importance:
        torch.testing.assert_close(saved["importance.moments"], memory.moments, rtol=1e-3, atol=0)
        torch.testing.assert_close(saved["importance.seen"], memory.seen)


def test_importance_changes_the_times_and_not_the_mean(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is the mean of losses / density at the warped times, as the estimator has it."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    warp = Importance.warp

    def skewed(self: Importance, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen[:], self.moments[:] = 1, torch.linspace(0.1, 4, self.bins, dtype=torch.float64)
        seen.append(warp(self, u))
        return seen[-1]

    losses: list[torch.Tensor] = []
    update = Importance.update
    monkeypatch.setattr(Importance, "warp", skewed)
    monkeypatch.setattr(Importance, "update", lambda self, u, told: losses.append(told) or update(self, u, told))
    train({**tiny, "objective.importance": True, "training.log_every": 1, "training.steps": 3}, tmp_path, report=ignore)
    expected = [(told.double() * weight).mean().item() for told, (_, weight) in zip(losses, seen, strict=True)]
    assert [row["loss"] for row in metrics(tmp_path)] == pytest.approx(expected, rel=1e-5)
    assert all(weight.std() > 0.1 for _, weight in seen)


@pytest.mark.parametrize("level", [0, 128, 200])
def test_the_size_of_the_data_is_measured_about_zero(tiny: Values, tmp_path: Path, level: int) -> None:
    """sigma_data is the root mean square of the pixels in [-1, 1], the mean included (1 for data of zeros)."""
    images = np.random.default_rng(0).integers(max(level - 50, 0), level + 1, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    values = {"data.source": str(tmp_path / "x.npz"), "training.steps": 1}
    train({**tiny, **values}, tmp_path / "run", report=ignore)
    kept = undiffuse.data.load(tmp_path / "x.npz").images / 127.5 - 1
    sigma_data = load(tmp_path / "run").config.denoiser.sigma_data
    assert sigma_data == pytest.approx((kept**2).mean() ** 0.5, abs=5.1e-4)


def test_classes_have_the_shares_that_they_have_in_the_data(tmp_path: Path) -> None:
    """30, 12 and 6 of 48, whatever the split has left of them; none where classes are not learnt."""
    labels = np.repeat([0, 1, 2], [30, 12, 6])
    np.savez(tmp_path / "x.npz", images=np.zeros((48, 8, 8), np.uint8), labels=labels)
    values = {**TINY, "network.channels": (8,), "data.source": str(tmp_path / "x.npz"), "training.steps": 1}
    train(values, tmp_path / "run", report=ignore)
    train({**values, "training.conditional": False}, tmp_path / "none", report=ignore)
    kept = undiffuse.data.load(tmp_path / "x.npz").labels
    assert load(tmp_path / "run").data.class_share == pytest.approx(tuple((kept == k).mean() for k in range(3)))
    assert load(tmp_path / "none").data.class_share == load(tmp_path / "none").data.classes == ()


@pytest.mark.parametrize("clip", [1e-3, 1e6])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimiser_gets_a_gradient_no_longer_than_the_clip(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float, optimizer: str
) -> None:
    """Its norm over all parameters is that of the gradient, which the metrics have, or the clip where that is less."""
    norms: list[float] = []
    make = state.make_optimizer

    def spied(config: TrainingConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
        made = make(config, network)

        def note(*_: Any) -> None:
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            norms.append(torch.cat([g.double().flatten() for g in gradients]).norm().item())

        made.register_step_pre_hook(note)
        return made

    monkeypatch.setattr(state, "make_optimizer", spied)
    values = {"training.steps": 4, "training.log_every": 1, "training.clip": clip, "training.accumulation": 2}
    train({**tiny, **values, "training.optimizer": optimizer}, tmp_path, report=ignore)
    assert norms == pytest.approx([min(clip, row["gradient_norm"]) for row in metrics(tmp_path)], rel=1e-4)
    assert min(row["gradient_norm"] for row in metrics(tmp_path)) > 1e-3


def test_dropout_is_fresh_in_every_step_and_micro_batch(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch is seeded before each, never twice alike, and by the run's seed."""
    seeds: list[int] = []
    seed = torch.manual_seed

    def spy(number: int) -> torch.Generator:
        seeds.append(number)
        return seed(number)

    monkeypatch.setattr(loop.torch, "manual_seed", spy)
    values = {"network.dropout": 0.2, "training.steps": 3, "training.accumulation": 2, "training.preview_every": 9}
    for number in (5, 6):
        train({**tiny, **values, "training.seed": number}, tmp_path / str(number), report=ignore)
    drawn = [number for number in seeds if number not in (5, 6)]  # those are of the first weights
    assert len(drawn) == len(set(drawn)) == 2 * 3 * 2


@pytest.mark.parametrize(
    "values",
    [
        {"objective.weighting": "simple", "denoiser.target": "eps", "process.schedule": "linear"},
        {"denoiser.learned_variance": True, "objective.loss": "bound", "objective.variance": "learned"},
        {"process.schedule": "flow", "denoiser.target": "flow"},
        {"training.conditional": False},
        {"network.dropout": 0.1, "network.blocks": 2, "network.attention": (1,)},
        {"training.precision": "bf16"},
        {"process.steps": 8},
        {"process.steps": 1},
        {"process.steps": 2, "process.zero_terminal_snr": True, "denoiser.target": "v"},
        {"process.schedule": "betas", "process.betas": (0.1, 0.5, 0.9)},
        {"training.batch_size": 200, "training.checkpoint_every": 1, "training.keep": 1, "training.log_every": 1000},
        {"data.size": 4, "network.channels": (8,), "data.channels": 3},
        {"data.source": "digits", "training.batch_size": 32},
    ],
    ids=lambda values: next(iter(values)),
)
def test_kinds_of_run(tiny: Values, tmp_path: Path, values: Values) -> None:
    """Runs of every kind train, preview and can be sampled from, one after another in one process."""
    if values.get("data.source") == "digits":
        pytest.importorskip("sklearn")
    train({**tiny, "training.steps": 2, "training.preview_every": 1, **values}, tmp_path, report=ignore)
    assert len(list((tmp_path / "previews").iterdir())) == 2
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path))
