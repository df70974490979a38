"""A model that is shown what is known: the network, its start from another model, its masks, and its use in edits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomised

from undiffuse.conditions import Composition, Known, Labels, known_of_each, known_pixels, without_known
from undiffuse.editing.rows import edit
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, generate
from undiffuse.guidance import Guidance
from undiffuse.model import Model, load
from undiffuse.networks import InpaintingUNet, UNet
from undiffuse.networks.inputs import forget_known
from undiffuse.networks.unet import fold
from undiffuse.randomness import BatchDraw, stream
from undiffuse.training import train
from undiffuse.training.masks import draw_masks


@pytest.fixture(scope="module")
def painter(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model with network.inpaint, its weights random."""
    run = tmp_path_factory.mktemp("painter") / "run"
    train({**tiny, "network.inpaint": True, "training.steps": 2}, run)
    model = load(run)
    randomised(model.network, 0.1)
    return model


def test_the_network_sees_what_is_known() -> None:
    """x, the known pixels and the mask are the channels of a plain U-Net; none known is zeros and ones."""
    options: dict[str, Any] = {"channels": (16, 16), "attention": (), "blocks": 1}
    painting = randomised(InpaintingUNet(1, 1, **options), 0.1)
    plain = UNet(3, 1, **options)
    plain.load_state_dict(painting.state_dict())
    x, log_snr = torch.randn(2, 1, 8, 8), torch.tensor([0.5, -2.0])
    x0, repaint = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8) < 0.5
    known = known_pixels(None, x0, repaint)
    expected = plain(torch.cat([x, torch.where(repaint, 0, x0), repaint.float()], 1), log_snr)
    assert torch.equal(painting(x, log_snr, known), expected)
    nothing = plain(torch.cat([x, torch.zeros_like(x), torch.ones_like(x)], 1), log_snr)
    assert torch.equal(painting(x, log_snr, None), nothing)


def test_known_pixels_are_rows_and_devices() -> None:
    labels, planes = Labels(torch.tensor([0, 1]), 3), torch.arange(12.0).view(2, 2, 1, 3)
    known = Known(labels, planes)
    part = known[torch.tensor([1])].to(torch.device("cpu"))
    assert (len(known), len(part)) == (2, 1)
    assert torch.equal(part.planes, planes[1:]) and without_known(part)[0].index.tolist() == [1]  # type: ignore
    twice = known.joined(known.dropped())
    assert twice.condition.index.tolist() == [0, 1, 3, 3] and torch.equal(twice.planes, planes.repeat(2, 1, 1, 1))
    assert Known(None, planes).joined(Known(None, planes)).dropped().condition is None
    composed = known_of_each(Composition((labels, labels), labels), torch.ones(2, 1, 1, 3), torch.ones(2, 1, 1, 3) > 0)
    assert all(isinstance(one, Known) for one in (*composed.parts, composed.away))  # type: ignore[union-attr]


def test_masks_hide_what_they_say() -> None:
    """Two fifths of them everything; the rest something and not everything; the same however a batch is shared out."""
    masks = draw_masks((16, 24), BatchDraw(stream(3), 4000, slice(0, 4000)))
    assert masks.shape == (4000, 1, 16, 24) and masks.dtype == bool
    hidden = masks.mean((1, 2, 3))
    assert (hidden == 1).mean() == pytest.approx(0.4 + 0.3 * 0.05**2, abs=0.03)
    assert ((hidden > 0) & (hidden < 1)).mean() > 0.55
    assert 0.4 < hidden[hidden < 1].mean() < 0.6
    shared = draw_masks((16, 24), BatchDraw(stream(3), 4000, slice(100, 103)))
    np.testing.assert_array_equal(shared, masks[100:103])


@pytest.mark.parametrize("lora", [0, 2])
def test_any_model_can_learn_to_be_shown(whole: Path, data: str, tmp_path: Path, lora: int) -> None:
    """Fine-tuned for no step it computes what its base does, to the bit, whatever is known; then it learns."""
    settings = {"data.source": data, "training.base": str(whole), "network.inpaint": True, "training.steps": 1}
    settings |= {"training.learning_rate": 1e-30, "training.lora": lora, "training.precision": "fp32"}
    train(settings, tmp_path / "run")
    base, model = load(whole), load(tmp_path / "run")
    assert isinstance(model.network, InpaintingUNet)
    x, log_snr, labels = torch.randn(2, 1, 16, 16), torch.tensor([0.0, 3.0]), model.of_class(1, 2)
    expected = base.network(x, log_snr, labels)
    for condition in (labels, known_pixels(labels, x, x > 0)):
        torch.testing.assert_close(model.network(x, log_snr, condition), expected, rtol=1e-5, atol=1e-6)
    rows = model.domain.decode(x)
    mask = np.zeros((16, 16), dtype=bool)
    mask[:8] = True
    edited = edit(model, rows, Recipe(steps=3), labels, strength=1, repaint=mask)
    np.testing.assert_array_equal(edited[:, ~mask], rows[:, ~mask])


def test_an_edit_shows_what_is_known(painter: Model) -> None:
    """What is known changes what is painted; alone or in a batch, guided or not."""
    rows = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:12] = True
    condition = painter.of_class(1, 4)
    for scale in (1.0, 3.0):
        recipe = Recipe(steps=3, guidance=Guidance(scale))
        crowd = edit(painter, rows, recipe, condition, strength=1, repaint=mask)
        alone = edit(painter, rows[2:3], recipe, condition[2:3], strength=1, repaint=mask, numbers=[2])
        assert abs(crowd[2].astype(int) - alone[0]).max() <= 1
        np.testing.assert_array_equal(crowd[:, ~mask], rows[:, ~mask])
        other = edit(painter, rows[::-1].copy(), recipe, condition, strength=1, repaint=mask)
        assert (other[:, mask] != crowd[:, mask]).mean() > 0.2
    (drawn,) = generate(painter, Recipe(steps=3), range(2), painter.condition(range(2)))
    assert drawn.shape == (2, 16, 16, 1)


def test_models_that_take_none_refuse(whole: Path) -> None:
    model = load(whole)
    known: Any = known_pixels(model.of_class(0, 1), torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16) > 0)
    with pytest.raises(UsageError, match=r"takes no known pixels: fine-tune it with network\.inpaint"):
        model.taken(known, 1)
    config = model.config.model_copy(update={"network": model.config.network.model_copy(update={"inpaint": True})})
    shown = dataclasses.replace(model, config=config)
    with pytest.raises(UsageError, match="was given for 2"):
        shown.taken(known, 2)


@pytest.mark.parametrize("setting", [{"network.head": 8}, {"network.kernel": 3}])
def test_special_networks_are_not_shown(tiny: dict[str, Any], tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"network\.inpaint is for pictures, without"):
        train({**tiny, "network.inpaint": True, **setting}, tmp_path / "run")


def test_a_network_that_is_shown_nothing_any_more() -> None:
    """Its first layer gives what it gave when nothing was known, but at the border."""
    painting = randomised(InpaintingUNet(3, 3, channels=(16, 16), attention=(), blocks=1), 0.1)
    x = torch.randn(2, 3, 16, 16)
    nothing = torch.cat([x, torch.zeros_like(x), torch.ones_like(x[:, :1])], 1)
    with torch.no_grad():
        before = painting.stem(fold(nothing, painting.patch))
        forget_known(painting, 3)
        after = painting.stem(fold(x, painting.patch))
    torch.testing.assert_close(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], rtol=1e-5, atol=1e-6)
    assert (after - before).abs().max() > 1e-3


def test_a_run_may_forget_what_is_known(painter: Model, data: str, tmp_path: Path) -> None:
    """All other weights are those of the base."""
    settings = {"data.source": data, "training.base": painter.name, "network.inpaint": False, "training.steps": 1}
    train({**settings, "training.learning_rate": 1e-30, "training.precision": "fp32"}, tmp_path / "run")
    after, before = load(tmp_path / "run").network, load(painter.name).network
    assert type(after) is UNet
    ours, theirs = after.state_dict(), before.state_dict()
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if name[:5] == "stem." or (ours[name] - theirs[name]).abs().max() > 1e-20}
    assert changed == {"stem.weight", "stem.bias"}
