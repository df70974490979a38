"""More input channels for a trained network, such as the known part of a picture and its mask."""

import torch
from torch import nn

from undiffuse.networks.pixels import PixelUNet
from undiffuse.networks.unet import UNet
from undiffuse.networks.unet2d import UNet2D


@torch.no_grad()
def add_inputs(network: UNet | UNet2D, count: int) -> None:
    """Gives a network `count` more input channels, after those it has, in place.

    Their weights in the first convolution are 0, so the network computes what it did, whatever they hold. Raises
    ValueError for a `PixelUNet`, whose filters and features are of all its inputs.
    """
    if isinstance(network, PixelUNet):
        raise ValueError("a PixelUNet takes no more inputs: use a UNet or a UNet2D")
    name, folded = ("conv_in", 1) if isinstance(network, UNet2D) else ("stem", network.patch)
    first = getattr(network, name)
    assert isinstance(first, nn.Conv1d | nn.Conv2d)
    more = count * folded ** (first.weight.ndim - 2)
    extended = type(first)(
        first.in_channels + more,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    extended.weight.copy_(torch.cat([first.weight, torch.zeros_like(extended.weight[:, :more])], 1))
    assert first.bias is not None and extended.bias is not None
    extended.bias.copy_(first.bias)
    setattr(network, name, extended.requires_grad_(first.weight.requires_grad).train(first.training))


@torch.no_grad()
def forget_known(network: UNet, channels: int) -> None:
    """Makes an `InpaintingUNet` of `channels` one that is never shown anything: its first layer, in place.

    What it computed when nothing was known, but for the border: there the mask ended, and now it does not.
    """
    first, last = network.stem, network.patch**2
    assert isinstance(first, nn.Conv2d) and first.bias is not None
    rest = nn.Conv2d(
        channels * network.patch**2,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    rest.weight.copy_(first.weight[:, : rest.in_channels])
    assert rest.bias is not None
    rest.bias.copy_(first.bias + first.weight[:, -last:].sum((1, 2, 3)))
    network.stem = rest
