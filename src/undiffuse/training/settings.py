"""Decides the settings that are left open, from the machine and the data; they are saved, so that a resumed run has the
same."""

import time
from collections.abc import Callable

import torch

from undiffuse.build import default_network
from undiffuse.config import Config, NetworkConfig
from undiffuse.data import ImageSet
from undiffuse.data.texts import TextSet
from undiffuse.devices import has_bf16
from undiffuse.discretised import VALUES
from undiffuse.domains import domain_of
from undiffuse.errors import UsageError
from undiffuse.registry import CATEGORICAL, RIVALS
from undiffuse.training.statistics import root_mean_square

DEFAULT_STEPS = 20_000


def clock_of(config: Config) -> Callable[[], float]:
    """What seconds of training are read from, `training.clock`."""
    return time.process_time if config.training.clock == "cpu" else time.monotonic


def decided_precision(precision: str) -> str:
    """For "auto" bf16 if the hardware has it, else fp16 on a GPU, else fp32. Raises UsageError for fp16 on a CPU."""
    if precision == "auto":
        return "bf16" if has_bf16() else "fp16" if torch.cuda.is_available() else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("training.precision=fp16 needs a GPU; on this machine use fp32 or bf16")
    return precision


def decided(config: Config, data: ImageSet, precision: str) -> Config:
    """`config` with the settings that depend on data and machine decided. Raises UsageError for unsuitable data."""
    domain = domain_of(data)
    domain.check(config.data)
    if config.denoiser.target == CATEGORICAL and domain.values != VALUES and data.domain != "texts":
        raise UsageError(f"denoiser.target={CATEGORICAL} is for data of {VALUES} values, which {domain.noun} are not")
    if (data.domain == "texts") != (config.network.kind == "transformer"):
        raise UsageError(
            f"network.kind={config.network.kind} does not fit {domain.noun}: transformer is for texts, and only it, as "
            "--preset text has it"
        )
    if config.network.kind in RIVALS and data.domain != "pictures":
        raise UsageError(f"network.kind={config.network.kind} is for pictures, and these are {domain.noun}")
    if config.network.kind == "vocoder" and data.domain != "mdct":
        raise UsageError(
            f"network.kind=vocoder does not fit {data.domain}: it is for data.sound=mdct, as --preset vocoder has it"
        )
    if isinstance(data, TextSet):
        config = _spelled(config, data)
    sigma_data = config.denoiser.sigma_data
    if sigma_data is None:
        sigma_data = root_mean_square(data)
    network = default_network(config.network, domain.shape[1:])
    if not any(data.captions):  # how they would be read is nothing to save
        network = network.model_copy(update={key: getattr(NetworkConfig(), key) for key in ("text", "tokens")})
    target = config.denoiser.target or _usual_target(network, domain.shape)
    return config.model_copy(
        update={
            "denoiser": config.denoiser.model_copy(update={"sigma_data": sigma_data, "target": target}),
            "network": network,
            "training": config.training.model_copy(update={"precision": precision}),
        }
    )


def _spelled(config: Config, data: TextSet) -> Config:
    """`config` with what the tokenizer of a text decides."""
    if config.data.tokens != "bpe" and config.data.vocabulary not in (None, data.tokenizer.size):
        raise UsageError(
            f"data.vocabulary: the text has {data.tokenizer.size} different {config.data.tokens}: leave it out"
        )
    held = {"tokens": data.tokenizer.name, "vocabulary": data.tokenizer.size, "length": data.shape[0]}
    denoiser = config.denoiser.model_copy(update={"sigma_data": 1.0, "target": CATEGORICAL})
    return config.model_copy(update={"data": config.data.model_copy(update=held), "denoiser": denoiser})


def _usual_target(network: NetworkConfig, shape: tuple[int, ...]) -> str:
    """edm, whose output holds noise; x0 where a patch has at least as many numbers as the network is wide: a stem that
    narrow cannot pass the noise on (Li & He 2025)."""
    if network.kind != "unet" or not network.patch or not network.channels:
        return "edm"
    return "x0" if shape[0] * network.patch ** (len(shape) - 1) >= network.channels[0] else "edm"
