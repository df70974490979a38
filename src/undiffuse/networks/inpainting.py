"""A U-Net that is shown what is known of the picture it paints."""

from typing import Any

import torch
from torch import Tensor

from undiffuse.conditions import Condition, nothing_known, without_known
from undiffuse.networks.unet import UNet


class InpaintingUNet(UNet):
    """`UNet` of pictures with the channels of `undiffuse.conditions.Known` after those of x; absent: nothing is known.

    Args:
        inputs: channels of the data; the network's own are 2 inputs + 1.
    """

    def __init__(self, inputs: int, outputs: int, **options: Any):
        super().__init__(2 * inputs + 1, outputs, **options)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        condition, planes = without_known(condition)
        if planes is None:
            planes = nothing_known(x)
        return super().forward(torch.cat([x, planes.to(x)], 1), log_snr, condition)
