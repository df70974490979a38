"""What guidance and editing cost beyond the network's own evaluations.

    python benchmarks/speed/control.py fashion-mnist docs/benchmarks/control-overhead.json

Guidance: 64 samples in 20 guided steps against the network's evaluations on twice the batch. An edit: one picture in 10
evaluations against 10 of the bare network. Both alternate within one process; the median of the ratios and their
quartiles are printed.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Work, alternate

from undiffuse.devices import conditions
from undiffuse.editing.rows import edit
from undiffuse.files import write_json
from undiffuse.generate import Recipe, states
from undiffuse.guidance import Guidance
from undiffuse.model import load


def ratios(work: Work, bare: Work, repeats: int) -> list[float]:
    """Seconds of the one over seconds of the other, run in turn."""
    times = alternate({"work": partial(seconds, work), "bare": partial(seconds, bare)}, repeats)
    return [one / other for one, other in zip(times["work"], times["bare"], strict=True)]


def seconds(work: Work) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("json", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    model = load(options.model, "cpu")
    recipe = Recipe("ddim", 20, guidance=Guidance(2.0))
    labels, doubled = model.condition(range(64)), model.condition(range(128))
    shape = model.domain.shape

    @torch.no_grad()
    def network(count: int, evaluations: int) -> None:
        x, log_snr = torch.randn(count, *shape), torch.zeros(count)
        condition = doubled[:count] if doubled is not None else None
        for _ in range(evaluations):
            model.denoiser.network(x, log_snr, condition)

    picture = np.zeros((1, *model.data.shape), dtype=np.uint8)
    one = model.unconditional(1)
    found = {
        "guided, 64 samples in 20 steps": ratios(
            lambda: list(states(model, recipe, range(64), labels)), lambda: network(128, 20), options.repeats
        ),
        "an edit of one picture in 10 evaluations": ratios(
            lambda: edit(model, picture, Recipe("ddim", 10), one, strength=0.6),
            lambda: network(1, 10),
            4 * options.repeats,
        ),
    }
    rows = {name: np.quantile(values, [0.5, 0.25, 0.75]).tolist() for name, values in found.items()}
    for name, (median, low, high) in rows.items():
        print(f"{name}: {median:.3f} times the bare network ({low:.3f} to {high:.3f})")
    write_json(options.json, {"model": options.model, "ratios": rows, "conditions": conditions()})


if __name__ == "__main__":
    main()
