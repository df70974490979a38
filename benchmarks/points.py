"""How close the likelihood of a model comes to the truth, where it is known: points in the plane, in nats per point.

    python benchmarks/points.py --json docs/likelihood/points.json --figure docs/figures/points.png

A small network learns densities of known entropy by the continuous bound, from fresh points. Measured on others: the
bound in continuous time and of T steps, and -ln p by the probability-flow ODE. The mean of each exceeds the entropy by
at least a Kullback-Leibler divergence. Gaps are to the true -ln p of the same points, which cancels their sampling
error. Training takes five minutes on one core.

The best that the bound can reach is the entropy of x + s eps: the decoder, of width s = exp(-LOG_SNRS[0] / 2), resolves
nothing finer. That costs s^2 / 2 times the Fisher information of a smooth density, and 0.903 s times the length of an
edge times the height of the step there: with s = 0.001, below 0.0001 nats except for the checkerboard, with 0.0036.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from undiffuse.denoiser import Denoiser
from undiffuse.devices import conditions as machine_conditions
from undiffuse.files import write_json
from undiffuse.likelihood import (
    Formula,
    Solver,
    all_steps,
    estimate_bound,
    log_likelihood,
    optimal_variance,
    squared_errors,
    stratified,
)
from undiffuse.networks import MLP
from undiffuse.objectives import Importance, continuous_bound, reconstruction_share
from undiffuse.objectives.times import low_discrepancy
from undiffuse.plots import save_figure
from undiffuse.process import GaussianProcess, LogSNR
from undiffuse.randomness import Given, Purpose, torch_generator
from undiffuse.training.ema import EMA
from undiffuse.training.muon import Muon

SEED = 0
LOG_SNRS = 13.8, -10.0
WIDTH, BLOCKS, OCTAVES = 64, 2, 5
BATCH, RATE, WARMUP, AVERAGE = 2048, 1e-2, 100, 0.05
GROUP, DRAWS = 512, 64  # points measured together, a power of 2 for Sobol's sequence; times for each
STEPS, VARIANCES = (1000, 100, 10), ("small", "optimal")
SOLVER = Solver(rtol=1e-4, atol=1e-4)  # within 1e-4 nats of 1e-6, in the mean
EDGE, LEAST = 2.6, 1e-3  # distance of the pictures' edge from their middle; the smallest gap that the figure shows


@dataclass(frozen=True)
class Density:
    """A distribution in the plane: its entropy in nats, ln p of points (B, 2) as (B,), and points drawn; float64."""

    entropy: float
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int, Generator], Tensor]


def ring(radius: float = 1.4, std: float = 0.2) -> Density:
    """Eight round Gaussians on a circle; the entropy by the trapezoidal rule, far within 1e-6."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[:, None] - means).square().sum(2)
        return (-squares / (2 * std**2)).logsumexp(1) - math.log(8 * 2 * math.pi * std**2)

    def sample(count: int, generator: Generator) -> Tensor:
        centres = means[torch.randint(8, (count,), generator=generator)]
        return centres + std * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    axis = torch.arange(-radius - 9 * std, radius + 9 * std, std / 8, dtype=torch.float64)
    logs = log_prob(torch.cartesian_prod(axis, axis))
    return Density(-((std / 8) ** 2) * (logs.exp() * logs).sum().item(), log_prob, sample)


def checkerboard() -> Density:
    """Uniform on eight of the unit squares of [-2, 2]^2, with entropy ln 8."""

    def log_prob(x: Tensor) -> Tensor:
        inside = (x.abs() <= 2).all(1) & (x.floor().sum(1).remainder(2) == 0)
        return torch.where(inside, torch.tensor(-math.log(8), dtype=torch.float64), -torch.inf)

    def sample(count: int, generator: Generator) -> Tensor:
        row, pair = torch.randint(8, (count,), generator=generator).view(1, -1) // torch.tensor([[2], [1]])
        corners = torch.stack([2 * (pair % 2) + row % 2, row], 1) - 2
        return corners + torch.rand(count, 2, generator=generator, dtype=torch.float64)

    return Density(math.log(8), log_prob, sample)


def banana(std: float = 0.3, bend: float = 0.6) -> Density:
    """(x, y + bend (x^2 - 1)) of Gaussian x and y, deviations 1 and std: it preserves areas and so the entropy."""

    def log_prob(x: Tensor) -> Tensor:
        straight = (x[:, 1] - bend * (x[:, 0] ** 2 - 1)) / std
        return -(x[:, 0] ** 2 + straight**2) / 2 - math.log(2 * math.pi * std)

    def sample(count: int, generator: Generator) -> Tensor:
        x, y = torch.randn(2, count, generator=generator, dtype=torch.float64)
        return torch.stack([x, std * y + bend * (x**2 - 1)], 1)

    return Density(1 + math.log(2 * math.pi * std), log_prob, sample)


DENSITIES = {"ring": ring, "checkerboard": checkerboard, "banana": banana}


class Waves(nn.Module):
    """The package's MLP, (B, 2) -> (B, 2), with Fourier features of the points, to see edges (Tancik et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(2 + 4 * OCTAVES, 2, width=WIDTH, blocks=BLOCKS)

    def forward(self, x: Tensor, log_snr: Tensor, _: Any = None) -> Tensor:
        angles = (x[:, :, None] * 2.0 ** torch.arange(OCTAVES)).flatten(1)
        return self.mlp(torch.cat([x, angles.sin(), angles.cos()], 1), log_snr)


def train(density: Density, steps: int) -> Denoiser:
    """Trains for `steps` batches of fresh points: averaged weights, and the schedule that importance sampling found.

    No times are spent on the bound's first term, which has nothing to learn: its decoder is fixed.
    """
    torch.manual_seed(SEED)
    network, process, importance = Waves(), GaussianProcess(LogSNR(LOG_SNRS)), Importance()
    denoiser, parameters = Denoiser(network, process, sigma_data=1.0), list(network.parameters())
    matrices = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear) and len(layer.weight) > 2]
    known = {id(weight) for weight in matrices}
    optimizer = Muon(matrices, [p for p in parameters if id(p) not in known], lr=RATE)
    average, share = EMA(parameters, AVERAGE), reconstruction_share(denoiser, continuous=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        generator = torch_generator(SEED, Purpose.NOISE, step)
        x0, noise = density.sample(BATCH, generator).float(), torch.randn(BATCH, 2, generator=generator)
        u, weight = importance.warp(low_discrepancy(BATCH, generator))
        losses = continuous_bound(denoiser, x0, None, share + (1 - share) * u, Given(noise), values=None)
        (losses * weight.to(losses)).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        importance.update(u, losses)
        average.update(parameters, step + 1)
    learnt = copy.deepcopy(network).requires_grad_(False)
    for parameter, mean in zip(learnt.parameters(), average.average, strict=True):
        parameter.copy_(mean)
    log_snrs = torch.linspace(*LOG_SNRS, 1001, dtype=torch.float64)
    return replace(
        denoiser, network=learnt, process=GaussianProcess(LogSNR(importance.learnt_log_snrs(log_snrs, 0.0).tolist()))
    )


def compared(says: Tensor, truth: Tensor) -> dict[str, float]:
    """A model's independent estimates (N,) and the truth on the same points: means, and the gap with its error."""
    gaps = says - truth
    error = (gaps.std() / len(gaps) ** 0.5).item()
    return {"value": says.mean().item(), "truth": truth.mean().item(), "gap": gaps.mean().item(), "error": error}


def points(density: Density, count: int, number: int) -> Tensor:
    """Fresh points, float64 (count, 2)."""
    return density.sample(count, torch_generator(SEED, Purpose.SAMPLE, number))


def normals(count: int, draws: int, number: int) -> Tensor:
    """Noise (draws, count, 2): standard normal at each point, even over all of them (scrambled nets, Owen 1995)."""
    engine = torch.quasirandom.SobolEngine(2 * draws, scramble=True, seed=number)
    u = engine.draw(count, dtype=torch.float64).clamp(2.0**-32, 1 - 2.0**-32)
    return torch.special.ndtri(u).float().view(count, draws, 2).transpose(0, 1)


def of_bound(denoiser: Denoiser, density: Density, groups: int, steps: int | None, variance: str) -> dict[str, float]:
    """The bound of `steps` steps, or the continuous one; a group is one estimate, as its noise is not independent."""
    formula = Formula(steps, variance, values=None)
    if steps is not None and variance == "optimal":
        x0, noise = points(density, 4 * GROUP, groups).float(), normals(4 * GROUP, DRAWS, groups)
        u = stratified(torch.arange(len(x0)), DRAWS)
        errors = squared_errors(denoiser, x0, steps, lambda k: Given(noise[k]), u)
        formula = replace(formula, variance=optimal_variance(denoiser.process, errors))
    draws = DRAWS if steps is None else min(DRAWS, steps - 1)
    found = []
    for number in range(groups):
        x0, noise = points(density, GROUP, number), normals(GROUP, draws + 1, number)
        u = (
            all_steps(GROUP, draws + 1)
            if steps == draws + 1
            else stratified(torch.arange(GROUP) + number * GROUP, draws)
        )
        total = 2 * estimate_bound(denoiser, x0.float(), formula, lambda k, noise=noise: Given(noise[k]), u).total
        found.append((total.mean(), -density.log_prob(x0).mean()))
    return compared(*torch.tensor(found, dtype=torch.float64).T)


def ode(denoiser: Denoiser, x: Tensor) -> Tensor:
    """ln p of points (B, 2), float64 (B,), with the exact divergence."""
    parts = (
        log_likelihood(denoiser.bind(None), denoiser.process, part, divergence="exact", solver=SOLVER)
        for part in x.float().split(1024)
    )
    return torch.cat([part.log_prob for part in parts])


def measure(denoiser: Denoiser, density: Density, groups: int) -> dict[str, dict[str, float]]:
    """Every likelihood of a model, by name, compared with the truth."""
    x = torch.cat([points(density, GROUP, number) for number in range(max(1, groups // 8))])
    found = {"ODE": compared(-ode(denoiser, x), -density.log_prob(x))}
    found["continuous"] = of_bound(denoiser, density, groups, None, "small")
    for steps in STEPS:
        for variance in VARIANCES:
            found[f"{steps} steps, {variance}"] = of_bound(denoiser, density, max(2, groups // 4), steps, variance)
    return found


def grid(side: int) -> Tensor:
    """The middles of side x side squares that tile the pictures, float64 (side^2, 2), row by row from the top."""
    axis = EDGE * (2 * torch.arange(side, dtype=torch.float64) + 1 - side) / side
    return torch.cartesian_prod(-axis, axis).flip(1)


def draw(rows: dict[str, tuple[Density, Tensor, dict[str, dict[str, float]]]], path: Path) -> None:
    """A row for each density: the truth, the model's density (ln p on a grid), the error of every likelihood."""
    figure = Figure(figsize=(10, 0.4 + 2.7 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1, 1, 1.75))
    for (*pictures, gaps), (name, (density, log_prob, found)) in zip(all_axes, rows.items(), strict=True):
        images = [
            density.log_prob(grid(400)).exp().view(400, 400),
            log_prob.exp().view(2 * [math.isqrt(len(log_prob))]),
        ]
        for axes, image in zip(pictures, images, strict=True):
            axes.imshow(image.numpy(), "magma", vmin=0, vmax=1.15 * images[0].max(), interpolation="bilinear")
            axes.set(xticks=[], yticks=[])
        pictures[0].set_ylabel(f"{name}\nentropy {density.entropy:.4f} nats")
        places = list(dict.fromkeys(key.split(", ")[0] for key in found))
        for variance, colour in zip(("", *VARIANCES), ("black", "tab:orange", "tab:blue"), strict=True):
            mine = {key.split(", ")[0]: one for key, one in found.items() if key.partition(", ")[2] == variance}
            x, y = [max(one["gap"], LEAST) for one in mine.values()], [places.index(key) for key in mine]
            label = variance and f"variance: {variance}"
            gaps.errorbar(x, y, xerr=[one["error"] for one in mine.values()], fmt="o", ms=5, color=colour, label=label)
            for at, one in zip(zip(x, y, strict=True), mine.values(), strict=True):
                text = f"{one['gap']:.{1 if one['gap'] > 1 else 3}f}"
                gaps.annotate(text, at, (0, 5), textcoords="offset points", ha="center", size=8)
        gaps.set(xscale="log", xlim=(LEAST / 1.5, 60), ylim=(len(places) - 0.5, -0.7))
        gaps.set_yticks(range(len(places)), places)
        gaps.grid(alpha=0.3)
    for axes, title in zip(
        all_axes[0], ("true density", "the model's, by the ODE", "-ln p above the truth"), strict=True
    ):
        axes.set_title(title, fontsize=11)
    all_axes[0, 2].legend(fontsize=8, loc="upper right")
    all_axes[-1, 2].set_xlabel("nats per point")
    save_figure(figure, path)


def main() -> None:
    """Trains, measures, prints the gaps and writes the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DENSITIES, help="one of the densities")
    parser.add_argument("--quick", action="store_true", help="hardly any training or points: does it run?")
    parser.add_argument("--json", type=Path, default=Path("points.json"))
    parser.add_argument("--figure", type=Path, default=Path("points.png"))
    options = parser.parse_args()
    steps, groups, side = (20, 2, 8) if options.quick else (2000, 64, 80)
    rows, told = {}, {}
    for name in [options.only] if options.only else DENSITIES:
        density, start = DENSITIES[name](), time.perf_counter()
        denoiser = train(density, steps)
        seconds = time.perf_counter() - start
        found = measure(denoiser, density, groups)
        for key, one in found.items():
            print(f"{name}, {key}: {one['gap']:.4f} ({one['error']:.4f}) above {density.entropy:.4f}", flush=True)
        rows[name] = density, ode(denoiser, grid(side)), found
        told[name] = {"entropy": density.entropy, "seconds_of_training": seconds, "found": found}
    conditions = {
        "unit": "nats per point; half of it per dimension",
        "groups": {"points": GROUP, "ODE": max(1, groups // 8), "continuous": groups, "steps": max(2, groups // 4)},
        "draws": DRAWS,
        "solver": vars(SOLVER),
        "log_snrs": LOG_SNRS,
        "network": {"width": WIDTH, "blocks": BLOCKS, "octaves": OCTAVES},
        "training": {"steps": steps, "batch": BATCH, "rate": RATE, "average": AVERAGE},
        "seed": SEED,
        **machine_conditions(),
        "command": " ".join(["python", *sys.argv]),
    }
    write_json(options.json, {"densities": told, "conditions": conditions})
    draw(rows, options.figure)


if __name__ == "__main__":
    main()
