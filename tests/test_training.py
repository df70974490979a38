"""The loop and what listens to it: batches, rates, averages, checkpoints, and what goes wrong."""

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, checkpoint_state, ignore, in_child, metrics, run_state
from filelock import FileLock
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.integrate import quad

import undiffuse.data
from undiffuse import plots
from undiffuse.build import make_data, make_denoiser, make_network, make_objective
from undiffuse.card import label_facts
from undiffuse.conditions import Labels
from undiffuse.config import Config, TrainingConfig, make_config
from undiffuse.data import ImageSet
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import checkpoints, load
from undiffuse.objectives import Importance
from undiffuse.randomness import Purpose
from undiffuse.training import checkpoint, listeners, loop, state, train
from undiffuse.training.batches import Batch, make_batch, order
from undiffuse.training.ema import EMA, exponent
from undiffuse.training.loop import learning_rate

Values = dict[str, Any]


def image_set(images: np.ndarray, classes: int = 0) -> ImageSet:
    labels = np.arange(len(images)) % classes if classes else None
    return ImageSet("made", "train", images, labels, tuple(map(str, range(classes))), (), "", "")


def batch_of(data: ImageSet, step: int = 0, share: slice = slice(None), **settings: Any) -> Batch:
    values = {"training.batch_size": 16, **{key.replace("__", "."): value for key, value in settings.items()}}
    return make_batch(make_config(values), data, step, share)


def pixels(batch: Batch) -> np.ndarray:
    """x0 as uint8 (B, H, W), and exactly so."""
    levels = (batch.x0[:, 0].double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    return levels.round().numpy().astype(np.uint8)


# Batches.


@pytest.mark.parametrize(("count", "batch_size"), [(50, 16), (16, 16), (7, 16), (101, 10)])
def test_every_epoch_visits_every_item_once(count: int, batch_size: int) -> None:
    """Across the batches' borders, each stretch of `count` items is a permutation; no two are alike."""
    steps = 5 * count // batch_size + 1
    items = np.concatenate([order(3, step, batch_size, count) for step in range(steps)])
    epochs = items[: 5 * count].reshape(5, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert not np.array_equal(order(4, 0, batch_size, count), order(3, 0, batch_size, count))


@pytest.mark.parametrize("step", [0, 3, 1_000_000])
@pytest.mark.parametrize("parts", [2, 4, 16])
def test_a_batch_does_not_depend_on_who_shares_it(step: int, parts: int) -> None:
    """The slices of any number of processes and micro-batches, put together, are the batch of one."""
    data = image_set(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), 3)
    settings: Values = {"data__flip": True, "data__shift": 2, "training__label_dropout": 0.3}
    size = 16 // parts
    whole = batch_of(data, step, **settings)
    pieces = [batch_of(data, step, slice(k * size, (k + 1) * size), **settings) for k in range(parts)]
    labels = [piece.condition.index for piece in pieces if isinstance(piece.condition, Labels)]
    assert isinstance(whole.condition, Labels) and torch.equal(torch.cat(labels), whole.condition.index)
    for name in ("x0", "u", "noise"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name)), name


@pytest.mark.parametrize("draw", ["independent", "antithetic", "low-discrepancy"])
def test_times_and_noise_are_fresh_every_step(draw: str) -> None:
    """u in [0, 1) is uniform over many steps; noise is standard normal and differs by step, place and seed."""
    data = image_set(np.zeros((20, 8, 8, 1), np.uint8))
    batches = [batch_of(data, step, objective__draw=draw) for step in range(100)]
    u = torch.cat([batch.u for batch in batches]).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.sort(u) - (np.arange(1600) + 0.5) / 1600).max() < 1.63 / 40  # Kolmogorov-Smirnov at 1 %
    noise = torch.cat([batch.noise for batch in batches])
    assert len(noise.flatten(1)[:, 0].unique()) == 1600
    assert abs(noise.mean().item()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std().item() - 1) < 4 / (2 * noise.numel()) ** 0.5
    assert not torch.equal(batch_of(data, 0, training__seed=1).noise, batches[0].noise)


def test_flips_mirror_half_of_the_images() -> None:
    """An image comes as it is or mirrored left to right, half and half, and never otherwise; without flip never."""
    ramp = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.repeat(ramp[None, :, :, None], 9, 0))
    seen = pixels(batch_of(data, training__batch_size=4096, data__flip=True))
    mirrored = (seen == ramp[:, ::-1]).all((1, 2))
    assert (mirrored | (seen == ramp).all((1, 2))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 64
    assert (pixels(batch_of(data, training__batch_size=64)) == ramp).all()


def test_shifts_are_even_and_repeat_the_edge() -> None:
    """Each of the (2 s + 1)^2 shifts comes equally often, and is that window of the image with its edge repeated."""
    ramp = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.repeat(ramp[None, :, :, None], 9, 0))
    seen = pixels(batch_of(data, training__batch_size=2250, data__shift=2))
    index = np.arange(8)
    counts = []
    for y in range(-2, 3):
        for x in range(-2, 3):
            window = ramp[np.clip(index + y, 0, 7)][:, np.clip(index + x, 0, 7)]
            counts.append((seen == window).all((1, 2)).sum())
    assert sum(counts) == 2250
    assert np.abs(np.array(counts) - 90).max() < 5 * 90**0.5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_labels_are_dropped_in_their_share(share: float) -> None:
    """A share of the labels becomes "no class", one past the last; the others are the items' own."""
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    batch = batch_of(image_set(images, 3), training__batch_size=4000, training__label_dropout=share)
    assert isinstance(batch.condition, Labels)
    labels = batch.condition.index
    items = torch.from_numpy(pixels(batch)[:, 0, 0].astype(np.int64))
    dropped = labels == 3
    assert torch.equal(labels[~dropped], items[~dropped] % 3)
    assert abs(dropped.float().mean().item() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


def test_labels_are_dropped_whatever_else_is_drawn() -> None:
    """Of the items without a label half are mirrored, and noise levels, images and places have their shares."""
    rows = np.add.outer(np.arange(8) * 8, np.arange(8)).astype(np.uint8)
    data = image_set(np.stack([rows, rows + 100])[:, :, :, None], 2)
    settings: Values = {"data__flip": True, "training__label_dropout": 0.3, "objective__draw": "independent"}
    batches = [batch_of(data, step, training__batch_size=4096, **settings) for step in range(2)]
    labels = torch.cat([batch.condition.index for batch in batches if isinstance(batch.condition, Labels)])
    dropped = (labels == 2).numpy()
    seen = np.concatenate([pixels(batch) for batch in batches])
    mirrored, second = seen[:, 0, 0] > seen[:, 0, 1], seen[:, 0, 0] >= 100
    early, first = torch.cat([batch.u for batch in batches]).numpy() < 0.3, np.arange(8192) < 4096
    for other in (mirrored, second, early, first):
        expected = dropped.mean() * other.mean()
        assert abs((dropped & other).mean() - expected) < 4 * (expected * (1 - expected) / 8192) ** 0.5
    assert not np.array_equal(dropped[:4096], dropped[4096:])


def test_no_two_draws_of_a_run_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of everything that steps and seeds draw: none comes twice."""
    from undiffuse import randomness
    from undiffuse.training import batches

    keys: list[tuple[int, ...]] = []

    def spied(make: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*key: int) -> Any:
            keys.append(tuple(map(int, key)))
            return make(*key)

        return spy

    monkeypatch.setattr(batches, "stream", spied(batches.stream))
    monkeypatch.setattr(batches, "torch_generator", spied(batches.torch_generator))
    monkeypatch.setattr(randomness, "stream", spied(randomness.stream))
    data = image_set(np.zeros((21, 8, 8, 1), np.uint8), 3)
    for seed in (70, 71):
        for step in range(3):
            batch_of(data, step, training__seed=seed, data__flip=True, data__shift=1)
    assert len(keys) == len(set(keys)) == 2 * (3 * (3 + 16) + 3)  # 3 permutations in 48 of 21 items
    own = {Purpose.ORDER, Purpose.TIME, Purpose.NOISE, Purpose.AUGMENT, Purpose.CONDITION}
    assert {purpose for _, purpose, *_ in keys} == own  # and so none of sampling's or of measuring's either


def test_unconditional_batches_have_no_labels() -> None:
    """training.conditional=false learns no classes, and data without labels have none."""
    images = np.zeros((20, 8, 8, 1), np.uint8)
    assert batch_of(image_set(images, 3), training__conditional=False).condition is None
    assert batch_of(image_set(images)).condition is None


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


def test_a_batch_that_does_not_divide_is_refused(tiny: Values, tmp_path: Path) -> None:
    """16 images cannot be 3 equal micro-batches; nothing is written."""
    with pytest.raises(UsageError, match=r"training\.batch_size.*multiple of 3"):
        train({**tiny, "training.accumulation": 3}, tmp_path / "run", report=ignore)
    assert not (tmp_path / "run").exists()


def test_a_shift_beyond_the_image_is_refused(tiny: Values, tmp_path: Path) -> None:
    """Nothing of a picture would be left but its edge; and thousands of pixels of it are gigabytes."""
    for shift in (16, 4000):
        with pytest.raises(UsageError, match=r"data\.shift = \d+.*16x16"):
            train({**tiny, "data.shift": shift}, tmp_path / "run", report=ignore)
    assert not (tmp_path / "run").exists()


def test_steps_and_minutes_exclude_each_other(tiny: Values, tmp_path: Path) -> None:
    """A run has one length."""
    with pytest.raises(UsageError, match="exclude each other"):
        train({**tiny, "training.minutes": 1.0}, tmp_path, report=ignore)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_a_precision_that_the_device_lacks_is_bad_use(tiny: Values, tmp_path: Path) -> None:
    """fp16 on a CPU is refused in words, naming the setting."""
    with pytest.raises(UsageError, match=r"training\.precision|fp16"):
        train({**tiny, "training.precision": "fp16"}, tmp_path, report=ignore)


# What goes wrong.


def assert_sound(run: Path) -> None:
    """Every checkpoint is whole, finite and can be loaded; nothing half-written is beside them."""
    assert not list(run.rglob(".tmp-*"))
    for folder in (run / "checkpoints").iterdir():
        for file in ("weights.safetensors", "training.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(folder / file).values()), folder
        load(folder)


@pytest.mark.parametrize(
    "values", [{"training.learning_rate": 1e30}, {"training.learning_rate": 1e30, "training.warmup": 30}]
)
def test_a_loss_that_is_not_finite_stops_the_run(tiny: Values, tmp_path: Path, values: Values) -> None:
    """The error names the step and the last good checkpoint, which is one; none with broken weights is written."""
    values = {**tiny, "training.checkpoint_every": 1, **values}
    with pytest.raises(UndiffuseError, match=r"(nan|inf) at step \d+; (the last good|there is no)") as caught:
        train(values, tmp_path, report=ignore)
    saved = checkpoints(tmp_path)
    assert str(saved[-1]) in str(caught.value) if saved else "no checkpoint" in str(caught.value)
    assert_sound(tmp_path)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss with a gradient that is NaN (step 6, which is saved) must not end in broken weights on disk."""
    make, calls = loop.make_objective, iter(range(1000))

    def poisoned(config: Config) -> Callable[..., torch.Tensor]:
        objective = make(config)

        def loss(denoiser: Any, *args: Any) -> torch.Tensor:
            losses = objective(denoiser, *args)
            if next(calls) == 5:  # sqrt(0) has an infinite slope
                losses = losses + sum(p.sum() * 0 for p in denoiser.network.parameters()).sqrt()
            return losses

        return loss

    monkeypatch.setattr(loop, "make_objective", poisoned)
    with pytest.raises(UndiffuseError, match=r"last good checkpoint is .*step-00000003"):
        train(tiny, tmp_path, report=ignore)
    assert_sound(tmp_path)


FULL = OSError(errno.ENOSPC, "No space left on device")
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _raise_from(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception) -> None:
    """`owner.name` raises `error` from its `call`-th call (from 0) on."""
    function, calls = getattr(owner, name), iter(range(10_000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= call:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("error", [FULL, RUST], ids=["OSError", "SafetensorError"])
def test_a_full_disk_costs_nothing_but_the_new_checkpoint(
    tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """One error in words that names the last good checkpoint; from there the run goes on once there is room."""
    with monkeypatch.context() as patch:
        _raise_from(patch, checkpoint, "save_file", 1, error)
        with pytest.raises(UndiffuseError, match=r"No space left.*last good checkpoint is .*step-00000003") as caught:
            train(tiny, tmp_path, report=ignore)
    assert len(str(caught.value).splitlines()) <= 2
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000003"]
    assert_sound(tmp_path)
    assert train({}, tmp_path, resume=True, report=ignore).finished


def test_a_full_disk_beside_the_checkpoints(tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that cannot be written end the run as a failed checkpoint does: in words, resumable."""
    with monkeypatch.context() as patch:
        _raise_from(patch, listeners.Listeners, "log", 2, FULL)
        with pytest.raises(UndiffuseError, match=r"No space left"):
            train(tiny, tmp_path, report=ignore)
    assert checkpoints(tmp_path)
    assert train({}, tmp_path, resume=True, report=ignore).finished


@pytest.mark.parametrize("error", [UndiffuseError("no space left"), RuntimeError("out of memory")], ids=["disk", "any"])
def test_a_preview_that_fails_costs_neither_run_nor_checkpoint(
    tiny: Values, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception
) -> None:
    """Whatever it fails of: one warning however many fail, and the checkpoints of a run whose previews did not."""
    _raise_from(monkeypatch, plots, "save_grid", 0, error)
    assert train({**tiny, "training.preview_every": 1}, tmp_path, report=ignore).finished
    assert [str(error) in record.message for record in caplog.records if record.name == "undiffuse"] == [True]
    for folder in checkpoints(tmp_path):
        mine, theirs = (checkpoint_state(run / "checkpoints" / folder.name) for run in (tmp_path, whole))
        assert (mine["weights"], mine["training"]) == (theirs["weights"], theirs["training"])


def limited_in_child(values: Values, run: Path, said: Path) -> None:
    """A run on a system that refuses files of more than 100 kB once the first checkpoint is there."""
    torch.set_num_threads(1)
    save = checkpoint.save

    def save_and_limit(*args: Any) -> Path:
        folder = save(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return folder

    checkpoint.save = save_and_limit
    try:
        train(values, run, report=ignore)
    except UndiffuseError as error:
        said.write_text(str(error))


def test_a_system_that_refuses_to_write(tiny: Values, tmp_path: Path) -> None:
    """The same with a real refusal by the operating system, in the middle of a file."""
    assert in_child(limited_in_child, tiny, tmp_path / "run", tmp_path / "said") == 0
    said = (tmp_path / "said").read_text()
    assert "step-00000003" in said and len(said.splitlines()) <= 2
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert_sound(tmp_path / "run")


def test_a_run_folder_that_cannot_be(tiny: Values, tmp_path: Path) -> None:
    """A path below a file is one error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UndiffuseError, match=r"cannot write .*file.*writable"):
        train(tiny, tmp_path / "file" / "run", report=ignore)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tiny: Values, tmp_path: Path) -> None:
    """A folder without permission is one error that names it."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UndiffuseError, match="cannot write"):
            train(tiny, tmp_path / "run", report=ignore)
    finally:
        tmp_path.chmod(0o700)


def test_a_run_folder_that_becomes_read_only(tiny: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission lost in the middle: the message, the last checkpoint, and no half of a new one."""
    from undiffuse import files

    make, calls = files.tempfile.mkdtemp, iter(range(99))

    def refuse(*args: Any, **kwargs: Any) -> str:
        if next(calls):
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkdtemp", refuse)
        with pytest.raises(UndiffuseError, match=r"Permission denied.*step-00000003"):
            train(tiny, tmp_path, report=ignore)
    assert checkpoint_state(checkpoints(tmp_path)[-1])["progress"]["step"] == 3


def test_two_processes_do_not_share_a_run(tiny: Values, tmp_path: Path) -> None:
    """A run folder belongs to one process at a time; the second is told so, and the first loses nothing."""
    with FileLock(tmp_path / ".lock"), pytest.raises(UndiffuseError, match="another process is training"):
        train(tiny, tmp_path, report=ignore)
    assert train(tiny, tmp_path, report=ignore).finished


def test_checkpoints_of_others_are_left_alone(tiny: Values, tmp_path: Path) -> None:
    """A folder with checkpoints that are not ours is refused, and nothing in it is swept."""
    other = tmp_path / "checkpoints" / "step-1000" / "pytorch_model.bin"
    other.parent.mkdir(parents=True)
    other.write_text("not ours")
    with pytest.raises(UsageError, match="choose another --out"):
        train(tiny, tmp_path, report=ignore)
    assert other.read_text() == "not ours"


def test_training_leaves_the_callers_generator_alone(tiny: Values, tmp_path: Path) -> None:
    """torch's global generator is where it was."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny, tmp_path, report=ignore)
    assert torch.equal(torch.rand(3), expected)
