"""The forward processes that a configuration names."""

import torch

from undiffuse import process
from undiffuse.config import Config, ProcessConfig
from undiffuse.denoiser import LOG_SNR_LIMIT
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.registry import SCHEDULES

MOST_LOG_SNR = 100.0  # a signal or noise of e^-50, still within float32


def make_process(config: ProcessConfig) -> process.GaussianProcess:
    """The forward process of numbers. Raises UsageError for inconsistent settings."""
    if config.kind != "gaussian":
        raise UsageError(f"process.kind={config.kind} is for texts: leave it out")
    schedule = make_schedule(config)
    _check_range(schedule)
    return process.GaussianProcess(schedule)


def make_token_process(config: Config) -> process.CategoricalProcess:
    """The forward process of tokens. Raises UsageError for inconsistent settings."""
    if config.process.kind == "gaussian":
        raise UsageError("process.kind=gaussian is not for texts: use absorbing or uniform, as --preset text does")
    if config.data.vocabulary is None:
        raise UndiffuseError("the configuration leaves data.vocabulary undecided: it is not from a run or a model")
    return process.CategoricalProcess(make_schedule(config.process), config.data.vocabulary, config.process.kind)


def make_schedule(config: ProcessConfig) -> process.Schedule:
    """The noise schedule. Raises UsageError for inconsistent settings."""
    name = config.schedule
    for written, table in (("betas", "betas"), ("log-snr", "log_snrs")):
        if (name == written) != (getattr(config, table) is not None):
            raise UsageError(
                f"process.schedule={written} and process.{table}=[...] belong together: give both or neither"
            )
    schedule: process.Schedule
    try:
        entry = SCHEDULES[name]
        first = () if entry.first is None else (getattr(config, entry.first),)
        schedule = entry(*first, **({} if name == "betas" else config.options))
    except TypeError as error:
        raise UsageError(f"process.options: the schedule {name} has no such number ({error})") from None
    except (ValueError, ArithmeticError) as error:
        raise UsageError(f"process: {error}") from None
    if config.zero_terminal_snr:
        if not isinstance(schedule, process.Table):
            raise UsageError(f"process.zero_terminal_snr rescales a table of betas, and {name} is not one")
        try:
            schedule = process.zero_terminal_snr(schedule)
        except ValueError as error:
            raise UsageError(f"process.zero_terminal_snr: {error}") from None
    return schedule


def _check_range(schedule: process.Schedule) -> None:
    """Raises UsageError if the noise or signal at t_min is too small for float32. The signal may be 0 at t = 1, and in
    other people's tables already some steps before."""
    log_snr = float(schedule.log_snr(schedule.t_min))
    if not abs(log_snr) <= MOST_LOG_SNR or schedule.log_snr(1.0).isnan():
        raise UsageError(
            f"process: the log-SNR at t = {schedule.t_min:g} is {log_snr:.4g}, and only {-MOST_LOG_SNR:g} to "
            f"{MOST_LOG_SNR:g} can be used: change process.steps, betas, log_snrs or options"
        )


def step_log_snrs(schedule: process.Schedule) -> torch.Tensor:
    """float32 (T + 1,): the log-SNRs that a network gets at steps 0 .. T of a table."""
    steps = torch.arange((schedule.steps or 0) + 1)
    return schedule.log_snr(schedule.time_of(steps)).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).float()
