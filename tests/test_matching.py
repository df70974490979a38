"""What is trained beside a student: the gradient of matching is a divergence's; critics; runs, and resumed ones."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import Command, ignore, run_state
from gaussian_maps import Exact, ExactPaths, nodes
from torch import Tensor
from torch.nn import functional

from undiffuse.config import preset
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, generate
from undiffuse.model import load
from undiffuse.networks.critic import watched
from undiffuse.networks.unet import unfold
from undiffuse.objectives.adversarial import ADVERSARY, Ends, adversarial
from undiffuse.objectives.matching import MATCH, difference, divergence, matching
from undiffuse.process import EDM, VP, Denoise, GaussianProcess, Prediction, Time, expand
from undiffuse.randomness import KeyedDraw, keyed_draws
from undiffuse.training import train
from undiffuse.training.companions import Companions

DATA, OWN = (0.3, 0.4), (-0.2, 0.7)
"""Means and deviations of the data, and of what the student draws."""


def denoiser_of(process: GaussianProcess, law: tuple[float, float]) -> Any:
    """Condition -> the exact denoiser of a Gaussian."""
    mean, std = law

    def denoise(x: Tensor, t: Time) -> Prediction:
        level = process.noise_level(t)
        gain = level.alpha * std**2 / ((level.alpha * std) ** 2 + level.sigma**2)
        x0 = mean + expand(gain, x) * (x - expand(level.alpha, x) * mean)
        return Prediction(x0, x0).with_x0(x0, x, level)

    def bound(condition: object) -> Denoise:
        return denoise

    return bound


@pytest.mark.parametrize("process", [GaussianProcess(EDM()), GaussianProcess(VP())])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_difference_is_the_gradient_of_the_divergence(process: GaussianProcess, t: float) -> None:
    """Of KL(q_t || p_t), for x = m + s z: E[difference dx/dm] = sigma^2 / alpha^2 dKL/dm, and likewise in s."""
    level = process.noise_level(t)
    alpha, sigma = float(level.alpha), float(level.sigma)
    m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in OWN)
    own, theirs = (alpha * s) ** 2 + sigma**2, (alpha * DATA[1]) ** 2 + sigma**2
    kl = 0.5 * ((own + alpha**2 * (m - DATA[0]) ** 2) / theirs - 1 + torch.log(theirs / own))
    exact = [float(g) * sigma**2 / alpha**2 for g in torch.autograd.grad(kl, (m, s))]
    (z, weight), (noise, of_noise) = nodes(), nodes()
    x = OWN[0] + OWN[1] * z.repeat_interleave(len(noise))
    x_t = (alpha * x + sigma * noise.repeat(len(z)))[:, None]
    away, _ = difference(
        x_t, torch.tensor(t, dtype=torch.float64), denoiser_of(process, OWN), denoiser_of(process, DATA), None
    )
    probability = (weight[:, None] * of_noise).flatten()
    found = [float((probability * away[:, 0] * part).sum()) for part in (1.0, z.repeat_interleave(len(noise)))]
    assert found == pytest.approx(exact, rel=1e-10)


def test_nothing_moves_where_the_laws_agree() -> None:
    process = GaussianProcess(EDM())
    x_t, both = torch.randn(5, 3, dtype=torch.float64), denoiser_of(process, DATA)
    away, _ = difference(x_t, torch.full((5,), 0.5, dtype=torch.float64), both, both, None)
    assert not away.any()


def test_descent_finds_the_law_of_the_data() -> None:
    """x = m + s z, each step with the exact denoiser of what the student draws: where nothing is left to gain, the two
    denoisers are one, so the last error is that of the descent."""
    process = GaussianProcess(EDM())
    law = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in OWN]
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 1)))
    optimizer = torch.optim.SGD(law, lr=0.1)
    for number in range(400):
        own = denoiser_of(process, (law[0].item(), law[1].item()))
        ends = Ends(law[0] + law[1] * z, None, z, None, keyed_draws(0, range(256))(number))
        optimizer.zero_grad()
        divergence(process, ends, own, denoiser_of(process, DATA)).mean().backward()
        optimizer.step()
    assert [value.item() for value in law] == pytest.approx(DATA, abs=1e-6)


def test_the_gradient_is_scaled_by_how_far_the_teacher_moves() -> None:
    """By hand, sample by sample: (own - theirs) / mean |x - theirs|, over the number of elements."""
    process, size = GaussianProcess(VP()), 3
    x = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draw = keyed_draws(0, range(4))(0)
    seen = []

    def own(condition: object) -> Denoise:
        def denoise(x_t: Tensor, t: Time) -> Prediction:
            seen.append((x_t, t))
            return denoiser_of(process, OWN)(condition)(x_t, t)

        return denoise

    theirs = denoiser_of(process, DATA)
    divergence(process, Ends(x, None, x, None, draw), own, theirs).sum().backward()
    ((x_t, t),) = seen
    assert len(set(t.tolist())) > 1, "each has a level of its own"
    real, other = theirs(None)(x_t, t).x0, denoiser_of(process, OWN)(None)(x_t, t).x0
    scale = (x.detach() - real).abs().mean(1, keepdim=True)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (other - real) / scale / size, rtol=1e-12, atol=1e-12)


SHORT = {
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.precision": "fp32",
    "training.batch_size": 8,
}


@pytest.fixture(scope="module")
def student(whole: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "run"
    train({**preset("distill"), "data.source": data, "training.base": str(whole), **SHORT}, folder, report=ignore)
    return folder


@pytest.fixture(scope="module", params=["adversarial", "matching"])
def runs(
    whole: Path, data: str, student: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A student, and the same trained with companions."""
    folder = tmp_path_factory.mktemp("after") / "run"
    taught = {"training.base": str(student), "training.teacher": str(whole), "objective.loss": request.param}
    train({**preset("adversarial"), "data.source": data, **SHORT, **taught}, folder, report=ignore)
    return student, folder


def test_a_sharpened_student_is_a_student(runs: tuple[Path, Path]) -> None:
    """Of the same tensors, other samples; its companions stay in the checkpoint."""
    before, after = (load(run) for run in runs)
    assert before.network.state_dict().keys() == after.network.state_dict().keys()
    images = [next(generate(one, Recipe(steps=1), range(4), one.condition(range(4)))) for one in (before, after)]
    assert images[0].shape == images[1].shape and (images[0] != images[1]).any()


def test_a_run_resumes_as_if_nothing_had_happened(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train({}, tmp_path / "run", resume=True, report=ignore)
    assert run_state(tmp_path / "run") == run_state(runs[1])


def test_another_teacher_is_refused(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on with the teacher that it began with, or not at all."""
    for number, run in enumerate(runs):
        shutil.copytree(run, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number) / "checkpoints" / "step-00000004")
        monkeypatch.setattr("undiffuse.training.teacher.base_fingerprint", lambda model: "another")
        with pytest.raises(UsageError, match=r"is another model than .* began with"):
            train({}, tmp_path / str(number), resume=True, report=ignore)


def test_the_command(runs: tuple[Path, Path], whole: Path, command: Command) -> None:
    arguments = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    code, _, err = command("distill", whole, "--from", runs[0], "--out", "sharp", *arguments)
    assert code == 0, err
    paths = [load(run).config.objective.paths for run in (runs[0], Path("sharp"))]
    assert paths[0] == paths[1] is not None, "none is drawn again"
    matched = ("--set", "objective.loss=matching", "--out", "matched")
    code, _, err = command("distill", whole, "--from", runs[0], *matched, *arguments)
    assert code == 0, err
    code, out, err = command("sample", "sharp", "-n", 2, "--out", "two.npz")
    assert code == 0 and "1 evaluation of the network each" in out, err


def companions_of(whole: Path, student: Path, loss: str) -> Companions:
    config = load(student).config
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"loss": loss})})
    return Companions(config, load(whole), Accelerator(cpu=True))


def test_what_stages_give_is_what_the_network_computes(whole: Path) -> None:
    """In their order: the last, through the last layers, is its output; watching changes nothing."""
    model = load(whole)
    x, condition, log_snr = torch.randn(2, 1, 16, 16), model.condition(range(2)), torch.tensor([0.0, 3.0])
    unet: Any = model.network
    plain = unet(x, log_snr, condition)
    with watched(unet) as seen:
        assert torch.equal(unet(x, log_snr, condition), plain)
    assert len(seen) == len(unet.down) + 1 + len(unet.up)
    assert torch.equal(unfold(unet.out(functional.silu(unet.norm(seen[-1]))), unet.patch), plain)
    unet(x, log_snr, condition)
    assert len(seen) == len(unet.down) + 1 + len(unet.up), "it looks away afterwards"


def test_the_critic_learns_to_tell_and_its_gradient_reaches_samples(whole: Path, student: Path) -> None:
    """Grey pictures from noisy ones: the hinge loss falls from 2, scores part, and no gradient is left in the teacher
    or, when a student asks, in the critic."""
    companions = companions_of(whole, student, "adversarial")
    data, samples = torch.zeros(16, 1, 16, 16), 0.5 * torch.randn(16, 1, 16, 16)
    condition = companions.facts.condition(range(16))
    for step in range(150):
        draw = keyed_draws(0, range(16))(step)
        x = samples.clone().requires_grad_()
        scores = companions.scores(x, condition, data, condition, draw)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        assert gradient.abs().sum() > 0 and all(p.grad is None for p in companions.parameters())
        loss = companions._criticism(companions.shown[0]).mean().item()
        assert step or abs(loss - 2) < 0.5
        companions.update(companions.peak)
        assert not companions.shown
    assert loss < 1.5
    real = companions.scores(data, condition, data, condition, draw)
    assert scores.mean() < real.mean() - 0.5
    assert all(p.grad is None for p in companions.facts.network.parameters())


def test_what_follows_the_student_learns_to_denoise_its_samples(whole: Path, student: Path) -> None:
    """White pictures, of which the teacher has seen none: the error of x_0 falls by a factor of three."""
    companions = companions_of(whole, student, "matching")
    x, condition = torch.full((16, 1, 16, 16), 0.9), companions.facts.condition(range(16))
    t = torch.full((16,), 0.5, dtype=torch.float64)
    x_t = companions.denoiser.process.marginal(x, t).at(keyed_draws(1, range(16))(0).normal(x))

    def error() -> float:
        with torch.no_grad():
            return (companions.imitate(condition)(x_t, t).x0 - x).square().mean().item()

    before, theirs = error(), companions.facts.network.state_dict()
    kept = {name: tensor.clone() for name, tensor in theirs.items()}
    for step in range(40):
        companions.scores(x, condition, x, condition, keyed_draws(0, range(16))(step))
        companions.update(companions.peak)
    assert error() < before / 3
    assert all(torch.equal(theirs[name], kept[name]) for name in kept), "the teacher stays as it is"


def test_jumps_that_do_not_end_in_data_are_not_judged(whole: Path, student: Path) -> None:
    """Of two jumps only the second is; the first is held to the path."""
    seen = []

    class Watching:
        def scores(self, x: Tensor, condition: Any, x0: Tensor, given: Any, draw: KeyedDraw) -> Tensor:
            seen.append((x, x0, draw))
            return x.flatten(1).mean(1)

    process = GaussianProcess(VP())
    t, s = torch.tensor([1.0, 0.5, 1.0, 0.5]).double(), torch.tensor([0.5, 0.0, 0.5, 0.0]).double()
    drawn = ExactPaths(process, t, s)
    exact: Any = Exact(process)
    draw = keyed_draws(0, range(4))(0)
    x = torch.arange(12.0).double().view(4, 3)
    losses = adversarial(exact, x, None, torch.zeros(4).double(), draw, paths=drawn, companions=Watching())
    ((judged, beside, numbers),) = seen
    assert torch.equal(beside, x[1::2])
    leap = drawn.leaps(t)
    torch.testing.assert_close(judged, leap.x_s[1::2], rtol=1e-9, atol=1e-9)
    assert numbers.keys == draw.keys[1::2]
    torch.testing.assert_close(losses[::2], torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(losses[1::2], -ADVERSARY * judged.mean(1), rtol=1e-9, atol=1e-9)

    class Following(Watching):
        def imitate(self, condition: Any) -> Denoise:
            return theirs(condition, OWN)

    def theirs(condition: Any, law: tuple[float, float] = DATA) -> Denoise:
        return denoiser_of(process, law)(condition)  # type: ignore[no-any-return]

    both = matching(exact, x, None, torch.zeros(4).double(), draw, paths=drawn, teach=theirs, companions=Following())
    ends = Ends(judged, None, x[1::2], None, draw[s == 0])
    further = MATCH * divergence(process, ends, lambda c: theirs(c, OWN), theirs)
    torch.testing.assert_close(both[::2], losses[::2], rtol=0, atol=0)
    torch.testing.assert_close(both[1::2], losses[1::2] + further, rtol=1e-12, atol=1e-12)


def test_a_student_of_two_jumps_is_sharpened(whole: Path, data: str, tmp_path: Path) -> None:
    """Also by a batch of which no jump ends in data: then the critic waits."""
    shared = {"data.source": data, **SHORT, "training.batch_size": 1, "training.steps": 6, "objective.jumps": 2}
    train({**preset("distill"), "training.base": str(whole), **shared}, tmp_path / "two", report=ignore)
    taught = {"training.base": str(tmp_path / "two"), "training.teacher": str(whole)}
    train({**preset("adversarial"), **shared, **taught}, tmp_path / "sharp", report=ignore)
    assert Recipe().for_model(load(tmp_path / "sharp")).steps == 2
