"""How fast the default network trains and samples here, beside what this machine's matrix multiplication reaches.

    python benchmarks/throughput.py [--size 28] [--channels 1] [--batch 64] [--repeats 7]

Prints JSON: medians over repeats, alternating with the matrix multiplication so that both see the same machine. FLOPs
are those torch counts in one forward pass; a training step counts as three of them and does the real thing: objective,
backward pass, clipping, AdamW and EMA, without the data.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from undiffuse.build import default_network, make_denoiser, make_network, make_objective
from undiffuse.config import make_config
from undiffuse.training.ema import EMA


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 28), ("channels", 1), ("batch", 64), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    config = make_config({"denoiser.sigma_data": 0.5})
    config = config.model_copy(update={"network": default_network(config.network, (options.size, options.size))})
    network = make_network(config, options.channels, 10)
    denoiser, objective = make_denoiser(config, network), make_objective(config)
    parameters = list(network.parameters())
    optimizer, ema = torch.optim.AdamW(parameters, fused=True), EMA(parameters, config.training.ema)
    x0 = torch.randn(options.batch, options.channels, options.size, options.size)
    labels, u = torch.randint(10, (options.batch,)), torch.rand(options.batch, dtype=torch.float64)
    noise, log_snr = torch.randn_like(x0), torch.randn(options.batch)
    with FlopCounterMode(display=False) as counter:
        network(x0[:1], log_snr[:1], labels[:1])
    flops = counter.get_total_flops()

    def step() -> None:
        objective(denoiser, x0, labels, u, noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(parameters, 1000)

    @torch.inference_mode()
    def evaluation() -> None:
        network(x0, log_snr, labels)

    matrix = torch.randn(1024, 1024)
    runs: dict[str, tuple[Callable[[], object], float]] = {
        "matrix multiplication": (lambda: [matrix @ matrix for _ in range(20)], 20 * 2 * 1024**3),
        "training step": (step, 3 * flops * options.batch),
        "evaluation": (evaluation, flops * options.batch),
    }
    for work, _ in runs.values():
        work()
    times = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, (work, _) in runs.items():
            times[name].append(seconds(work))
    rates = {name: operations / statistics.median(times[name]) / 1e9 for name, (_, operations) in runs.items()}
    result = {
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in parameters),
        "MFLOP per evaluation": round(flops / 1e6, 1),
        "GFLOP/s": {name: round(rate, 1) for name, rate in rates.items()},
        "share of matrix multiplication": {
            name: round(rate / rates["matrix multiplication"], 3) for name, rate in rates.items()
        },
        "images/s": {
            name: round(options.batch / statistics.median(times[name]), 1) for name in ("training step", "evaluation")
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
