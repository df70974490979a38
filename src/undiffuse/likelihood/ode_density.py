"""Bits per dimension of a model by its probability-flow ODE (Song et al. 2021, section 4.3), pixels dequantised."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from undiffuse.denoiser import LEVELS
from undiffuse.errors import UsageError
from undiffuse.likelihood.density import BITS, Density, conditions_of, count_of, images_of, part_of, pixels, shared
from undiffuse.likelihood.dequantise import bits_per_dim, dequantised, offset_bits, uniform_draws
from undiffuse.likelihood.ode import log_likelihood
from undiffuse.likelihood.solver import Solver
from undiffuse.model import Model
from undiffuse.progress import Bar, no_bar

DEFAULT_N = 100
BATCH = 50 * 28 * 28  # elements; the steps of the solver are the batch's


def ode_density(
    model: Model,
    data: str | None = None,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    solver: Solver | None = None,
    bar: Bar = no_bar,
) -> Density:
    """The ODE's bound on -log2 p of the first n images (100), without classes: one uniform dequantisation and one
    Rademacher probe an image, as published figures have it. Shared out as `undiffuse.likelihood.density` is.

    Raises UsageError for a model of the target "levels" (it knows that pixels are whole numbers, and dequantised ones
    are none of its data), and for a device without float64.
    """
    if model.denoiser.target == LEVELS:
        raise UsageError(
            f"{model.name} gives the odds of whole pixel values and has no density for the values between, which an "
            "ODE needs: ask for --metrics bpd"
        )
    if model.device.type == "mps":
        raise UsageError("the ODE is solved in float64, which this device does not have: add --device cpu")
    solver = solver or Solver(rtol=1e-4, atol=1e-4)
    images = images_of(model, data, split, bar)
    count, elements = count_of(images, n, DEFAULT_N), int(np.prod(images.shape))
    facts = conditions_of(model, images, split, data)

    def measure(numbers: np.ndarray) -> tuple[Tensor, int]:
        samples = numbers.tolist()
        x0 = pixels(images, numbers)
        u = uniform_draws(seed, samples, x0.shape[1:])
        y = dequantised(x0, u).float().to(model.device)
        one = log_likelihood(
            model.denoiser.bind(None), model.denoiser.process, y, seed=seed, samples=samples, solver=solver
        )
        prior = -one.prior_log_prob.cpu() / elements * BITS
        total = bits_per_dim(one.log_prob.cpu(), elements)
        return torch.stack([prior, total - prior - offset_bits(), total]), one.evaluations

    found = shared(measure, np.arange(count), BATCH, model, f"probability-flow ODE of {model.name}", bar)
    prior, volume, total = torch.cat([parts for parts, _ in found], 1)
    parts = {
        "latent": part_of(prior),
        "volume": part_of(volume),
        "dequantisation": part_of(torch.full_like(total, offset_bits())),
    }
    parts["bits_per_dim"] = part_of(total)
    conditions = facts | {
        "bound": "ODE",
        "steps": None,
        "variance": None,
        "draws": 1,
        "seed": seed,
        "solver": {**dataclasses.asdict(solver), "evaluations": [evaluations for _, evaluations in found]},
        "dequantisation": "uniform",
        "divergence": "rademacher, 1 probe",
        "log_snr_max": float(model.denoiser.process.schedule.log_snr(model.denoiser.process.schedule.t_min)),
    }
    return Density(model.name, total.numpy(), parts, None, conditions, np.asarray(images.images[:count]))
