"""One experiment on the training recipe: train for some minutes, draw 1000 samples, measure, append a line of JSON.

    python benchmarks/recipe.py LOG NAME --minutes 5 [--core 0] [--data fashion-mnist] [--preset gan] [KEY=VALUE ...]

Minutes are CPU time. With --core, the run uses that core alone, so that two runs can share two cores. Unconditional, 10
evaluations of the default sampler (a rival's are its own), Frechet distance to the test images in the features of the
data's classifier.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path


def main() -> None:
    """Trains and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("name")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--core", type=int)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--preset", help="such as that of a rival")
    parser.add_argument("--keep", type=Path, help="keep the run here")
    options = parser.parse_intermixed_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
        os.environ["OMP_NUM_THREADS"] = "1"

    from undiffuse import load
    from undiffuse.config import parse_settings, preset
    from undiffuse.devices import conditions
    from undiffuse.evaluation import evaluate
    from undiffuse.generate import Recipe
    from undiffuse.registry import RIVALS
    from undiffuse.training import train

    values = (preset(options.preset) if options.preset else {}) | {
        "data.source": options.data,
        "training.minutes": options.minutes,
        "training.clock": "cpu",
        "training.conditional": False,
        "training.preview_every": 10**6,
        "training.checkpoint_every": 10**6,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "run"
        outcome = train(values | parse_settings(options.settings), run, report=lambda line: None)
        model = load(run)
        recipe = Recipe() if model.config.network.kind in RIVALS else Recipe(steps=10)
        (found,) = evaluate(run, n=1000, metrics="frechet,manifold", recipes=[recipe], engine="torch")
    metrics = found.to_json()["metrics"]
    line = {
        "name": options.name,
        "preset": options.preset,
        "settings": options.settings,
        "minutes": options.minutes,
        **conditions(),
        "images": model.training["images"],
        "steps": outcome.step,
        "parameters": model.parameters,
        "trained_in": model.config.training.precision,
        **{key: metrics[key]["value"] for key in ("frechet", "precision", "recall")},
        "interval": metrics["frechet"]["interval"],
    }
    with options.log.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
