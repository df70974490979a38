"""Two claims about bounds, measured on one network: DDIM's bound is DDPM's up to weights; learned betas do not help.

    OMP_NUM_THREADS=1 python benchmarks/bounds.py fashion-mnist docs/lecture/bounds.json [-n 500]

The mean squared error of the predicted x_0 is measured at each of 1,000 noise levels, on test images that the draws are
stratified over, without classes. A term of a Gaussian chain's bound is a weight times that error:

    DDPM, from t to s           1/2 (SNR(s) - SNR(t)) err(t)         (Kingma et al. 2021, eq. 13)
    DDIM, of variance v > 0     (alpha_s - sqrt(sigma_s^2 - v) alpha_t / sigma_t)^2 / (2 v) err(t)

First, the bits of DDIM's bound (Song et al. 2021, theorem 1) over eta, with the weights relative to those of DDPM; and
as a check, the KL of its steps themselves, as the sampler `ddim` takes them, beside the weighted errors. Second, the
bits of T steps under a cosine and a linear schedule, betas of 1 / (T - t + 1) (Sohl-Dickstein et al. 2015), even
log-SNRs, and betas learnt by gradient descent on the bound, as in 2015; all between the same two ends. The terms of the
prior and of the reconstruction, which depend on the ends alone, are left out.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse import load
from undiffuse.devices import conditions
from undiffuse.evaluation.density import images_of, pixels
from undiffuse.files import write_json
from undiffuse.likelihood.bound import squared_errors, stratified
from undiffuse.model import Model
from undiffuse.process import GaussianProcess, Prediction, cosine, linear
from undiffuse.progress import bar, no_bar
from undiffuse.randomness import Purpose, keyed_draws
from undiffuse.sampling import State, ddim

LEVELS, DRAWS, BATCH = 1000, 40, 100
ETAS = (1.0, 0.8, 0.5, 0.2, 0.1)
STEPS = (10, 40, 100, 1000)
LEARNING, WINDOW = 2000, 21


def measured_errors(model: Model, count: int) -> Tensor:
    """The mean squared error of x_0 at each of the model's LEVELS steps, float64 (LEVELS,).

    Each is the geometric mean of WINDOW neighbours, as few draws see it.
    """
    images = images_of(model, None, "test", no_bar)
    total = torch.zeros(2, LEVELS, dtype=torch.float64)
    with bar("errors at every noise level", count) as tick:
        for first in range(0, count, BATCH):
            numbers = np.arange(first, min(first + BATCH, count))
            draws = keyed_draws(0, numbers, Purpose.BOUND)
            x0, u = pixels(images, numbers), stratified(torch.from_numpy(numbers), DRAWS)
            total += squared_errors(model.denoiser, x0, LEVELS, draws, u, model.unconditional(len(numbers)))
            tick(len(numbers))
    seen = total[1].nonzero().flatten().numpy()
    logs = np.interp(np.arange(LEVELS), seen, (total[0][seen] / total[1][seen]).log().numpy())
    smooth = np.convolve(np.pad(logs, WINDOW // 2, mode="reflect"), np.ones(WINDOW) / WINDOW, "valid")
    return torch.from_numpy(np.exp(smooth))


def ddim_weights(process: GaussianProcess, times: Tensor, eta: float) -> Tensor:
    """The weight of err(t) in the KL of DDIM's step from each of `times` to the one before, but the first: (N - 1,)."""
    s, t = times[:-1], times[1:]
    at_s, at_t = process.noise_level(s), process.noise_level(t)
    v = eta**2 * process.noise_fraction(s, t) * at_s.sigma**2
    return (at_s.alpha - (at_s.sigma**2 - v).sqrt() * at_t.alpha / at_t.sigma) ** 2 / (2 * v)


def check(process: GaussianProcess, times: Tensor, eta: float) -> float:
    """The largest relative difference of a weight from the KL of two steps of the sampler, for a guess 1 beside 0."""
    worst, x = 0.0, torch.zeros(1, 1, dtype=torch.float64)
    for s, t, weight in zip(times, times[1:], ddim_weights(process, times, eta), strict=False):
        ends, level = [], process.noise_level(t)
        for x0 in (torch.zeros_like(x), torch.ones_like(x)):
            guess = Prediction(x0, x0).with_x0(x0, x, level)
            noise_free = [torch.zeros_like(x), torch.ones_like(x)]
            ends.append(
                [
                    ddim(State(x, float(t)), float(s), lambda *_, g=guess: g, process, Fixed(z), eta).x
                    for z in noise_free
                ]
            )
        (mean, more), (other, _) = ends
        kl = float((other - mean) ** 2 / (2 * (more - mean) ** 2))
        worst = max(worst, abs(kl / float(weight) - 1))
    return worst


class Fixed:
    """A draw that is known."""

    def __init__(self, noise: Tensor):
        self.noise = noise

    def normal(self, like: Tensor) -> Tensor:
        """It."""
        return self.noise


def bits_of_steps(log_snr: Tensor, levels: Tensor, errors: Tensor) -> Tensor:
    """The bits of DDPM's bound whose steps end at the log-SNRs (T,), decreasing: of all but the first of them."""
    place = torch.searchsorted(-levels, -log_snr[1:].detach()).clamp(1, len(levels) - 1)
    right, left = levels[place], levels[place - 1]
    share = (log_snr[1:] - left) / (right - left)
    error = torch.lerp(errors[place - 1], errors[place], share)
    snr = log_snr.exp()
    return 0.5 * ((snr[:-1] - snr[1:]) * error).sum() / math.log(2)


def between(alpha_bar: Tensor, first: float, last: float) -> Tensor:
    """The log-SNRs of a table of alpha_bar (T,), stretched to reach from `first` down to `last`."""
    values = alpha_bar.log() - torch.log1p(-alpha_bar)
    return first + (values - values[0]) * (last - first) / (values[-1] - values[0])


def schedules(steps: int, first: float, last: float) -> dict[str, Tensor]:
    """Name -> the log-SNRs of T steps between the two ends."""
    index = torch.arange(1, steps + 1, dtype=torch.float64)
    of_2015 = (1 - 1 / (steps - index + 2)).cumprod(0)  # of T + 1 steps without the last, which leaves no signal
    tables = {"cosine": cosine(steps), "linear": linear(steps)}
    found = {name: between(table.noise_level(index / steps).alpha ** 2, first, last) for name, table in tables.items()}
    found["1 / (T - t + 1)"] = between(of_2015, first, last)
    found["even log-SNRs"] = torch.linspace(first, last, steps, dtype=torch.float64)
    return found


def learnt(start: Tensor, levels: Tensor, errors: Tensor) -> Tensor:
    """The log-SNRs that gradient descent on the bound finds, from `start`; their ends stay."""
    shares = (-start.diff()).log().requires_grad_()
    optimizer = torch.optim.Adam([shares], lr=0.02)
    span = start[0] - start[-1]

    def log_snrs() -> Tensor:
        return start[0] - torch.cat([torch.zeros(1, dtype=torch.float64), shares.softmax(0).cumsum(0)]) * span

    best, found = math.inf, start
    for step in range(LEARNING):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / LEARNING)
        optimizer.zero_grad()
        bits = bits_of_steps(now := log_snrs(), levels, errors)
        if bits < best:
            best, found = bits.item(), now.detach()
        bits.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options.model, "cpu")
    process = model.denoiser.process
    errors = measured_errors(model, options.n)
    times = torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS
    weights = {eta: ddim_weights(process, times, eta) for eta in ETAS}
    ddpm = 0.5 * -process.schedule.log_snr(times).exp().diff()
    found: dict[str, Any] = {"ddim": [], "betas": {}}
    for eta, weight in weights.items():
        ratio = (weight / ddpm).tolist()
        bits = float((weight * errors[1:]).sum()) / math.log(2)
        row = {"eta": eta, "bits": bits, "least weight": min(ratio), "most weight": max(ratio)}
        found["ddim"].append(row | {"sampler differs by": check(process, times[::50], eta)})
        print(row)
    levels = process.schedule.log_snr(times)
    first, last = float(levels[0]), float(levels[-1])
    for steps in STEPS:
        tables = schedules(steps, first, last)
        bits_of = {name: float(bits_of_steps(table, levels, errors)) for name, table in tables.items()}
        best = min(tables, key=bits_of.__getitem__)
        bits_of["learnt"] = float(bits_of_steps(learnt(tables[best], levels, errors), levels, errors))
        found["betas"][steps] = bits_of
        print(steps, {name: round(bits, 4) for name, bits in bits_of.items()})
    facts = {"model": {"name": options.model, "fingerprint": model.fingerprint}, "images": options.n, "draws": DRAWS}
    write_json(options.out, {"command": " ".join(["python", *sys.argv]), **facts, **conditions(), **found})


if __name__ == "__main__":
    main()
