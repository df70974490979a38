"""Training for equal CPU time on one thread, so that what else the machine does costs nobody its steps."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from undiffuse import train

QUIET = {"training.preview_every": 10**9}
"""Settings of runs that only their end is wanted of."""


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
