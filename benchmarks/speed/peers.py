"""The peers that the benchmarks compare with, each set up as its own authors do for small images.

    pip install diffusers einops ema-pytorch && pip install --no-deps denoising-diffusion-pytorch

Both train unconditionally, on batches that are already in memory: reading data costs them nothing here.
"""

import copy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.domains.pictures import Pictures

BATCH = 32


@dataclass
class Peer:
    """A competitor in training.

    Attributes:
        loss: images (B, C, H, W) float32 in [-1, 1], and what else a batch of this peer has -> a scalar.
        draw: (network, count, evaluations) -> images (B, C, H, W) float32 in [-1, 1].
        average: () -> the network with averaged weights.
        update: what happens after an optimiser step (the average).
        longest: what the norm of a gradient is clipped to.
    """

    name: str
    network: nn.Module
    loss: Callable[..., Tensor]
    draw: Callable[[nn.Module, int, int], Tensor]
    average: Callable[[], nn.Module]
    update: Callable[[], None]
    optimizer: torch.optim.Optimizer
    facts: dict[str, object] = field(default_factory=dict)
    longest: float = 1.0

    def step(self, x0: Tensor, *others: Tensor) -> Tensor:
        """One optimiser step; its loss."""
        loss = self.loss(x0, *others)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.longest)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update()
        return loss.detach()

    @torch.inference_mode()
    def sample(self, network: nn.Module, count: int, evaluations: int, batch: int = 100) -> np.ndarray:
        """uint8 (count, H, W, C)."""
        parts = [self.draw(network, min(batch, count - first), evaluations) for first in range(0, count, batch)]
        x0 = torch.cat(parts)
        return Pictures((*x0.shape[2:], x0.shape[1])).decode(x0)


def diffusers(size: int, channels: int, rate: float | None = None, widths: tuple[int, ...] = (32, 64, 64)) -> Peer:
    """Hugging Face's diffusers: the network of their diffusion course for 28 x 28 digits (unit 1), the objective,
    optimiser and average of their train_unconditional.py (eps, linear table, AdamW, warmed-up EMA), DDIMPipeline.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    attends = [index > 0 for index in range(len(widths))]
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
    )
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    averaged = copy.deepcopy(network)
    rate = rate or 1e-4

    def loss(x0: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        return functional.mse_loss(network(noising.add_noise(x0, noise, t), t).sample, noise)

    def draw(unet: nn.Module, count: int, evaluations: int) -> Tensor:
        pipeline = DDIMPipeline(unet, DDIMScheduler.from_config(noising.config))
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=count, num_inference_steps=evaluations, output_type="np", eta=0.0).images
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1

    def average() -> nn.Module:
        ema.copy_to(averaged.parameters())
        return averaged

    return Peer(
        "diffusers",
        network,
        loss,
        draw,
        average,
        lambda: ema.step(network.parameters()),
        torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6),
        {"version": version("diffusers"), "rate": rate},
    )


def denoising_diffusion_pytorch(size: int, channels: int, rate: float | None = None, width: int = 32) -> Peer:
    """lucidrains' denoising-diffusion-pytorch: its Unet and GaussianDiffusion with the options of its README (flash
    attention; pred_v and a sigmoid schedule by default), the optimiser and average of its Trainer.
    """
    # It imports torchvision for a folder of images, which is not used here, and whose wheel installs CUDA: an empty
    # stand-in is enough during the import.
    stand_in = types.ModuleType("torchvision")
    stand_in.transforms = stand_in.utils = None  # type: ignore[attr-defined]
    sys.modules["torchvision"] = stand_in
    try:
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet
    finally:
        del sys.modules["torchvision"]
    from ema_pytorch import EMA

    network = Unet(dim=width, dim_mults=(1, 2, 4), channels=channels, flash_attn=True)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000, sampling_timesteps=250)
    ema = EMA(diffusion, beta=0.995, update_every=10)
    rate = rate or 8e-5

    def draw(unet: nn.Module, count: int, evaluations: int) -> Tensor:
        wrapped = ema.ema_model if unet is ema.ema_model.model else diffusion
        wrapped.sampling_timesteps, wrapped.is_ddim_sampling = evaluations, True
        return wrapped.sample(count) * 2 - 1

    return Peer(
        "denoising-diffusion-pytorch",
        network,
        lambda x0: diffusion((x0 + 1) / 2),
        draw,
        lambda: ema.ema_model.model,
        ema.update,
        torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99)),
        {"version": version("denoising-diffusion-pytorch"), "rate": rate},
    )


PEERS: dict[str, Callable[..., Peer]] = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
