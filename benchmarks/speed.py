"""How fast undiffuse trains and samples here, beside its peers, in one run: rates, memory, overhead, growth.

    python benchmarks/speed.py OUT.json [--quick] [--only NAME[,NAME...]]

Everything learns and draws images of 28 x 28 x 1 on all cores in float32, unless it says otherwise. What is compared
alternates, so that all see the same machine, and has a process of its own: what one leaves in the allocator and in the
caches of kernels changes the times of the next. A figure is a median over repeats, with the smallest and the largest.
--only measures some sections anew and keeps the others that OUT.json holds. Writes OUT.json and OUT.png.

FLOPs are those torch counts in one forward pass, attention included; a training step counts as three of them. For
undiffuse it is the real step: make_batch, objective, backward, clipping, optimiser, EMA. The peers' batches lie ready.
"""

import argparse
import dataclasses
import gc
import inspect
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # a peer's progress bar, which would cost it time

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peers import BATCH, PEERS, Peer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import undiffuse
from undiffuse.build import default_network, make_denoiser, make_network, make_objective
from undiffuse.config import Config, make_config
from undiffuse.data import ImageSet
from undiffuse.files import read_json, write_json
from undiffuse.model import DataFacts, write_model
from undiffuse.plots import save_figure
from undiffuse.sampling import sample_noise
from undiffuse.training.batches import make_batch
from undiffuse.training.checkpoint import Learner, Progress
from undiffuse.training.ema import EMA
from undiffuse.training.loop import training_steps
from undiffuse.training.muon import make_optimizer

SIZE, CHANNELS, OUR_BATCH = 28, 1, 64
OURS = "undiffuse"
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


# ---- measuring -------------------------------------------------------------------------------------------------------


def seconds(work: Work) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(runs: dict[str, Timed], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """The seconds that every run tells, in rounds of all, every other in reverse: a drifting machine favours none."""
    for run in runs.values():
        for _ in range(warm):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            times[name].append(runs[name]())
    return times


def repeated(work: Work, count: int) -> Work:
    """`work`, `count` times over."""

    def many() -> None:
        for _ in range(count):
            work()

    return many


class Worker:
    """Something to measure, in a process of its own, which `make(*arguments)` builds it in."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    @cached_property
    def facts(self) -> Figures:
        """What it says of itself once it is built."""
        return self.pipe.recv()

    def timed(self, method: str, *arguments: Any) -> Timed:
        """Seconds of a call of one of its methods, measured over there."""

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
    """The one worker for it, which the sections share."""
    return Worker(make, *arguments)


def summary(values: Sequence[float], unit: str, **conditions: Any) -> Figures:
    """Median, smallest and largest of repeats, with the unit and the conditions they were measured under."""
    rounded = {
        name: float(f"{how(values):.4g}") for name, how in (("median", statistics.median), ("min", min), ("max", max))
    }
    return {**rounded, "unit": unit, "repeats": len(values), **conditions}


def rates(times: Sequence[float], amount: float, unit: str, **conditions: Any) -> Figures:
    """`amount` per second."""
    return summary([amount / t for t in times], unit, **conditions)


def excess(whole: Sequence[float], bare: Sequence[float], **conditions: Any) -> Figures:
    """By how many percent `whole` takes longer than `bare`, pair by pair."""
    return summary([100 * (w - b) / b for w, b in zip(whole, bare, strict=True)], "% of the bare calls", **conditions)


def machine() -> Figures:
    """What every figure of a section was measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    found = {}
    for package in (OURS, "torch", "numpy", "onnxruntime", *PEERS):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": found,
        "image": [SIZE, SIZE, CHANNELS],
        "precision": "float32",
    }


def megaflops(network: nn.Module, shape: tuple[int, ...], *condition: Tensor) -> float:
    """10^6 floating-point operations of one evaluation of one image."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        network(torch.zeros(1, *shape), *condition)
    return counter.get_total_flops() / 1e6


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def nearest_width(target: float, cost: Callable[[int], float], multiple: int = 8) -> int:
    """The multiple whose `cost`, which grows with it, is nearest `target` as a ratio."""
    width = multiple
    while cost(width) < target:
        width += multiple
    candidates = [w for w in (width - multiple, width) if w > 0]
    return min(candidates, key=lambda w: abs(np.log(cost(w) / target)))


# ---- undiffuse and its peers -----------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """A system that trains.

    Attributes:
        facts: what its rates depend on.
        step: one whole optimiser step on a batch.
        bare: forward, backward and optimiser on a batch that lies ready.
        evaluation: the network alone on a batch.
        parts: what else the step does, each alone.
    """

    facts: Figures
    step: Work
    bare: Work
    evaluation: Work
    parts: dict[str, Work] = field(default_factory=dict)

    def part(self, name: str) -> None:
        """One of the parts."""
        self.parts[name]()


MFLOP = "MFLOP per evaluation"


def facts_of(network: nn.Module, mflop: float, batch: int, **others: Any) -> Figures:
    """A trainer's."""
    count = sum(p.numel() for p in network.parameters())
    threads = torch.get_num_threads()
    return {"batch": batch, MFLOP: round(mflop, 1), "parameters": count, "threads": threads, **others}


PARTS = ("make_batch", "its noise", "objective around the network", "clipping", "EMA")


def our_config(size: int = SIZE, batch: int = OUR_BATCH, width: int | None = None) -> Config:
    """The default configuration, decided; `width`: channels (width, 2 width) instead of the default's."""
    values: dict[str, Any] = {"denoiser.sigma_data": 0.5, "training.batch_size": batch}
    if width:
        values["network.channels"] = (width, 2 * width)
    config = make_config(values)
    return config.model_copy(update={"network": default_network(config.network, (size, size))})


def noise_images(count: int, size: int) -> np.ndarray:
    """uint8 (count, size, size, CHANNELS)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, CHANNELS), dtype=np.uint8)


def our_megaflops(config: Config, size: int = SIZE) -> float:
    """Of its network."""
    return megaflops(make_network(config, CHANNELS, 0).eval(), (CHANNELS, size, size), torch.zeros(1))


def our_trainer(size: int = SIZE, batch: int = OUR_BATCH, width: int | None = None, precision: str = "no") -> Trainer:
    """undiffuse, unconditional as the peers are, training on images in memory; `precision` as Accelerate has it."""
    torch.manual_seed(0)
    config = our_config(size, batch, width)
    data = ImageSet("noise", "train", noise_images(1024, size), None, (), (), "", "")
    network = make_network(config, CHANNELS, 0)
    parameters = list(network.parameters())
    optimizer = make_optimizer(config.training, network)
    ema = EMA(parameters, config.training.ema)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    steps = training_steps(config, data, Learner(network, ema, optimizer, None, Progress()), accelerator)
    ready = make_batch(config, data, 0, slice(None))
    log_snr = torch.randn(batch)
    own = make_optimizer(config.training, network)

    def bare() -> None:
        (network(ready.x0, log_snr) - ready.noise).square().mean().backward()
        own.step()
        own.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        network(ready.x0, log_snr)

    def clipping() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        own.zero_grad()

    gradients = [torch.randn_like(p) for p in parameters]
    denoiser, objective = make_denoiser(config, Free()), make_objective(config)
    parts: dict[str, Work] = {
        "make_batch": lambda: make_batch(config, data, 0, slice(None)),
        "its noise": lambda: sample_noise(0, range(batch), (CHANNELS, size, size), ready.x0)(0),
        "objective around the network": lambda: objective(denoiser, ready.x0, None, ready.u, ready.noise).mean(),
        "clipping": clipping,
        "EMA": lambda: ema.update(parameters, 1000),
    }
    assert tuple(parts) == PARTS
    facts = facts_of(network, our_megaflops(config, size), batch, channels=config.network.channels)
    return Trainer(facts, lambda: next(steps), bare, evaluation, parts)


class Free(nn.Module):
    """A network that costs nothing: what is left is the library's own work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


def peer_trainer(name: str) -> Trainer:
    """A peer, as benchmarks/peers.py sets it up."""
    torch.manual_seed(0)
    peer: Peer = PEERS[name](SIZE, CHANNELS)
    x0, t = torch.randn(BATCH, CHANNELS, SIZE, SIZE), torch.randint(1000, (BATCH,))

    def bare() -> None:
        (_tensor(peer.network(x0, t)) - x0).square().mean().backward()
        peer.optimizer.step()
        peer.optimizer.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        peer.network(x0, t)

    mflop = megaflops(peer.network, (CHANNELS, SIZE, SIZE), torch.tensor([5]))
    return Trainer(facts_of(peer.network, mflop, BATCH), lambda: peer.step(x0), bare, evaluation)


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.sample


@dataclass
class Drawer:
    """A system that samples.

    Attributes:
        draw: (count, evaluations) -> images, through the library's public interface.
        bare: (count, evaluations): so many calls of the network alone.
        free: `draw` with a network that costs nothing, where there is one.
    """

    draw: Callable[[int, int], object]
    bare: Callable[[int, int], None]
    free: Callable[[int, int], object] | None = None

    @property
    def facts(self) -> Figures:
        """Nothing but that it is there."""
        return {}


def has_bf16() -> bool:
    """Whether undiffuse would train in bf16 here if it is not told otherwise."""
    try:
        from undiffuse.devices import has_bf16 as has
    except ImportError:
        return False
    return has()


def engines() -> tuple[str, ...]:
    """What undiffuse can evaluate a network with."""
    try:
        from undiffuse.engines import available
    except ImportError:
        return ("torch",)
    return tuple(available())


def our_drawer(engine: str = "torch") -> Drawer:
    """undiffuse with an engine, on a model with random weights."""
    torch.manual_seed(0)
    config = our_config()
    network = make_network(config, CHANNELS, 0)
    for parameter in network.parameters():  # no layer is left at 0, where numbers might be special
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    with temporary_folder() as folder:
        write_model(folder, config, DataFacts("noise", (SIZE, SIZE, CHANNELS), 1024), {}, network.state_dict())
        plain = undiffuse.load(folder, "cpu")
    free = dataclasses.replace(plain, denoiser=dataclasses.replace(plain.denoiser, network=Free()))
    model, chosen = plain, {}
    if "engine" in inspect.signature(undiffuse.sample).parameters:
        from undiffuse.engines import with_engine

        model, chosen = with_engine(plain, engine), {"engine": engine}

    @torch.no_grad()
    def bare(count: int, evaluations: int) -> None:
        x, log_snr = torch.randn(count, CHANNELS, SIZE, SIZE), torch.zeros(count)
        for _ in range(evaluations):
            model.denoiser.network(x, log_snr, None)

    return Drawer(
        lambda count, evaluations: undiffuse.sample(model, count, steps=evaluations, **chosen),
        bare,
        lambda count, evaluations: undiffuse.sample(free, count, steps=evaluations, **(chosen and {"engine": "torch"})),
    )


def peer_drawer(name: str) -> Drawer:
    """A peer's own sampler, made once (not at every draw, as peers.py does)."""
    torch.manual_seed(0)
    peer: Peer = PEERS[name](SIZE, CHANNELS)
    network = peer.network.eval()
    draw: Callable[[int, int], object] = partial(peer.draw, network)
    quiet = torch.inference_mode if name == "denoising-diffusion-pytorch" else torch.no_grad
    if name == "diffusers":
        from diffusers import DDIMPipeline, DDIMScheduler

        pipeline = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"))
        pipeline.set_progress_bar_config(disable=True)

        def draw(count: int, evaluations: int) -> object:
            return pipeline(batch_size=count, num_inference_steps=evaluations, output_type="np")

    def bare(count: int, evaluations: int) -> None:
        x, t = torch.randn(count, CHANNELS, SIZE, SIZE), torch.full((count,), 500)
        with quiet():
            for _ in range(evaluations):
                network(x, t)

    return Drawer(draw, bare)


def drawers(compiled: bool) -> dict[str, Worker]:
    """undiffuse's, one for each engine (`compiled`: also the one that takes long to start), then the peers'."""
    ours = {
        OURS if engine == "torch" else f"{OURS} ({engine})": worker(our_drawer, engine)
        for engine in engines()
        if compiled or engine != "compile"
    }
    return ours | {name: worker(peer_drawer, name) for name in PEERS}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the time being."""
    with tempfile.TemporaryDirectory(prefix="undiffuse-speed-") as name:
        yield Path(name)


# ---- the sections ----------------------------------------------------------------------------------------------------


def training(amount: Amount) -> Figures:
    """Images/s of everyone's own network, and of undiffuse's widened to the FLOPs of each peer, at its batch size."""
    trainers = {OURS: worker(our_trainer), **{name: worker(peer_trainer, name) for name in PEERS}}
    if has_bf16():
        trainers[f"{OURS} in bf16"] = worker(our_trainer, SIZE, OUR_BATCH, None, "bf16")
    for name in PEERS:
        width = nearest_width(trainers[name].facts[MFLOP], lambda c: our_megaflops(our_config(width=c)))
        trainers[f"{OURS} at the FLOPs of {name}"] = worker(our_trainer, SIZE, BATCH, width)
    gemm, gflop = "matrix multiplication", 20 * 2 * 1024**3 / 1e9
    matrix = torch.randn(1024, 1024)
    runs: dict[str, Timed] = {gemm: partial(seconds, repeated(lambda: matrix @ matrix, 20))}
    for name, trainer in trainers.items():
        runs[name], runs[f"{name}: evaluation"] = trainer.timed("step"), trainer.timed("evaluation")
    times = alternate(runs, amount.repeats)
    result: Figures = {gemm: rates(times[gemm], gflop, "GFLOP/s", shape="1024 x 1024")}
    for name, trainer in trainers.items():
        facts, result[name] = trainer.facts, {}
        for what, took, passes in (("training", times[name], 3), ("evaluation", times[f"{name}: evaluation"], 1)):
            work = passes * facts[MFLOP] / 1e3 * facts["batch"]
            shares = [work / t / (gflop / g) for t, g in zip(took, times[gemm], strict=True)]
            result[name][what] = {
                "rate": rates(took, facts["batch"], "images/s", **facts),
                "operations": rates(took, work, "GFLOP/s", **facts),
                "share": summary(shares, "of the matrix multiplication's", **facts),
            }
    for name in PEERS:
        equal = f"{OURS} at the FLOPs of {name}"
        own = [p / o * OUR_BATCH / BATCH for o, p in zip(times[OURS], times[name], strict=True)]
        same = [p / o for o, p in zip(times[equal], times[name], strict=True)]
        flops = round(trainers[equal].facts[MFLOP] / trainers[name].facts[MFLOP], 3)
        result[f"{OURS} / {name}"] = {
            "own networks": summary(own, "times the images/s"),
            "equal FLOPs": summary(same, "times the images/s", batch=BATCH, our_flops_over_theirs=flops),
        }
    return result


KINDS = {
    "attention": ("scaled_dot_product", "bmm", "softmax"),  # nothing else in the network multiplies batches
    "convolution and matrix multiplication": ("conv", "addmm", "mm", "matmul", "linear"),
    "normalisation": ("norm_backward", "group_norm", "layer_norm", "native_norm"),
    "SiLU": ("silu",),
    "optimiser, clipping, EMA": ("adam", "foreach", "lerp", "linalg_vector_norm"),
}
OTHER, OUTSIDE = "other operators", "outside of operators"


def kind_of(operator: str) -> str:
    """The kind of a torch operator, by its name."""
    name = operator.removeprefix("aten::").lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), OTHER)


def breakdown(amount: Amount) -> Figures:
    """Where the time of a training step and of sampling goes, by kind of operator."""
    trainer, drawer, result = our_trainer(), our_drawer(), {}
    tasks = {
        "training step": (trainer.step, f"batch {OUR_BATCH}"),
        "sampling": (lambda: drawer.draw(64, 4), "64 images in 4 evaluations"),
    }
    for name, (work, what) in tasks.items():
        repeated(work, 2)()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            took = seconds(repeated(work, max(2, amount.repeats)))
        spent = dict.fromkeys((*KINDS, OTHER, OUTSIDE), 0.0)
        operators = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
        for operator, busy in operators.items():
            spent[kind_of(operator) if operator.startswith(("aten::", "mkldnn")) else OTHER] += busy
        spent[OUTSIDE] = max(0.0, took - sum(operators.values()))
        busiest = sorted(operators, key=lambda operator: -operators[operator])[:15]
        result[name] = {
            "unit": "share of the time",
            "of": what,
            "threads": torch.get_num_threads(),
            "under": "torch.profiler, which slows small operators",
            "shares": {kind: round(busy / took, 4) for kind, busy in spent.items()},
            "busiest operators": {operator: round(operators[operator] / took, 4) for operator in busiest},
        }
    return result


def sampling(amount: Amount) -> Figures:
    """Images/s in batches of 64, and the latency of a single image."""
    result: Figures = {}
    for task, count, evaluations, repeats in (
        ("64 images", 64, amount.evaluations, amount.repeats),
        ("single image", 1, amount.latency_evaluations, 3 * amount.repeats),
    ):
        times = alternate(
            {name: d.timed("draw", count, evaluations) for name, d in drawers(amount.compile).items()}, repeats
        )
        conditions = {"batch": count, "evaluations": evaluations, "threads": torch.get_num_threads()}
        result[task] = {
            name: rates(took, count, "images/s", **conditions)
            if count > 1
            else summary([1e3 * t for t in took], "ms", **conditions)
            for name, took in times.items()
        }
        for ours in (name for name in times if name not in PEERS):
            for name in PEERS:
                ratios = [p / o for o, p in zip(times[ours], times[name], strict=True)]
                result[task][f"{ours} / {name}"] = summary(ratios, "times as fast", **conditions)
    return result


def memory(amount: Amount) -> Figures:
    """Peak memory above that of the imports, each in a process of its own."""
    tasks = [(task, name) for task in amount.memory_tasks for name in (OURS, *PEERS)]
    with ThreadPoolExecutor(2) as pool:  # no clock is read
        found = list(pool.map(lambda t: child({"task": t[0], "system": t[1], "steps": amount.memory_steps}), tasks))
    result: Figures = {task: {} for task in amount.memory_tasks}
    for (task, name), its in zip(tasks, found, strict=True):
        batch = (OUR_BATCH if name == OURS else BATCH) if task == "training" else 64
        conditions = {"batch": batch, "steps": amount.memory_steps, "MB of the imports": round(its["before"])}
        result[task][name] = summary([its["peak"] - its["before"]], "MB above the imports", **conditions)
    return result


def overhead(amount: Amount) -> Figures:
    """What the libraries add to the bare calls of their networks, and what undiffuse's parts take alone."""
    result: Figures = {}
    for name, drawer in drawers(amount.compile).items():
        result[name] = {}
        for batch, evaluations in amount.overhead_evaluations.items():
            conditions = {"batch": batch, "evaluations": evaluations, "threads": torch.get_num_threads()}
            methods = ("draw", "bare") if name in PEERS else ("draw", "bare", "free")
            runs = {method: drawer.timed(method, batch, evaluations) for method in methods}
            pairs = (
                3 * amount.pairs if batch == 1 else min(amount.pairs, amount.repeats) if name in PEERS else amount.pairs
            )
            times = alternate(runs, pairs)
            found = {"overhead": excess(times["draw"], times["bare"], **conditions)}
            for method, took in times.items():
                found[LONG[method]] = summary([1e3 * t / evaluations for t in took], "ms per evaluation", **conditions)
            result[name][f"sampling, batch {batch}"] = found
    trainer = worker(our_trainer)
    times = alternate({name: trainer.timed(name) for name in ("step", "bare")}, amount.pairs, warm=2)
    parts = alternate({name: trainer.timed("part", name) for name in PARTS}, 3 * amount.pairs)
    result[OURS]["training step"] = {
        "overhead": excess(times["step"], times["bare"], **trainer.facts),
        "bare": summary([1e3 * t for t in times["bare"]], "ms", **trainer.facts),
        "alone": {name: summary([1e3 * t for t in took], "ms", batch=OUR_BATCH) for name, took in parts.items()},
    }
    return result


LONG = {"draw": "whole", "bare": "bare", "free": "with a network that costs nothing"}


def resolution(amount: Amount) -> Figures:
    """Cost by the side of the image, each with the default network for it."""
    return _growth({str(size): worker(our_trainer, size, 32) for size in amount.sizes}, amount)


def batch_size(amount: Amount) -> Figures:
    """Cost by batch size."""
    return _growth({str(batch): worker(our_trainer, SIZE, batch) for batch in amount.batches}, amount)


def _growth(trainers: dict[str, Worker], amount: Amount) -> Figures:
    whats = {"training": "step", "evaluation": "evaluation"}
    runs = {f"{key} {what}": t.timed(method) for key, t in trainers.items() for what, method in whats.items()}
    times = alternate(runs, amount.repeats, warm=2)
    result: Figures = {}
    for what in whats:
        result[what] = {}
        for key, trainer in trainers.items():
            facts, took = trainer.facts, times[f"{key} {what}"]
            result[what][key] = {
                "time": summary([1e3 * t / facts["batch"] for t in took], "ms per image", **facts),
                "rate": rates(took, facts["batch"], "images/s", **facts),
            }
    return result


def data_size(amount: Amount) -> Figures:
    """Peak memory of `undiffuse.train` by the number of images, which lie memory-mapped in the data cache."""
    result: Figures = {}
    for count in amount.data_sizes:
        with temporary_folder() as folder:
            images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, CHANNELS))
            for first in range(0, count, 1000):
                images[first : first + 1000] = noise_images(min(1000, count - first), SIZE)
            images.flush()
            environment = {"UNDIFFUSE_CACHE": str(folder / "cache")}
            task = {"data": str(folder / "images.npy"), "out": str(folder / "run"), "steps": amount.memory_steps}
            built = child({"task": "cache", **task}, environment)
            found = child({"task": "run", **task}, environment)
        conditions = {"images": count, "data, MB": count * SIZE * SIZE * CHANNELS / 1e6, "steps": amount.memory_steps}
        result[str(count)] = {
            "peak": summary([found["peak"] - found["before"]], "MB above the imports", **conditions),
            "of it mapped from files": summary([found["files"]], "MB, which the system takes back", **conditions),
            "to build the cache": summary([built["seconds"]], "s", **conditions),
        }
    return result


def steps(amount: Amount) -> Figures:
    """Seconds to draw 64 images, by the number of evaluations."""
    drawer = worker(our_drawer, "torch")
    times = alternate({str(n): drawer.timed("draw", 64, n) for n in amount.sampling_steps}, amount.repeats)
    conditions = {"batch": 64, "threads": torch.get_num_threads()}
    return {n: summary(took, "s per 64 images", evaluations=int(n), **conditions) for n, took in times.items()}


def processes(amount: Amount) -> Figures:
    """One process with one and two threads, and two of one thread (torchrun): the command, from start to end."""
    plain = [sys.executable, "-m", "undiffuse"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = {
        "1 process, 2 threads": (plain, "2"),
        "2 processes, 1 thread each": ([*launcher, "-m", "undiffuse"], "1"),
        "1 process, 1 thread": (plain, "1"),
    }
    ways = dict(list(ways.items())[: amount.process_ways])
    result: Figures = {}
    with temporary_folder() as folder:
        np.save(folder / "images.npy", noise_images(1024, SIZE))

        def call(way: str, *arguments: object) -> float:
            command, threads = ways[way]
            own = {"OMP_NUM_THREADS": threads, "UNDIFFUSE_CACHE": str(folder / "cache")}
            line, environment = [*command, *map(str, arguments)], {**os.environ, **own}
            began = time.perf_counter()
            done = subprocess.run(line, env=environment, capture_output=True, text=True)
            took = time.perf_counter() - began
            if done.returncode:
                raise RuntimeError(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}")
            return took

        every = max(1, amount.process_steps // 6)
        sets = [f"training.{key}" for key in (f"log_every={every}", "preview_every=10000", "precision=fp32")]
        for number, way in enumerate(ways):
            run = folder / f"run-{number}"
            train = ["train", folder / "images.npy", "--steps", amount.process_steps, "--out", run]
            whole = call(way, *train, *(f"--set={s}" for s in sets))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            speeds = [row["images_per_second"] / OUR_BATCH for row in rows[1:]]
            result[way] = {
                "training": summary(speeds, "steps/s", batch=OUR_BATCH, steps_per_repeat=every),
                "training command": summary([whole], "s", steps=amount.process_steps),
            }
        n = amount.process_samples
        out = folder / "samples.npz"
        draws = {way: partial(call, way, "sample", "fashion-mnist", "-n", n, "-o", out) for way in ways}
        for way, took in alternate(draws, amount.process_repeats, warm=0).items():
            result[way]["sample command"] = summary(took, "s", images=n, evaluations=20)
    return result


SECTIONS: dict[str, Callable[[Amount], Figures]] = {
    "training": training,
    "breakdown": breakdown,
    "sampling": sampling,
    "memory": memory,
    "overhead": overhead,
    "resolution": resolution,
    "batch-size": batch_size,
    "data-size": data_size,
    "steps": steps,
    "processes": processes,
}


# ---- processes of their own ------------------------------------------------------------------------------------------


def child(task: dict[str, Any], environment: dict[str, str] | None = None) -> Figures:
    """What `in_child` finds in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_child(task: dict[str, Any]) -> Figures:
    """Does a task; tells the memory before, at the peak and newly mapped from files, in MB, and the seconds."""
    if task.get("system") == "diffusers":
        import diffusers.training_utils

        assert diffusers.DDIMPipeline and diffusers.UNet2DModel  # it imports these when they are asked for
    elif task.get("system") in PEERS:
        PEERS[task["system"]](SIZE, CHANNELS)  # imports what it needs
    elif task["task"] == "run":
        import undiffuse.training  # noqa: F401
    gc.collect()
    before, files = _memory("VmRSS"), _memory("RssFile")
    began = time.perf_counter()
    {"training": _train_child, "sampling": _sample_child, "cache": _cache_child, "run": _run_child}[task["task"]](task)
    took = time.perf_counter() - began
    return {"before": before, "peak": _memory("VmHWM"), "files": _memory("RssFile") - files, "seconds": took}


def _train_child(task: dict[str, Any]) -> None:
    trainer = our_trainer() if task["system"] == OURS else peer_trainer(task["system"])
    repeated(trainer.step, task["steps"])()


def _sample_child(task: dict[str, Any]) -> None:
    drawer = our_drawer() if task["system"] == OURS else peer_drawer(task["system"])
    drawer.draw(64, min(10, task["steps"]))


def _cache_child(task: dict[str, Any]) -> None:
    from undiffuse.data import load

    load(task["data"])


def _run_child(task: dict[str, Any]) -> None:
    values = {"data.source": task["data"], "training.steps": task["steps"], "training.precision": "fp32"}
    undiffuse.train(values, task["out"], report=lambda line: None)


def _memory(which: str) -> float:
    """A line of /proc/self/status, in MB. Elsewhere the peak, ru_maxrss: on Linux that would begin at the peak of the
    process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(which + ":"))
        return int(line.split()[1]) / 1e3
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


# ---- showing ---------------------------------------------------------------------------------------------------------


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Figures]]:
    """The figures in nested dictionaries, with the keys that lead to them."""
    if isinstance(tree, dict) and "median" in tree:
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))


def table(results: Figures) -> str:
    """One line for every figure."""
    lines = []
    for section in (name for name in SECTIONS if name in results):
        lines.append(f"\n{section}")
        for path, figure in leaves(results[section]["figures"]):
            spread = f"{figure['min']:g} to {figure['max']:g}" if figure["repeats"] > 1 else ""
            lines.append(f"  {', '.join(path):75} {figure['median']:>9g} {figure['unit']:34} {spread}")
        if section == "breakdown":
            for name, found in results[section]["figures"].items():
                lines += [f"  {name}, {kind:60} {share:9.1%}" for kind, share in found["shares"].items()]
    return "\n".join(lines)


COLOURS = {OURS: "C0", "diffusers": "C1", "denoising-diffusion-pytorch": "C2"}
SHORT = {"denoising-diffusion-pytorch": "dd-pytorch"}


def draw(results: Figures, path: Path) -> None:
    """The figures as panels: what was measured of ratios, shares and growth."""
    found = {name: section["figures"] for name, section in results.items()}
    panels = [panel for name, panel in PANELS if name in found]
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        panel(ax, found)
        ax.title.set_fontsize(10)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    save_figure(figure, path)


def _bars(ax: Axes, groups: dict[str, dict[str, Figures]], colours: dict[str, str], form: str) -> None:
    """Horizontal bars: group -> name -> figure, with the spread as a line and the median as text."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    height = 0.8 / len(names)
    for row, bars in enumerate(groups.values()):
        for number, name in enumerate(names):
            if name not in bars:
                continue
            figure, y = bars[name], row + (number - (len(names) - 1) / 2) * height
            label = SHORT.get(name, name) if row == 0 else None
            ax.barh(y, figure["median"], 0.9 * height, color=colours[name], alpha=0.85, label=label)
            ax.plot([figure["min"], figure["max"]], [y, y], color="black", linewidth=0.8)
            end = max(figure["median"], figure["max"], 0)
            ax.annotate(
                form.format(figure["median"]), (end, y), (3, 0), textcoords="offset points", va="center", size=7
            )
    ax.set_yticks(range(len(groups)), list(groups))
    ax.invert_yaxis()
    ax.margins(x=0.15)
    if len(names) > 1:
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=len(names), frameon=False)


def _ratios(ax: Axes, found: Figures) -> None:
    groups: dict[str, dict[str, Figures]] = {}
    for name in PEERS:
        pair = f"{OURS} / {name}"
        for key, label in (("own networks", "training,\nown networks"), ("equal FLOPs", "training,\nequal FLOPs")):
            groups.setdefault(label, {})[name] = found["training"][pair][key]
        for task, label in (("64 images", "sampling 64"), ("single image", "single image")):
            for system, figure in found.get("sampling", {}).get(task, {}).items():
                ours, _, peer = system.partition(" / ")
                if peer == name:
                    engine = ours.removeprefix(OURS).strip(" ()") or "torch"
                    groups.setdefault(f"{label},\n{engine}", {})[name] = figure
    _bars(ax, groups, COLOURS, "{:.1f}")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("undiffuse: how many times as fast as ...")


def _shares(ax: Axes, found: Figures) -> None:
    groups = {
        SHORT.get(name, name).replace(" at the FLOPs of ", "\nat FLOPs of ").replace("denoising-diffusion", "dd"): {
            what: figures[what]["share"] for what in ("training", "evaluation")
        }
        for name, figures in found["training"].items()
        if "training" in figures
    }
    _bars(ax, groups, {"training": "C0", "evaluation": "C9"}, "{:.2f}")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("FLOP/s, as a share of matrix multiplication")


def _breakdown(ax: Axes, found: Figures) -> None:
    kinds = [*KINDS, OTHER, OUTSIDE]
    tasks = list(found["breakdown"])
    left = np.zeros(len(tasks))
    for number, kind in enumerate(kinds):
        shares = np.array([100 * found["breakdown"][task]["shares"][kind] for task in tasks])
        ax.barh(tasks, shares, 0.5, left=left, label=kind, color=f"C{number}")
        for row, share in enumerate(shares):
            if share >= 4:
                ax.text(left[row] + share / 2, row, f"{share:.0f}", ha="center", va="center", size=7, color="white")
        left += shares
    ax.set_title("Where undiffuse's time goes, %")
    ax.set_ylim(-0.5, len(tasks) + 0.9)
    ax.legend(fontsize=6.5, loc="upper left", ncols=2, columnspacing=1)


def _overheads(ax: Axes, found: Figures) -> None:
    groups: dict[str, dict[str, Figures]] = {}
    for name in (OURS, *PEERS):
        for what, figures in found["overhead"][name].items():
            groups.setdefault(what.replace(", ", ",\n"), {})[name] = figures["overhead"]
    _bars(ax, groups, COLOURS, "{:.1f}")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_title("Time beyond the bare network's, %")


def _memory_bars(ax: Axes, found: Figures) -> None:
    _bars(ax, found["memory"], COLOURS, "{:.0f}")
    ax.set_title("Peak memory above the imports, MB")


def _line(ax: Axes, figures: dict[str, Figures], label: str | None = None, colour: str = "C0") -> None:
    x = [float(key) for key in figures]
    median, low, high = (np.array([f[key] for f in figures.values()]) for key in ("median", "min", "max"))
    ax.errorbar(
        x, median, [median - low, high - median], marker=".", linewidth=1.4, capsize=2, label=label, color=colour
    )


def _both(ax: Axes, figures: Figures, key: str) -> None:
    for what, colour in (("training", "C0"), ("evaluation", "C9")):
        _line(ax, {x: figure[key] for x, figure in figures[what].items()}, what, colour)
    _log_x(ax, figures["training"])
    ax.legend(fontsize=7)


def _log_x(ax: Axes, keys: Iterable[str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks([float(key) for key in keys], [f"{int(key):,}" for key in keys])
    ax.minorticks_off()


def _resolutions(ax: Axes, found: Figures) -> None:
    _both(ax, found["resolution"], "time")
    ax.set(title="ms per image by side in pixels")


def _batches(ax: Axes, found: Figures) -> None:
    _both(ax, found["batch-size"], "rate")
    ax.set(title="images/s by batch size")


def _data_sizes(ax: Axes, found: Figures) -> None:
    for key, colour in (("peak", "C0"), ("of it mapped from files", "C9")):
        _line(ax, {n: figures[key] for n, figures in found["data-size"].items()}, key, colour)
    _log_x(ax, found["data-size"])
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=7)
    ax.set(title="Peak memory of training, MB, by images")


def _steps(ax: Axes, found: Figures) -> None:
    figures = found["steps"]
    _line(ax, figures)
    last = list(figures)[-1]
    ax.plot([0, float(last)], [0, figures[last]["median"]], "--", color="grey", linewidth=1, label="proportional")
    ax.legend(fontsize=7)
    ax.set(title="seconds per 64 images by evaluations")


def _processes(ax: Axes, found: Figures) -> None:
    groups = {way.replace(", ", ",\n"): {"training": f["training"]} for way, f in found["processes"].items()}
    _bars(ax, groups, {"training": "C0"}, "{:.2f}")
    ax.set_title("training steps/s by processes")


PANELS: tuple[tuple[str, Callable[[Axes, Figures], None]], ...] = (
    ("training", _ratios),
    ("training", _shares),
    ("breakdown", _breakdown),
    ("overhead", _overheads),
    ("memory", _memory_bars),
    ("data-size", _data_sizes),
    ("resolution", _resolutions),
    ("batch-size", _batches),
    ("steps", _steps),
    ("processes", _processes),
)


def main() -> None:
    """Measures, writes and shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("speed.json"))
    parser.add_argument("--quick", action="store_true", help="only show that everything works, in two minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help="some of " + ", ".join(SECTIONS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(in_child(json.loads(options.child))))
        return
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    results = read_json(options.out) if options.out.exists() else {}
    amount, failed = QUICK if options.quick else Amount(), list[str]()
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name} ...", end=" ", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            figures = SECTIONS[name](amount)
        except RuntimeError as error:  # the other sections are worth having all the same
            failed.append(name)
            print(error, file=sys.stderr, flush=True)
            continue
        took = time.perf_counter() - began
        conditions = {**machine(), "quick": options.quick, "seconds": round(took, 1)}
        results[name] = {"conditions": conditions, "figures": figures}
        write_json(options.out, results)
        print(f"{took:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
    draw(results, options.out.with_suffix(".png"))
    print(table(results))
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
