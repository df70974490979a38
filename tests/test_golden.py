"""The built-in models still say what they said: their final states and bounds, as once recorded in tests/golden.

`python tests/test_golden.py` records them anew, which only a change that means to change samples may do.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.conditions import Labels
from undiffuse.generate import Recipe, states
from undiffuse.likelihood.bound import Formula, estimate_bound, stratified
from undiffuse.model import Model, built_in, load
from undiffuse.randomness import keyed_draws
from undiffuse.writing import process_of

GOLDEN = Path(__file__).parent / "golden"
RECIPES = [Recipe("ddim", 5), Recipe("dpm++2m", 5), Recipe("ddpm", 5), Recipe("unipc", 5)]
NUMBERS = [0, 1]
LABELS = torch.tensor([1, 7])


def pictures(model: Model) -> torch.Tensor:
    """A gradient and a grid of squares, of the shape of x_0 and with whole values: float32 (2, C, H, W) in [-1, 1]."""
    channels, height, width = model.domain.shape
    c, y, x = np.mgrid[:channels, :height, :width]
    values = np.stack([(5 * x + 3 * y + 40 * c) % 256, np.where((x // 7 + y // 5 + c) % 2, 230 - c, 12 + y)])
    return torch.from_numpy(values).float() / 127.5 - 1


def golden(name: str) -> Path:
    """The file of a model; of a student's that is in its teacher's folder, such as fashion-mnist-1-step.npz."""
    return GOLDEN / f"{name.replace('/', '-')}.npz"


def said_by(name: str) -> dict[str, np.ndarray]:
    """Final states, float32, by recipe, and bounds in nats per dimension, float64."""
    model = load(name, "cpu")
    if model.data.domain == "texts":
        return said_of_text(model)
    kind = None if model.data.takes is None else model.data.takes.kind
    condition = Labels(LABELS, len(model.data.classes)) if kind == Labels.kind else model.condition(NUMBERS)
    said, student = {}, model.config.network.jumps
    for recipe in [Recipe().for_model(model)] if student else RECIPES:
        *_, last = states(model, recipe, NUMBERS, condition)
        said[recipe.key] = last.x.numpy()
    if student:
        return said
    x0 = pictures(model)
    draws = keyed_draws(0, NUMBERS)
    for steps, variance in ((None, "small"), (10, "large")):
        u = stratified(torch.tensor(NUMBERS), 6)
        said[f"bound:{steps}"] = estimate_bound(
            model.denoiser, x0, Formula(steps, variance), draws, u, condition
        ).total.numpy()
    return said


def said_of_text(model: Model) -> dict[str, np.ndarray]:
    """Logits at every 16th place: of a window of which every third token is masked, and of one that is all masks."""
    process, length = process_of(model), model.data.shape[0]
    x = torch.arange(length)[None] * 7 % process.values
    x = torch.cat([x.masked_fill(torch.arange(length) % 3 == 0, process.values), torch.full_like(x, process.values)])
    logits = model.denoiser.logits(x, 0.5, model.unconditional(2))  # type: ignore[attr-defined]
    return {"logits": logits[:, ::16].numpy()}


@pytest.mark.parametrize("name", built_in())
def test_built_in_models_say_what_they_said(name: str) -> None:
    """To what the arithmetic of another machine may change."""
    expected, said = np.load(golden(name)), said_by(name)
    assert said.keys() == set(expected)
    for key, value in said.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-3 if key.startswith("bound") else 0, atol=1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in built_in():
        np.savez_compressed(golden(name), **said_by(name))  # type: ignore[arg-type]
