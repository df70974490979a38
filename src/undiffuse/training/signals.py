"""Signals that end a run: noted, so that a step in progress is finished and saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Caught:
    """The number of the last signal; 0 if there was none."""

    signal: int = 0


@contextlib.contextmanager
def caught(insist: bool) -> Iterator[Caught]:
    """Notes SIGINT and SIGTERM instead of their usual effect. If `insist`, a second one ends the process at once."""
    last = Caught()

    def note(number: int, frame: FrameType | None) -> None:
        if last.signal and insist:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        last.signal = number

    previous = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield last
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
