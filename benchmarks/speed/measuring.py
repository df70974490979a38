"""Tools of the benchmarks: clocks, alternation, processes to measure in, summaries, counts of FLOPs."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Work = Callable[[], object]
Timed = Callable[[], float]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Amount:
    """How much is measured: the full run, and (QUICK) one that only shows that everything works."""

    repeats: int = 5
    pairs: int = 7
    evaluations: int = 20
    latency_evaluations: int = 10
    overhead_evaluations: dict[int, int] = field(default_factory=lambda: {1: 10, 64: 5})
    memory_steps: int = 20
    sizes: tuple[int, ...] = (16, 32, 64)
    batches: tuple[int, ...] = (1, 8, 64, 256)
    data_sizes: tuple[int, ...] = (1_000, 200_000)
    sampling_steps: tuple[int, ...] = (5, 10, 20, 50)
    process_steps: int = 30
    process_samples: int = 256
    process_repeats: int = 3
    process_ways: int = 3
    memory_tasks: tuple[str, ...] = ("training", "sampling")
    compile: bool = True


QUICK = Amount(
    repeats=2,
    pairs=2,
    evaluations=1,
    latency_evaluations=4,
    overhead_evaluations={1: 4, 64: 1},
    memory_steps=2,
    sizes=(16, 32),
    batches=(8, 64),
    data_sizes=(1_000,),
    sampling_steps=(2, 4),
    process_steps=6,
    process_samples=16,
    process_repeats=1,
    process_ways=2,
    memory_tasks=("training",),
    compile=False,
)


def seconds(work: Work) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(runs: dict[str, Timed], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """The seconds that every run returns, in rounds, every other in reverse: a drifting machine favours none."""
    for run in runs.values():
        for _ in range(warm):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            times[name].append(runs[name]())
    return times


def repeated(work: Work, count: int) -> Work:
    """`work`, repeated `count` times."""

    def many() -> None:
        for _ in range(count):
            work()

    return many


class Worker:
    """Something to measure, built by `make(*arguments)` in a process of its own."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    @cached_property
    def facts(self) -> Figures:
        """Its facts, once it is built."""
        return self.pipe.recv()

    def timed(self, method: str, *arguments: Any) -> Timed:
        """Seconds for a call of one of its methods, measured in its process."""

        def call() -> float:
            assert self.facts is not None
            self.pipe.send((method, arguments))
            return self.pipe.recv()

        return call


def _serve(pipe: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with temporary_folder() as folder:
        os.environ["UNDIFFUSE_CACHE"] = str(folder)
        thing = make(*arguments)
        pipe.send(thing.facts)
        while True:
            try:
                method, values = pipe.recv()
            except (EOFError, KeyboardInterrupt):
                return
            pipe.send(seconds(partial(getattr(thing, method), *values)))


@cache
def worker(make: Callable[..., Any], *arguments: Any) -> Worker:
    """The one worker for these arguments, shared by the sections."""
    return Worker(make, *arguments)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="undiffuse-speed-") as name:
        yield Path(name)


def summary(values: Sequence[float], unit: str, **conditions: Any) -> Figures:
    """Median, smallest and largest of repeats, with the unit and the conditions they were measured under."""
    rounded = {
        name: float(f"{how(values):.4g}") for name, how in (("median", statistics.median), ("min", min), ("max", max))
    }
    return {**rounded, "unit": unit, "repeats": len(values), **conditions}


def rates(times: Sequence[float], amount: float, unit: str, **conditions: Any) -> Figures:
    """`amount` per second."""
    return summary([amount / t for t in times], unit, **conditions)


def milliseconds(times: Sequence[float], unit: str = "ms", per: int = 1, **conditions: Any) -> Figures:
    """The times, each divided by `per`."""
    return summary([1e3 * t / per for t in times], unit, **conditions)


def excess(whole: Sequence[float], bare: Sequence[float], **conditions: Any) -> Figures:
    """By how many percent `whole` takes longer than `bare`, pair by pair."""
    return summary([100 * (w - b) / b for w, b in zip(whole, bare, strict=True)], "% of the bare calls", **conditions)


def megaflops(network: nn.Module, shape: tuple[int, ...], *condition: Tensor) -> float:
    """10^6 floating-point operations of one evaluation of one image."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        network(torch.zeros(1, *shape), *condition)
    return counter.get_total_flops() / 1e6


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def nearest_width(target: float, cost: Callable[[int], float]) -> int:
    """The multiple of 8 whose `cost`, which grows with it, is nearest `target` as a ratio."""
    width = 8
    while cost(width) < target:
        width += 8
    return min((w for w in (width - 8, width) if w), key=lambda w: abs(np.log(cost(w) / target)))
