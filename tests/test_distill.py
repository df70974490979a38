"""undiffuse distill: a student begins as its teacher, is trained and resumed, and draws in the steps that it learnt."""

import functools
import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, ignore, run_state
from PIL import Image

from undiffuse.adapters import base_fingerprint
from undiffuse.card import find
from undiffuse.config import preset
from undiffuse.engines import available, with_engine
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, generate, sample
from undiffuse.guidance import Guidance
from undiffuse.model import load
from undiffuse.registry import LOSSES
from undiffuse.training import train

flow_map = import_module("undiffuse.objectives.flow_map")  # its function has the same name in the package
SHORT = {"training.steps": 6, "training.checkpoint_every": 3, "training.precision": "fp32", "training.batch_size": 16}


def settings(teacher: Path, data: str) -> dict[str, Any]:
    return {
        **preset("distill"),
        "objective.loss": "flow-map",
        "data.source": data,
        "training.base": str(teacher),
        **SHORT,
    }


@pytest.fixture(scope="module")
def student(whole: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("student") / "run"
    train({**settings(whole, data), "objective.jumps": 2}, run, report=ignore)
    return run


def test_a_student_begins_as_its_teacher(whole: Path, data: str, tmp_path: Path) -> None:
    """Whatever the level to reach, and without one, until it has learnt."""
    train(
        {**settings(whole, data), "training.steps": 1, "training.learning_rate": 1e-30}, tmp_path / "run", report=ignore
    )
    teacher, student = load(whole), load(tmp_path / "run")
    x, condition = torch.randn(4, 1, 16, 16), teacher.condition(range(4))
    t = torch.tensor([0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    plain = teacher.denoiser(x, t, condition).x0
    assert torch.equal(student.denoiser(x, t, condition).x0, plain)
    assert torch.equal(student.denoiser.jump(x, t, 0.5 * t, condition).x0, plain)


def test_a_student_has_learnt_where_to_jump(student: Path) -> None:
    model = load(student)
    x, condition = torch.randn(4, 1, 16, 16), model.condition(range(4))
    near, far = (model.denoiser.jump(x, 1.0, s, condition).x0 for s in (0.9, 0.0))
    assert (near - far).abs().max() > 1e-5
    assert torch.equal(model.denoiser.jump(x, 0.5, 0.5, condition).x0, model.denoiser(x, 0.5, condition).x0)


def test_losses_see_jumps_in_the_range_of_pictures(
    whole: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @functools.wraps(flow_map.flow_map)
    def watched(denoiser: Any, x0: torch.Tensor, condition: Any, *rest: Any, **options: Any) -> torch.Tensor:
        far = denoiser.jump(1e3 * torch.ones_like(x0), 0.5, 0.0, condition).x0
        seen.append(far.abs().max().item())
        return flow_map.flow_map(denoiser, x0, condition, *rest, **options)

    monkeypatch.setattr(LOSSES, "find", lambda name: watched)
    train({**settings(whole, data), "training.steps": 2}, tmp_path / "run", report=ignore)
    assert seen == [1.0, 1.0]


def test_a_flow_map_ends_where_the_average_of_its_weights_says(
    whole: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the model is made of in the end."""
    given: dict[str, Any] = {}

    @functools.wraps(flow_map.flow_map)
    def watched(denoiser: Any, *rest: Any, **options: Any) -> torch.Tensor:
        given.update(options, denoiser=denoiser)
        return flow_map.flow_map(denoiser, *rest, **options)

    monkeypatch.setattr(LOSSES, "find", lambda name: watched)
    train({**settings(whole, data), "training.steps": 3}, tmp_path / "run", report=ignore)
    model = load(tmp_path / "run")
    x, condition = torch.randn(4, 1, 16, 16), model.condition(range(4))
    with torch.no_grad():
        averaged, current = (given[name].jump(x, 0.5, 0.2, condition).x0 for name in ("average", "denoiser"))
    assert torch.equal(averaged, model.denoiser.jump(x, 0.5, 0.2, condition).x0.clamp(-1, 1))
    assert not torch.equal(averaged, current) and given["share"]() == 1


def test_a_run_resumes_as_if_nothing_had_happened(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    train({}, tmp_path / "run", resume=True, report=ignore)
    assert run_state(tmp_path / "run") == run_state(student)


def test_a_flow_map_jumps_unless_told_otherwise(student: Path) -> None:
    model = load(student)
    asked = Recipe().for_model(model)
    assert (asked.sampler, asked.steps) == ("jump", 2) and asked.cost(model) == 2
    for other in (Recipe("unipc", 2), Recipe(steps=4), Recipe(steps=20), Recipe("jump", 3)):
        with pytest.raises(UsageError, match="is a flow map of 2 jumps, and nothing else"):
            next(generate(model, other, range(1), model.condition(range(1))))
    assert Recipe(steps=1).for_model(model).denoise(model, model.condition(range(1)))
    assert replace(Recipe(), seed=3).for_model(model) == Recipe("jump", 2, seed=3)
    assert replace(Recipe(steps=20), steps=5).sampler == Recipe(steps=5).sampler != Recipe(steps=20).sampler
    assert replace(Recipe(), sampler="ddim").for_model(model).sampler == "ddim"
    condition = model.condition(range(4))
    images = next(generate(model, Recipe(steps=2), range(4), condition))
    alone = next(generate(model, Recipe("jump", 2), [2], model.condition([2])))
    assert abs(images[2].astype(int) - alone[0]).max() <= 1
    times = Recipe("jump", 2).times(model)
    assert len(times) == 3 and times[0] == 1 and times[2] == 0
    with torch.no_grad():  # by hand
        first = model.denoiser.jump(start(model), 1.0, times[1].item(), condition)
        level = model.denoiser.process.noise_level(times[1])
        x = level.alpha.float() * first.x0.clamp(-1, 1)
        eps = start(model) - model.denoiser.process.noise_level(1.0).alpha.float() * first.x0.clamp(-1, 1)
        x = x + level.sigma.float() * eps / model.denoiser.process.noise_level(1.0).sigma.float()
        last = model.denoiser.jump(x, times[1].item(), 0.0, condition).x0
    assert abs(model.domain.decode(last).astype(int) - images).max() <= 1


def start(model: Any) -> torch.Tensor:
    from undiffuse.randomness import keyed_draws

    return model.denoiser.process.prior(torch.empty(4, 1, 16, 16)).sample(keyed_draws(0, range(4))(0))  # type: ignore[no-any-return]


@pytest.mark.skipif("onnxruntime" not in available(), reason="onnx, onnxscript or onnxruntime is missing")
def test_onnx_runtime_jumps_as_pytorch_does(student: Path, own_cache: None) -> None:
    """Wherever it is told to, and nowhere, with weights that care."""
    model = load(student)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    fast = with_engine(model, "onnxruntime")
    x, t, condition = (
        torch.randn(3, 1, 16, 16),
        torch.tensor([0.4, 0.7, 1.0], dtype=torch.float64),
        model.condition([0, 1, 2]),
    )
    with torch.no_grad():
        for s in (0.1 * t, 0.9 * t, t):
            expected, found = (one.denoiser.jump(x, t, s, condition).x0 for one in (model, fast))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert torch.equal(found, fast.denoiser(x, t, condition).x0)
        assert (found - fast.denoiser.jump(x, t, 0.1 * t, condition).x0).abs().max() > 1e-3


def test_guidance_is_learnt_with_it(whole: Path, data: str, tmp_path: Path, student: Path) -> None:
    values = {**settings(whole, data), "objective.jumps": 2, "objective.guidance": 3.0}
    train(values, tmp_path / "run", report=ignore)
    rows = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (student, tmp_path / "run")
    ]
    assert rows[0] != rows[1]
    model = load(student)
    drawn = generate(model, Recipe("jump", 2, guidance=Guidance(2.0)), range(2), model.condition(range(2)))
    with pytest.raises(UsageError, match="a flow map has learnt its guidance"):
        next(drawn)


def test_the_command(whole: Path, command: Command) -> None:
    arguments = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    code, out, err = command("distill", whole, "--steps", 1, "--out", "fast", *arguments)
    assert code == 0 and "undiffuse sample fast" in out, err
    code, out, _ = command("sample", "fast", "-n", 2, "--out", "two.npz")
    assert code == 0 and "1 evaluation of the network each" in out
    assert np.load("two.npz")["images"].shape == (2, 16, 16, 1)
    np.savez("other.npz", images=np.zeros((20, 16, 16), np.uint8), labels=np.arange(20) % 2)
    code, out, err = command("distill", whole, "--out", "fast", "--resume")
    assert code == 0 and "already finished at step 6" in out, err
    code, _, err = command("distill", "fast", "--out", "again", *arguments)
    assert code == 2 and "fast is a student already" in err
    for words, reason in (
        ((whole, "--seed", 5), "was begun with training.seed = 0, not 5"),
        ((whole, "--steps", 2), "was begun with objective.jumps = 1, not 2"),
        (("fashion-mnist",), f"go on with undiffuse distill {whole} --out fast --resume"),
        ((whole, "--from", "fast"), f"go on with undiffuse distill {whole} --out fast --resume"),
    ):
        code, _, err = command("distill", *words, "--out", "fast", "--resume")
        assert code == 2 and reason in err, err
    code, _, err = command("sample", whole, "--sampler", "jump", "--steps", 1)
    assert code == 2 and "the sampler jump is for flow maps" in err
    Image.new("L", (16, 16)).save("picture.png")
    for words, reason in (
        (("export", "fast", "--format", "diffusers", "--out", "fast-folder"), "fast is a flow map"),
        (("edit", "fast", "picture.png"), "is a flow map of 1 jump, and nothing else"),
        (("explain", "fast"), "is a flow map of 1 jump, and nothing else"),
        (("tune", "fast", "--sampler", "jump", "--steps", 1), "no grid is searched for jump"),
        (("distill", whole, "--steps", 3, *arguments), "a student makes 1, 2, 4, 8 or 16 jumps"),
        (("distill", whole, "--data", "other.npz", *arguments), "was trained on other data"),
        (("distill", whole, "--minutes", 1, *arguments), "exclude each other"),
        (("distill", whole, "--from", "fashion-mnist", *arguments), "that is no student"),
    ):
        code, _, err = command(*words)
        assert code == 2 and reason in err, (words, err)
    assert not Path("runs").exists()  # nothing is left of what was refused


def test_a_student_is_sharpened_by_its_own_teacher(
    whole: Path, data: str, student: Path, tmp_path: Path, command: Command
) -> None:
    other = tmp_path / "other"
    train({**SHORT, "data.source": data, "training.seed": 1, **TINY}, other, report=ignore)
    short = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    code, _, err = command("distill", other, "--from", student, "--out", "sharp", *short)
    assert code == 2 and f"{student} is a student of another model than" in err
    code, _, err = command("distill", whole, "--from", student, "--out", "sharp", *short)
    assert code == 0, err
    assert load("sharp").training["teacher"] == base_fingerprint(load(whole))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"network.jumps": False},
            "network.jumps=true goes with objective.loss=paths, adversarial, flow-map, matching or solution",
        ),
        ({"training.base": None}, "objective.loss=flow-map learns from a teacher"),
        ({"data.augment": 0.1}, "network.jumps is for networks without"),
    ],
)
def test_settings_that_do_not_fit(whole: Path, data: str, tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    values = {**settings(whole, data), "network.channels": TINY["network.channels"], "network.attention": (), **changed}
    with pytest.raises(UsageError, match=reason):
        train(values, tmp_path / "run", report=ignore)


def test_a_model_that_comes_with_a_student(whole: Path, student: Path, tmp_path: Path, command: Command) -> None:
    """It draws if so many steps are asked for and nothing else is."""
    model = tmp_path / "model"
    shutil.copytree(find(whole), model)
    shutil.copytree(find(student), model / "2-steps")
    assert Recipe(steps=2).drawn_by(model) == f"{model}/2-steps"
    for other in (Recipe(), Recipe("ddim", 2), Recipe(steps=2, grid="karras"), Recipe(steps=2, guidance=Guidance(2))):
        assert other.drawn_by(model) == model
    assert np.array_equal(sample(model, 4, steps=2), sample(student, 4))
    assert np.array_equal(sample(model, 4, steps=2, sampler="ddim"), sample(whole, 4, steps=2, sampler="ddim"))
    code, out, err = command("sample", "model", "-n", 4, "--steps", 2, "--out", "a.npz")
    assert code == 0 and "2 evaluations of the network each, by model/2-steps, torch" in out, err
    code, out, _ = command("sample", "model", "-n", 4, "--steps", 2, "--class", "0", "--guidance", 2, "--out", "b.npz")
    assert code == 0 and "4 evaluations of the network each, by torch" in out
    code, out, _ = command("redo", "a.npz", "--out", "c.npz")
    assert code == 0 and np.array_equal(np.load("a.npz")["images"], np.load("c.npz")["images"])


@pytest.mark.parametrize("arguments", ["avatars --steps 1", "avatars/1-step", "avatars/1-step --guidance 1"])
def test_a_student_is_prompted(arguments: str, command: Command) -> None:
    """In one evaluation, with the guidance that it has learnt."""
    code, out, err = command("sample", *arguments.split(), "-n", 2, "--prompt", "a man with red hair", "--out", "a.npz")
    assert code == 0 and "1 evaluation of the network each" in out, err
    code, out, _ = command("sample", "avatars/1-step", "-n", 1)
    assert "avatars-1-step-samples.png" in out
    code, _, err = command("sample", "avatars/1-step", "-n", 1, "--prompt", "a man", "--guidance", 2, "--out", "b.npz")
    assert code == 2 and "a flow map has learnt its guidance" in err
