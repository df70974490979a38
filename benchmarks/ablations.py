"""What of DDPM matters: the annealed noise, and what the network predicts, after equal time.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py OUT [--data fashion-mnist] [--minutes 10] [--seeds 3] [--only NAME]
    python benchmarks/ablations.py OUT --report ablations.json --figure ablations.png

DDPM's process of 1,000 steps with the package's U-Net, batch and optimiser; each variant trains for the same CPU time
on one thread in float32, without classes. "constant" has the same total noise in equal betas. The targets are the
noise, x_0, v and mu, the mean of the posterior that a step needs (Ho et al. 2020, table 2), each by its own squared
error, and eps and mu by the bound's weights too. Of each, n samples by DDPM in 250 steps and by DDIM in 20, measured as
`undiffuse evaluate` does. Writes OUT/NAME-SEED.json; what is there is kept. With --report, --figure shows the first
samples of seed 0, by DDPM.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from equal_time import QUIET, finish
from seeds import SHOWN, first_samples, measure, missing, options_of, report

from undiffuse import load
from undiffuse.config import preset as settings_of
from undiffuse.config import preset_for
from undiffuse.evaluation import evaluate
from undiffuse.generate import Recipe
from undiffuse.plots import strips
from undiffuse.process import GaussianProcess, NoiseLevel, Schedule, linear
from undiffuse.registry import TARGETS, WEIGHTINGS
from undiffuse.targets import Coefficients

STEPS = 1000
RECIPES = (Recipe("ddpm", 250), Recipe("ddim", 20))
SCHEDULE: Schedule = linear(STEPS)


def neighbours(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The times of a noise level of SCHEDULE and of the step before."""
    t = SCHEDULE.time(log_snr)
    return (t - 1 / STEPS).clamp(min=0), t


def mu(level: NoiseLevel, sigma_data: float) -> Coefficients:
    """The mean A x_0 + B x_t of q(x_s | x_t, x_0), one step before t."""
    s, t = neighbours(level.log_snr)
    process = GaussianProcess(SCHEDULE)
    at_s, at_t = process.noise_level(s), process.noise_level(t)
    a = at_s.alpha * process.noise_fraction(s, t)
    b = (at_s.sigma / at_t.sigma) ** 2 * at_t.alpha / at_s.alpha
    return Coefficients(a + b * at_t.alpha, b * at_t.sigma, -b / a, 1 / a)


def of_mu(log_snr: Tensor) -> Tensor:
    """The weight of an error in x_0 that is its squared error in mu."""
    s, t = neighbours(log_snr)
    process = GaussianProcess(SCHEDULE)
    return (process.noise_level(s).alpha * process.noise_fraction(s, t)) ** 2


def of_bound(log_snr: Tensor) -> Tensor:
    """1/2 (SNR(s) - SNR(t)), the bound's weight (Kingma et al. 2021, eq. 13); where that is infinite, at the first
    step, that of the second."""
    _, t = neighbours(log_snr)
    t = t.clamp(min=2 / STEPS)
    return 0.5 * (SCHEDULE.log_snr(t - 1 / STEPS).exp() - SCHEDULE.log_snr(t).exp())


def constant() -> list[float]:
    """STEPS equal betas, after which as much signal is left as after those of SCHEDULE."""
    left = float(SCHEDULE.noise_level(torch.tensor(1.0, dtype=torch.float64)).alpha) ** 2
    return [1 - left ** (1 / STEPS)] * STEPS


def systems() -> dict[str, dict[str, Any]]:
    """Name -> its settings beside DDPM's."""
    return {
        "eps": {},
        "constant": {"process.schedule": "betas", "process.betas": constant()},
        "eps-bound": {"objective.weighting": "of-bound"},
        "mu": {"denoiser.target": "mu", "objective.weighting": "of-mu"},
        "mu-bound": {"denoiser.target": "mu", "objective.weighting": "of-bound"},
        "x0": {"denoiser.target": "x0", "objective.weighting": "x0"},
        "v": {"denoiser.target": "v", "objective.weighting": "v"},
    }


def settings(name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Of a training run, but for its steps."""
    ddpm = {
        "process.schedule": "linear",
        "process.steps": STEPS,
        "denoiser.target": "eps",
        "objective.weighting": "simple",
        "objective.times": "uniform",
        "training.conditional": False,
        "training.seed": seed,
        "training.precision": "fp32",  # x_0 of mu multiplies the network's output by up to 7,791
        "data.source": options.data,
    }
    return settings_of(preset_for(options.minutes)) | ddpm | QUIET | systems()[name]


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is measured of one variant."""
    run = options.out / f"{name}-{seed}-run"
    finish(settings(name, options, seed), run, options.minutes)
    rows = {}
    every = evaluate(run, n=options.n, metrics="frechet,manifold", recipes=RECIPES)
    for recipe, one in zip(RECIPES, every, strict=True):
        row = f"{name}, {recipe.sampler} in {recipe.steps}"
        rows[row] = {key: value.value for key, value in one.values.items()}
        print(f"{row}, seed {seed}: {rows[row]['frechet']:.2f}", flush=True)
    return {"training": load(run).training, "rows": rows}


def main() -> None:
    """Trains and measures what OUT has not."""
    TARGETS.add("mu", mu)
    WEIGHTINGS.add("of-mu", of_mu)
    WEIGHTINGS.add("of-bound", of_bound)
    options = options_of(__doc__, systems(), minutes=10.0, n=500, figure=True, data="fashion-mnist")
    if options.report:
        report(options.out, options.report, ("frechet", "precision", "recall"))
        if options.figure:
            rows = [(name, first_samples(options.out / f"{name}-0-run", RECIPES[0])) for name in systems()]
            strips(rows, [""] * SHOWN, f"DDPM in {RECIPES[0].steps} steps", options.figure)
        return
    for name, seed, path in missing(options, systems()):
        measure(path, options, seed, partial(measured, name, seed, options))


if __name__ == "__main__":
    main()
