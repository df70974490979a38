"""How fast undiffuse trains and samples here, beside its peers, in one run: rates, memory, overhead, growth.

    python benchmarks/speed/run.py OUT.json [--quick] [--only NAME[,NAME...]]

Everything trains on and samples images of 28 x 28 x 1 on all cores in float32, unless stated otherwise. Systems that
are compared alternate, so that all see the same machine, and run in separate processes: the state that one leaves in
the allocator and the kernel caches changes the times of the next. A figure is a median over repeats, with the smallest
and the largest. --only measures some sections again and keeps the others in OUT.json. Writes OUT.json and OUT.png.

FLOPs are those torch counts in one forward pass, attention included; a training step counts as three of them. For
undiffuse it is the real step: make_batch, objective, backward, clipping, optimiser, EMA. The peers' batches are ready.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import (
    QUICK,
    Amount,
    Figures,
    Timed,
    Worker,
    alternate,
    excess,
    milliseconds,
    nearest_width,
    rates,
    repeated,
    seconds,
    summary,
    worker,
)
from peers import BATCH, PEERS
from processes import data_size, memory, processes
from report import draw, table
from systems import (
    MFLOP,
    OUR_BATCH,
    OURS,
    PARTS,
    SIZE,
    drawers,
    machine,
    our_config,
    our_drawer,
    our_megaflops,
    our_trainer,
    peer_trainer,
)

from undiffuse.devices import has_bf16
from undiffuse.files import read_json, write_json


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
    "softmax": ("scaled_dot_product", "softmax"),
    "convolution and matrix multiplication": ("conv", "mm", "matmul", "linear"),  # attention's and Muon's too
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
    """Images/s in batches of 64, and the latency of a single image, in one evaluation too."""
    result: Figures = {}
    for task, count, evaluations, repeats in (
        ("64 images", 64, amount.evaluations, amount.repeats),
        ("single image", 1, amount.latency_evaluations, 3 * amount.repeats),
        ("single image, one evaluation", 1, 1, 3 * amount.repeats),
    ):
        times = alternate(
            {name: d.timed("draw", count, evaluations) for name, d in drawers(amount.compile).items()}, repeats
        )
        conditions = {"batch": count, "evaluations": evaluations, "threads": torch.get_num_threads()}
        result[task] = {
            name: rates(took, count, "images/s", **conditions) if count > 1 else milliseconds(took, **conditions)
            for name, took in times.items()
        }
        for ours in (name for name in times if name not in PEERS):
            for name in PEERS:
                ratios = [p / o for o, p in zip(times[ours], times[name], strict=True)]
                result[task][f"{ours} / {name}"] = summary(ratios, "times as fast", **conditions)
    return result


def overhead(amount: Amount) -> Figures:
    """What the libraries add to the bare calls of their networks, and the time of undiffuse's parts alone."""
    result: Figures = {}
    made = drawers(amount.compile)
    for drawer in made.values():
        assert not drawer.facts  # this starts the worker: none may start while another is timed
    for name, drawer in made.items():
        result[name], pairs = {}, amount.pairs
        methods = {"draw": "whole", "bare": "bare"}
        if name in PEERS:
            pairs = min(amount.pairs, amount.repeats)
        else:
            methods["free"] = "with a network that costs nothing"
        for batch, evaluations in amount.overhead_evaluations.items():
            conditions = {"batch": batch, "evaluations": evaluations, "threads": torch.get_num_threads()}
            runs = {method: drawer.timed(method, batch, evaluations) for method in methods}
            times = alternate(runs, 3 * amount.pairs if batch == 1 else pairs)
            result[name][f"sampling, batch {batch}"] = {
                "overhead": excess(times["draw"], times["bare"], **conditions),
                **{
                    what: milliseconds(times[method], "ms per evaluation", evaluations, **conditions)
                    for method, what in methods.items()
                },
            }
    trainer = worker(our_trainer)
    times = alternate({name: trainer.timed(name) for name in ("step", "bare")}, amount.pairs, warm=2)
    parts = alternate({name: trainer.timed("part", name) for name in PARTS}, 3 * amount.pairs)
    result[OURS]["training step"] = {
        "overhead": excess(times["step"], times["bare"], **trainer.facts),
        "bare": milliseconds(times["bare"], **trainer.facts),
        "alone": {name: milliseconds(took, batch=OUR_BATCH) for name, took in parts.items()},
    }
    return result


def resolution(amount: Amount) -> Figures:
    """Cost by the side of the image, each with the default network for it."""
    return growth({str(size): worker(our_trainer, size, 32) for size in amount.sizes}, amount)


def batch_size(amount: Amount) -> Figures:
    """Cost by batch size."""
    return growth({str(batch): worker(our_trainer, SIZE, batch) for batch in amount.batches}, amount)


def growth(trainers: dict[str, Worker], amount: Amount) -> Figures:
    """Time and rate of each, in training and of the network alone."""
    whats = {"training": "step", "evaluation": "evaluation"}
    runs = {f"{key} {what}": t.timed(method) for key, t in trainers.items() for what, method in whats.items()}
    times = alternate(runs, amount.repeats, warm=2)
    result: Figures = {}
    for what in whats:
        result[what] = {}
        for key, trainer in trainers.items():
            facts, took = trainer.facts, times[f"{key} {what}"]
            result[what][key] = {
                "time": milliseconds(took, "ms per image", facts["batch"], **facts),
                "rate": rates(took, facts["batch"], "images/s", **facts),
            }
    return result


def steps(amount: Amount) -> Figures:
    """Seconds to draw 64 images, by the number of evaluations."""
    drawer = worker(our_drawer, "torch")
    times = alternate({str(n): drawer.timed("draw", 64, n) for n in amount.sampling_steps}, amount.repeats)
    conditions = {"batch": 64, "threads": torch.get_num_threads()}
    return {n: summary(took, "s per 64 images", evaluations=int(n), **conditions) for n, took in times.items()}


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


def main() -> None:
    """Measures, writes and shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="only check that everything works, in two minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help="some of " + ", ".join(SECTIONS))
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    os.environ["TQDM_DISABLE"] = "1"  # for subprocesses: a progress bar would cost a peer time
    results = read_json(options.out) if options.out.exists() else {}
    amount, failed = QUICK if options.quick else Amount(), list[str]()
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name} ...", end=" ", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            figures = SECTIONS[name](amount)
        except (RuntimeError, EOFError, ImportError) as error:  # the other sections are still useful
            failed.append(name)
            print(error or "its worker has died", file=sys.stderr, flush=True)
            continue
        took = time.perf_counter() - began
        conditions = {**machine(), "quick": options.quick, "seconds": round(took, 1)}
        results[name] = {"conditions": conditions, "figures": figures}
        write_json(options.out, results)
        print(f"{took:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
    draw(results, options.out.with_suffix(".png"))
    print(table({name: results[name] for name in SECTIONS if name in results}))
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
