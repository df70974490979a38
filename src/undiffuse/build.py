"""From a configuration to the things it names: the one place where names become objects."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from undiffuse import discretised, process
from undiffuse.card import ConditionFacts
from undiffuse.conditions import Condition, Encoders, Labels
from undiffuse.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, ProcessConfig
from undiffuse.data import ImageSet, MixedSizes
from undiffuse.data import load as load_data
from undiffuse.denoiser import LOG_SNR_LIMIT, Denoiser
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut, did_you_mean, fault, format_shape
from undiffuse.networks import MLP, PixelUNet, UNet, UNet2D
from undiffuse.networks.unet import parts
from undiffuse.networks.unet2d import Options
from undiffuse.objectives import Objective, TimeSampler
from undiffuse.progress import Bar, no_bar
from undiffuse.registry import CATEGORICAL, CONDITIONS, LOSSES, NETWORKS, SCHEDULES, TIME_SAMPLERS, WEIGHTINGS
from undiffuse.targets import SCORE_OF_STATE

MOST_LOG_SNR = 100.0  # a signal or a noise of e^-50, which float32 still has
MOST_PARAMETERS = 10**10
"""40 GB of float32; training holds four times that."""


def make_data(config: DataConfig, split: str = "train", progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """A split of the data that a run learns, read as the run reads it. Raises what `undiffuse.data.load` raises."""
    return load_data(
        config.source,
        split,
        size=config.size,
        channels=config.channels,
        skip_corrupt=config.skip_corrupt,
        progress=progress,
    )


def make_data_of(shape: tuple[int, ...], config: DataConfig, split: str, bar: Bar = no_bar) -> ImageSet:
    """A split brought to images of `shape` (H, W, C): any to a square, none to what is not one; UsageError else."""
    with bar(f"reading {config.source} ({split})", 0) as tick:
        images = make_data(config, split, tick)
        if images.shape != shape and shape[0] == shape[1]:
            images = make_data(config.model_copy(update={"size": shape[0], "channels": shape[2]}), split, tick)
        elif images.shape != shape:
            load = partial(load_data, channels=shape[2], skip_corrupt=config.skip_corrupt, keep_size=True)
            try:
                images = load(config.source, split, progress=tick)
            except MixedSizes as error:
                raise UsageError(f"{config.source} has {error}; the samples are all of {format_shape(shape)}") from None
    if images.shape != shape:
        raise UsageError(
            f"{config.source} has images of {format_shape(images.shape)}; the model or the samples are of "
            f"{format_shape(shape)}"
        )
    return images


def make_process(config: ProcessConfig) -> process.GaussianProcess:
    """The forward process. Raises UsageError for settings that do not belong together."""
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
    _check_range(schedule)
    return process.GaussianProcess(schedule)


def _check_range(schedule: process.Schedule) -> None:
    """Raises UsageError for a first step whose noise or signal float32 cannot tell from none; at t = 1 there may be no
    signal, and tables of others have none some steps before."""
    log_snr = float(schedule.log_snr(schedule.t_min))
    if not abs(log_snr) <= MOST_LOG_SNR or schedule.log_snr(1.0).isnan():
        raise UsageError(
            f"process: the log-SNR at t = {schedule.t_min:g} is {log_snr:.4g}, and only {-MOST_LOG_SNR:g} to "
            f"{MOST_LOG_SNR:g} can be used: change process.steps, betas, log_snrs or options"
        )


def default_network(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """`config` with its Nones decided for data of `size`: (height, width) of pictures, (length,) of sequences, () of
    points. Raises UsageError for what does not fit it."""
    if config.kind not in ("unet", "unet2d", "mlp"):  # from outside: all but what it takes of these is its own matter
        usual = {"patch": config.patch or 1, "channels": config.channels or (64,), "attention": config.attention or ()}
        return config.model_copy(update=usual)
    if (config.kind == "mlp") != (not size):
        raise UsageError(f"network.kind={config.kind} does not fit: mlp is the one for points, and for points alone")
    if config.kind == "mlp":
        return _default_mlp(config)
    small = min(size)
    unet2d = config.kind == "unet2d"
    patch = config.patch or (2 if small >= 16 and all(side % 2 == 0 for side in size) and not unet2d else 1)
    if any(side % patch for side in size):
        raise UsageError(f"network.patch = {patch} does not divide {_of_size(size)}")
    inner = small // patch
    widths = (64, 128) if inner <= 16 else (64, 128, 192)
    channels = config.channels or tuple(max(16, 16 * round(config.width * c / 16)) for c in widths)
    if inner < 2 ** (len(channels) - 1):
        raise UsageError(f"network.channels has {len(channels)} stages, too many for {format_shape(size)} pixels")
    # Attention costs the square of the pixels: worth it from 16 x 16 down.
    attention = config.attention
    if attention is None:
        attention = tuple(stage for stage in range(len(channels)) if stage and -(-inner // 2**stage) <= 16)
    if any(stage >= len(channels) for stage in attention):
        raise UsageError(f"network.attention = {attention}: the stages are 0 to {len(channels) - 1}")
    if len(size) != 2 and (unet2d or config.head or config.fourier or config.kernel or config.values):
        raise UsageError("network.kind=unet2d and network.head, fourier, kernel and values are for pictures")
    options = _unet2d_options(patch, channels, size, config.options) if unet2d else config.options
    if config.kernel and config.kernel % 2 == 0:
        raise UsageError(f"network.kernel = {config.kernel}: a filter has a middle, its side is odd")
    if unet2d and (config.head or config.fourier or config.kernel or config.values):
        raise UsageError("network.head, fourier, kernel and values are those of network.kind=unet: leave them out")
    if options and not unet2d:
        raise UsageError("network.options are those of network.kind=unet2d: set that too, or leave them out")
    decided = {"patch": patch, "channels": channels, "attention": attention, "options": options}
    return config.model_copy(update=decided)


def _of_size(size: tuple[int, ...]) -> str:
    return f"images of {format_shape(size)}" if len(size) == 2 else f"sequences of {format_shape(size)}"


def _default_mlp(config: NetworkConfig) -> NetworkConfig:
    """An MLP has `blocks` of the settings, and as its width the first of `channels`."""
    if config.patch not in (None, 1) or config.attention or config.head or config.fourier or config.kernel:
        raise UsageError("network.patch, attention, head, fourier and kernel are not those of network.kind=mlp")
    if config.values or config.options or config.dropout:
        raise UsageError("network.values, options and dropout are not those of network.kind=mlp")
    channels = config.channels or (max(16, 16 * round(config.width * 8)),)
    if len(channels) != 1:
        raise UsageError(f"network.channels = {channels}: an MLP has one width")
    return config.model_copy(update={"patch": 1, "channels": channels, "attention": ()})


def _unet2d_options(
    patch: int, channels: tuple[int, ...], size: tuple[int, ...], given: dict[str, Any]
) -> dict[str, Any]:
    """The options with the number of groups decided: 32 as DDPM has them, or groups of 4 channels or more."""
    if patch != 1:
        raise UsageError(f"network.patch = {patch}: network.kind=unet2d folds no pixels, its patch is 1")
    factor = 2 ** (len(channels) - 1)
    if any(side % factor for side in size):
        raise UsageError(
            f"network.channels: {len(channels)} stages of a unet2d need sides that are multiples of {factor}, "
            f"and these are {format_shape(size)} pixels; give fewer stages or another data.size"
        )
    divisor = math.gcd(*channels)
    options = {"norm_num_groups": 32 if divisor % 32 == 0 else parts(divisor, 4), **given}
    make_options(options)
    return options


def make_options(given: dict[str, Any]) -> Options:
    """`network.options`. Raises UsageError for the first that is unknown, naming the nearest, or does not fit."""
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(name, Options.model_fields, f"it has {', '.join(Options.model_fields)}.")
            raise UsageError(f"network.options.{cut(name)}: a unet2d here has no such option; {hint}") from None
        raise UsageError(fault(error, "network.options")) from None


def make_network(config: Config, channels: int, takes: ConditionFacts | None = None, dims: int = 2) -> nn.Module:
    """The network for data of `channels` over `dims` axes and a condition; `config.network` must be decided.

    Raises UsageError for settings that do not fit together, before anything is allocated.
    """
    make = _network(config, channels, takes, dims)
    _shapes(make)
    return make()


def network_shapes(
    config: Config, channels: int, takes: ConditionFacts | None = None, dims: int = 2
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in the state of `make_network`'s network. Allocates nothing; raises as it does."""
    return _shapes(_network(config, channels, takes, dims))


def _shapes(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise UsageError(f"network: no such network can be: {cut(str(error), 200)}") from None
    except UsageError:
        raise
    except (ValueError, TypeError) as error:  # of a TypeError, options that a network from outside does not take
        raise UsageError(f"network: {cut(str(error), 200)}") from None
    if (count := sum(map(math.prod, shapes.values()))) > MOST_PARAMETERS:
        raise UsageError(
            f"network: {count:.1e} parameters are more than the {MOST_PARAMETERS:.0e} allowed: "
            "lower network.channels, blocks, head or kernel"
        )
    return shapes


def make_encoders(takes: ConditionFacts | None) -> Encoders:
    """A network's encoders of a condition. Raises UsageError for an unknown kind, and for facts that cannot be."""
    if takes is None:
        return {}
    kind: type[Condition] = CONDITIONS.find(takes.kind)
    try:
        return kind.encoders(takes.facts)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the condition {cut(takes.kind)}: {type(error).__name__}: {cut(str(error), 200)}") from None


def _network(config: Config, channels: int, takes: ConditionFacts | None, dims: int) -> Callable[[], nn.Module]:
    network = config.network
    if not network.patch or not network.channels or network.attention is None:
        raise UndiffuseError("the configuration leaves the network open: it is not that of a run or a model")
    of_levels = config.denoiser.target == CATEGORICAL
    if network.values and not of_levels:
        raise UsageError("network.values is for denoiser.target=categorical: set that too, or leave it out")
    outputs = channels * (discretised.OUTPUTS if of_levels else 2 if config.denoiser.learned_variance else 1)
    return partial(NETWORKS.find(network.kind), config, channels, outputs, takes, dims)


def make_mlp(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """For network.kind=mlp."""
    network = config.network
    assert network.channels
    encoders = make_encoders(takes)
    return MLP(inputs, outputs, width=network.channels[0], blocks=network.blocks, encoders=encoders)


def make_unet(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """For network.kind=unet; where exact values matter, with what they need."""
    network = config.network
    shared: dict[str, Any] = {
        "patch": network.patch,
        "channels": network.channels,
        "blocks": network.blocks,
        "attention": network.attention,
        "encoders": make_encoders(takes),
        "dropout": network.dropout,
    }
    if not (network.values or network.head or network.kernel or network.fourier):
        return UNet(inputs, outputs, dims=dims, **shared)
    sigma_data = _sigma_data(config) if network.fourier or network.values else 1.0  # of no use to the others
    return PixelUNet(
        inputs,
        outputs,
        head=network.head,
        kernel=network.kernel,
        values=discretised.VALUES if network.values else 0,
        sigma_data=sigma_data,
        # The network's input is x / sigma_data where there is little noise, which is where these tell anything.
        fourier=tuple(2**n * math.pi * sigma_data for n in network.fourier),
        **shared,
    )


def make_unet2d(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """For network.kind=unet2d."""
    network = config.network
    assert network.channels and network.attention is not None
    with torch.device("cpu"):  # the table has numbers also where of the weights only the shapes are wanted
        schedule, options = make_process(config.process).schedule, make_options(network.options)
        if schedule.steps is None:
            raise UsageError(
                f"network.kind=unet2d counts the steps of a table, and process.schedule={config.process.schedule} has "
                "none: use linear or cosine"
            )
        log_snrs = step_log_snrs(schedule)
    if takes is not None and takes.kind != Labels.kind:
        raise UsageError(f"network.kind=unet2d takes labels alone, not {cut(takes.kind)}: use network.kind=unet")
    return UNet2D(
        inputs,
        outputs,
        log_snrs,
        channels=network.channels,
        blocks=network.blocks,
        attention=network.attention,
        classes=len(takes.facts["share"]) if takes else 0,
        dropout=network.dropout,
        options=options,
    )


def step_log_snrs(schedule: process.Schedule) -> torch.Tensor:
    """float32 (T + 1,): a network's inputs at the steps 0 .. T of a table."""
    steps = torch.arange((schedule.steps or 0) + 1)
    return schedule.log_snr(schedule.time_of(steps)).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).float()


def make_denoiser(config: Config, network: Callable[..., Any]) -> Denoiser:
    """The network read as a denoiser. Raises UsageError where the target cannot go with the schedule."""
    sigma_data = _sigma_data(config)
    if config.denoiser.target == CATEGORICAL and config.denoiser.learned_variance:
        raise UsageError("denoiser.target=categorical has no variance to learn: leave denoiser.learned_variance out")
    if config.denoiser.score_scale != "unit" and config.denoiser.target != "score":
        raise UsageError("denoiser.score_scale belongs to denoiser.target=score: leave it out")
    denoiser = Denoiser(
        network,
        make_process(config.process),
        SCORE_OF_STATE if config.denoiser.score_scale == "state" else config.denoiser.target,
        sigma_data,
        config.denoiser.learned_variance,
        least_log_snr=_least_log_snr(network),
    )
    try:
        if config.denoiser.target != CATEGORICAL:
            denoiser.coefficients(1.0)
    except ValueError as error:
        raise UsageError(f"denoiser.target with process.schedule={config.process.schedule}: {error}") from None
    return denoiser


def _least_log_snr(network: Callable[..., Any]) -> float:
    network = getattr(network, "module", network)  # within what runs it, or trains it on several processes
    return getattr(network, "least_log_snr", -LOG_SNR_LIMIT)


def _sigma_data(config: Config) -> float:
    if config.denoiser.sigma_data is None:
        raise UndiffuseError("the configuration leaves denoiser.sigma_data open: it is not that of a run or a model")
    return config.denoiser.sigma_data


def make_times(config: ObjectiveConfig) -> TimeSampler:
    """The distribution of training times."""
    times: TimeSampler = _with(TIME_SAMPLERS.find(config.times), mean=config.mean, std=config.std)
    return times


def _with(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`function` with those of the settings that it has arguments for."""
    taken = {name: settings[name] for name in inspect.signature(function).parameters if name in settings}
    return partial(function, **taken) if taken else function


def make_objective(config: Config) -> Objective:
    """The loss. Raises UsageError where it does not go with the rest of the configuration."""
    objective = config.objective
    learned = objective.loss == "hybrid" or (objective.loss == "bound" and objective.variance == "learned")
    if config.denoiser.learned_variance != learned:
        raise UsageError(
            "denoiser.learned_variance=true belongs to objective.loss=hybrid, or to objective.loss=bound with "
            "objective.variance=learned: only the bound teaches a variance"
        )
    if objective.loss == "error" and config.denoiser.target == CATEGORICAL:
        raise UsageError("denoiser.target=categorical learns by a bound: set objective.loss=continuous-bound or bound")
    if config.denoiser.target == CATEGORICAL and config.network.kind == "unet" and not config.network.head:
        raise UsageError("denoiser.target=categorical needs network.head, such as 32: a last layer in float32")
    weighting = _with(
        WEIGHTINGS.find(objective.weighting),
        gamma=objective.gamma,
        bias=objective.bias,
        sigma_data=config.denoiser.sigma_data,
    )
    loss, times = LOSSES.find(objective.loss), make_times(objective)
    return _with(loss, variance=objective.variance, times=times, weighting=weighting)
