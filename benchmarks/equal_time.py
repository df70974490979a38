"""Training for equal CPU time on one thread, so that what else the machine does costs nobody its steps."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from undiffuse import train

QUIET = {"training.preview_every": 10**9}
"""Settings of runs that only their end is wanted of."""
RATES = (None, 1e-3)
"""Of peers: the recommended one, and the other that is tried."""


def finish(values: dict[str, Any], run: Path, minutes: float) -> None:
    """Trains for so many minutes of CPU time, what is drawn before it included, from where the run in the folder `run`
    stands. Ends the program if it is stopped, so that nothing unfinished is measured."""
    timed = values | {"training.steps": None, "training.minutes": minutes, "training.clock": "cpu"}
    if not train(timed, run, resume=True).finished:
        sys.exit(f"{run} was stopped: the same command goes on with it")


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


def better_rate(
    make: Callable[[float | None], Any], examples: Callable[[], Iterator[Any]], minutes: float = 1.0
) -> dict[float | None, float]:
    """The loss of peers of each of RATES after some minutes, the best first."""
    found = {}
    for rate in RATES:
        torch.manual_seed(0)
        losses = losses_in(minutes, make(rate).step, examples())
        found[rate] = statistics.fmean(losses[-max(1, len(losses) // 3) :])
    return dict(sorted(found.items(), key=lambda item: item[1]))
