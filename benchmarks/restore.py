"""Compares methods of restoration on test pictures: error, agreement with y, spread, time.

    python benchmarks/restore.py fashion-mnist OUT.json [-n 16] [--draws 8] [--steps 20] [--figure FIGURE.png]

Each picture is degraded once (superres:4, blur:1.5, the centre missing; noise 0.05 in the scale of x_0) and restored
several times. Errors are root mean squares in the scale of x_0, from -1 to 1. Samples of the true p(x_0 | y) have
residuals in the noise's 95% band, and a spread equal to the error of their mean (times sqrt(1 + 1 / draws)). Time is
measured on the CPU, on one thread. Results already in OUT.json are not measured again. Prints a table in Markdown.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.build import make_data_of
from undiffuse.devices import conditions
from undiffuse.editing.operators import Degradation, parse
from undiffuse.editing.restore import Restored, data_covariance, restore
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe
from undiffuse.guidance import Covariance
from undiffuse.model import Model, load
from undiffuse.plots import strips
from undiffuse.progress import bar
from undiffuse.randomness import keyed_draws

NOISE = 0.05
TASKS = ("superres:4", "blur:1.5", "inpaint")
METHODS = ("gaussian", "mmps", "dps", "pigdm", "ddrm", "diffpir", "daps")
MADE_FOR_MANY = {"dps": 5}
"""Methods with an additional row, at this multiple of the steps."""
SHOWN = 4


def degradation(task: str, shape: tuple[int, ...]) -> Degradation:
    """The degradation of pictures of this shape; `inpaint` lacks half of each side, in the middle."""
    if task != "inpaint":
        return parse(task, shape)
    _, height, width = shape
    mask = np.zeros((height, width), bool)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    return parse(task, shape, mask)


def restored(model: Model, method: str, map: Any, y: torch.Tensor, steps: int, covariance: Covariance) -> Restored:
    """A sample for each y."""
    with bar(f"{method}, {steps} steps", len(y) * steps) as tick:
        return restore(
            model,
            map,
            y,
            noise=NOISE,
            method=method,
            recipe=Recipe(steps=steps),
            numbers=range(len(y)),
            covariance=covariance,
            tick=tick,
        )


def measure(
    run: Callable[[torch.Tensor], Restored], model: Model, x0: torch.Tensor, y: torch.Tensor, draws: int
) -> Any:
    """Measures `run` on y, with `draws` samples of each picture."""
    counts = {"evaluations": 0, "derivatives": 0}

    def count(what: str, rows: int) -> None:
        counts[what] += rows

    hooks = [
        model.network.register_forward_hook(lambda module, inputs, output: count("evaluations", len(output))),
        model.network.register_full_backward_hook(
            lambda module, inputs, outputs: count("derivatives", len(outputs[0]))
        ),
    ]
    began = time.process_time()
    out = run(y.repeat_interleave(draws, 0))
    seconds = time.process_time() - began
    for hook in hooks:
        hook.remove()
    samples = out.x0.double().unflatten(0, (len(x0), draws))
    mean, (low, high) = samples.mean(1), out.band
    error = (samples - x0[:, None]).square().mean()
    return {
        "error": error.sqrt().item(),
        "psnr": (10 * torch.log10(4 / error)).item(),
        "error_of_mean": (mean - x0).square().mean().sqrt().item(),
        "spread": (samples.var(1).mean() * (1 + 1 / draws)).sqrt().item(),
        "residual": (out.residual.mean() / out.observed).item(),
        "in_band": ((out.residual >= low) & (out.residual <= high)).double().mean().item(),
        "unsolved": (out.unsolved > 1e-3).double().mean().item(),
        "seconds": seconds / len(out.rows),
        **{name: total / len(out.rows) for name, total in counts.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """A row for each method of each task."""
    head = (
        "",
        "PSNR",
        "error",
        "error of the mean",
        "spread",
        "residual",
        "in the band",
        "evaluations",
        "derivatives",
        "ms",
    )
    lines = []
    for task, rows in found["tasks"].items():
        lines += [f"\n{task}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, row in rows.items():
            numbers = [f"{row['psnr']:.1f}", *(f"{row[key]:.3f}" for key in ("error", "error_of_mean", "spread"))]
            numbers += [f"{row['residual']:.2f}", f"{100 * row['in_band']:.0f}%"]
            numbers += [f"{row[key]:.0f}" for key in ("evaluations", "derivatives")] + [f"{1000 * row['seconds']:.0f}"]
            lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing in OUT.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=16)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options.model, "cpu")
    assert model.learnt is not None
    images = make_data_of(model.data.shape, model.learnt, "test").images
    rows = np.asarray(images[:: max(1, len(images) // options.n)][: options.n])
    x0, covariance = model.domain.encode(rows).double(), data_covariance(model)
    settings = {"model": options.model, "n": len(rows), "draws": options.draws, "steps": options.steps, "noise": NOISE}
    found = read_json(options.out) if options.out.exists() else {**settings, "conditions": conditions(), "tasks": {}}
    for key, value in settings.items():
        assert found[key] == value, f"{options.out} was measured with {key} = {found[key]}"
    pictures: dict[str, list[np.ndarray]] = {}
    for task in TASKS:
        map = degradation(task, model.domain.shape).map
        y = map.forward(x0)
        y = y + NOISE * keyed_draws(1, range(len(rows)))(0).normal(y)
        scale = map.adjoint(map.forward(torch.ones_like(x0[:1]))).clamp(min=1e-9)
        seen = map.adjoint(y) / scale - (map.adjoint(torch.ones_like(y[:1])) == 0).double()
        for name, samples in (("picture", rows), ("seen", model.domain.decode(seen))):
            pictures.setdefault(name, []).append(samples[:SHOWN])
        contenders = [(name, name, options.steps) for name in METHODS]
        contenders += [
            (f"{name}, {k * options.steps} steps", name, k * options.steps) for name, k in MADE_FOR_MANY.items()
        ]
        measured = found["tasks"].setdefault(task, {})
        for name, method, steps in contenders:
            run = partial(restored, model, method, map, steps=steps, covariance=covariance)
            if name not in measured:
                measured[name] = measure(run, model, x0, y, options.draws)
                write_json(options.out, found)
            if options.figure:
                pictures.setdefault(name, []).append(run(y[:SHOWN]).rows)
        found["tasks"][task] = {name: measured[name] for name, *_ in contenders}
    write_json(options.out, found)
    print(markdown(found))
    if options.figure:
        headings = [task if k == 0 else "" for task in TASKS for k in range(SHOWN)]
        table = [(name, np.concatenate(parts)) for name, parts in pictures.items()]
        strips(table, headings, f"One sample of each method, noise {NOISE}", options.figure)


if __name__ == "__main__":
    main()
