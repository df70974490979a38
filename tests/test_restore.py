"""Restoration of pictures: the law and the residuals of what it makes, on models; the data's covariance; refusals."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import Normal, ar1, dense
from references import as64
from scipy import stats
from torch import Tensor, nn

from undiffuse.data import load as load_data
from undiffuse.denoiser import Denoiser
from undiffuse.editing.operators import parse
from undiffuse.editing.restore import chi_square, data_covariance, restore, restore_picture, shrunk_covariance
from undiffuse.engines import available, with_engine
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Covariance
from undiffuse.model import Model, load
from undiffuse.registry import RESTORERS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(whole: Path) -> Model:
    return load(whole, "cpu")


class Wiener(nn.Module):
    """A network that says E[x_0 | x_t] of normal data, from an input of unit variance."""

    def __init__(self, data: Normal, scale: float):
        super().__init__()
        values, vectors = np.linalg.eigh(data.covariance)
        self.scale = scale
        for name, value in (("mean", data.mean), ("values", values), ("vectors", vectors)):
            self.register_parameter(name, nn.Parameter(torch.from_numpy(value).float(), requires_grad=False))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Any = None) -> Tensor:
        ratio = (-0.5 * log_snr).exp()[:, None]
        y = x.flatten(1) * (self.scale**2 + ratio**2).sqrt() - self.mean  # x_t / alpha
        return (self.mean + y @ self.vectors * (self.values / (self.values + ratio**2)) @ self.vectors.T).view_as(x)


@pytest.fixture(scope="module")
def exact(model: Model) -> tuple[Model, Normal]:
    """A model that knows its data: AR(1) pictures of 16x16."""
    data = Normal(np.linspace(-0.3, 0.3, 256), 0.05 * np.kron(ar1(16, 0.9), ar1(16, 0.8)))
    denoiser = Denoiser(Wiener(data, 0.3), model.denoiser.process, "x0", 0.3)
    return dataclasses.replace(model, denoiser=denoiser), data


@pytest.mark.parametrize("method", ["gaussian", "mmps"])
def test_restored_pictures_have_the_law_and_the_residuals_that_they_should(exact: Any, method: str) -> None:
    """Pictures drawn from the data, one y each: the restored have the conditional mean on average, and its spread, and
    residuals of a chi^2 law, so that 95% are in the band (5 standard errors of the normal and binomial laws)."""
    model, data = exact
    count, r = 300, 0.1
    map = parse("superres:4", (1, 16, 16)).map
    x0 = torch.from_numpy(data.draw(count, 1)).view(-1, 1, 16, 16)
    y = map.forward(x0) + r * normal(count, *map.observed)
    recipe = Recipe("dpm++2m", steps=40, threshold="none")
    covariance = Covariance.of(torch.from_numpy(data.covariance))
    out = restore(model, map, y, noise=r, method=method, recipe=recipe, numbers=range(count), covariance=covariance)
    means = np.stack([data.given(dense(map), one, np.full(16, r**2)).mean for one in y.flatten(1).numpy()])
    spread = data.given(dense(map), y[0].flatten().numpy(), np.full(16, r**2)).covariance
    away = out.x0.flatten(1).numpy() - means
    np.testing.assert_allclose(away.mean(0), 0, atol=5 * math.sqrt(np.diag(spread).max() / count))
    np.testing.assert_allclose(np.square(away).sum(1).mean(), np.trace(spread), rtol=0.05)
    low, high = out.band
    inside = ((out.residual > low) & (out.residual < high)).double().mean().item()
    assert abs(inside - 0.95) < 5 * math.sqrt(0.95 * 0.05 / count)
    assert out.unsolved.max() < 2e-3
    assert (
        f"of {count} samples {round(inside * count)} in the noise's 95% band" in out.report()
        and "mmps" not in out.report()
    )


@pytest.mark.parametrize("method", RESTORERS)
def test_a_restored_picture_is_the_same_in_any_batch(model: Model, method: str) -> None:
    """Sample k is a function of its number and its y, whatever the batch: every method, on a network."""
    map = parse("superres:4", (1, 16, 16)).map
    y = normal(8, *map.observed).clamp(-1, 1)
    recipe = Recipe("ddim", steps=3, eta=0.5)
    call = partial(restore, model, map, noise=0.2, method=method, recipe=recipe)
    crowd = call(y, numbers=range(8))
    assert crowd.rows.shape == (8, 16, 16, 1) and len({row.tobytes() for row in crowd.rows}) == 8
    for k in (0, 5):
        alone = call(y[k : k + 1], numbers=[k])
        torch.testing.assert_close(alone.x0[0], crowd.x0[k], rtol=1e-4, atol=1e-4)
    small = call(y, numbers=range(8), batch_size=3)
    torch.testing.assert_close(small.x0, crowd.x0, rtol=1e-4, atol=1e-4)
    shared = call(y[:1], numbers=range(3), batch_size=2)
    torch.testing.assert_close(shared.x0[0], crowd.x0[0], rtol=1e-4, atol=1e-4)


def test_a_picture_is_restored_and_known_pixels_keep_their_bytes(model: Model) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    out = restore_picture(model, rows, "inpaint", mask=mask, n=3, recipe=Recipe(steps=3))
    assert (out.rows[:, ~mask] == rows[:, ~mask]).all()
    assert len({row.tobytes() for row in out.rows}) == 3
    assert out.noise == pytest.approx(2 / 255 / math.sqrt(12)) and out.observed == 192
    noisy = restore_picture(model, rows, "inpaint", mask=mask, noise=0.5, recipe=Recipe(steps=3))
    assert (noisy.rows[:, ~mask] != rows[:, ~mask]).any()
    assert noisy.noise == pytest.approx(math.hypot(0.5, out.noise))


def test_the_report_says_what_is_so(model: Model) -> None:
    """Residuals by their definition; no band where no noise was named; what mmps left unsolved."""
    map = parse("blur:1", (1, 16, 16)).map
    y = normal(2, *map.observed)
    out = restore(model, map, y, noise=0.0, method="ddrm", recipe=Recipe(steps=2), numbers=range(2))
    residual = (y - map.forward(out.x0.double())).square().flatten(1).sum(1)
    torch.testing.assert_close(out.residual, residual)
    assert "no noise was named" in out.report() and "95%" not in out.report()
    late = dataclasses.replace(out, unsolved=as64(0.5, 0.0))
    assert "in 1 of 2 samples mmps did not solve a system to 0.001: the worst is left at 0.5" in late.report()


@pytest.mark.parametrize("degrees", [1, 2, 33, 784, 3072, 200_000])
def test_the_band_is_chi_squared(degrees: int) -> None:
    for share in (0.025, 0.5, 0.975):
        assert chi_square(degrees, share) == pytest.approx(stats.chi2.ppf(share, degrees), rel=1e-9)


def test_the_covariance_of_the_data(model: Model, data: str) -> None:
    """scikit-learn's shrunk one, of x_0; read again from the cache, and of other data where it is named."""
    from sklearn.covariance import LedoitWolf

    covariance = data_covariance(model)
    rows = np.asarray(load_data(data, "train").images) / 127.5 - 1
    expected = LedoitWolf().fit(rows.reshape(len(rows), -1)).covariance_
    ours = covariance.vectors * covariance.values @ covariance.vectors.T
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    assert covariance.values.min() > 0 and len(rows) < 256  # fewer pictures than numbers
    again = data_covariance(model, data)
    assert (again.vectors == covariance.vectors).all()


def test_the_covariance_of_colour_pictures_is_in_the_order_of_x0(tmp_path: Path, model: Model) -> None:
    """Channels first, where rows have them last."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    rows[..., 0] //= 4
    np.savez(tmp_path / "colour.npz", images=rows)
    colour = dataclasses.replace(model, data=dataclasses.replace(model.data, shape=(6, 6, 3)))
    covariance = data_covariance(colour, str(tmp_path / "colour.npz"))
    variances = (covariance.vectors**2 * covariance.values).sum(1).view(3, 36)
    assert variances[0].max() < 0.9 * variances[1:].min()


def test_constant_data_has_a_covariance() -> None:
    np.testing.assert_array_equal(shrunk_covariance(np.full((5, 3), 7, np.uint8)), np.zeros((3, 3)))


def test_what_cannot_be_restored_is_one_line(model: Model) -> None:
    rows = np.zeros((1, 4, 4, 1), np.uint8)
    for options, says in (
        ({"method": "gausian"}, "did you mean gaussian"),
        ({"noise": -1.0}, "standard deviation"),
        ({"n": 0}, "at least one"),
        ({"noise": math.nan}, "standard deviation"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            restore_picture(model, rows, "superres:4", **options)
        assert "\n" not in str(caught.value)
    imported = dataclasses.replace(model, training={"imported": "elsewhere"})
    with pytest.raises(UsageError, match="take the method mmps"):
        restore_picture(imported, rows, "superres:4")


@pytest.mark.skipif("onnxruntime" not in available(), reason="onnxruntime is not installed")
def test_onnx_runs_what_needs_no_derivative(model: Model) -> None:
    """The same picture as by PyTorch; what differentiates is refused with the way out."""
    rows = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 1), dtype=np.uint8)
    onnx, recipe = with_engine(model, "onnxruntime"), Recipe(steps=3)
    ours, theirs = (restore_picture(one, rows, "superres:4", recipe=recipe) for one in (onnx, model))
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-3, atol=1e-3)
    for method, entry in RESTORERS.items():
        if entry.differentiates:
            with pytest.raises(UsageError, match="--engine torch"):
                restore_picture(onnx, rows, "superres:4", method=method, recipe=recipe)
