"""Samples: a function of (model, recipe, number), whatever the batch; classes; recipes; rounding."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ignore, randomised

from undiffuse.conditions import Labels
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, generate, generate_shared, sample, states
from undiffuse.model import Model, load
from undiffuse.sampling import GRIDS, SAMPLERS
from undiffuse.training import train


@pytest.fixture(scope="module")
def model(whole: Path) -> Model:
    """The tiny model with random weights on top, so that classes and noise matter."""
    model = load(whole)
    randomised(model.network)
    return model


def batch(model: Model, numbers: list[int], batch_size: int = 64, **recipe: Any) -> np.ndarray:
    return np.concatenate(
        list(
            generate(model, Recipe(**{"steps": 6, **recipe}), numbers, model.condition(numbers), batch_size=batch_size)
        )
    )


def assert_same_picture(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for sums taken in another order, which may round a level up or down."""
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("ddpm-learned", "cfg++", "jump")])
def test_a_sample_alone_is_the_sample_in_a_crowd(model: Model, sampler: str) -> None:
    """Sample k is the same alone, in any batch, at any batch size and in any order."""
    crowd = batch(model, list(range(7)), sampler=sampler)
    assert len({image.tobytes() for image in crowd}) == 7
    for k in (0, 3, 6):
        assert_same_picture(batch(model, [k], sampler=sampler)[0], crowd[k])
    assert_same_picture(batch(model, list(range(7)), 3, sampler=sampler), crowd)
    assert_same_picture(batch(model, [6, 2, 4], sampler=sampler), crowd[[6, 2, 4]])


def test_a_variance_that_was_not_learnt_is_refused(model: Model) -> None:
    """ddpm-learned needs a model that predicts its variance."""
    with pytest.raises(UsageError, match="ddpm-large"):
        batch(model, [0], sampler="ddpm-learned")


def test_the_noise_of_a_sample_is_exactly_its_own(model: Model) -> None:
    """The start is equal to the last bit in any company, standard normal, and different for another seed."""
    recipe = Recipe(steps=2)
    crowd = next(iter(states(model, recipe, range(64), model.condition(range(64))))).x
    alone = torch.cat([next(iter(states(model, recipe, [k], model.condition([k])))).x for k in range(64)])
    assert torch.equal(crowd, alone)
    assert abs(crowd.mean()) < 4 / crowd.numel() ** 0.5
    assert abs(crowd.std() - 1) < 4 / (2 * crowd.numel()) ** 0.5
    assert not torch.equal(
        next(iter(states(model, Recipe(steps=2, seed=1), range(64), model.condition(range(64))))).x, crowd
    )


def test_samples_repeat_and_seeds_differ(model: Model) -> None:
    """The same call gives the same bytes; another seed other pictures; more samples begin with the fewer."""
    first = sample(model, 5, steps=4, seed=3)
    assert np.array_equal(sample(model, 5, steps=4, seed=3), first)
    assert not np.array_equal(sample(model, 5, steps=4, seed=4), first)
    assert_same_picture(sample(model, 9, steps=4, seed=3)[:5], first)


def test_stochastic_rules_draw_their_own_noise(model: Model) -> None:
    """DDIM with eta = 1 differs from eta = 0, and is as independent of the batch."""
    assert not np.array_equal(batch(model, [0, 1], sampler="ddim"), batch(model, [0, 1], sampler="ddim", eta=1.0))
    crowd = batch(model, [0, 1, 2], sampler="ddim", eta=1.0)
    assert_same_picture(batch(model, [2], sampler="ddim", eta=1.0)[0], crowd[2])


def test_classes_come_in_their_share(model: Model) -> None:
    """Any stretch of numbers has every class in its share, to a few samples; a label belongs to a number."""
    share = (0.7, 0.2, 0.1)
    model = dataclasses.replace(model, data=dataclasses.replace(model.data, class_share=share))
    for first, count in ((0, 1000), (123, 100), (7, 20)):
        labels = model.condition(range(first, first + count))
        assert isinstance(labels, Labels)
        counts = np.bincount(labels.index.numpy(), minlength=3)
        assert np.abs(counts - np.array(share) * count).max() < 4
        one = model.condition([first + 5])
        assert isinstance(one, Labels) and torch.equal(labels[5:6].index, one.index)


def test_a_class_by_name_or_number(model: Model) -> None:
    """All of one class: by name in any case, by number as a number or a word; its pictures are of that label."""
    by_name = sample(model, 3, steps=4, class_name="Bright")
    for name in (2, "2", "bright"):
        assert np.array_equal(sample(model, 3, steps=4, class_name=name), by_name)
    labelled = next(generate(model, Recipe(steps=4), range(3), Labels(torch.full((3,), 2), 3)))
    assert np.array_equal(labelled, by_name)
    assert not np.array_equal(sample(model, 3, steps=4, class_name="dark"), by_name)


@pytest.mark.parametrize(
    ("name", "hint"), [("brigth", "did you mean bright"), ("qqq", "dark, grey"), (3, ""), (-1, "")]
)
def test_a_class_that_is_not_there(model: Model, name: str | int, hint: str) -> None:
    """The error has the nearest class, or all of them."""
    with pytest.raises(UsageError, match=f"no class {name!r}.*{hint}"):
        sample(model, 1, class_name=name)


def test_a_class_whose_name_is_a_number(model: Model) -> None:
    """Of classes named "3", "1" and "7", --class 1 is the one of that name, as --class 7 is."""
    model = dataclasses.replace(model, data=dataclasses.replace(model.data, classes=("3", "1", "7")))
    assert [model.label(name) for name in ("3", "1", "7")] == [0, 1, 2]


def test_an_unconditional_model_has_no_classes(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A model that did not learn the classes of its data samples without them and refuses to be asked for one."""
    values = {**tiny, "training.steps": 1, "training.conditional": False}
    train(values, tmp_path, report=ignore)
    model = load(tmp_path)
    assert sample(model, 2, steps=2).shape == (2, 16, 16, 1)
    with pytest.raises(UsageError, match="no class"):
        sample(model, 2, steps=2, class_name="bright")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"sampler": "ddmp"}, "no sampler 'ddmp'.*ddpm"),
        ({"grid": "even"}, "no grid 'even'.*trailing"),
        ({"threshold": "hard"}, "no threshold 'hard'.*clip"),
        ({"sampler": "ddim", "eta": 1.5}, "eta = 1.5"),
        ({"sampler": "ddim", "eta": -0.1}, "eta = -0.1"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta = nan"),
        ({"sampler": "heun", "eta": 0.5}, "eta is for the sampler ddim"),
        ({"seed": -1}, "seed = -1"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": -5}, "at least 1 step"),
        ({"sampler": "ddpm", "steps": 1001}, "1001 steps are too many"),
    ],
)
def test_recipes_that_cannot_be(model: Model, recipe: dict[str, Any], message: str) -> None:
    """Each wrong ingredient is named, with what could be."""
    with pytest.raises(UsageError, match=message):
        sample(model, 1, **recipe)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("threshold", ["clip", "dynamic", "none"])
def test_every_grid_and_threshold(model: Model, grid: str, threshold: str) -> None:
    """Every combination gives pictures, even in a single step."""
    for steps in (1, 5):
        assert sample(model, 2, grid=grid, threshold=threshold, steps=steps).shape == (2, 16, 16, 1)


@pytest.mark.parametrize("count", [0, -3])
def test_no_samples_is_a_usage_error_or_none(model: Model, count: int) -> None:
    """A number of samples that makes no sense is refused in words (or none are given), not by accident in NumPy."""
    with contextlib.suppress(UsageError):
        assert len(sample(model, count)) == 0


def test_the_ticks_count_every_step(model: Model) -> None:
    """A progress bar of n x steps is full at the end."""
    ticks: list[int] = []
    condition = model.condition(range(5))
    images = generate_shared(model, Recipe(steps=4), 5, condition, batch_size=2, tick=ticks.append)
    assert images is not None and len(images) == 5
    assert sum(ticks) == 5 * 4


def test_not_finite_samples_are_not_drawn(model: Model) -> None:
    """A model that explodes gives an error, not black pictures."""
    broken = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=_Nan()))
    with pytest.raises(UsageError, match="not finite"):
        sample(broken, 1)


class _Nan(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x * torch.nan


def test_states_leave_the_callers_gradients_alone(model: Model) -> None:
    """Between two states the caller's own mode holds, and afterwards too; the states need no gradient."""
    both = [states(model, Recipe(steps=2 + k), [k], model.condition([k])) for k in (0, 1)]
    for one, _ in zip(*both, strict=False):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not one.x.requires_grad
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
