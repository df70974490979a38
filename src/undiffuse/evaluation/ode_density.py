"""Bits per dimension of a model by its probability-flow ODE (Song et al. 2021, section 4.3), pixels dequantised."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import ImageSet
from undiffuse.denoiser import LOG_SNR_LIMIT
from undiffuse.errors import UsageError
from undiffuse.evaluation.density import (
    BITS,
    Density,
    conditions_of,
    count_of,
    images_of,
    part_of,
    pixels,
    shared,
    unmeasured,
)
from undiffuse.likelihood.dequantise import (
    Dequantiser,
    LogisticDequantiser,
    bits_per_dim,
    dequantised,
    dequantiser_loss,
    offset_bits,
    uniform,
    uniform_draws,
)
from undiffuse.likelihood.ode import log_likelihood
from undiffuse.likelihood.solver import Solver
from undiffuse.model import Model, pictures_only
from undiffuse.names import one_of
from undiffuse.objectives import Importance, continuous_bound, reconstruction_share
from undiffuse.objectives.times import low_discrepancy
from undiffuse.process import GaussianProcess, LogSNR
from undiffuse.progress import Bar, no_bar
from undiffuse.randomness import Given, Purpose, torch_generator
from undiffuse.registry import CATEGORICAL

DEFAULT_N = 100
BATCH = 50 * 28 * 28  # elements; the solver's steps are chosen for a whole batch
DEQUANTISERS = ("uniform", "learned")
FIT_STEPS, FIT_BATCH, FIT_RATE = 400, 16, 1e-2


def ode_density(
    model: Model,
    data: str | None = None,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    dequantiser: str = "uniform",
    solver: Solver | None = None,
    bar: Bar = no_bar,
) -> Density:
    """The ODE's bound on -log2 p of the first n images (100), without classes: one dequantisation and one Rademacher
    probe per image, as in published figures. Processes share the images as in `undiffuse.evaluation.density`.

    Args:
        dequantiser: "uniform", or "learned": fitted to the model first, on training images that are not measured.

    Raises UsageError for a model with the target "categorical" (its data are whole pixel values, never dequantised),
    and for a device without float64.
    """
    one_of("dequantiser", dequantiser, DEQUANTISERS)
    pictures_only(model, "the probability-flow ODE")
    if model.denoiser.target == CATEGORICAL:
        raise UsageError(
            f"{model.name} gives probabilities of whole pixel values and has no density for values between, "
            "which an ODE needs: use --metrics bpd"
        )
    if model.device.type == "mps":
        raise UsageError("the ODE is solved in float64, which this device does not have: add --device cpu")
    solver = solver or Solver(rtol=1e-4, atol=1e-4)
    images = images_of(model, data, split, bar)
    count, elements = count_of(images, n, DEFAULT_N), int(np.prod(images.shape))
    facts = conditions_of(model, images, split, data)
    q: Dequantiser = uniform
    if dequantiser == "learned":
        others, numbers = unmeasured(model, data, split, count, "a dequantiser", bar)
        q = fitted(model, others, numbers, seed, bar)

    def measure(numbers: np.ndarray) -> tuple[Tensor, int]:
        samples = numbers.tolist()
        x0 = pixels(images, numbers).to(model.device)
        with torch.no_grad():
            u, log_q = q(x0, uniform_draws(seed, samples, x0.shape[1:]).to(x0))
        one = log_likelihood(
            model.denoiser.bind(model.unconditional(len(x0))),
            model.denoiser.process,
            dequantised(x0, u).float(),
            seed=seed,
            samples=samples,
            solver=solver,
        )
        latent, within = (BITS / elements * z.cpu().double() for z in (-one.prior_log_prob, log_q))
        total = bits_per_dim(one.log_prob.cpu(), elements) + within
        bins = offset_bits() + within
        return torch.stack([latent, total - latent - bins, bins, total]), one.evaluations

    found = shared(measure, np.arange(count), BATCH, model, f"probability-flow ODE of {model.name}", bar)
    names = ("latent", "volume", "dequantisation", "bits_per_dim")
    columns = dict(zip(names, torch.cat([parts for parts, _ in found], 1), strict=True))
    conditions = facts | {
        "bound": "ODE",
        "steps": None,
        "variance": None,
        "draws": 1,
        "seed": seed,
        "solver": {**dataclasses.asdict(solver), "evaluations": [evaluations for _, evaluations in found]},
        "dequantisation": "uniform" if q is uniform else f"learned in {FIT_STEPS} steps",
        "divergence": "rademacher, 1 probe",
        "log_snr_max": float(model.denoiser.process.schedule.log_snr(model.denoiser.process.schedule.t_min)),
    }
    parts = {name: part_of(values) for name, values in columns.items()}
    per_image = columns["bits_per_dim"].numpy()
    return Density(model.name, per_image, parts, None, conditions, np.asarray(images.images[:count]))


@torch.enable_grad()
def fitted(model: Model, images: ImageSet, numbers: np.ndarray, seed: int, bar: Bar = no_bar) -> LogisticDequantiser:
    """A learned q(u | x) for a model, from the images numbered `numbers`.

    Minimises the bound of Ho et al. 2019 (section 3.1), with the model's own continuous-time bound for ln p(y), on a
    schedule of even log-SNRs: for each image of a batch at one of them, drawn by importance sampling.
    """
    schedule, importance = model.denoiser.process.schedule, Importance()
    draw = torch_generator(seed, Purpose.DEQUANTISE)
    ends = [schedule.log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).item() for t in (schedule.t_min, 1.0)]
    denoiser = dataclasses.replace(model.denoiser, process=GaussianProcess(LogSNR(ends)))
    share = reconstruction_share(denoiser, continuous=True)  # of the reconstruction, which does not depend on y
    size = max(1, min(FIT_BATCH, BATCH // int(np.prod(images.shape))))
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(seed)
        q = LogisticDequantiser(model.data.shape[2])
    optimizer = torch.optim.Adam(q.to(model.device).parameters())

    def log_prob(y: Tensor) -> Tensor:
        u, weight = importance.warp(low_discrepancy(len(y), draw))
        noise = Given(torch.randn(y.shape, generator=draw).to(y))
        nothing = model.unconditional(len(y))
        losses = continuous_bound(denoiser, y, nothing, share + (1 - share) * u, noise, values=None)
        importance.update(u, losses)
        return -(1 - share) * y[0].numel() * losses * weight.to(losses)

    with bar("fitting the dequantiser", FIT_STEPS) as tick:
        for step in range(FIT_STEPS):
            x0 = pixels(images, numbers[torch.randint(len(numbers), (size,), generator=draw).numpy()])
            v = torch.rand(x0.shape, generator=draw)
            optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
            optimizer.zero_grad()
            dequantiser_loss(q, log_prob, x0.to(model.device), v.to(model.device)).backward()
            optimizer.step()
            tick(1)
    return q.requires_grad_(False)
