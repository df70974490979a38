"""What the speed benchmarks measure: undiffuse and its peers, as trainers and as samplers of images."""

import dataclasses
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from measuring import Figures, Work, Worker, megaflops, temporary_folder, worker
from peers import BATCH, PEERS
from torch import Tensor, nn

import undiffuse
from undiffuse.build import default_network, make_denoiser, make_network, make_objective
from undiffuse.conditions import Condition
from undiffuse.config import Config, make_config, preset
from undiffuse.data import ImageSet
from undiffuse.devices import conditions
from undiffuse.engines import available, with_engine
from undiffuse.model import DataFacts, write_model
from undiffuse.randomness import keyed_draws
from undiffuse.training.batches import make_batch
from undiffuse.training.ema import EMA
from undiffuse.training.loop import training_steps
from undiffuse.training.muon import make_optimizer
from undiffuse.training.state import Learner, Position

SIZE, CHANNELS, OUR_BATCH = 28, 1, 64
OURS = "undiffuse"
MFLOP = "MFLOP per evaluation"
PARTS = ("make_batch", "its noise", "objective around the network", "clipping", "EMA")


@dataclass
class Trainer:
    """A system that trains.

    Attributes:
        facts: what its rates depend on.
        step: one whole optimiser step on a batch.
        bare: forward, backward and optimiser on a ready batch.
        evaluation: the network alone on a batch.
        parts: the other parts of the step, each alone.
    """

    facts: Figures
    step: Work
    bare: Work
    evaluation: Work
    parts: dict[str, Work] = field(default_factory=dict)

    def part(self, name: str) -> None:
        """One of the parts."""
        self.parts[name]()


@dataclass
class Drawer:
    """A system that samples.

    Attributes:
        draw: (count, evaluations) -> images, through the library's public interface.
        bare: (count, evaluations): that many calls of the network alone.
        free: `draw` with a network that costs nothing, if there is one.
        facts: empty; reading it waits until the system is built.
    """

    draw: Callable[[int, int], object]
    bare: Callable[[int, int], None]
    free: Callable[[int, int], object] | None = None
    facts: Figures = field(default_factory=dict)


class Free(nn.Module):
    """A network that costs nothing: what is left is the library's own work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        return x


def facts_of(network: nn.Module, mflop: float, batch: int, **others: Any) -> Figures:
    """The facts of a trainer."""
    count = sum(p.numel() for p in network.parameters())
    threads = torch.get_num_threads()
    return {"batch": batch, MFLOP: round(mflop, 1), "parameters": count, "threads": threads, **others}


def our_config(size: int = SIZE, batch: int = OUR_BATCH, width: int | None = None) -> Config:
    """The default configuration, fully decided; `width`: channels (width, 2 width) and AdamW, like the peers, for
    comparison at equal FLOPs.
    """
    values = preset("balanced") | {"denoiser.sigma_data": 0.5, "training.batch_size": batch}
    if width:
        values |= {"network.channels": (width, 2 * width), "training.optimizer": "adamw"}
    config = make_config(values)
    return config.model_copy(update={"network": default_network(config.network, (size, size))})


def noise_images(count: int, size: int) -> np.ndarray:
    """uint8 (count, size, size, CHANNELS)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, CHANNELS), dtype=np.uint8)


def our_megaflops(config: Config, size: int = SIZE) -> float:
    """The megaFLOPs of its network."""
    return megaflops(make_network(config, CHANNELS).eval(), (CHANNELS, size, size), torch.zeros(1))


def our_trainer(size: int = SIZE, batch: int = OUR_BATCH, width: int | None = None, precision: str = "no") -> Trainer:
    """undiffuse, unconditional like the peers, training on images in memory; `precision` as in Accelerate."""
    torch.manual_seed(0)
    config = our_config(size, batch, width)
    data = ImageSet("noise", "train", noise_images(1024, size), None, (), (), "", "")
    network = make_network(config, CHANNELS)
    parameters = list(network.parameters())
    optimizer = make_optimizer(config.training, network)
    ema = EMA(parameters, config.training.ema)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    steps = training_steps(config, data, Learner(network, ema, optimizer, None, Position()), accelerator)
    ready = make_batch(config, data, 0, slice(None))
    log_snr = torch.randn(batch)
    own = make_optimizer(config.training, network)

    def bare() -> None:
        (network(ready.x0, log_snr) - ready.noise).square().mean().backward()
        own.step()
        own.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        network(ready.x0, log_snr)

    def clipping() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        own.zero_grad()

    gradients = [torch.randn_like(p) for p in parameters]
    denoiser, objective = make_denoiser(config, Free()), make_objective(config)
    parts: dict[str, Work] = {
        "make_batch": lambda: make_batch(config, data, 0, slice(None)),
        "its noise": lambda: keyed_draws(0, range(batch))(0).normal(ready.x0),
        "objective around the network": lambda: objective(denoiser, ready.x0, None, ready.u, ready.draw).mean(),
        "clipping": clipping,
        "EMA": lambda: ema.update(parameters, 1000),
    }
    assert tuple(parts) == PARTS
    facts = facts_of(network, our_megaflops(config, size), batch, channels=config.network.channels)
    return Trainer(facts, lambda: next(steps), bare, evaluation, parts)


def peer_trainer(name: str) -> Trainer:
    """A peer, as benchmarks/speed/peers.py sets it up."""
    torch.manual_seed(0)
    peer = PEERS[name](SIZE, CHANNELS)
    x0, t = torch.randn(BATCH, CHANNELS, SIZE, SIZE), torch.randint(1000, (BATCH,))

    def bare() -> None:
        output = peer.network(x0, t)
        if not isinstance(output, Tensor):
            output = output.sample
        (output - x0).square().mean().backward()
        peer.optimizer.step()
        peer.optimizer.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        peer.network(x0, t)

    mflop = megaflops(peer.network, (CHANNELS, SIZE, SIZE), torch.tensor([5]))
    return Trainer(facts_of(peer.network, mflop, BATCH), lambda: peer.step(x0), bare, evaluation)


def our_drawer(engine: str = "torch") -> Drawer:
    """undiffuse with an engine, on a model with random weights."""
    torch.manual_seed(0)
    config = our_config()
    network = make_network(config, CHANNELS)
    for parameter in network.parameters():  # no layer stays at 0, where timings might differ
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    with temporary_folder() as folder:
        write_model(folder, config, DataFacts("noise", (SIZE, SIZE, CHANNELS), 1024), {}, network.state_dict())
        plain = undiffuse.load(folder, "cpu")
    free = dataclasses.replace(plain, denoiser=dataclasses.replace(plain.denoiser, network=Free()))
    model = with_engine(plain, engine)

    @torch.no_grad()
    def bare(count: int, evaluations: int) -> None:
        x, log_snr = torch.randn(count, CHANNELS, SIZE, SIZE), torch.zeros(count)
        for _ in range(evaluations):
            model.denoiser.network(x, log_snr, None)

    return Drawer(
        lambda count, evaluations: undiffuse.sample(model, count, steps=evaluations, engine=engine),
        bare,
        lambda count, evaluations: undiffuse.sample(free, count, steps=evaluations, engine="torch"),
    )


def peer_drawer(name: str) -> Drawer:
    """A peer's own sampler, made once (not at every draw, as peers.py does)."""
    torch.manual_seed(0)
    peer = PEERS[name](SIZE, CHANNELS)
    network = peer.network.eval()
    draw: Callable[[int, int], object] = partial(peer.draw, network)
    quiet = torch.inference_mode if name == "denoising-diffusion-pytorch" else torch.no_grad
    if name == "diffusers":
        from diffusers import DDIMPipeline, DDIMScheduler

        pipeline = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"))
        pipeline.set_progress_bar_config(disable=True)

        def draw(count: int, evaluations: int) -> object:
            return pipeline(batch_size=count, num_inference_steps=evaluations, output_type="np")

    def bare(count: int, evaluations: int) -> None:
        x, t = torch.randn(count, CHANNELS, SIZE, SIZE), torch.full((count,), 500)
        with quiet():
            for _ in range(evaluations):
                network(x, t)

    return Drawer(draw, bare)


def drawers(compiled: bool) -> dict[str, Worker]:
    """undiffuse's, one per engine (`compiled`: also the one that is slow to start), then the peers'."""
    ours = {
        OURS if engine == "torch" else f"{OURS} ({engine})": worker(our_drawer, engine)
        for engine in available()
        if compiled or engine != "compile"
    }
    return ours | {name: worker(peer_drawer, name) for name in PEERS}


def machine() -> Figures:
    """The machine that a section was measured on, and the systems' versions."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **conditions("numpy", "onnxruntime", *PEERS),
        "image": [SIZE, SIZE, CHANNELS],
        "precision": "float32",
    }
