"""Builds the objects that a configuration names: data, process, network, denoiser and objective."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from undiffuse import discretised, process
from undiffuse.card import ConditionFacts
from undiffuse.conditions import Condition, Encoders, Labels, Spectra
from undiffuse.config import Config, DataConfig, NetworkConfig, ObjectiveConfig, ProcessConfig
from undiffuse.data import ImageSet, MixedSizes
from undiffuse.data import load as load_data
from undiffuse.data.sounds import is_sounds, load_sounds
from undiffuse.data.textfiles import is_text
from undiffuse.data.texts import load_text
from undiffuse.denoiser import LOG_SNR_LIMIT, Denoiser
from undiffuse.domains.augmentation import LABELS
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut, did_you_mean, fault, format_shape, shown
from undiffuse.networks import MLP, InpaintingUNet, PixelUNet, Transformer, UNet, UNet2D, Vocoder
from undiffuse.networks.transformer import HEAD
from undiffuse.networks.unet import parts
from undiffuse.networks.unet2d import Options
from undiffuse.objectives import Objective, TimeSampler
from undiffuse.progress import Bar, no_bar
from undiffuse.registry import CATEGORICAL, CONDITIONS, LOSSES, NETWORKS, SCHEDULES, TIME_SAMPLERS, WEIGHTINGS
from undiffuse.targets import SCORE_OF_STATE
from undiffuse.token_denoiser import TokenDenoiser

OF_TOKENS = ("count", "spans", "next-token", "cross-entropy-hybrid")
OF_BOTH = ("bound", "continuous-bound")
MOST_LOG_SNR = 100.0  # a signal or noise of e^-50, still within float32
VOCODER_WIDTH = 128
MOST_PARAMETERS = 10**10
"""40 GB of float32; training needs four times that."""


def make_data(config: DataConfig, split: str = "train", progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """A split of the training data set, read with the settings of `config`. Raises as `undiffuse.data.load` does."""
    if config.kind == "text" or is_text(config.source):
        return load_text(
            config.source,
            split,
            tokens=config.tokens,
            vocabulary=config.vocabulary or 1024,
            length=config.length,
            progress=progress,
        )
    if is_sounds(config.source):
        sounds = load_sounds(
            config.source,
            split,
            rate=config.rate,
            seconds=config.seconds,
            trim=config.trim,
            skip_corrupt=config.skip_corrupt,
            progress=progress,
        )
        return replace(sounds, domain=config.sound)
    return load_data(
        config.source,
        split,
        size=config.size,
        channels=config.channels,
        skip_corrupt=config.skip_corrupt,
        progress=progress,
    )


def make_data_of(shape: tuple[int, ...], config: DataConfig, split: str, bar: Bar = no_bar) -> ImageSet:
    """A split as images of `shape` (H, W, C), resized only to a square. Raises UsageError if they do not fit."""
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


def default_network(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """`config` with each None replaced by a value for data of `size`: (height, width) for pictures, (length,) for
    sequences, () for points. Raises UsageError for settings that do not fit it."""
    if config.kind == "transformer":
        return _default_transformer(config, size)
    if config.kind == "vocoder":
        return _default_vocoder(config, size)
    if config.kind not in ("unet", "unet2d", "mlp"):  # from outside the package: nothing else is decided
        usual = {"patch": config.patch or 1, "channels": config.channels or (64,), "attention": config.attention or ()}
        return config.model_copy(update=usual)
    if (config.kind == "mlp") != (not size):
        raise UsageError(f"network.kind={config.kind} does not fit: use mlp for points, and only for points")
    if config.kind == "mlp":
        return _default_mlp(config)
    small = min(size)
    unet2d = config.kind == "unet2d"
    patch = config.patch or (1 if unet2d else _usual_patch(size))
    if any(side % patch for side in size):
        raise UsageError(f"network.patch = {patch} does not divide {_of_size(size)}")
    inner = small // patch
    widths = (64, 128) if inner <= 16 else (64, 128, 192)
    channels = config.channels or tuple(max(16, 16 * round(config.width * c / 16)) for c in widths)
    if inner < 2 ** (len(channels) - 1):
        raise UsageError(f"network.channels has {len(channels)} stages, too many for {format_shape(size)} pixels")
    # The cost of attention is quadratic in the pixels: worth it at 16 x 16 and below.
    attention = config.attention
    if attention is None:
        attention = tuple(stage for stage in range(len(channels)) if stage and -(-inner // 2**stage) <= 16)
    if any(stage >= len(channels) for stage in attention):
        raise UsageError(f"network.attention = {attention}: the stages are 0 to {len(channels) - 1}")
    if len(size) != 2 and (unet2d or config.head or config.fourier or config.kernel or config.values):
        raise UsageError("network.kind=unet2d and network.head, fourier, kernel and values are for pictures")
    options = _unet2d_options(patch, channels, size, config.options) if unet2d else config.options
    if config.kernel and config.kernel % 2 == 0:
        raise UsageError(f"network.kernel = {config.kernel}: the side of a filter must be odd")
    if unet2d and (config.head or config.fourier or config.kernel or config.values):
        raise UsageError("network.head, fourier, kernel and values are for network.kind=unet: leave them out")
    if options and not unet2d:
        raise UsageError("network.options are for network.kind=unet2d: set that too, or leave them out")
    decided = {"patch": patch, "channels": channels, "attention": attention, "options": options}
    return config.model_copy(update=decided)


def _usual_patch(size: tuple[int, ...]) -> int:
    """The side of patches that leaves about 16 positions a side (docs/recipes.md), or the next that divides `size`."""
    small = min(size)
    wanted = 1 if small < 16 else 2 if small < 48 else 4 if small < 96 else 8
    return next(patch for patch in (8, 4, 2, 1) if patch <= wanted and all(side % patch == 0 for side in size))


def _of_size(size: tuple[int, ...]) -> str:
    return f"images of {format_shape(size)}" if len(size) == 2 else f"sequences of {format_shape(size)}"


def _default_mlp(config: NetworkConfig) -> NetworkConfig:
    """An MLP uses `blocks`, and the one number in `channels` as its width."""
    if config.patch not in (None, 1) or config.attention or config.head or config.fourier or config.kernel:
        raise UsageError("network.patch, attention, head, fourier and kernel are not for network.kind=mlp")
    if config.values or config.options or config.dropout:
        raise UsageError("network.values, options and dropout are not for network.kind=mlp")
    channels = config.channels or (max(16, 16 * round(config.width * 8)),)
    if len(channels) != 1:
        raise UsageError(f"network.channels = {channels}: an MLP has one width")
    return config.model_copy(update={"patch": 1, "channels": channels, "attention": ()})


def _default_transformer(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """A transformer uses `blocks`, and the one number in `channels` as its width."""
    if size:
        raise UsageError("network.kind=transformer is for texts")
    if config.patch not in (None, 1) or config.attention or config.head or config.fourier or config.kernel:
        raise UsageError("network.patch, attention, head, fourier and kernel are not for network.kind=transformer")
    if config.values or config.options:
        raise UsageError("network.values and options are not for network.kind=transformer")
    channels = config.channels or (max(HEAD, HEAD * round(config.width * 192 / HEAD)),)
    if len(channels) != 1 or channels[0] % HEAD:
        raise UsageError(f"network.channels = {channels}: a transformer has one width, a multiple of {HEAD}")
    return config.model_copy(update={"patch": 1, "channels": channels, "attention": ()})


def _default_vocoder(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """A vocoder uses `patch`, `blocks`, and the one number in `channels` as its width; it notes the bands M."""
    if len(size) != 2:
        raise UsageError("network.kind=vocoder is for sounds with data.sound=mdct")
    if config.attention or config.head or config.fourier or config.kernel or config.values or config.dropout:
        raise UsageError("a network.kind=vocoder has no network.attention, head, fourier, kernel, values and dropout")
    bands, frames = size
    if config.options not in ({}, {"bands": bands}):
        raise UsageError(f"network.options = {shown(config.options)}: these sounds have {bands} bands: leave it out")
    patch = config.patch or 2 - frames % 2
    if frames % patch:
        raise UsageError(f"network.patch = {patch} does not divide the {frames} frames of a sound")
    channels = config.channels or (max(16, 16 * round(config.width * VOCODER_WIDTH / 16)),)
    if len(channels) != 1:
        raise UsageError(f"network.channels = {channels}: a vocoder has one width")
    decided = {"patch": patch, "channels": channels, "attention": (), "options": {"bands": bands}}
    return config.model_copy(update=decided)


def _unet2d_options(
    patch: int, channels: tuple[int, ...], size: tuple[int, ...], given: dict[str, Any]
) -> dict[str, Any]:
    """The options with the number of groups set: 32 as in DDPM where possible, else groups of 4 channels or more."""
    if patch != 1:
        raise UsageError(f"network.patch = {patch}: network.kind=unet2d does not fold pixels, so it must be 1")
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
    """`network.options`, validated. Raises UsageError for the first unknown (naming the nearest) or invalid one."""
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(name, Options.model_fields, f"it has {', '.join(Options.model_fields)}.")
            raise UsageError(f"network.options.{cut(name)}: a unet2d has no such option; {hint}") from None
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
    """Name -> shape of the tensors in the state dict of `make_network(...)`. Raises as it does; allocates nothing."""
    return _shapes(_network(config, channels, takes, dims))


def _shapes(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise UsageError(f"network: cannot be built: {cut(str(error), 200)}") from None
    except UsageError:
        raise
    except (ValueError, TypeError) as error:  # TypeError: options unknown to a network from outside
        raise UsageError(f"network: {cut(str(error), 200)}") from None
    if (count := sum(map(math.prod, shapes.values()))) > MOST_PARAMETERS:
        raise UsageError(
            f"network: {count:.1e} parameters are more than the {MOST_PARAMETERS:.0e} allowed: "
            "lower network.channels, blocks, head or kernel"
        )
    return shapes


def make_encoders(takes: ConditionFacts | None) -> Encoders:
    """A network's encoders for a condition. Raises UsageError for an unknown kind or invalid facts."""
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
        raise UndiffuseError("the configuration leaves the network undecided: it is not from a run or a model")
    if network.inpaint and (network.kind != "unet" or dims != 2):
        raise UsageError("network.inpaint is for pictures and network.kind=unet: leave it out")
    of_levels = config.denoiser.target == CATEGORICAL
    if network.values and not of_levels:
        raise UsageError("network.values is for denoiser.target=categorical: set that too, or leave it out")
    outputs = channels * (discretised.OUTPUTS if of_levels else 2 if config.denoiser.learned_variance else 1)
    return partial(NETWORKS.find(network.kind), config, channels, outputs, takes, dims)


def make_mlp(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds network.kind=mlp."""
    network = config.network
    assert network.channels
    encoders = make_encoders(takes)
    return MLP(inputs, outputs, width=network.channels[0], blocks=network.blocks, encoders=encoders)


def make_transformer(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds network.kind=transformer, for texts."""
    network, noise = config.network, make_token_process(config)
    assert network.channels
    return Transformer(
        noise.categories,
        noise.values,
        width=network.channels[0],
        blocks=network.blocks,
        times=noise.mask is None,
        span=network.span,
        encoders=make_encoders(takes),
        dropout=network.dropout,
    )


def make_vocoder(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds network.kind=vocoder, for the MDCT of sounds."""
    network = config.network
    assert network.patch and network.channels
    if takes is None or takes.kind != Spectra.kind:
        raise UsageError("network.kind=vocoder takes the spectrograms of sounds: set training.conditional=true")
    levels, bands = takes.facts["bands"], network.options["bands"]
    assert isinstance(bands, int)
    return Vocoder(bands, levels, outputs, patch=network.patch, width=network.channels[0], blocks=network.blocks)


def make_unet(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds network.kind=unet: a `PixelUNet` if a setting needs one, else a `UNet`."""
    network = config.network
    shared: dict[str, Any] = {
        "patch": network.patch,
        "channels": network.channels,
        "blocks": network.blocks,
        "attention": network.attention,
        "encoders": make_encoders(takes),
        "augmentation": LABELS if config.data.augment else 0,
        "dropout": network.dropout,
    }
    special = network.values or network.head or network.kernel or network.fourier
    if network.inpaint:
        if special:
            raise UsageError("network.inpaint is for pictures, without network.head, fourier, kernel and values")
        return InpaintingUNet(inputs, outputs, dims=dims, **shared)
    if not special:
        return UNet(inputs, outputs, dims=dims, **shared)
    sigma_data = _sigma_data(config) if network.fourier or network.values else 1.0  # unused otherwise
    return PixelUNet(
        inputs,
        outputs,
        head=network.head,
        kernel=network.kernel,
        values=discretised.VALUES if network.values else 0,
        sigma_data=sigma_data,
        # These features are informative at low noise, where the network's input is x / sigma_data.
        fourier=tuple(2**n * math.pi * sigma_data for n in network.fourier),
        **shared,
    )


def make_unet2d(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds network.kind=unet2d."""
    network = config.network
    assert network.channels and network.attention is not None
    with torch.device("cpu"):  # the table needs values even if the weights are on the meta device
        schedule, options = make_process(config.process).schedule, make_options(network.options)
        if schedule.steps is None:
            raise UsageError(
                f"network.kind=unet2d needs the steps of a table, and process.schedule={config.process.schedule} has "
                "none: use linear or cosine"
            )
        log_snrs = step_log_snrs(schedule)
    if takes is not None and takes.kind != Labels.kind:
        raise UsageError(f"network.kind=unet2d takes only labels, not {cut(takes.kind)}: use network.kind=unet")
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
    """float32 (T + 1,): the log-SNRs that a network gets at steps 0 .. T of a table."""
    steps = torch.arange((schedule.steps or 0) + 1)
    return schedule.log_snr(schedule.time_of(steps)).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).float()


def make_denoiser(config: Config, network: Callable[..., Any]) -> Denoiser:
    """The network as a denoiser; for texts, a `TokenDenoiser`. Raises UsageError if the target does not work with the
    schedule."""
    if config.network.kind == "transformer":
        # What is made for pictures (guidance, likelihood, ODEs) refuses texts by their domain; the rest asks nothing
        # of a denoiser that this one has not.
        shifts = config.objective.loss == "next-token"
        return cast(Denoiser, TokenDenoiser(network, make_token_process(config), shifts=shifts))
    sigma_data = _sigma_data(config)
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
        least_log_snr=_least_log_snr(network),
    )
    try:
        if config.denoiser.target != CATEGORICAL:
            denoiser.coefficients(1.0)
    except ValueError as error:
        raise UsageError(f"denoiser.target with process.schedule={config.process.schedule}: {error}") from None
    return denoiser


def _least_log_snr(network: Callable[..., Any]) -> float:
    network = getattr(network, "module", network)  # unwrap an engine or a distributed wrapper
    return getattr(network, "least_log_snr", -LOG_SNR_LIMIT)


def _sigma_data(config: Config) -> float:
    if config.denoiser.sigma_data is None:
        raise UndiffuseError("the configuration leaves denoiser.sigma_data undecided: it is not from a run or a model")
    return config.denoiser.sigma_data


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
    objective = config.objective
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
    return _with(loss, variance=objective.variance, times=times, weighting=weighting, span=span)
