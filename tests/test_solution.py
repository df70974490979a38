"""A flow map from data: training to agree over K levels is K steps of Euler's, on Gaussian data exactly."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ignore
from gaussian_maps import MEAN, STD, Exact, exact, mapped, nodes, process_of
from torch import Tensor

from undiffuse.config import preset
from undiffuse.generate import Recipe, generate
from undiffuse.model import load
from undiffuse.objectives.flow_map import PLAIN, aim, pseudo_huber, step
from undiffuse.objectives.solution import HALVINGS, WIDEST, aimed, ends, solution
from undiffuse.objectives.times import log_normal
from undiffuse.process import GaussianProcess, Prediction
from undiffuse.randomness import keyed_draws
from undiffuse.training import train


class Lines:
    """A student whose x_0 is a line in x for each pair of levels: (t, s) -> (slope, offset)."""

    def __init__(self, process: GaussianProcess):
        self.process, self.lines = process, dict[tuple[float, float], tuple[float, float]]()

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: object = None) -> Prediction:
        slope, offset = self.lines[float(t[0]), float(s[0])]
        return Prediction(x0 := slope * x + offset, x0)


@pytest.mark.parametrize("schedule", ["cosine", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_agreement_over_levels_is_euler(schedule: str, steps: int) -> None:
    """The regression of the targets on x_t, level by level, gives DDIM's steps with the exact denoiser."""
    process = process_of(schedule)
    times = process.schedule.time(torch.linspace(3.0, -3.0, steps + 1, dtype=torch.float64))  # from s to t
    (z, weight), (noise, of_noise) = nodes(), nodes()
    probability = (weight[:, None] * of_noise).flatten()
    x0 = (MEAN + STD * z.repeat_interleave(len(noise)))[:, None]
    eps, count, s = noise.repeat(len(z))[:, None], len(probability), times[:1]
    student: Any = Lines(process)
    student.lines[float(s), float(s)] = (0.0, 0.0)  # from s to s x_0 does not matter
    for between, t in pairwise(times):
        x_l, x_t = (process.marginal(x0, time.expand(count)).at(eps) for time in (between, t))
        found = aimed(student, x_t, t.expand(count), x_l, between.expand(count), s.expand(count), None)
        design = torch.cat([x_t, torch.ones_like(x_t)], 1) * probability.sqrt()[:, None]
        slope, offset = torch.linalg.lstsq(design, found * probability.sqrt()[:, None]).solution.flatten().tolist()
        student.lines[float(t), float(s)] = (slope, offset)
    x = first = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for t, below in pairwise(times.flip(0)):
        x = step(process, exact(process)(x, t).x0, x, t.expand(5), below.expand(5))
    at, end = times[-1:].expand(5), s.expand(5)
    jumped = step(process, student.jump(first, at, end).x0, first, at, end)
    torch.testing.assert_close(jumped, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(aim(process, x, first, at, end), student.jump(first, at, end).x0, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.2, 1.0])
@pytest.mark.parametrize("gap", [0.5, 1 / 256])
def test_where_jumps_end(gap: float, share: float) -> None:
    process, count = process_of("edm"), 100_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ratio = torch.full((count,), 3.0, dtype=torch.float64)
    t, s, between = ends(process, process.schedule.time(-2 * ratio.log()), u, gap, share)
    level, middle, end = ((-0.5 * process.schedule.log_snr(time)).exp() for time in (t, between, s))
    plain, to_data = s == t, s == 0
    assert float(plain.double().mean()) == pytest.approx(PLAIN, abs=1e-4)
    assert float(to_data.double().mean()) == pytest.approx((1 - PLAIN) * share, abs=1e-4)
    assert torch.equal(between[plain], t[plain]) and level == pytest.approx(3.0, rel=1e-9)
    inside = ~plain & ~to_data
    assert share < 1 or not inside.any()
    if share < 1:
        assert np.quantile(end[inside] / 3, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.01)
    moved = ~plain
    assert ((level - middle)[moved] / (level - end)[moved]).numpy() == pytest.approx(gap, rel=1e-6)


def test_pure_noise_begins_where_samplers_do() -> None:
    t, _, between = ends(
        process_of("cosine"), torch.tensor([1.0, 0.9999], dtype=torch.float64), torch.full((2,), 0.9), 0.1, 0.5
    )
    assert t[0] == 1 and (between < t).all()


@pytest.mark.parametrize("done", [0.0, 0.6, 1.0])
def test_the_loss_row_by_row(done: float) -> None:
    """Of a map that is a little wrong: its distance from where it ends from x_l, and for a quarter from the data; the
    target is held, so only the jump from x_t has a gradient."""
    process, count, to_data = process_of("edm"), 40, 0.4
    wrong = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    student: Any = Exact(process, wrong)  # type: ignore[arg-type]
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x0 = MEAN + STD * torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draw = keyed_draws(0, range(count))(0)
    losses = solution(student, x0, None, u, draw, share=lambda: done, to_data=to_data)

    noise, drawn = draw.normal(x0), log_normal(process.schedule, draw.fold(1).uniform(u[:, None])[:, 0])
    t, s, between = ends(process, drawn, u, WIDEST / 2 ** (HALVINGS * done), to_data)
    assert (s == t).sum() == count * PLAIN and (s[s < t] > 0).any() and (s == 0).any()
    by_hand = []
    for row in range(count):
        now, end, middle = t[row : row + 1], s[row : row + 1], between[row : row + 1]
        x_t, x_l = (process.marginal(x0[row : row + 1], time).at(noise[row : row + 1]) for time in (now, middle))
        if end == now:
            goal, found = x0[row : row + 1], exact(process)(x_t, now).x0
        else:
            off = aim(process, mapped(process, x_l, middle, end), x_l, middle, end) * wrong.item()
            goal = aim(process, step(process, off, x_l, middle, end), x_t, now, end)
            found = aim(process, mapped(process, x_t, now, end), x_t, now, end)
        by_hand.append(pseudo_huber(wrong * found - goal))
    expected = torch.cat(by_hand)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss.sum(), wrong)[0].item() for loss in (losses, expected)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-9)


def test_it_trains_from_data_and_draws_in_one_evaluation(data: str, tmp_path: Path) -> None:
    values = {
        **preset("one-step"),
        "data.source": data,
        "training.steps": 40,
        "training.batch_size": 32,
        "training.warmup": 4,
        "training.log_every": 10,
        "training.precision": "fp32",
        "network.channels": (16, 32),
        "network.attention": (),
    }
    train(values, tmp_path / "run", report=ignore)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    model = load(tmp_path / "run")
    recipe = Recipe(steps=1).for_model(model)
    images = next(generate(model, recipe, range(8), model.condition(range(8))))
    assert recipe.cost(model) == 1 and len({image.tobytes() for image in images}) == 8
