"""Spoken words after equal time: undiffuse, diffusers' U-Nets on the same spectrograms, LMNT's DiffWave on waveforms.

    apt-get install espeak-ng; pip install diffusers && pip install --no-deps diffwave
    OMP_NUM_THREADS=1 python benchmarks/speech/models.py OUT [--minutes 60] [--n 500] [--only SYSTEM]

Each trains on `digits-spoken`, on one thread, in the same CPU time; then n samples of the classes in turn, in 20
evaluations (diffwave: its own six steps), are measured as `undiffuse evaluate` measures sounds. Spectrograms become
waveforms by Griffin-Lim, for all. In the peers' favour: making their batches costs them nothing; their learning rate is
the better of the recommended one and 1e-3 after a minute of each. DiffWave is told the class where it expects a
spectrogram; diffusers' UNet1DModel cannot be told. Writes OUT/SYSTEM.json; what is there is kept.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from equal_time import losses_in, run_to_its_end, steps_in
from peers import Peer

from undiffuse import load
from undiffuse.build import make_data
from undiffuse.conditions import Labels
from undiffuse.config import DataConfig, preset, preset_for
from undiffuse.data.sounds import SoundSet
from undiffuse.devices import conditions
from undiffuse.domains import domain_of
from undiffuse.evaluation.sounds import measured
from undiffuse.files import write_json
from undiffuse.generate import Recipe, generate

DATA = "digits-spoken"
BATCH, PILOT, EVALUATIONS = 32, 1.0, 20
RATES = (None, 1e-3)
WIDTHS_2D, WIDTHS_1D = (32, 64, 64), (64, 128, 128)
LAYERS, CHANNELS = 20, 32


def averaged(network: nn.Module) -> tuple[Callable[[], nn.Module], Callable[[], None]]:
    """diffusers' warmed-up EMA of a network: how to get it, and what to do after a step."""
    from diffusers.training_utils import EMAModel

    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def average() -> nn.Module:
        ema.copy_to(network.parameters())
        return network.eval()

    return average, lambda: ema.step(network.parameters())


def of_steps(network: nn.Module, call: Callable[..., Tensor], name: str, rate: float | None) -> Peer:
    """A peer of diffusers: eps, a linear table of 1000 steps, AdamW, DDIM, as in their train_unconditional.py."""
    from diffusers import DDIMScheduler, DDPMScheduler

    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")

    def loss(x0: Tensor, labels: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        return functional.mse_loss(call(noising.add_noise(x0, noise, t), t, labels), noise)

    def draw(_: nn.Module, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(EVALUATIONS)
        x = torch.randn(len(labels), *shape)
        for t in scheduler.timesteps:
            x = scheduler.step(call(x, t.expand(len(x)), labels), t, x, eta=0.0).prev_sample
        return x

    average, update = averaged(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate or 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    return Peer(name, network, loss, draw, average, update, optimizer)  # type: ignore[arg-type]


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
    return of_steps(network, lambda x, t, labels: network(x, t, labels).sample, "diffusers, UNet2DModel", rate)


def unet1d(classes: int, rate: float | None) -> Peer:
    """diffusers' UNet1DModel with the blocks of Dance Diffusion, on the bands of a spectrogram as channels."""
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
        return network(x[:, 0], t).sample[:, None]

    return of_steps(network, call, "diffusers, UNet1DModel", rate)


def diffwave(classes: int, rate: float | None) -> Peer:
    """LMNT's DiffWave, its layers and channels scaled to two cores; its loss, schedule and six steps of sampling."""
    from diffwave.model import DiffWave
    from diffwave.params import AttrDict, params

    network = DiffWave(AttrDict(params, n_mels=classes, residual_layers=LAYERS, residual_channels=CHANNELS))
    betas = np.array(params.noise_schedule)
    kept = torch.from_numpy(np.cumprod(1 - betas)).float()
    fast = np.array(params.inference_noise_schedule)

    def told(labels: Tensor, length: int) -> Tensor:
        return functional.one_hot(labels, classes).float()[:, :, None].expand(-1, -1, length // 256)

    def loss(x0: Tensor, labels: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, len(kept), (len(x0),))
        scale = kept[t][:, None, None]
        noisy = scale.sqrt() * x0 + (1 - scale).sqrt() * noise
        return functional.l1_loss(network(noisy[:, 0], told(labels, x0.shape[2]), t), noise)

    def draw(_: nn.Module, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
        alphas, found = np.cumprod(1 - fast), torch.randn(len(labels), shape[1])
        steps = [np.interp(alpha**0.5, kept.sqrt().numpy()[::-1], np.arange(len(kept))[::-1]) for alpha in alphas]
        for n in reversed(range(len(fast))):
            eps = network(found, told(labels, shape[1]), torch.tensor([steps[n]], dtype=torch.float32))[:, 0]
            found = (found - fast[n] / (1 - alphas[n]) ** 0.5 * eps) / (1 - fast[n]) ** 0.5
            if n:
                sigma = ((1 - alphas[n - 1]) / (1 - alphas[n]) * fast[n]) ** 0.5
                found = found + sigma * torch.randn_like(found)
            found = found.clamp(-1, 1)
        return found[:, None]

    optimizer = torch.optim.Adam(network.parameters(), lr=rate or params.learning_rate)
    average, update = averaged(network)
    return Peer("diffwave", network, loss, draw, average, update, optimizer)  # type: ignore[arg-type]


def batches(data: SoundSet, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Representations and labels, without end."""
    x0, random = domain_of(data).encode(np.asarray(data.images)), np.random.default_rng(seed)
    assert data.labels is not None
    labels = torch.from_numpy(np.array(data.labels))
    while True:
        rows = torch.from_numpy(random.integers(len(x0), size=BATCH))
        yield x0[rows], labels[rows]


def of_peer(make: Callable[..., Peer], sound: str) -> Callable[..., tuple[np.ndarray, dict[str, Any]]]:
    """Trains a peer at its better rate and draws its samples."""

    def run(out: Path, minutes: float, labels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        data = make_data(DataConfig(source=DATA, sound=sound))  # type: ignore[arg-type]
        assert isinstance(data, SoundSet)
        domain, pilots = domain_of(data), {}
        for rate in RATES:
            torch.manual_seed(0)
            losses = losses_in(min(PILOT, minutes), make(len(data.classes), rate).step, batches(data))
            pilots[rate] = statistics.fmean(losses[-max(1, len(losses) // 3) :])
        best = min(RATES, key=lambda rate: pilots[rate])
        torch.manual_seed(0)
        peer = make(len(data.classes), best)
        losses = losses_in(minutes, peer.step, batches(data))
        torch.manual_seed(0)
        with torch.inference_mode():
            network, began = peer.average(), time.process_time()
            parts = [
                peer.draw(network, torch.from_numpy(part), domain.shape)  # type: ignore[arg-type]
                for part in np.array_split(labels, -(-len(labels) // 50))
            ]
        rows = domain.decode(torch.cat(parts))
        facts = {
            "parameters": sum(p.numel() for p in peer.network.parameters()),
            "sounds seen": BATCH * len(losses),
            "pilot losses": {str(rate or "recommended"): loss for rate, loss in pilots.items()},
            "real-time factor": (time.process_time() - began) / (len(rows) * rows.shape[1] / data.rate),
        }
        return rows, facts

    return run


def of_undiffuse(sound: str) -> Callable[..., tuple[np.ndarray, dict[str, Any]]]:
    """`undiffuse train digits-spoken --set data.sound=SOUND`, for as many steps as the time allows."""

    def run(out: Path, minutes: float, labels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        folder = out / f"run-{sound}"
        values = {"data.source": DATA, "data.sound": sound, "training.preview_every": 10**9}
        values = preset(preset_for(minutes)) | values
        if not (folder / "run.json").exists():
            values["training.steps"] = steps_in(minutes, values)
        run_to_its_end(values, folder)
        model = load(folder)
        began = time.process_time()
        condition = Labels(torch.from_numpy(labels), len(model.data.classes))
        rows = np.concatenate(list(generate(model, Recipe(steps=EVALUATIONS), range(len(labels)), condition)))
        seconds = time.process_time() - began
        factor = seconds / (len(rows) * rows.shape[1] / model.domain.rate)  # type: ignore[attr-defined]
        return rows, {"parameters": model.parameters, "training": model.training, "real-time factor": factor}

    return run


SYSTEMS = {
    "undiffuse": of_undiffuse("log-mel"),
    "undiffuse-mdct": of_undiffuse("mdct"),
    "diffusers-2d": of_peer(unet2d, "log-mel"),
    "diffusers-1d": of_peer(unet1d, "log-mel"),
    "diffwave": of_peer(diffwave, "waves"),
}


def main() -> None:
    """Trains and measures what OUT has not, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--only", choices=SYSTEMS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in [options.only] if options.only else SYSTEMS:
        path = options.out / f"{name}.json"
        if path.exists():
            continue
        labels = np.arange(options.n) % 10
        rows, facts = SYSTEMS[name](options.out, options.minutes, labels)
        np.savez(options.out / f"{name}.npz", sounds=rows, labels=labels)
        train_set, test = (make_data(DataConfig(source=DATA), split) for split in ("train", "test"))
        assert isinstance(train_set, SoundSet)
        asked = None if name == "diffusers-1d" else labels
        found = measured(rows, test, train_set, train_set.rate, requested=asked)
        measures = [dataclasses.asdict(row) for row in found]
        write_json(path, {"minutes": options.minutes, **conditions(), **facts, "rows": measures})
        for row in found:
            print(f"{name:16} {row.measure:45} {row.value.value:.3f}", flush=True)


if __name__ == "__main__":
    main()
