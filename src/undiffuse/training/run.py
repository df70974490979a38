"""A run, from a configuration to a trained model: its steps, outputs and end."""

import contextlib
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather, reduce

from undiffuse.adapters import base_fingerprint
from undiffuse.build import DISTILLING, make_data, make_denoiser, make_objective, make_schedule, takes
from undiffuse.config import Config
from undiffuse.data import ImageSet
from undiffuse.devices import conditions, shares_a_cpu
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.model import DataFacts, checkpoints
from undiffuse.names import format_shape
from undiffuse.objectives.bound import RECONSTRUCTION
from undiffuse.process import LogSNR
from undiffuse.progress import bar
from undiffuse.registry import RIVALS
from undiffuse.training import checkpoint
from undiffuse.training.checkpoint import last_good
from undiffuse.training.companions import Companions
from undiffuse.training.folders import alone_in
from undiffuse.training.listeners import Listeners
from undiffuse.training.loop import TrainingStep, positions, training_steps
from undiffuse.training.paths import paths_of
from undiffuse.training.record import check_base, check_data, configuration, data_source, start, write_record
from undiffuse.training.settings import DEFAULT_STEPS, clock_of, decided, decided_precision
from undiffuse.training.signals import Caught, caught
from undiffuse.training.state import Learner, make_learner
from undiffuse.training.statistics import data_facts
from undiffuse.training.teacher import teacher

AGREE_EVERY = 10  # steps after which several processes agree on clock and signals


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its newest checkpoint, and whether it was finished or stopped by a signal.

    `main` marks the one process of a torchrun that should report it; `signal` is the number of the signal, 0 for a run
    that finished.
    """

    run: Path
    checkpoint: Path
    step: int
    finished: bool
    main: bool = True
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """The exit code of a command: 0, or 128 plus the signal, as in shells."""
        return 128 + self.signal if self.signal else 0


def train(
    values: dict[str, Any],
    out: str | os.PathLike[str],
    *,
    data: ImageSet | None = None,
    resume: bool = False,
    report: Callable[[str], None] = print,
    progress_bar: bool = False,
) -> Outcome:
    """Trains a model in the run folder `out`.

    Args:
        values: settings by dotted name, such as {"data.source": "emoji", "training.minutes": 5.0}.
        data: train on this instead of `data.source`; a resumed run must be given it again.
        resume: continue the run in `out`; settings may then repeat its own, or change how it is run.
        report: called with the few lines that the user should read.
        progress_bar: draw one on the terminal.

    Raises UsageError for wrong settings, UndiffuseError for failures; the last good checkpoint survives both.
    """
    run = Path(out)
    if data is not None:
        values = {"data.source": data.name, **values}
    config = configuration(values, run, resume)
    source = data_source(run, config, given=values.get("data.source") is not None)
    precision = decided_precision(config.training.precision)
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=shares_a_cpu())
    positions(config.training, accelerator)  # refuse before the work begins
    # One process decodes the data, the others find it cached.
    if data is None:
        with accelerator.main_process_first(), bar("reading the data") as tick:
            data = make_data(config.data.model_copy(update={"source": source}), progress=tick)
    check_data(run, config, data)
    check_base(run, config, data)
    config = decided(config, data, precision)
    facts = data_facts(config, data)
    learner = make_learner(config, data, facts, accelerator, *start(run, config))
    make_objective(config), make_denoiser(config, learner.network)  # refuse inconsistent settings
    if config.objective.loss in DISTILLING:
        model, teach = teacher(config, facts, run, accelerator)
        learner.taught_by = base_fingerprint(model)
        if takes(config.objective.loss, "teach"):
            learner.teach = teach
        if takes(config.objective.loss, "companions"):
            learner.companions = Companions(config, model, accelerator)
        if takes(config.objective.loss, "paths"):
            clock = clock_of(config)
            began = clock()
            if accelerator.is_main_process:
                report(f"drawing paths of {model.name}, or taking them from the cache")
            learner.paths, config = paths_of(model, config, data, precision)
            learner.progress.seconds = learner.progress.before = clock() - began
    with alone_in(run) if accelerator.is_main_process else contextlib.nullcontext():
        return (
            _Run(run, config, data, facts, learner, accelerator, report).begin(values, source, resume).go(progress_bar)
        )


@dataclass
class _Run:
    """One process's part of a run."""

    run: Path
    config: Config
    data: ImageSet
    facts: DataFacts
    learner: Learner
    accelerator: Accelerator
    report: Callable[[str], None]
    _caught: Caught = field(default_factory=Caught)
    _planned: int = 0
    _recent: list[TrainingStep] = field(default_factory=list)

    def begin(self, values: dict[str, Any], source: str, resume: bool) -> "_Run":
        """Restores the newest checkpoint, or records that a new run begins."""
        run, main = self.run, self.accelerator.is_main_process
        recorded = (run / "run.json").exists()
        if main and recorded:
            if not resume:  # another process began one since this one looked
                raise UsageError(f"{run} already holds a run: choose another --out")
            checkpoint.sweep(run)
        saved = checkpoints(run)
        if main:
            self.report(_summary(self.config, self.facts, self.learner, self.accelerator))
            if self.learner.origin and not saved:
                self.report(str(self.learner.origin))
        if saved:
            checkpoint.restore(saved[-1], self.learner)
            if main:
                self.report(f"resumed from {saved[-1]}")
        elif main and resume and not recorded:
            self.report(f"there is no run in {run} yet: this begins one")
        if main:
            write_record(run, values, self.config, self.facts, source, self.learner.origin, self.learner.taught_by)
        if self.config.training.minutes is None:
            self.learner.progress.total = self.config.training.steps or DEFAULT_STEPS
        return self

    def go(self, progress_bar: bool) -> Outcome:
        """Trains to the end, or to a signal."""
        progress, main = self.learner.progress, self.accelerator.is_main_process
        if progress.total is not None and progress.step >= progress.total:
            if main:
                self.report(f"already finished at step {progress.step}")
            return Outcome(self.run, checkpoints(self.run)[-1], progress.step, True, main)
        # torchrun repeats the terminal's signals by itself, so there a second one means nothing.
        with caught(insist=self.accelerator.num_processes == 1) as self._caught, contextlib.ExitStack() as open_files:
            self.accelerator.wait_for_everyone()  # all can be signalled before the first file shows that the run began
            listeners = None
            if main:
                listeners = Listeners(self.run, self.config, self.facts, self.learner, progress_bar, self.report)
                open_files.callback(listeners.close)
            clock = clock_of(self.config)
            began = clock() - progress.seconds
            for step in training_steps(self.config, self.data, self.learner, self.accelerator):
                progress.seconds = clock() - began
                self._recent.append(step)
                agreed = self._agree(step.number)
                finished = progress.total is not None and step.number >= progress.total
                stop = finished or agreed > 0
                if finished or step.number % self.config.training.log_every == 0:
                    self._check_finite()
                    if listeners:
                        listeners.log(step, progress.pending)
                    progress.pending.clear()
                if finished or step.number % self.config.training.preview_every == 0:
                    self._check_finite()
                    if listeners:
                        listeners.preview(step.number)
                # Last, so that a run killed after it has all outputs of its steps. A planned total is saved at once.
                due = step.number % self.config.training.checkpoint_every == 0
                if stop or due or step.number == self._planned:
                    self._save()
                if stop:
                    break
        if main and not finished:
            name = signal.Signals(agreed).name
            self.report(f"{name}: stopped at step {step.number} with a checkpoint; --resume goes on from it")
        return Outcome(self.run, checkpoints(self.run)[-1], step.number, finished, main, 0 if finished else agreed)

    def _agree(self, step: int) -> int:
        """The signal to stop for, the same in every process; a time budget decides here how many steps to take."""
        progress, training = self.learner.progress, self.config.training
        several = self.accelerator.num_processes > 1
        if several and step % AGREE_EVERY:
            return 0
        stop = self._caught.signal
        if several:
            stop = int(gather(torch.tensor([stop], device=self.accelerator.device)).max())
        if training.minutes is not None and progress.total is None:
            share = progress.share(training.minutes)
            if several:
                share = broadcast(torch.tensor(share, device=self.accelerator.device)).item()
            # Up to here the learning rate was constant; from here the run is one of `total` steps, resumed or not.
            if share >= 1 - training.decay:
                progress.total = max(step + 1, round(step / share))
                self._planned = step
        return stop

    def _check_finite(self) -> None:
        """Moves the recent losses to the pending ones; raises UndiffuseError naming the first that is not finite."""
        if not self._recent:
            return
        losses = torch.stack([step.loss for step in self._recent])
        if self.accelerator.num_processes > 1:
            losses = reduce(losses, "mean")
        norms = torch.stack([step.gradient_norm for step in self._recent])
        if self.learner.scaler is not None:  # fp16 skips the steps whose gradient overflowed
            norms = torch.zeros_like(norms)
        for step, loss, norm in zip(self._recent, losses.tolist(), norms.tolist(), strict=True):
            for what, value in (("loss", loss), ("norm of the gradient", norm)):
                if not math.isfinite(value):
                    raise UndiffuseError(
                        f"the {what} is {value} at step {step.number}; {last_good(self.run)}. "
                        "Lower training.learning_rate, or look at the data, and begin a new run."
                    )
            self.learner.progress.pending.append(loss)
        self._recent.clear()

    def _save(self) -> None:
        self._check_finite()
        if self.accelerator.is_main_process:
            checkpoint.save(
                self.run, self.learner, self._learnt(), self.facts, self._training_facts(), self.config.training.keep
            )
        self.accelerator.wait_for_everyone()

    def _learnt(self) -> Config:
        """The configuration with the learned noise schedule, if it was learned (`Importance`)."""
        importance = self.learner.importance
        if importance is None or self.config.objective.loss != "continuous-bound":
            return self.config
        schedule = make_schedule(self.config.process)
        if not isinstance(schedule, LogSNR):
            return self.config
        log_snrs = tuple(importance.learnt_log_snrs(schedule.log_snrs, RECONSTRUCTION).tolist())
        return self.config.model_copy(update={"process": self.config.process.model_copy(update={"log_snrs": log_snrs})})

    def _training_facts(self) -> dict[str, Any]:
        progress, origin = self.learner.progress, self.learner.origin
        return {
            "steps": progress.step,
            "images": progress.step * self.config.training.batch_size,
            "seconds": round(progress.seconds, 1),
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            **({} if self.config.training.clock == "wall" else {"clock": self.config.training.clock}),
            **({"base": {"name": origin.name, "fingerprint": origin.fingerprint}} if origin else {}),
            **({"teacher": self.learner.taught_by} if self.learner.taught_by else {}),
            **conditions(),
        }


def _summary(config: Config, data: DataFacts, learner: Learner, accelerator: Accelerator) -> str:
    parameters = f"{sum(p.numel() for _, p in learner.named) / 1e6:.2f}M parameters"
    if config.training.lora:
        parameters += f", {sum(p.numel() for _, p in learner.named if p.requires_grad) / 1e6:.2f}M of them trained"
    classes = f", {len(data.classes)} classes" if data.classes else ""
    training = config.training
    budget = f"{training.minutes:g} minutes" if training.minutes else f"{training.steps or DEFAULT_STEPS} steps"
    return (
        f"{data.name}: {data.count} {domain_of(data).noun} of {format_shape(data.shape)}{classes}; "
        f"{_network_name(config)} of {parameters}; {budget} "
        f"on {accelerator.num_processes} x {accelerator.device.type}"
    )


def _network_name(config: Config) -> str:
    names = {"mlp": "MLP", "transformer": f"transformer {config.network.channels} x {config.network.blocks}"}
    names |= {rival: rival for rival in RIVALS}
    return names.get(config.network.kind, f"U-Net {config.network.channels}")
