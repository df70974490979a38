"""The networks that a configuration names."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from undiffuse import discretised
from undiffuse.build.defaults import make_options
from undiffuse.build.losses import sigma_data_of
from undiffuse.build.processes import make_process, make_token_process, step_log_snrs
from undiffuse.card import ConditionFacts
from undiffuse.conditions import Condition, Encoders, Labels, Spectra
from undiffuse.config import Config
from undiffuse.domains.augmentation import LABELS
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.names import cut
from undiffuse.networks import MLP, InpaintingUNet, PixelUNet, Transformer, UNet, UNet2D, Vocoder
from undiffuse.registry import CATEGORICAL, CONDITIONS, NETWORKS, RIVALS

MOST_PARAMETERS = 10**10
"""40 GB of float32; training needs four times that."""


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
    if network.jumps and network.kind != "unet":
        raise UsageError("network.jumps is for network.kind=unet: leave it out")
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


def make_rival(config: Config, inputs: int, outputs: int, takes: ConditionFacts | None, dims: int) -> nn.Module:
    """Builds a rival, network.kind in RIVALS, for pictures."""
    kind, options = config.network.kind, dict(config.network.options)
    if takes is not None and takes.kind != Labels.kind:
        raise UsageError(
            f"network.kind={kind} takes only classes, not {cut(takes.kind)}: set training.condition=labels"
        )
    classes = len(takes.facts["share"]) if takes else 0
    shape = inputs, options.pop("rows"), options.pop("columns")
    made: nn.Module = RIVALS[kind](shape, classes, **options)
    return made


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
    if network.jumps and (special or network.inpaint or config.data.augment or config.denoiser.learned_variance):
        raise UsageError(
            "network.jumps is for networks without network.head, fourier, kernel, values and inpaint, without "
            "data.augment and without a learned variance"
        )
    if network.inpaint:
        if special:
            raise UsageError("network.inpaint is for pictures, without network.head, fourier, kernel and values")
        return InpaintingUNet(inputs, outputs, dims=dims, **shared)
    if not special:
        return UNet(inputs, outputs, dims=dims, jumps=network.jumps, **shared)
    sigma_data = sigma_data_of(config) if network.fourier or network.values else 1.0  # unused otherwise
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
