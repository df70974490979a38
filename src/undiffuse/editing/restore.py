"""Restoration: samples of p(x_0 | y) for what is left of a picture, y = H x_0 + n, and how well they agree with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.build import make_data_of
from undiffuse.cache import folder_for, locked, writing
from undiffuse.conditions import Condition
from undiffuse.config import DataConfig
from undiffuse.editing.baselines import Spectrum
from undiffuse.editing.maps import Masked
from undiffuse.editing.operators import Degradation, parse
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Covariance, Guidance, LinearMap, Observation
from undiffuse.metrics.blocks import blocks
from undiffuse.metrics.frechet import moments
from undiffuse.model import Model
from undiffuse.process import float64_device
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import keyed_draws
from undiffuse.registry import RESTORERS, SAMPLERS
from undiffuse.sampling import Step, trajectory
from undiffuse.vocoder import rows_of

FORMAT = 2
BAND = 0.95


@dataclass(frozen=True)
class Restored:
    """Samples that agree with an observation.

    Attributes:
        rows: of the model's domain, uint8 (n, H, W, C) of pictures.
        x0: the same before they were rounded, float32 (n, *shape).
        residual: |y - H x_0|^2 / r^2 (n,), float64; without noise |y - H x_0|^2.
        observed: M, how many numbers were observed.
        noise: r; 0 where there is none.
        unsolved: for each sample, the largest relative residual of the systems that mmps solved; else 0.
    """

    rows: np.ndarray
    x0: Tensor
    residual: Tensor
    observed: int
    noise: float
    unsolved: Tensor

    @property
    def band(self) -> tuple[float, float]:
        """Where `residual` of the picture itself, or of a sample of p(x_0 | y), is in 95 % of all cases: chi^2 of M."""
        return chi_square(self.observed, (1 - BAND) / 2), chi_square(self.observed, (1 + BAND) / 2)

    def report(self, tolerance: float = 1e-3) -> str:
        """How well the samples agree with y, and what was not solved, in one or two lines."""
        mean = self.residual.mean().item() / self.observed
        if self.noise:
            low, high = self.band
            below, above = int((self.residual < low).sum()), int((self.residual > high).sum())
            text = (
                f"residual {mean:.3g} times the noise's variance; of {len(self.rows)} samples "
                f"{len(self.rows) - below - above} in the noise's 95% band ({low / self.observed:.3g} to "
                f"{high / self.observed:.3g}), {below} below, {above} above"
            )
        else:
            text = f"residual {math.sqrt(mean):.3g} (root mean square, in the scale of x_0); no noise was named"
        late = int((self.unsolved > tolerance).sum())
        if late:
            text += (
                f"\nin {late} of {len(self.rows)} samples mmps did not solve a system to {tolerance:g}: the worst is "
                f"left at {self.unsolved.max():.2g}"
            )
        return text


@torch.no_grad()
def restore(
    model: Model,
    map: LinearMap,
    y: Tensor,
    *,
    noise: float,
    method: str = "gaussian",
    recipe: Recipe | None = None,
    numbers: Sequence[int] = range(1),
    condition: Condition | None = None,
    covariance: Covariance | None = None,
    batch_size: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Restored:
    """Samples of x_0 given y = H x_0 + n, n ~ N(0, noise^2 I), each a pure function of (model, recipe, y, its number).

    Args:
        map: H.
        y: (n, *observed), one for each of `numbers`; or (1, *observed), of which all are samples.
        noise: r, in the scale of x_0, whose range is 2.
        method: a name in RESTORERS.
        recipe: how to sample, 20 steps of the default unless said; the methods that are step rules of their own take
            its steps, grid and seed.
        condition: as `undiffuse.states` takes it; None: unconditional.
        covariance: of the data, for "gaussian"; None: `data_covariance`.
        tick: called after every step with the number of samples.

    Raises UsageError for a method that there is not, that needs another engine, or whose samples are not finite;
    ValueError for y or a map of another shape.
    """
    entry, recipe = RESTORERS.find(method), recipe or Recipe()
    if recipe.guidance != Guidance() or SAMPLERS[recipe.sampler].guides:
        raise UsageError("a restoration is guided by what was observed: leave guidance and the sampler cfg++ out")
    recipe.check(model)
    if not len(numbers):
        raise UsageError("n = 0: draw at least one sample")
    if entry.differentiates and model.engine == "onnxruntime":
        raise UsageError(f"{method} differentiates the network, which ONNX Runtime cannot do: take --engine torch")
    if map.shape != model.domain.shape or len(y) not in (1, len(numbers)):
        raise ValueError(f"a map of {map.shape} and {len(y)} y for {len(numbers)} samples of {model.domain.shape}")
    condition = model.unconditional(len(numbers)) if condition is None else condition.to(model.device)
    model.taken(condition, len(numbers))  # refuses one that does not fit
    process, home = model.denoiser.process, float64_device(torch.empty(0, device=model.device)).device
    needs: dict[str, Any] = {}
    if entry.needs == "covariance":
        needs["covariance"] = covariance or data_covariance(model)
    elif entry.needs:
        needs["spectrum"] = Spectrum.of(map, home)
    whole, ends = Observation(map, y.to(home).double(), noise), []
    unsolved = torch.zeros(len(numbers), dtype=torch.float64)
    grid = recipe.times(model)
    for first in range(0, len(numbers), batch_size):
        here = slice(first, first + batch_size)
        observation = whole.rows(here)
        denoise = model.denoiser.bind(None if condition is None else condition[here])
        if method == "mmps":
            needs["tell"] = partial(_keep_largest, unsolved[here])
        step: Step = partial(entry, observation=observation, **needs) if entry.steps else recipe.step
        if not entry.steps:
            denoise = entry(denoise, process, observation, **needs)
        denoise = recipe.thresholded(model, denoise)
        draws = keyed_draws(recipe.seed, numbers[here])
        start = process.prior(torch.empty(len(numbers[here]), *map.shape, device=model.device)).sample(draws(0))
        for state in trajectory(denoise, process, grid, step, start, draws):
            last = state
            if tick and state.x0 is not None:
                tick(len(start))
        if not last.x.isfinite().all():
            raise UsageError(f"{method} diverged, its samples are not finite: take more steps, or another method")
        ends.append(last.x.cpu())
    x0 = torch.cat(ends)
    residual = Observation(map, y.cpu().double(), noise).misfit(x0).square().sum(1)
    rows = rows_of(model, x0)
    return Restored(rows, x0, residual / (noise**2 or 1), math.prod(map.observed), noise, unsolved)


def restore_picture(
    model: Model,
    rows: np.ndarray,
    spec: str | Degradation,
    *,
    mask: np.ndarray | None = None,
    noise: float = 0.0,
    method: str = "gaussian",
    recipe: Recipe | None = None,
    n: int = 1,
    condition: Condition | None = None,
    covariance: Covariance | None = None,
    tick: Callable[[int], None] | None = None,
) -> Restored:
    """n samples of the picture of which `rows` is what is left: `undiffuse edit MODEL IMAGE --restore SPEC`.

    Args:
        rows: one observation, (1, ...) as `Degradation.encode` takes it.
        spec, mask: as `undiffuse.editing.operators.parse` takes them; or `spec` is what that returned.
        noise: of what was observed, as a standard deviation in the scale of x_0. That of rounding is added to it.

    Without noise the known pixels of `inpaint` keep their bytes. Raises UsageError as `parse`, `encode` and `restore`.
    """
    if not (noise >= 0 and math.isfinite(noise)):
        raise UsageError(f"noise = {noise:g} is a standard deviation: 0 or more, in the scale of x_0 (from -1 to 1)")
    degradation = spec if isinstance(spec, Degradation) else parse(spec, model.domain.shape, mask)
    y = degradation.encode(rows)
    rounding = degradation.step / math.sqrt(12) if rows.dtype == np.uint8 else 0.0
    restored = restore(
        model,
        degradation.map,
        y,
        noise=math.hypot(noise, rounding),
        method=method,
        recipe=recipe,
        numbers=range(n),
        condition=condition,
        covariance=covariance,
        tick=tick,
    )
    if isinstance(degradation.map, Masked) and rows.dtype == np.uint8 and not noise:
        known = degradation.map.known.numpy()
        restored.rows[:, known] = rows[0, known]
    return restored


def data_covariance(model: Model, data: str | None = None, bar: Bar = no_bar) -> Covariance:
    """That of the training images of a model, or of `data` brought to its shape, from the cache if it is known there.

    It is shrunk: of fewer pictures than numbers the sample covariance is singular, and by it no picture could ever
    differ from the training images but in the directions in which these differ.

    Raises UsageError for an imported model and no data, UndiffuseError where its data is not on this machine.
    """
    config = (
        model.learnt if data is None else DataConfig.model_validate({"source": data, "channels": model.data.shape[-1]})
    )
    if config is None:
        raise UsageError(f"{model.name} was imported and knows no data: name some, or take the method mmps")
    images = make_data_of(model.data.shape, config, "train", bar)
    folder = folder_for("covariances", [FORMAT, images.fingerprint])
    with locked(folder):
        if not (folder / "values.npy").exists():
            stored = shrunk_covariance(images.images.reshape(len(images), -1)) / 127.5**2
            order = np.arange(len(stored)).reshape(images.shape).transpose(2, 0, 1).ravel()  # that of x_0
            covariance = Covariance.of(stored[order][:, order])
            with writing(folder) as temporary:
                np.save(temporary / "values.npy", covariance.values.numpy())
                np.save(temporary / "vectors.npy", covariance.vectors.numpy())
    values, vectors = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("values", "vectors"))
    return Covariance(torch.from_numpy(values), torch.from_numpy(vectors))


def shrunk_covariance(rows: np.ndarray) -> Tensor:
    """Of (N, D) numbers, float64 (D, D): (1 - d) S + d tr(S) / D I, with the d that comes nearest to the true one.

    Ledoit & Wolf 2004, eq. 14, estimate d from the rows. With many of them it is S.
    """
    sample = moments(rows)
    count, size = rows.shape
    covariance = sample.covariance * ((count - 1) / count)
    fourth = sum((x - sample.mean).square().sum(1).square().sum().item() for _, x in blocks(rows))
    scale, square = covariance.trace() / size, covariance.square().sum()
    error = (fourth / count - square) / count
    share = (error / (square - size * scale**2)).clamp(0, 1).nan_to_num(1.0)
    return (1 - share) * covariance + (share * scale * torch.ones(size, dtype=torch.float64)).diag()


def chi_square(degrees: int, share: float) -> float:
    """The quantile of a chi^2 law: what a share of it, between 0 and 1, lies below. By bisection, to rounding."""
    half = torch.tensor(degrees / 2, dtype=torch.float64)
    low, high = 0.0, degrees + 20.0 * math.sqrt(degrees) + 100.0
    for _ in range(80):
        middle = (low + high) / 2
        if torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64)) < share:
            low = middle
        else:
            high = middle
    return high


def _keep_largest(kept: Tensor, residuals: Tensor) -> None:
    torch.maximum(kept, residuals.to(kept), out=kept)
