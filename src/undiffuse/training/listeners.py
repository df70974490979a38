"""What a run shows while it goes: metrics.jsonl, TensorBoard, a progress line and preview grids."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.tensorboard import SummaryWriter

from undiffuse.build import make_denoiser
from undiffuse.config import Config
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_file
from undiffuse.generate import Recipe, generate
from undiffuse.model import DataFacts, Model
from undiffuse.plots import save_grid
from undiffuse.training.checkpoint import Learner
from undiffuse.training.loop import Step

PREVIEWS = 16
REPORT_EVERY = 30.0  # seconds between lines where no bar can be drawn
PREVIEW_RECIPE = Recipe(steps=10)


class Listeners:
    """Opened by the main process for a run folder, told of its steps, closed at the end."""

    def __init__(
        self,
        run: Path,
        config: Config,
        data: DataFacts,
        learner: Learner,
        progress_bar: bool,
        report: Callable[[str], None],
    ):
        self.run, self.config, self.data, self.learner = run, config, data, learner
        self._metrics = _open_metrics(run / "metrics.jsonl", learner.progress.step)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=learner.progress.step + 1)
        self._last = (learner.progress.step, learner.progress.seconds)
        self._report, self._reported = None if progress_bar else report, learner.progress.seconds
        self._showing = copy.deepcopy(learner.network).eval().requires_grad_(False)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not progress_bar)
        self._task = self._bar.add_task("training", total=1.0, text="")
        self._bar.start()

    def log(self, step: Step, losses: list[float]) -> None:
        """Records the steps since the last call, whose losses are `losses`."""
        progress = self.learner.progress
        before, then = self._last
        images = (step.number - before) * self.config.training.batch_size
        rate = images / max(progress.seconds - then, 1e-9)
        self._last = (step.number, progress.seconds)
        norm = step.gradient_norm.item()
        row = {
            "step": step.number,
            "images": step.number * self.config.training.batch_size,
            "loss": sum(losses) / len(losses),
            "gradient_norm": norm if math.isfinite(norm) else None,  # fp16 skips such a step
            "learning_rate": step.learning_rate,
            "images_per_second": round(rate, 1),
            "seconds": round(progress.seconds, 3),
        }
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        for name in ("loss", "gradient_norm", "learning_rate", "images_per_second"):
            if (value := row[name]) is not None:
                self._board.add_scalar(name, value, step.number)
        share, left = self._remaining(step.number)
        text = f"step {step.number}  loss {row['loss']:.4f}  {rate:.0f} images/s  {_clock(left)} left"
        self._bar.update(self._task, completed=share, text=text)
        if self._report and progress.seconds - self._reported > REPORT_EVERY:
            self._reported = progress.seconds
            self._report(text)

    def _remaining(self, step: int) -> tuple[float, float]:
        """How much of the run is done, in [0, 1], and the seconds left."""
        progress, minutes = self.learner.progress, self.config.training.minutes
        if progress.total is not None:
            share = step / progress.total
        else:
            share = progress.seconds / (60 * (minutes or 1))
        return share, progress.seconds * (1 / share - 1)

    def preview(self, step: int) -> None:
        """Writes previews/step-N.png: samples 0 to 15 of the averaged weights, always the same noise."""
        with torch.no_grad():
            for shown, average in zip(self._showing.parameters(), self.learner.ema.average, strict=True):
                shown.copy_(average)
        model = Model("preview", self.config, self.data, make_denoiser(self.config, self._showing), {})
        images = next(generate(model, PREVIEW_RECIPE, range(PREVIEWS)))
        save_grid(images, self.run / "previews" / f"step-{step:08d}.png")
        self._board.add_images("preview", images, step, dataformats="NHWC")

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        self._bar.stop()
        self._metrics.close()
        self._board.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _open_metrics(path: Path, step: int) -> TextIO:
    """The metrics file for appending, without the rows beyond `step` that a killed run left."""
    try:
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            with atomic_file(path) as temporary:
                temporary.write_text("".join(row + "\n" for row in rows))
        return path.open("a")
    except OSError as error:
        raise UndiffuseError(f"cannot write {path}: {error.strerror}. Choose a writable folder.") from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the half-written last line of a killed run
        return float("inf")
