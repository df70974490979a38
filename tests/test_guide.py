"""What guides a model, through the public functions: scales, costs, guides, compositions, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, randomised
from torch import Tensor, nn

from undiffuse.classifier import Classifier
from undiffuse.conditions import Composition, Labels
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe, generate, states
from undiffuse.guidance import Guidance, Overshoot
from undiffuse.guide import guided_denoiser, request, with_guide
from undiffuse.model import Model, load


@pytest.fixture(scope="module")
def model(whole: Path) -> Model:
    """The tiny model with random weights on top, so that classes matter."""
    model = load(whole)
    randomised(model.network)
    return model


def last(model: Model, condition: Any, **settings: Any) -> Tensor:
    recipe = Recipe("ddim", 4, guidance=Guidance(**settings))
    *_, state = states(model, recipe, range(3), condition)
    return state.x


class Counting(nn.Module):
    """A network that keeps the sizes of the batches it is evaluated on."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.rows = module, []

    def forward(self, x: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        self.rows.append(len(x))
        return self.module(x, log_snr, condition)


def counted(model: Model) -> tuple[Model, list[int]]:
    """The model, and the sizes of the batches that its network is evaluated on."""
    network = Counting(model.network)
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=network)), network.rows


def test_scale_one_is_the_conditional_model_to_the_bit(model: Model) -> None:
    condition = model.of_class(1, 3)
    counting, rows = counted(model)
    assert torch.equal(last(counting, condition, scale=1.0), last(model, condition))
    assert rows == [3] * 4
    rows.clear()
    assert torch.equal(last(counting, condition, scale=0.0), last(model, model.unconditional(3)))
    assert rows == [3] * 4
    rows.clear()
    assert not torch.equal(last(counting, condition, scale=3.0), last(model, condition))
    assert rows == [6] * 4


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m"])
@pytest.mark.parametrize("interval", [None, (0.19, 1.61), (0.0, 0.5), (5.0, 500.0)])
def test_the_cost_is_what_is_evaluated(model: Model, sampler: str, interval: tuple[float, float] | None) -> None:
    counting, rows = counted(model)
    recipe = Recipe(sampler, 6, guidance=Guidance(2.0, interval))
    list(states(counting, recipe, [0], model.of_class(0, 1)))
    assert sum(rows) == recipe.cost(model)
    rows.clear()
    two = request(model, 1, None, [0, 1])
    list(states(counting, recipe, [0], two))
    assert sum(rows) == recipe.cost(model, two)


def test_a_guide_is_a_weaker_model_on_the_same_process(model: Model, whole: Path) -> None:
    """D_weak + w (D - D_weak), each evaluated by hand; the same model as guide changes nothing."""
    condition, guided = model.of_class(1, 2), with_guide(model, whole)
    x_t, process = torch.randn(2, *model.domain.shape), model.denoiser.process
    found = guided_denoiser(guided, condition, Guidance(2.5))(x_t, 0.5)
    assert guided.guide is not None
    strong, weak = (one.denoiser(x_t, 0.5, condition).x0 for one in (model, guided.guide))
    torch.testing.assert_close(found.x0, weak + 2.5 * (strong - weak))
    again = process.noise_level(0.5).alpha.item() * found.x0 + process.noise_level(0.5).sigma.item() * found.eps
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-5)
    itself = with_guide(model, model)
    torch.testing.assert_close(last(itself, model.of_class(1, 3), scale=3.0), last(model, model.of_class(1, 3)))
    assert len({model.fingerprint, guided.fingerprint, itself.fingerprint}) == 3


def test_requests(model: Model) -> None:
    """No class: the data's proportions; one: it; several or a negative: a composition."""
    assert isinstance(request(model, 5, model.condition(range(5))), Labels)
    assert request(model, 5, model.condition(range(5))).index.tolist() == model.condition(range(5)).index.tolist()  # type: ignore[union-attr]
    assert request(model, 2, None, [1]).index.tolist() == [1, 1]  # type: ignore[union-attr]
    several = request(model, 2, None, [0, 1], 2)
    assert isinstance(several, Composition)
    assert [part.index.tolist() for part in (*several.parts, several.away)] == [[0, 0], [1, 1], [2, 2]]  # type: ignore[attr-defined]
    composed = last(model, request(model, 3, None, [0, 0]), scale=1.0)
    torch.testing.assert_close(composed, last(model, model.of_class(0, 3), scale=2.0), rtol=1e-4, atol=1e-4)
    away = last(model, request(model, 3, None, [0], 0), scale=5.0)
    torch.testing.assert_close(away, last(model, model.of_class(0, 3)), rtol=1e-4, atol=1e-4)


def test_a_composition_is_the_same_in_any_batch(model: Model) -> None:
    recipe, whole = Recipe("ddim", 3, guidance=Guidance(2.0)), request(model, 5, None, [0, 1])
    (together,) = generate(model, recipe, range(5), whole)
    apart = list(generate(model, recipe, range(5), whole, batch_size=2))
    difference = abs(together.astype(int) - np.concatenate(apart))
    assert difference.max() <= 1


def test_the_share_out_of_range(model: Model) -> None:
    """Counted at each trajectory's last prediction, before the threshold."""
    overshoot = Overshoot()
    values = torch.tensor([[0.0, 1.0, -1.0, 1.0039], [1.004, -3.0, 0.5, 9.0]])
    watched = overshoot.watch(lambda x, t: values_of(x))

    def values_of(x: Tensor) -> Any:
        return dataclasses.make_dataclass("P", ["x0"])(x)

    watched(torch.full((2, 4), 7.0), 0.5)
    watched(values, 0.1)
    overshoot.keep()
    assert overshoot.share == 3 / 8
    seen = Overshoot()
    list(generate(model, Recipe("ddim", 3, guidance=Guidance(30.0)), range(4), model.of_class(0, 4), overshoot=seen))
    assert 0 < seen.share < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance", "nan"], "finite"),
        (["--guidance", "2", "--guidance-interval", "1"], "write two noise levels"),
        (["--guidance", "2", "--guidance-interval", "2,1"], "0 <= low < high"),
        (["--guidance", "2", "--apg", "a"], "--apg a: write ETA"),
        (["--guidance", "2", "--guidance-rescale", "2"], "between 0 and 1"),
        (["--guidance", "2", "--guide", "nowhere"], "no model 'nowhere'"),
        (["--guidance", "2", "--guide", "emoji"], "(32, 32, 3), and"),
        (["--sampler", "cfg++"], "a way to guide"),
        (["--class", "zebra"], "zebra"),
    ],
)
def test_refusals(command: Command, whole: Path, arguments: list[str], message: str) -> None:
    code, _, err = command("sample", whole, "-n", 1, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_models_that_cannot_be_guided(model: Model) -> None:
    always = model.config.model_copy(
        update={"training": model.config.training.model_copy(update={"label_dropout": 0.0})}
    )
    never_without = dataclasses.replace(model, config=always)
    with pytest.raises(UsageError, match="never learnt without"):
        guided_denoiser(never_without, model.of_class(0, 1), Guidance(2.0))
    with pytest.raises(UsageError, match="nothing to guide by"):
        guided_denoiser(model, None, Guidance(2.0))
    with pytest.raises(UsageError, match="one class"):
        guided_denoiser(with_guide(model, model), request(model, 1, None, [0, 1]), Guidance(2.0))


def test_the_command_says_what_it_cost(command: Command, whole: Path, tmp_path: Path) -> None:
    guidance = ["--class", "0", "--guidance", "2", "--guidance-interval", ".19,1.61"]
    options = [*guidance, "--steps", "4", "--sampler", "ddim"]
    code, out, _ = command("sample", whole, "-n", 2, *options, "--out", tmp_path / "x.png")
    assert code == 0
    assert "6 evaluations of the network each" in out
    assert "out of range" in out


@pytest.mark.parametrize("knows", [True, False])
def test_a_classifier_counts_from_the_plain_model(model: Model, knows: bool) -> None:
    """Scale 1 is the conditional law: of a model that knows the class its own, of another the classifier's."""

    class Linear(nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    shape = model.domain.shape
    classifier = Classifier("linear", Linear(), 0.5, torch.tensor([0.2, 0.3, 0.5]).log(), model.data, {})
    unknown = dataclasses.replace(model.data, classes=(), class_share=())
    guided = with_guide(model if knows else dataclasses.replace(model, data=unknown), classifier)
    denoiser = guided.denoiser
    if not knows:
        network = Counting(model.network)
        network.forward = lambda x, log_snr, condition: model.network(x, log_snr, model.unconditional(len(x)))  # type: ignore
        denoiser = dataclasses.replace(denoiser, network=network)
        guided = dataclasses.replace(guided, denoiser=denoiser)
    labels = classifier.of_class(1, 2)
    x_t, process = torch.randn(2, *shape), denoiser.process
    plain = denoiser(x_t, 0.5, labels if knows else None).x0
    level = process.noise_level(0.5)
    x = x_t.clone().requires_grad_()
    gradient = torch.autograd.grad(classifier.log_probs(x, level)[:, 1].sum(), x)[0]
    for scale in (1.0, 2.5):
        found = guided_denoiser(guided, labels, Guidance(scale))(x_t, 0.5).x0
        expected = plain + (scale - knows) * level.sigma**2 / level.alpha * gradient
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
