"""Builds the objects that a configuration names: data, process, network, denoiser and objective."""

from undiffuse.build.data import make_data, make_data_of
from undiffuse.build.defaults import default_network, make_options
from undiffuse.build.losses import (
    DISTILLING,
    draws_by_key,
    make_denoiser,
    make_objective,
    make_times,
    sigma_data_of,
    takes,
)
from undiffuse.build.networks import (
    make_encoders,
    make_mlp,
    make_network,
    make_rival,
    make_transformer,
    make_unet,
    make_unet2d,
    make_vocoder,
    network_shapes,
)
from undiffuse.build.processes import make_process, make_schedule, make_token_process, step_log_snrs

__all__ = [
    "DISTILLING",
    "default_network",
    "draws_by_key",
    "make_data",
    "make_data_of",
    "make_denoiser",
    "make_encoders",
    "make_mlp",
    "make_network",
    "make_objective",
    "make_options",
    "make_process",
    "make_rival",
    "make_schedule",
    "make_times",
    "make_token_process",
    "make_transformer",
    "make_unet",
    "make_unet2d",
    "make_vocoder",
    "network_shapes",
    "sigma_data_of",
    "step_log_snrs",
    "takes",
]
