"""Training for equal CPU time on one thread, so that what else the machine does costs nobody its steps."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from undiffuse import train
from undiffuse.config import over
from undiffuse.files import read_json, write_json

QUIET = {"training.preview_every": 10**9, "training.checkpoint_every": 10**6}
"""Settings of runs that only their end is wanted of."""

TRIAL, PATHS = (20, 80), (512, 1536)
"""The steps of two short runs, whose difference is what a step costs; and the paths of two."""


def cpu_seconds(values: dict[str, Any]) -> float:
    """CPU time of a run that nobody keeps."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        train(values, folder, report=lambda line: None)
        return time.process_time() - began


def steps_in(minutes: float, values: dict[str, Any]) -> int:
    """How many training steps of undiffuse with these settings take so many minutes of CPU time here; with
    objective.paths, what is left of them after a teacher's paths have been drawn."""
    cpu_seconds(values | {"training.steps": 1})  # reads the data into the cache
    few, more = (cpu_seconds(values | {"training.steps": steps}) for steps in TRIAL)
    left = 60 * minutes
    if paths := values.get("objective.paths"):
        left -= paths * seconds_a_path(values)
    return max(1, round(left * (TRIAL[1] - TRIAL[0]) / (more - few)))


def seconds_a_path(values: dict[str, Any]) -> float:
    """CPU time that a teacher's path takes to draw: from the difference of two numbers of them, in an empty cache."""
    taken = []
    for count in PATHS:
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"UNDIFFUSE_CACHE": cache}):
            taken.append(cpu_seconds(values | {"training.steps": 1, "objective.paths": count}))
    return (taken[1] - taken[0]) / (PATHS[1] - PATHS[0])


def run_to_its_end(values: dict[str, Any], run: Path) -> None:
    """Trains, from where the run in the folder `run` stands. Ends the program if it is stopped, so that
    nothing unfinished is measured."""
    if not train(values, run, resume=True).finished:
        sys.exit(f"{run} was stopped: the same command goes on with it")


def finish(values: dict[str, Any], run: Path, minutes: float, plan: Path, name: str) -> None:
    """Trains for as many steps as the JSON file `plan` has under `name`; if it has none, as there are in `minutes`."""
    planned: dict[str, int] = read_json(plan) if plan.exists() else {}
    if name not in planned:
        planned[name] = steps_in(minutes, values)
        write_json(plan, (read_json(plan) if plan.exists() else {}) | planned)
    run_to_its_end(over(values, {"training.steps": planned[name]}), run)


def losses_in(minutes: float, step: Callable[..., Any], examples: Iterator[tuple[Any, ...]]) -> list[float]:
    """The losses of a peer's training steps, which take so many minutes of CPU time; to make batches costs nothing."""
    used, losses = 0.0, []
    for example in examples:
        began = time.process_time()
        losses.append(float(step(*example)))
        used += time.process_time() - began
        if used >= 60 * minutes:
            break
    return losses
