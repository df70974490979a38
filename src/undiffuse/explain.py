"""The pictures of a lecture on diffusion models, drawn from a real model; of sounds, also a page to listen to."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.build import make_data
from undiffuse.conditions import Condition
from undiffuse.data import catalogue
from undiffuse.domains.pictures import Pictures
from undiffuse.domains.sounds import Sounds
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.explain_sounds import PAGE, Heard, write_players
from undiffuse.generate import Recipe, generate, states
from undiffuse.model import Model
from undiffuse.plots import curves, strips
from undiffuse.process import cosine, linear
from undiffuse.randomness import Draw, keyed_draws
from undiffuse.vocoder import no_vocoder

Tick = Callable[[int], None]
Picture = tuple[Path, str]
Draws = Callable[[int], Draw]
PICTURES = re.compile(rf"\d-[a-z-]+\.png|{re.escape(PAGE)}")  # their file names
COLUMNS = 10
REVERSE_STEPS = 100
SHARED_STEPS = 50
SWITCHES = (0, 0.2, 0.4, 0.6, 0.8)


def _at_most(model: Model, steps: int) -> int:
    """`steps`, or as many as the model's table has."""
    return min(steps, model.denoiser.process.schedule.steps or steps)


def work(model: Model, count: int) -> int:
    """The sampling steps of all samples in all pictures: the total that `tick` of `draw` counts.

    Raises UsageError for a model of anything but pictures and sounds.
    """
    _shown(model)
    compared = sum(recipe.steps for recipe in _compared(model, 0))
    shared = _at_most(model, SHARED_STEPS)
    return 3 * _at_most(model, REVERSE_STEPS) + count * (compared + 2 * len(SWITCHES) * shared)


def draw(model: Model, out: Path, count: int, seed: int, tick: Tick) -> Iterator[Picture]:
    """Draws the pictures into the folder `out`, yielding the path and caption of each as it is done.

    For a model of sounds the last one is a page with all of them and players of both processes.
    """
    heard: list[Heard] = []
    pictures = []
    for picture in _pictures(model, out, count, seed, tick, heard):
        pictures.append(picture)
        yield picture
    if isinstance(model.domain, Sounds):
        yield write_players(model, out / PAGE, pictures, heard)


def _pictures(model: Model, out: Path, count: int, seed: int, tick: Tick, heard: list[Heard]) -> Iterator[Picture]:
    yield _forward(model, out, seed, heard)
    yield _schedules(model, out)
    yield _reverse(model, out, seed, tick, heard)
    yield _ddim_against_ddpm(model, out, count, seed, tick)
    yield from _early_and_late(model, out, count, seed, tick)


def _shown(model: Model) -> Pictures | Sounds:
    """The model's domain. Raises UsageError if its rows are neither pictures nor drawn as such, and for a vocoder."""
    no_vocoder(model.name, model.data)
    if not isinstance(model.domain, Pictures | Sounds):
        raise UsageError(
            f"{model.name} generates {model.domain.noun}, and the lecture needs a model of pictures or sounds"
        )
    return model.domain


def _one(model: Model) -> str:
    """What one row is called in captions."""
    return "sound" if isinstance(model.domain, Sounds) else "picture"


def _examples(model: Model, count: int, seed: int) -> tuple[Tensor, str]:
    """x_0 of some rows and what they are: data if it is available, else samples of the model."""
    if (images := _data(model)) is not None:
        picked, what = np.array(images[:: max(1, len(images) // count)][:count]), "data"
    else:
        condition = model.condition(range(count))
        picked = next(generate(model, Recipe(seed=seed), range(count), condition))
        what = "samples (the data is not here)"
    return model.domain.encode(picked), what


def _data(model: Model) -> np.ndarray | None:
    """The model's training rows if they are on this machine and unchanged; nothing is downloaded."""
    settings = model.learnt
    if settings is None or any(entry.name == settings.source and not entry.available for entry in catalogue()):
        return None
    try:
        data = make_data(settings)
    except UndiffuseError:
        return None
    return data.images if data.fingerprint == model.data.fingerprint else None


def _forward(model: Model, out: Path, seed: int, heard: list[Heard]) -> Picture:
    process = model.denoiser.process
    x0, what = _examples(model, 4, seed)
    times = torch.linspace(0, 1, COLUMNS, dtype=torch.float64).tolist()
    draw = keyed_draws(seed, range(len(x0)))(0)
    noisy = [model.domain.decode(process.corrupt(x0, t, draw)) for t in times]
    rows = [(f"{_one(model)} {k + 1}", np.stack([frame[k] for frame in noisy])) for k in range(len(x0))]
    columns = [f"t={t:.2f}" for t in times]
    heard.append(("The forward process", rows[0][1], columns))
    path = out / "1-forward.png"
    _strips(model, rows, columns, "The forward process: x_t = alpha_t x_0 + sigma_t eps", path)
    return path, f"The forward process: {what} with more and more noise, until nothing else is left."


def _schedules(model: Model, out: Path) -> Picture:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    schedule = model.denoiser.process.schedule
    level = schedule.noise_level(t)
    name = f"this model's ({model.config.process.schedule})"
    others = {"linear (DDPM)": linear(), "cosine (IDDPM)": cosine(), name: schedule}
    inner = t[5:-5]
    snr = {label: (inner.numpy(), s.log_snr(inner).numpy()) for label, s in others.items()}
    few = _at_most(model, 20)
    grids = {
        f"{sampler}, {few} steps": (
            np.arange(few),
            schedule.log_snr(Recipe(sampler, few).times(model)[:-1]).numpy(),
        )
        for sampler in ("ddim", "heun", "dpm++2m")
    }
    path = out / "2-schedule.png"
    levels = {"alpha (signal)": (t.numpy(), level.alpha.numpy()), "sigma (noise)": (t.numpy(), level.sigma.numpy())}
    curves([("noise level", "t", levels), ("log-SNR", "t", snr), ("log-SNR visited", "step", grids)], path)
    return path, "Signal and noise at every time, and the log-SNRs that a sampler visits."


def _reverse(model: Model, out: Path, seed: int, tick: Tick, heard: list[Heard]) -> Picture:
    steps = _at_most(model, REVERSE_STEPS)
    recipe = Recipe("ddpm", steps, seed=seed)
    seen = []
    for state in states(model, recipe, range(3), model.condition(range(3))):
        seen.append(state)
        tick(3 if state.x0 is not None else 0)
    decode = model.domain.decode
    shown = np.linspace(1, steps, min(COLUMNS, steps)).round().astype(int)
    rows = []
    for k in range(3):
        previews = [seen[i].x0 for i in shown]
        rows.append(("x_t", np.stack([decode(seen[i].x)[k] for i in shown])))
        rows.append(("predicted x_0", np.stack([decode(x0)[k] for x0 in previews if x0 is not None])))
    columns = [f"t={seen[i].t:.2f}" for i in shown]
    heard += [(f"The reverse process: {name}", images, columns) for name, images in rows[:2]]
    path = out / "3-reverse.png"
    _strips(model, rows, columns, f"The reverse process (DDPM, {steps} steps)", path)
    return path, "The reverse process: the state, and below it what the model believes it will become."


def _compared(model: Model, seed: int) -> list[Recipe]:
    most = model.denoiser.process.schedule.steps or 1000
    few = [steps for steps in (5, 10, 20, 50) if steps < most]
    recipes = [Recipe("ddim", steps, seed=seed) for steps in few]
    return recipes + [Recipe("ddpm", steps, seed=seed) for steps in (*few, most)]


def _ddim_against_ddpm(model: Model, out: Path, count: int, seed: int, tick: Tick) -> Picture:
    rows = []
    for recipe in _compared(model, seed):
        images = next(generate(model, recipe, range(count), model.condition(range(count)), tick=tick))
        rows.append((f"{recipe.sampler.upper()}, {recipe.steps} steps", images))
    path = out / "4-ddim-against-ddpm.png"
    _strips(model, rows, [f"{k}" for k in range(count)], "The same starting noise, column by column", path)
    return path, (
        f"DDIM has the {_one(model)} after 5 or 10 steps and only refines it with more; "
        "DDPM needs many, and ends elsewhere each time, because every step adds noise."
    )


def with_switched_noise(
    model: Model,
    recipe: Recipe,
    first: Draws,
    then: Draws,
    switch: int,
    count: int,
    condition: Condition | None,
    tick: Callable[[], None],
) -> np.ndarray:
    """Samples, rows such as uint8 (B, H, W, C), whose steps before `switch` draw from `first`, the others from `then`.

    Step 0 is the noise they start from. `condition` is as in `states`, of `count` samples; `tick` is called after
    every step.
    """

    def draws(step: int) -> Draw:
        return (first if step < switch else then)(step)

    for state in states(model, recipe, range(count), condition, draws=draws):
        last = state
        if state.x0 is not None:
            tick()
    return model.domain.decode(last.x)


def _early_and_late(model: Model, out: Path, count: int, seed: int, tick: Tick) -> Iterator[Picture]:
    """Variants that share the noise of the first steps, or of the last: which noise decides what."""
    steps = _at_most(model, SHARED_STEPS)
    recipe = Recipe("ddpm", steps, seed=seed)
    switches = [round(share * steps) for share in SWITCHES]
    shared, separate = keyed_draws(seed, [0] * count), keyed_draws(seed, range(1, count + 1))
    condition = model.condition([0] * count)

    def run(first: Draws, then: Draws, switch: int) -> np.ndarray:
        return with_switched_noise(model, recipe, first, then, switch, count, condition, lambda: tick(count))

    columns = [f"variant {k}" for k in range(1, count + 1)]
    of = f"of {steps}"
    rows = [(f"{k} {of}", run(shared, separate, k)) for k in switches]
    path = out / "5-early-steps-shared.png"
    _strips(model, rows, columns, "All variants share the noise of the first k steps; k:", path)
    yield (
        path,
        f"Sharing the early steps fixes what the {_one(model)} is of; what still varies is what late steps decide.",
    )
    rows = [(f"{steps - k} {of}", run(separate, shared, k)) for k in switches]
    path = out / "6-late-steps-shared.png"
    _strips(model, rows, columns, "All variants share the noise of the last k steps; k:", path)
    yield (
        path,
        f"Sharing only the late steps fixes next to nothing: the early steps decide what the {_one(model)} is of.",
    )


def _strips(
    model: Model, rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], title: str, path: Path
) -> None:
    """`strips` of rows of the model's domain: pictures as they are, sounds as their spectrograms."""
    strips([(name, _shown(model).pictures(images)) for name, images in rows], columns, title, path)
