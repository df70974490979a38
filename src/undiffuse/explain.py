"""The pictures of a lecture on diffusion models, drawn from a real model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import load as load_data
from undiffuse.errors import UndiffuseError
from undiffuse.generate import Recipe, generate, states, to_uint8
from undiffuse.model import Model
from undiffuse.plots import curves, strips
from undiffuse.process import cosine, linear
from undiffuse.sampling import Noise, sample_noise, trajectory

Tick = Callable[[int], None]
Picture = tuple[Path, str]
COLUMNS = 10


def draw(model: Model, out: Path, count: int, seed: int, tick: Tick) -> list[Picture]:
    """Draws every picture into the folder `out`; returns their paths and captions. `tick` is told of 100 parts done."""
    parts: list[tuple[Callable[[], list[Picture]], int]] = [
        (lambda: [_forward(model, out, seed)], 2),
        (lambda: [_schedules(model, out)], 3),
        (lambda: [_reverse(model, out, seed)], 5),
        (lambda: [_ddim_against_ddpm(model, out, count, seed)], 60),
        (lambda: _early_and_late(model, out, count, seed), 30),
    ]
    pictures = []
    for part, share in parts:
        pictures += part()
        tick(share)
    return pictures


def _examples(model: Model, count: int, seed: int) -> tuple[Tensor, str]:
    """Some images in [-1, 1] and what they are: the data where it can be had, else samples of the model."""
    try:
        height, _, channels = model.data.shape
        images = load_data(model.data.name, size=height, channels=1 if channels == 1 else 3).images
        picked = np.asarray(images[np.random.RandomState(seed).permutation(len(images))[:count]])
        what = "data"
    except UndiffuseError:
        picked, what = next(generate(model, Recipe(seed=seed), range(count))), "samples (the data is not here)"
    return torch.from_numpy(picked).permute(0, 3, 1, 2).float() / 127.5 - 1, what


def _forward(model: Model, out: Path, seed: int) -> Picture:
    process = model.denoiser.process
    x0, what = _examples(model, 4, seed)
    times = torch.linspace(0, 1, COLUMNS, dtype=torch.float64).tolist()
    noise = sample_noise(seed, range(len(x0)), x0.shape[1:], x0)(0)
    noisy = [to_uint8(process.corrupt(x0, t, noise)) for t in times]
    rows = [(f"image {k + 1}", np.stack([frame[k] for frame in noisy])) for k in range(len(x0))]
    path = out / "1-forward.png"
    strips(rows, [f"t={t:.2f}" for t in times], "The forward process: x_t = alpha_t x_0 + sigma_t eps", path)
    return path, f"The forward process: {what}, and ever more noise, until none of it is left."


def _schedules(model: Model, out: Path) -> Picture:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    schedule = model.denoiser.process.schedule
    level = schedule.level(t)
    name = f"this model's ({model.config.process.schedule})"
    others = {"linear (DDPM)": linear(), "cosine (IDDPM)": cosine(), name: schedule}
    inner = t[5:-5]
    snr = {label: (inner.numpy(), s.log_snr(inner).numpy()) for label, s in others.items()}
    grids = {
        f"{sampler}, {steps} steps": (
            np.arange(steps),
            schedule.log_snr(Recipe(sampler, steps).times(model.denoiser.process)[:-1]).numpy(),
        )
        for sampler, steps in (("ddim", 20), ("heun", 20), ("dpm++2m", 20))
    }
    path = out / "2-schedule.png"
    levels = {"alpha (signal)": (t.numpy(), level.alpha.numpy()), "sigma (noise)": (t.numpy(), level.sigma.numpy())}
    curves([("noise level", "t", levels), ("log-SNR", "t", snr), ("log-SNR visited", "step", grids)], path)
    return path, "How much signal and noise there is at every time, and at which log-SNR a sampler looks."


def _reverse(model: Model, out: Path, seed: int) -> Picture:
    recipe = Recipe("ddpm", 100, grid="trailing", seed=seed)
    seen = list(states(model, recipe, range(3)))
    shown = np.linspace(1, len(seen) - 1, COLUMNS).round().astype(int)
    rows = []
    for k in range(3):
        rows.append(("x_t", np.stack([to_uint8(seen[i].x)[k] for i in shown])))
        previews = [seen[i].x0 for i in shown]
        rows.append(("predicted x_0", np.stack([to_uint8(x0)[k] for x0 in previews if x0 is not None])))
    path = out / "3-reverse.png"
    strips(rows, [f"t={seen[i].t:.2f}" for i in shown], "The reverse process (DDPM, 100 steps)", path)
    return path, "The reverse process: the state, and below it what the model believes it will become."


def _ddim_against_ddpm(model: Model, out: Path, count: int, seed: int) -> Picture:
    most = model.denoiser.process.schedule.steps or 1000
    recipes = [Recipe("ddim", steps, seed=seed) for steps in (5, 10, 20, 50)]
    recipes += [Recipe("ddpm", steps, seed=seed) for steps in (5, 10, 20, 50, most)]
    rows = [(f"{r.sampler.upper()}, {r.steps} steps", next(generate(model, r, range(count)))) for r in recipes]
    path = out / "4-ddim-against-ddpm.png"
    strips(rows, [f"{k}" for k in range(count)], "The same starting noise, column by column", path)
    return path, (
        "DDIM has the picture after 5 or 10 steps and only refines it with more; "
        "DDPM needs many, and ends elsewhere each time, because every step adds noise."
    )


def _early_and_late(model: Model, out: Path, count: int, seed: int) -> list[Picture]:
    """Shared first steps, and shared last ones: which noise decides what."""
    recipe = Recipe("ddpm", 50, seed=seed)
    process, grid = model.denoiser.process, recipe.times(model.denoiser.process)
    height, width, channels = model.data.shape
    like = torch.empty(0, device=model.device)
    common = sample_noise(seed, [0] * count, (channels, height, width), like)
    own = sample_noise(seed, range(1, count + 1), (channels, height, width), like)
    labels = model.labels(np.zeros(count))
    denoise = recipe.denoise(model, None if labels is None else labels.to(model.device))

    def run(first: Noise, then: Noise, switch: int) -> np.ndarray:
        def noise(step: int) -> Tensor:  # step 0 is the noise it starts from
            return (first if step < switch else then)(step)

        with torch.inference_mode():
            *_, last = trajectory(denoise, process, grid, recipe.step, noise)
        return to_uint8(last.x)

    switches = (0, 10, 20, 30, 40)
    late = [(f"{k} of 50", run(common, own, k)) for k in switches]
    early = [(f"{50 - k} of 50", run(own, common, k)) for k in switches]
    columns = [f"variant {k}" for k in range(1, count + 1)]
    paths = out / "5-early-steps-shared.png", out / "6-late-steps-shared.png"
    strips(late, columns, "All variants share the noise of the first k steps; k:", paths[0])
    strips(early, columns, "All variants share the noise of the last k steps; k:", paths[1])
    return [
        (
            paths[0],
            "Sharing the early steps fixes the shape and the brightness; what still varies is what late steps decide.",
        ),
        (paths[1], "Sharing only the late steps fixes almost nothing: early steps decide what the picture is of."),
    ]
