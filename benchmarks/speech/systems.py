"""The peers that learn to speak, each as its authors set it up, and what of it is scaled to two cores.

    pip install diffusers && pip install --no-deps diffwave

Networks see batches in bf16 where the CPU has it, as undiffuse does.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from peers import Peer

from undiffuse.devices import cpu_has_bf16

EVALUATIONS = 20
WIDTHS_2D, WIDTHS_1D = (32, 64, 64), (64, 128, 128)
LAYERS, CYCLE, CHANNELS = 24, 12, 24

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def averaged(network: nn.Module) -> tuple[Callable[[], nn.Module], Callable[[], None]]:
    """diffusers' warmed-up EMA of a network: how to get it, and what to do after a step."""
    from diffusers.training_utils import EMAModel

    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def average() -> nn.Module:
        ema.copy_to(network.parameters())
        return network.eval()

    return average, lambda: ema.step(network.parameters())


def peer(
    name: str,
    network: nn.Module,
    call: Network,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 1000,
    distance: Callable[[Tensor, Tensor], Tensor] = functional.mse_loss,
    longest: float = 1.0,
) -> Peer:
    """One that predicts eps along `steps` betas evenly from 1e-4 to .02, by diffusers' schedulers; DDIM draws.

    `call`: (x_t, t, labels) -> eps.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    noising = DDPMScheduler(num_train_timesteps=steps, beta_schedule="linear")

    def loss(x0: Tensor, labels: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, steps, (len(x0),))
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            found = call(noising.add_noise(x0, noise, t), t, labels)
        return distance(found.float(), noise)

    def draw(_: nn.Module, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(EVALUATIONS)
        x = torch.randn(len(labels), *shape)
        for t in scheduler.timesteps:
            x = scheduler.step(call(x, t.expand(len(x)), labels), t, x, eta=0.0).prev_sample
        return x

    average, update = averaged(network)
    return Peer(name, network, loss, draw, average, update, optimizer, longest=longest)  # type: ignore[arg-type]


def adamw(network: nn.Module, rate: float | None) -> torch.optim.Optimizer:
    """As in diffusers' train_unconditional.py."""
    return torch.optim.AdamW(network.parameters(), lr=rate or 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)


def unet2d(classes: int, rate: float | None) -> Peer:
    """diffusers' UNet2DModel with the blocks of their course, on spectrograms (1, 64, K), told the class."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=WIDTHS_2D,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    )

    def call(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = network(x, t, labels).sample
        return found

    return peer("diffusers, UNet2DModel", network, call, adamw(network, rate))


def unet1d(classes: int, rate: float | None) -> Peer:
    """diffusers' UNet1DModel with the blocks of Dance Diffusion, on the bands of a spectrogram as channels.

    Its Fourier features are of a time from 0 to 1, as there. It cannot be told the class.
    """
    from diffusers import UNet1DModel

    network = UNet1DModel(
        in_channels=64,
        out_channels=64,
        extra_in_channels=2 * WIDTHS_1D[0],  # the Fourier features of the time,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        flip_sin_to_cos=True,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        mid_block_type="UNetMidBlock1D",
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        block_out_channels=WIDTHS_1D,
    )

    def call(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = network(x[:, 0], t / 1000).sample[:, None]
        return found

    return peer("diffusers, UNet1DModel", network, call, adamw(network, rate))


def diffwave(classes: int, rate: float | None) -> Peer:
    """LMNT's DiffWave, its layers and channels scaled down, with the betas and the cycle of dilations that its paper
    has for speech without spectrograms (Kong et al. 2021, section 5.2), and LMNT's loss and optimiser.

    It is told the class where it expects a spectrogram.
    """
    from diffwave.model import DiffWave
    from diffwave.params import AttrDict, params

    sizes = {"residual_layers": LAYERS, "residual_channels": CHANNELS, "dilation_cycle_length": CYCLE}
    betas = torch.linspace(1e-4, 0.02, 200).tolist()  # its length is that of the embedding of steps
    network = DiffWave(AttrDict(params, n_mels=classes, noise_schedule=betas, **sizes))

    def call(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        told = functional.one_hot(labels, classes).float()[:, :, None].expand(-1, -1, x.shape[2] // 256)
        found: Tensor = network(x[:, 0], told, t)
        return found

    optimizer = torch.optim.Adam(network.parameters(), lr=rate or params.learning_rate)
    return peer("DiffWave", network, call, optimizer, steps=200, distance=functional.l1_loss, longest=float("inf"))
