"""Milliseconds of one evaluation of a model's network in PyTorch, ONNX Runtime and OpenVINO, all in float32.

    pip install openvino && python benchmarks/speed/engines.py MODEL OUT.json [--repeats 40]

The engines alternate, and medians are reported, with the largest difference from PyTorch's output.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import openvino
import torch

from undiffuse import load
from undiffuse.devices import conditions
from undiffuse.files import write_json
from undiffuse.interop.onnx import export_onnx, inputs, open_session


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    model, threads = load(options.model, "cpu"), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(model, path)
        session = open_session(path, threads)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it uses bf16 if available
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for batch in (1, 8, 64):
        made = inputs(model, batch)
        feed = {name: value.numpy() for name, value in made.items()}
        runs: dict[str, Callable[[], torch.Tensor]] = {
            "torch": torch.inference_mode()(lambda made=made: model.network(*made.values())),
            "onnxruntime": lambda feed=feed: torch.from_numpy(session.run(None, feed)[0]),
            "openvino": lambda feed=feed: torch.from_numpy(compiled(feed)[0]),
        }
        expected = runs["torch"]()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        found[f"batch {batch}"] = {
            name: {
                "ms": round(1e3 * statistics.median(taken), 3),
                "difference": float((runs[name]() - expected).abs().max()),
            }
            for name, taken in times.items()
        }
    facts = {"model": options.model, **conditions("onnxruntime", "openvino")}
    write_json(options.out, {**facts, **found})
    print({**facts, **found})


if __name__ == "__main__":
    main()
