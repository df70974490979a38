"""The sections of run.py that start processes of their own: memory, data-size and processes.

As a script, one such process: it does the task given as JSON and prints the result of `measured`.
"""

import gc
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Amount, Figures, alternate, repeated, seconds, summary, temporary_folder
from peers import BATCH, PEERS
from systems import (
    CHANNELS,
    OUR_BATCH,
    OURS,
    SIZE,
    noise_images,
    our_drawer,
    our_trainer,
    peer_drawer,
    peer_trainer,
)

import undiffuse
from undiffuse.data import load


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


def data_size(amount: Amount) -> Figures:
    """Peak memory of `undiffuse.train` by the number of images, which are memory-mapped from the data cache."""
    result: Figures = {}
    for count in amount.data_sizes:
        with temporary_folder() as folder:
            images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, CHANNELS))
            for first in range(0, count, 1000):
                images[first : first + 1000] = noise_images(min(1000, count - first), SIZE)
            images.flush()
            cache = str(folder / "cache")
            task = {"data": str(folder / "images.npy"), "out": str(folder / "run"), "steps": amount.memory_steps}
            built = child({"task": "cache", **task}, UNDIFFUSE_CACHE=cache)
            found = child({"task": "run", **task}, UNDIFFUSE_CACHE=cache)
        conditions = {"images": count, "data, MB": count * SIZE * SIZE * CHANNELS / 1e6, "steps": amount.memory_steps}
        result[str(count)] = {
            "peak": summary([found["peak"] - found["before"]], "MB above the imports", **conditions),
            "of it mapped from files": summary([found["files"]], "MB, which the system takes back", **conditions),
            "to build the cache": summary([built["seconds"]], "s", **conditions),
        }
    return result


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
            line = [*command, *map(str, arguments)]
            return seconds(partial(output_of, line, OMP_NUM_THREADS=threads, UNDIFFUSE_CACHE=str(folder / "cache")))

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
        draws = {way: partial(call, way, "sample", "fashion-mnist", "-n", n, "-o", out, "--force") for way in ways}
        for way, took in alternate(draws, amount.process_repeats, warm=0).items():
            result[way]["sample command"] = summary(took, "s", images=n, evaluations=20)
    return result


def output_of(command: list[str], **environment: str) -> str:
    """The output of a command. Raises RuntimeError, with the end of its errors, if it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def child(task: dict[str, Any], **environment: str) -> Figures:
    """The result of `measured` in a new process."""
    return json.loads(output_of([sys.executable, __file__, json.dumps(task)], **environment).splitlines()[-1])


def measured(task: dict[str, Any]) -> Figures:
    """Does a task; returns the memory before, at the peak and newly mapped from files, in MB, and the seconds."""
    system = task.get("system")
    if system == "diffusers":
        import diffusers.training_utils

        assert diffusers.DDIMPipeline and diffusers.UNet2DModel  # it imports these lazily
    elif system in PEERS:
        PEERS[system](SIZE, CHANNELS)  # imports what it needs
    gc.collect()
    before, files = _memory("VmRSS"), _memory("RssFile")
    took = seconds(partial(do, task))
    return {"before": before, "peak": _memory("VmHWM"), "files": _memory("RssFile") - files, "seconds": took}


def do(task: dict[str, Any]) -> None:
    """A system's training or sampling, the building of a data cache, or a whole run of undiffuse."""
    match task:
        case {"task": "training", "system": name, "steps": count}:
            trainer = our_trainer() if name == OURS else peer_trainer(name)
            repeated(trainer.step, count)()
        case {"task": "sampling", "system": name, "steps": count}:
            drawer = our_drawer() if name == OURS else peer_drawer(name)
            drawer.draw(64, min(10, count))
        case {"task": "cache", "data": source}:
            load(source)
        case {"task": "run", "data": source, "steps": count, "out": out}:
            values = {"data.source": source, "training.steps": count, "training.precision": "fp32"}
            undiffuse.train(values, out, report=lambda line: None)
        case _:
            raise ValueError(f"no such task: {task}")


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


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
