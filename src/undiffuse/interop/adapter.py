"""undiffuse's networks inside diffusers' pipelines.

    import undiffuse.interop.adapter  # first: diffusers imports no module because a folder names it
    from diffusers import DDIMPipeline
    pipeline = DDIMPipeline.from_pretrained("a folder written by undiffuse export")

The names imported from diffusers are needed here: it looks for its base classes where the class is.
"""

from typing import Any

import torch
from torch import Tensor

from undiffuse.build import make_denoiser, make_network
from undiffuse.config import read_config
from undiffuse.errors import UsageError
from undiffuse.process import expand

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    raise UsageError('the adapter runs in diffusers, which is missing: pip install "undiffuse[diffusers]"') from error


class Adapter(ModelMixin, ConfigMixin):
    """A model of undiffuse with the face of a `UNet2DModel`: it answers with v, which is finite at every noise level.

    Args:
        card: `config` and `data` of a model.json; the process must be a table.
        sample_size, in_channels, out_channels: what pipelines ask of a network.
    """

    @register_to_config
    def __init__(
        self,
        card: dict[str, Any],
        sample_size: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
    ):
        super().__init__()
        config = read_config(card["config"])
        self.network = make_network(config, in_channels, len(card["data"]["classes"]))
        self.denoiser = make_denoiser(config, self.network)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """v at the timestep, one for the batch or one per sample; `class_labels` int64 (B,), None for no class."""
        process = self.denoiser.process
        t = process.schedule.time_of(torch.as_tensor(timestep, device="cpu") + 1)
        prediction, level = self.denoiser(sample, t, class_labels), process.level(t)
        v = expand(level.alpha, sample) * prediction.eps - expand(level.sigma, sample) * prediction.x0
        return UNet2DOutput(sample=v) if return_dict else (v,)
