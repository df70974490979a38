"""Networks. They know nothing of diffusion: a tensor, a log-SNR and a condition in, a tensor out.

`network.matrices()` lists the weights for Muon: the matrices that mix features.
"""

from undiffuse.networks.inpainting import InpaintingUNet
from undiffuse.networks.mlp import MLP
from undiffuse.networks.pixels import PixelUNet
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.unet import UNet
from undiffuse.networks.unet2d import UNet2D
from undiffuse.networks.values import current_name, first_name
from undiffuse.networks.vocoder import Vocoder

__all__ = [
    "MLP",
    "InpaintingUNet",
    "PixelUNet",
    "Transformer",
    "UNet",
    "UNet2D",
    "Vocoder",
    "current_name",
    "first_name",
]
