"""Networks. They know nothing of diffusion: a tensor, a log-SNR and labels in, a tensor out."""

from undiffuse.networks.mlp import MLP
from undiffuse.networks.unet import UNet
from undiffuse.networks.unet2d import UNet2D

__all__ = ["MLP", "UNet", "UNet2D"]
