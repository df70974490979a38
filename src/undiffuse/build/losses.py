"""Denoisers and objectives: what a network is trained as."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from undiffuse.build.processes import make_process, make_token_process
from undiffuse.config import Config, ObjectiveConfig
from undiffuse.denoiser import LOG_SNR_LIMIT, Denoiser
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.objectives import Objective, TimeSampler
from undiffuse.objectives.flow_map import LEVELS
from undiffuse.randomness import KeyedDraw
from undiffuse.registry import CATEGORICAL, LOSSES, RIVALS, TIME_SAMPLERS, WEIGHTINGS
from undiffuse.rivals.rival import Rival, RivalDenoiser
from undiffuse.targets import SCORE_OF_STATE
from undiffuse.token_denoiser import TokenDenoiser

OF_TOKENS = ("count", "spans", "next-token", "cross-entropy-hybrid")
DISTILLING = ("paths", "adversarial", "flow-map", "matching")
OF_BOTH = ("bound", "continuous-bound")
DEVIATIONS = 3.0
"""How far above the mean of ln(sigma / alpha), in standard deviations, a network trained at normal ones is asked."""


def make_denoiser(config: Config, network: Callable[..., Any]) -> Denoiser:
    """The network as a denoiser; for texts, a `TokenDenoiser`. Raises UsageError if the target does not work with the
    schedule."""
    if config.network.kind == "transformer":
        # What is made for pictures (guidance, likelihood, ODEs) refuses texts by their domain; the rest asks nothing
        # of a denoiser that this one has not.
        shifts = config.objective.loss == "next-token"
        return cast(Denoiser, TokenDenoiser(network, make_token_process(config), shifts=shifts, chooses=not shifts))
    if config.network.kind in RIVALS:
        return cast(Denoiser, RivalDenoiser(cast(Rival, network)))
    sigma_data = sigma_data_of(config)
    if config.denoiser.target == CATEGORICAL and config.denoiser.learned_variance:
        raise UsageError("denoiser.target=categorical has no variance to learn: leave denoiser.learned_variance out")
    if config.denoiser.score_scale != "unit" and config.denoiser.target != "score":
        raise UsageError("denoiser.score_scale is for denoiser.target=score: leave it out")
    denoiser = Denoiser(
        network,
        make_process(config.process),
        SCORE_OF_STATE if config.denoiser.score_scale == "state" else config.denoiser.target or "edm",
        sigma_data,
        config.denoiser.learned_variance,
        least_log_snr=_least_log_snr(network, config),
    )
    try:
        if config.denoiser.target != CATEGORICAL:
            denoiser.coefficients(1.0)
    except ValueError as error:
        raise UsageError(f"denoiser.target with process.schedule={config.process.schedule}: {error}") from None
    return denoiser


def _least_log_snr(network: Callable[..., Any], config: Config) -> float:
    """The network's own limit, or that of its training: beyond DEVIATIONS lies one of 740 normal times, and samplers
    begin at pure noise, nine deviations away on the cosine table."""
    network = getattr(network, "module", network)  # unwrap an engine or a distributed wrapper
    limit, times = -LOG_SNR_LIMIT, config.objective
    drawn = times.loss in DISTILLING or takes(times.loss, "times")
    if drawn and times.times == "log-normal":  # bounds draw their own; a student is told what its teacher was
        limit = max(limit, -2 * (times.mean + DEVIATIONS * times.std))
    return getattr(network, "least_log_snr", limit)


def sigma_data_of(config: Config) -> float:
    """`denoiser.sigma_data`, which a run has decided. Raises UndiffuseError if it has not."""
    if config.denoiser.sigma_data is None:
        raise UndiffuseError("the configuration leaves denoiser.sigma_data undecided: it is not from a run or a model")
    return config.denoiser.sigma_data


def takes(loss: str, name: str) -> bool:
    """Whether a loss has a parameter of this name, such as `paths`: then a run provides it."""
    return name in inspect.signature(LOSSES.find(loss)).parameters


def draws_by_key(loss: str) -> bool:
    """Whether a loss draws more than the noise: it takes a `KeyedDraw`."""
    return inspect.signature(LOSSES.find(loss)).parameters["draw"].annotation is KeyedDraw


def make_times(config: ObjectiveConfig) -> TimeSampler:
    """The distribution of training times."""
    times: TimeSampler = _with(TIME_SAMPLERS.find(config.times), mean=config.mean, std=config.std)
    return times


def _with(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`function` with the settings that it has parameters for."""
    taken = {name: settings[name] for name in inspect.signature(function).parameters if name in settings}
    return partial(function, **taken) if taken else function


def make_objective(config: Config) -> Objective:
    """The loss. Raises UsageError if it does not fit the rest of the configuration."""
    objective, rival = config.objective, config.network.kind in RIVALS
    if (objective.loss == "own") != rival:
        raise UsageError(
            f"objective.loss=own is for rivals of diffusion, and only it: network.kind={', '.join(RIVALS)}"
        )
    if rival and config.training.conditional and config.training.label_dropout:
        raise UsageError("a rival draws of a class only: set training.label_dropout=0")
    distilling = objective.loss in DISTILLING
    if (distilling or objective.loss == "solution") != config.network.jumps:
        raise UsageError(
            f"network.jumps=true goes with objective.loss={', '.join(DISTILLING)} or solution, and only with them: see "
            "undiffuse distill"
        )
    if distilling and LEVELS % objective.jumps:
        raise UsageError(f"objective.jumps = {objective.jumps}: a student makes 1, 2, 4, 8 or 16 jumps")
    on_paths = takes(objective.loss, "paths")
    if on_paths and objective.draw != "independent":
        raise UsageError(f"objective.loss={objective.loss} draws paths at random: set objective.draw=independent")
    if objective.paths is not None and not on_paths:
        losses = ", ".join(loss for loss in DISTILLING if takes(loss, "paths"))
        raise UsageError(f"objective.paths is for objective.loss={losses}: leave it out")
    if rival and objective.importance:
        raise UsageError("objective.importance chooses times, which a rival has not: leave it out")
    if distilling and config.training.base is None:
        raise UsageError(f"objective.loss={objective.loss} learns from a teacher, training.base: see undiffuse distill")
    learned = objective.loss == "hybrid" or (objective.loss == "bound" and objective.variance == "learned")
    if config.denoiser.learned_variance != learned:
        raise UsageError(
            "denoiser.learned_variance=true goes with objective.loss=hybrid, or objective.loss=bound with "
            "objective.variance=learned, and with no other loss: only the bound trains a variance"
        )
    if objective.loss == "error" and config.denoiser.target == CATEGORICAL:
        raise UsageError("denoiser.target=categorical needs a bound: set objective.loss=continuous-bound or bound")
    if config.denoiser.target == CATEGORICAL and config.network.kind == "unet" and not config.network.head:
        raise UsageError("denoiser.target=categorical needs network.head, such as 32: a last layer in float32")
    if (objective.loss in OF_TOKENS) != (config.network.kind == "transformer") and objective.loss not in OF_BOTH:
        raise UsageError(f"objective.loss={objective.loss} is {'' if objective.loss in OF_TOKENS else 'not '}for texts")
    span = config.network.span
    if objective.loss == "next-token" and span != 1:
        raise UsageError("objective.loss=next-token needs network.span=1: a network that looks only back")
    if objective.loss != "next-token" and (objective.loss == "spans") != (span > 0):
        raise UsageError("network.span goes with objective.loss=spans, and 1 with next-token too")
    if objective.loss == "spans" and config.data.length % span:
        raise UsageError(f"network.span = {span} does not divide data.length = {config.data.length}")
    if objective.loss in ("count", "spans", "next-token") and config.process.kind != "absorbing":
        raise UsageError(f"objective.loss={objective.loss} counts masks: it needs process.kind=absorbing")
    weighting = _with(
        WEIGHTINGS.find(objective.weighting),
        gamma=objective.gamma,
        bias=objective.bias,
        sigma_data=config.denoiser.sigma_data,
    )
    loss, times = LOSSES.find(objective.loss), make_times(objective)
    return _with(
        loss,
        variance=objective.variance,
        times=times,
        weighting=weighting,
        span=span,
        jumps=objective.jumps,
        to_data=objective.to_data,
    )
