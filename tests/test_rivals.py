"""Rivals of diffusion in the house: trained by its trainer, one part at a time, and used by its commands."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import Command, ignore, run_state
from torch import Tensor

from undiffuse.build import make_network
from undiffuse.card import find
from undiffuse.config import make_config, preset
from undiffuse.data import load as load_data
from undiffuse.errors import UsageError
from undiffuse.evaluation.density import density
from undiffuse.files import read_json
from undiffuse.generate import Recipe, generate
from undiffuse.model import load
from undiffuse.randomness import Draw, KeyedDraw
from undiffuse.registry import PRESETS, RIVALS
from undiffuse.rivals.rival import Rival, RivalDenoiser
from undiffuse.training import train
from undiffuse.training.loop import training_steps
from undiffuse.training.run import configuration
from undiffuse.training.settings import decided
from undiffuse.training.state import make_learner
from undiffuse.training.statistics import data_facts

SHORT = {
    "training.steps": 4,
    "training.batch_size": 4,
    "training.warmup": 0,
    "training.log_every": 1,
    "training.checkpoint_every": 2,
    "training.preview_every": 100,
    "training.precision": "fp32",
}


def settings(name: str, data: str) -> dict[str, Any]:
    return {**preset(name), "data.source": data, **SHORT}


@pytest.fixture(scope="module")
def runs(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rivals")
    for name in RIVALS:
        train(settings(name, data) | {"training.learning_rate": 1e-3}, folder / name, report=ignore)
    return {name: folder / name for name in RIVALS}


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("vae", {"temperatur": 0.8}, "vae has no such option; did you mean temperature"),
        ("vae", {"centres": 1}, "network.options.centres = 1: it is like False"),
        ("ar-fast", {"wide": 8}, "ar-fast has no such option"),
        ("gan", {"blocks": 1.5}, "network.options.blocks = 1.5: it is like 1"),
    ],
)
def test_options_of_a_rival_that_are_refused(data: str, name: str, options: dict[str, Any], fault: str) -> None:
    values = settings(name, data) | {f"network.options.{key}": value for key, value in options.items()}
    with pytest.raises(UsageError, match=fault):
        decided(make_config(values), load_data(data), "fp32")


def test_options_reach_a_rival_and_are_kept(data: str, tmp_path: Path) -> None:
    train(settings("vae", data) | {"network.options.temperature": 0.0}, tmp_path / "run", report=ignore)
    model = load(tmp_path / "run")
    assert model.network.temperature == 0 and model.config.network.options == {
        "temperature": 0.0,
        "rows": 16,
        "columns": 16,
    }


def test_the_width_of_a_rival_is_an_option(data: str) -> None:
    sizes = []
    for width in (32, 64):
        config = decided(
            make_config(settings("flow", data) | {"network.options.width": width}), load_data(data), "fp32"
        )
        sizes.append(sum(weight.numel() for weight in make_network(config, 1).parameters()))
    assert 3 < sizes[1] / sizes[0] < 4.1, "its matrices have four times as many numbers"


def test_every_rival_has_a_preset_of_its_name() -> None:
    assert all(preset(name)["network.kind"] == name for name in RIVALS) and set(RIVALS) <= set(PRESETS)


@pytest.mark.parametrize("name", RIVALS)
def test_a_sample_is_a_function_of_its_number(runs: dict[str, Path], name: str) -> None:
    model = load(runs[name])
    together = np.concatenate(list(generate(model, Recipe(seed=3), range(4), model.condition(range(4)))))
    alone = next(generate(model, Recipe(seed=3), [2], model.condition([2])))
    other = next(generate(model, Recipe(seed=4), [2], model.condition([2])))
    assert together.shape == (4, 16, 16, 1) and together.dtype == np.uint8
    assert abs(together[2].astype(int) - alone[0]).max() <= 1 and (alone != other).any()  # rounding of another batch


@pytest.mark.parametrize("name", ["gan", "ar-fast"])
def test_a_run_resumes_as_if_nothing_had_happened(runs: dict[str, Path], data: str, tmp_path: Path, name: str) -> None:
    shutil.copytree(runs[name], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train({}, tmp_path / "run", resume=True, report=ignore)
    assert run_state(tmp_path / "run") == run_state(runs[name])


@pytest.mark.parametrize("name", RIVALS)
def test_a_phase_changes_its_part_alone(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And all of the parts together are all of the network."""
    images = load_data(data)
    config = decided(configuration(settings(name, data), tmp_path, False), images, "fp32")
    accelerator = Accelerator(cpu=True)
    learner = make_learner(config, images, data_facts(config, images), accelerator)
    network = learner.network
    assert isinstance(network, Rival)
    changed: list[set[str]] = []
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    step = type(learner.optimizer).step

    def watched(optimizer: Any, *arguments: Any, **options: Any) -> None:
        step(optimizer, *arguments, **options)
        now = dict(network.named_parameters())
        changed.append({key for key in now if not torch.equal(now[key], weights[key])})
        weights.update({key: value.detach().clone() for key, value in now.items()})

    monkeypatch.setattr(type(learner.optimizer), "step", watched)
    steps = training_steps(config, images, learner, accelerator)
    for _ in range(3):
        next(steps)
    of_phase = [{id(p) for p in network.part(phase).parameters()} for phase in network.phases] * 3
    assert len(changed) == len(of_phase)
    for names, inside in zip(changed, of_phase, strict=True):
        assert names and {id(network.get_parameter(key)) for key in names} <= inside
    everything = {key for names in changed for key in names}
    assert len(everything) >= 0.8 * len(weights)  # some have no gradient until others are not 0


def test_the_share_that_is_done_reaches_the_rival(data: str, tmp_path: Path) -> None:
    images = load_data(data)
    config = decided(configuration(settings("gan", data), tmp_path, False), images, "fp32")
    accelerator = Accelerator(cpu=True)
    learner = make_learner(config, images, data_facts(config, images), accelerator)
    learner.progress.total = 4
    seen = []
    for _ in zip(range(4), training_steps(config, images, learner, accelerator), strict=False):
        seen.append(learner.network.progress)
    assert seen == [0, 0.25, 0.5, 0.75]


class Table(Rival):
    """p(x | c) of one binary pixel, from a table."""

    classes = 3
    law = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)

    def losses(self, phase: str, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        raise NotImplementedError

    def generate(self, labels: Tensor | None, draw: Draw, count: int) -> Tensor:
        raise NotImplementedError

    def nats(self, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        assert labels is not None
        return -self.law[labels, (x0.flatten() > 0).long()].log()


def test_a_likelihood_is_summed_over_classes() -> None:
    share = (0.25, 0.75, 0.0)
    found = RivalDenoiser(Table()).nats(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), share, KeyedDraw(((0,), (1,))))
    exact = [-math.log(0.25 * 0.5 + 0.75 * 0.9), -math.log(0.25 * 0.5 + 0.75 * 0.1)]
    assert found.tolist() == pytest.approx(exact, rel=1e-14)


def test_bits_of_a_bound_are_a_bound() -> None:
    """Of bounds tight on average, -ln sum_c p(c) e^-bound of one draw is too small; what is measured is not."""

    class Bound(Table):
        bounded = True
        costs = torch.tensor([4.0, 5.0, 4.5])

        def nats(self, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
            assert labels is not None
            return self.costs[labels] + draw.fold(int(labels[0]) + 10).normal(x0.new_empty(len(x0), 1))[:, 0]

    share, count = [0.2, 0.5, 0.3], 4000
    draw = KeyedDraw(tuple((number,) for number in range(count)))
    log_share = torch.tensor(share).log()
    exact = -(log_share - Bound.costs).logsumexp(0).item()
    found = RivalDenoiser(Bound()).nats(torch.zeros(count, 1, 1, 1), share, draw)
    each = torch.stack(
        [Bound().nats(torch.zeros(count, 1, 1, 1), torch.full((count,), label), draw) for label in range(3)]
    )
    naive = -(log_share[:, None] - each).logsumexp(0)
    error = found.std().item() / count**0.5
    assert naive.mean().item() < exact - 5 * error
    assert exact < found.mean().item() < exact + 1


@pytest.mark.parametrize("name", ["vae", "flow", "flow-fast", "ar"])
def test_bits_of_hardly_trained_rivals_are_near_those_of_noise(runs: dict[str, Path], name: str) -> None:
    found = density(load(runs[name]), split="train", n=4)
    assert 6 < found.parts["bits_per_dim"].mean < 12 and found.conditions["classes"] == "summed over"


def test_commands(runs: dict[str, Path], data: str, command: Command, tmp_path: Path) -> None:
    gan = runs["gan"]
    code, out, _ = command("sample", gan, "-n", 2, "--class", "dark", "--out", "dark.npz")
    assert code == 0 and "1 evaluation of the network each" in out
    code, out, _ = command("evaluate", runs["vae"], "--metrics", "bpd", "--split", "train", "-n", 4)
    assert code == 0 and "the model's own likelihood, or bound of it" in out
    code, _, err = command("train", data, "--model", "gan", "--steps", 1, "--set", "training.precision=fp32")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sample", "--steps", 5], "draws in one way: give only a seed"),
        (["edit", "picture.png"], "undiffuse edit is for diffusion"),
        (["explain"], "undiffuse explain is for diffusion"),
        (["tune"], "undiffuse tune is for diffusion"),
        (["export", "--format", "onnx", "--out", "x"], "export is for diffusion"),
        (["export", "--format", "diffusers", "--out", "x"], "export is for diffusion"),
        (["evaluate", "--metrics", "bpd", "--split", "train"], "R3GAN has no likelihood"),
        (
            ["evaluate", "--metrics", "bpd", "--split", "train", "--bound", 10],
            "--bound and --variance are for diffusion",
        ),
        (["evaluate", "--metrics", "ode", "--split", "train"], "is for diffusion"),
        (["sample", "--engine", "onnxruntime"], "is for diffusion"),
    ],
)
def test_what_is_for_diffusion_is_refused(
    runs: dict[str, Path], command: Command, arguments: list[Any], reason: str
) -> None:
    from PIL import Image

    Image.new("L", (16, 16)).save("picture.png")
    code, _, err = command(arguments[0], runs["gan"], *arguments[1:])
    assert code == 2 and reason in err, err


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"training.label_dropout": 0.1}, "a rival draws of a class only: set training.label_dropout=0"),
        ({"objective.loss": "error"}, "objective.loss=own is for rivals"),
        ({"network.head": 8}, "network.head is not for network.kind=gan"),
    ],
)
def test_settings_that_do_not_fit(data: str, tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        train({**settings("gan", data), **changed}, tmp_path / "run", report=ignore)
    with pytest.raises(UsageError, match=r"objective.loss=own is for rivals"):
        train({"data.source": data, **SHORT, "objective.loss": "own"}, tmp_path / "other", report=ignore)


def test_two_recipes_at_once_are_refused(command: Command) -> None:
    code, _, err = command("train", "emoji", "--model", "gan", "--preset", "fast")
    assert code == 2 and "--model gan has a recipe of its own: leave --preset out" in err
    assert make_config({"network.kind": "gan"}).network.kind == "gan"


def test_a_rival_saved_with_the_older_names_of_its_size(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(find(runs["gan"]), folder)
    card = folder / "model.json"
    text = card.read_text().replace('"rows":', '"height":').replace('"columns":', '"width":')
    assert '"height"' in text
    card.write_text(text)
    assert load(folder).config.network.options == load(runs["gan"]).config.network.options


def test_steps_of_a_rival_are_refused_whatever_they_are(runs: dict[str, Path]) -> None:
    model = load(runs["gan"])
    for recipe in (Recipe(steps=20), Recipe(steps=10), Recipe("dpm++2m")):
        with pytest.raises(UsageError, match="draws in one way"):
            recipe.for_model(model)
    assert Recipe(seed=3).for_model(model) == Recipe(seed=3)


@pytest.mark.parametrize("name", RIVALS)
def test_the_command_that_measures_a_rival(runs: dict[str, Path], name: str, command: Command) -> None:
    """As any model: a table, the JSON and a page."""
    words = ("evaluate", runs[name], "--split", "train", "-n", 20, "--json", "a.json", "--report", "a.html")
    code, out, err = command(*words)
    assert code == 0, err
    assert "network evaluation" in out and "Frechet" in out and Path("a.html").exists()
    how = read_json("a.json")["conditions"]["sampling"]
    assert how["evaluations"] == load(runs[name]).rival.network.evaluations and "sampler" not in how  # type: ignore[union-attr]
