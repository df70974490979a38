"""What a run shows while it trains: metrics.jsonl, TensorBoard, a progress line and preview grids."""

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from undiffuse.build import make_denoiser
from undiffuse.config import Config
from undiffuse.domains import domain_of
from undiffuse.domains.sounds import Sounds
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_file
from undiffuse.generate import Recipe, generate
from undiffuse.model import DataFacts, Model
from undiffuse.training.loop import TrainingStep
from undiffuse.training.state import Learner
from undiffuse.writing import BETWEEN, Writing, texts_only, write

PREVIEWS = 16
REPORT_EVERY = 30.0  # seconds between lines if no bar can be drawn
PREVIEW_STEPS = 10
PREVIEW_TEXTS, PREVIEW_TEXT_STEPS = 4, 32
NO_BOARD = "TensorBoard is not installed (pip install 'undiffuse[trackers]'): the metrics go only to metrics.jsonl"

logger = logging.getLogger("undiffuse")


class Listeners:
    """The outputs of a run: opened by the main process for a run folder, called for its steps, closed at the end."""

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
        self._noun = "images" if data.domain == "pictures" else domain_of(data).noun
        self._metrics = _open_metrics(run / "metrics.jsonl", learner.progress.step)
        self._board = _open_board(run / "tensorboard", learner.progress.step)
        if self._board is None:
            report(NO_BOARD)
        self._previews_fail = False
        self._last = (learner.progress.step, learner.progress.seconds)
        self._report, self._reported = None if progress_bar else report, learner.progress.seconds
        self._showing = copy.deepcopy(learner.network).eval().requires_grad_(False)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not progress_bar)
        self._task = self._bar.add_task("training", total=1.0, text="")
        self._bar.start()

    def log(self, step: TrainingStep, losses: list[float]) -> None:
        """Records the steps since the last call, which had the `losses`."""
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
            if self._board and (value := row[name]) is not None:
                self._board.add_scalar(name, value, step.number)
        minutes = self.config.training.minutes
        left = _clock(progress.remaining(minutes))
        text = f"step {step.number}  loss {row['loss']:.4f}  {rate:.0f} {self._noun}/s  {left} left"
        self._bar.update(self._task, completed=progress.share(minutes), text=text)
        if self._report and progress.seconds - self._reported > REPORT_EVERY:
            self._reported = progress.seconds
            self._report(text)

    def preview(self, step: int) -> None:
        """Writes previews/step-N.png: samples 0 to 15 of the averaged weights, always with the same noise.

        Sounds can be heard too, one after another, in step-N.wav; texts are step-N.txt. A failure gives a warning, the
        first time, and never ends the run: the checkpoint is written after it.
        """
        try:
            self._preview(step)
        except Exception as error:  # of any kind: a sampler's, the memory's, the disk's
            if not self._previews_fail:
                logger.warning("no preview of step %d, but the run continues: %s", step, error or type(error).__name__)
            self._previews_fail = True

    def _preview(self, step: int) -> None:
        with torch.no_grad():
            for shown, average in zip(self._showing.parameters(), self.learner.ema.average, strict=True):
                shown.copy_(average)
        model = Model("preview", self.config, self.data, make_denoiser(self.config, self._showing), {})
        if self.data.tokens is not None:
            written = write(
                model, Writing("auto", PREVIEW_TEXT_STEPS), range(PREVIEW_TEXTS), np.zeros(0, int), self.data.shape[0]
            )
            spell = texts_only(model).decode
            with atomic_file(self.run / "previews" / f"step-{step:08d}.txt") as temporary:
                temporary.write_text(BETWEEN.join(spell(row) for row in written) + "\n", "utf-8")
            return
        recipe = Recipe()
        if model.rival is None and not self.config.network.jumps:  # these have steps of their own
            recipe = Recipe(steps=min(PREVIEW_STEPS, model.denoiser.process.schedule.steps or PREVIEW_STEPS))
        images = next(generate(model, recipe, range(PREVIEWS), model.condition(range(PREVIEWS))))
        path = self.run / "previews" / f"step-{step:08d}.png"
        model.domain.show(images, path)
        if isinstance(model.domain, Sounds):
            model.domain.join(images, path.with_suffix(".wav"))
        if self._board and images.ndim == 4:
            self._board.add_images("preview", images, step, dataformats="NHWC")

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        self._bar.stop()
        self._metrics.close()
        if self._board:
            self._board.close()


def _open_board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, which drops entries beyond `step`; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _open_metrics(path: Path, step: int) -> TextIO:
    """The metrics file, opened for appending, without damaged rows and those beyond `step` that a killed run left."""
    try:
        if path.exists():
            rows = [(line, _step_of(line)) for line in path.read_bytes().split(b"\n")]
            damaged = sum(at is None for line, at in rows[:-1])  # the last is empty, or what a killed run wrote half of
            if damaged:
                logger.warning("%s: %d damaged rows are left out", path, damaged)
            with atomic_file(path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line, at in rows if at is not None and at <= step))
        return path.open("a")
    except OSError as error:
        raise UndiffuseError(f"cannot write {path}: {error.strerror}. Choose a writable folder.") from error


def _step_of(line: bytes) -> int | None:
    """The step of a row of the metrics; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else None
