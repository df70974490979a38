"""Training for equal CPU time on one thread, so that what else the machine does costs nobody its steps."""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from undiffuse import train

TRIAL = (20, 80)
"""The steps of two short runs, whose difference is what a step costs."""


def steps_in(minutes: float, values: dict[str, Any]) -> int:
    """How many training steps of undiffuse with these settings take so many minutes of CPU time here."""
    seconds = []
    for steps in TRIAL:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            train(values | {"training.steps": steps}, folder, report=lambda line: None)
            seconds.append(time.process_time() - began)
    return max(1, round(60 * minutes * (TRIAL[1] - TRIAL[0]) / (seconds[1] - seconds[0])))


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
