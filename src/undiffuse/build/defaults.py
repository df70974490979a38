"""The settings of networks that are left open, decided for data of a size."""

import inspect
import math
from typing import Any

from pydantic import ValidationError

from undiffuse.config import NetworkConfig
from undiffuse.errors import UsageError
from undiffuse.names import cut, did_you_mean, fault, format_shape, shown
from undiffuse.networks.transformer import HEAD
from undiffuse.networks.unet import parts
from undiffuse.networks.unet2d import Options
from undiffuse.registry import RIVALS

VOCODER_WIDTH = 128


def default_network(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """`config` with each None replaced by a value for data of `size`: (height, width) for pictures, (length,) for
    sequences, () for points. Raises UsageError for settings that do not fit it."""
    if config.kind == "transformer":
        return _default_transformer(config, size)
    if config.kind in RIVALS:
        return _default_rival(config, size)
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


def _default_rival(config: NetworkConfig, size: tuple[int, ...]) -> NetworkConfig:
    """A rival's sizes are its own, or in `network.options`, which also note the sides of the pictures."""
    if len(size) != 2:
        raise UsageError(f"network.kind={config.kind} is for pictures")
    usual = NetworkConfig(kind=config.kind)
    free = {"options", "text", "tokens", "patch", "channels", "attention"}
    if others := [
        name
        for name in NetworkConfig.model_fields
        if name not in free and getattr(config, name) != getattr(usual, name)
    ]:
        raise UsageError(f"network.{others[0]} is not for network.kind={config.kind}: leave it out")
    sides = {"rows": size[0], "columns": size[1]}  # a rival is made for one size: they are kept with its options
    given = {name: value for name, value in config.options.items() if sides.get(name) != value}
    _check_rival(config.kind, given)
    return config.model_copy(update={"patch": 1, "channels": (1,), "attention": (), "options": {**given, **sides}})


def _check_rival(kind: str, options: dict[str, Any]) -> None:
    """Raises UsageError for an option that a rival's constructor has not, or not as one number or truth value."""
    parameters = inspect.signature(RIVALS[kind]).parameters.values()
    usual = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    usual = {name: default for name, default in usual.items() if isinstance(default, int | float)}
    for name, value in options.items():
        if name not in usual:
            hint = did_you_mean(name, usual, f"it has {', '.join(usual) or 'none'}.")
            raise UsageError(f"network.options.{cut(name)}: {kind} has no such option; {hint}")
        kinds = {float: (int, float), int: (int,), bool: (bool,)}[type(usual[name])]
        if type(value) not in kinds:
            raise UsageError(f"network.options.{name} = {shown(value)}: it is like {usual[name]}")


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
