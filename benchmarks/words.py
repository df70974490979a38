"""How well words are followed after equal time: undiffuse, diffusers and, without words, denoising-diffusion-pytorch.

    pip install diffusers einops ema-pytorch && pip install --no-deps denoising-diffusion-pytorch
    OMP_NUM_THREADS=1 python benchmarks/words.py OUT [--minutes 15] [--n 150] [--only SYSTEM]

Each trains on `avatars` for the same minutes on one thread; then come the prompts of `undiffuse evaluate
--metrics text`, n of each set, in 20 evaluations, and the Frechet distance, precision and recall of 500 samples of
random training captions, unguided. diffusers' UNet2DConditionModel reads the states of the same frozen MiniLM that
undiffuse has with network.text=minilm. In the peers' favour: their data and vectors are in memory; their learning rate
is the better of the recommended one and 1e-3 after a minute of each; captions are dropped for guidance, which their
example does not do; their guidance is the best of 2, 4 and 7.5 on 60 prompts. Writes OUT/SYSTEM.json; what is there is
kept.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent / "speed"))
sys.path.insert(0, str(Path(__file__).parent))
from equal_time import better_rate, finish, losses_in
from peers import BATCH, Peer, denoising_diffusion_pytorch
from time_to_quality import batches

from undiffuse import load, sample
from undiffuse.config import preset, preset_for
from undiffuse.data import ImageSet
from undiffuse.data import load as load_data
from undiffuse.data.avatars import VALUES
from undiffuse.devices import conditions
from undiffuse.domains.pictures import Pictures
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.attributes import HALVES, classifier
from undiffuse.evaluation.text import ALL_RIGHT, accuracies, faithfulness, prompts
from undiffuse.evaluation.text import measured as measured_words
from undiffuse.files import write_json
from undiffuse.text.minilm import CHANNELS, MiniLM

DROPPED = 0.1
TOKENS, PIECES = 16, 24
SCALES = (2.0, 4.0, 7.5)
SAMPLES = 500
EVALUATIONS = 20
READER = MiniLM(PIECES)


def diffusers(rate: float | None = None, widths: tuple[int, ...] = (32, 64, 64)) -> Peer:
    """diffusers' UNet2DConditionModel with the widths of `peers.diffusers`; the rest is as in their
    train_text_to_image.py (eps, a table of 1000 steps, AdamW, warmed-up EMA).
    """
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    network = UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CHANNELS,
    )
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    rate = rate or 1e-4

    def loss(x0: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        predicted = network(noising.add_noise(x0, noise, t), t, tokens, encoder_attention_mask=there).sample
        return functional.mse_loss(predicted, noise)

    def draw(unet: Any, tokens: Tensor, there: Tensor, scale: float) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(EVALUATIONS)
        x = torch.randn(len(tokens), 3, 32, 32)
        none, nowhere = dropped(tokens, there)
        for t in scheduler.timesteps:
            eps = unet(x, t, tokens, encoder_attention_mask=there).sample
            if scale != 1:
                free = unet(x, t, none, encoder_attention_mask=nowhere).sample
                eps = free + scale * (eps - free)
            x = scheduler.step(eps, t, x, eta=0.0).prev_sample
        return x

    def average() -> torch.nn.Module:
        ema.copy_to(network.parameters())
        return network

    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    return Peer("diffusers", network, loss, draw, average, lambda: ema.step(network.parameters()), optimizer)


def encoded(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens (N, T, CHANNELS) and where they are: a first one of zeros, which is all that a dropped sentence has."""
    tokens, there = READER.encode(sentences)
    return functional.pad(tokens, (0, 0, 1, 0)), functional.pad(there, (1, 0), value=True)


def dropped(tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """No sentence, for each of these."""
    nowhere = torch.zeros_like(there)
    nowhere[:, 0] = True
    return torch.zeros_like(tokens), nowhere


def captioned(images: ImageSet) -> Iterator[tuple[Tensor, ...]]:
    """Batches of images with a random caption of each, a tenth dropped, without end."""
    pixels = np.asarray(images.images)
    each = len(images.captions[0])
    tokens, there = encoded([said for captions in images.captions for said in captions])
    random = np.random.default_rng(0)
    while True:
        rows = random.integers(len(pixels), size=BATCH)
        said = torch.from_numpy(rows * each + random.integers(each, size=BATCH))
        found, where = tokens[said].float(), there[said]
        none, nowhere = dropped(found, where)
        drop = torch.from_numpy(random.random(BATCH) < DROPPED)
        yield (
            Pictures(pixels.shape[1:]).encode(pixels[rows]),
            torch.where(drop[:, None, None], none, found),
            torch.where(drop[:, None], nowhere, where),
        )


def trained(make: Callable[..., Peer], examples: Callable[[], Iterator[Any]], minutes: float) -> tuple[Peer, dict]:
    """A peer after these minutes, at its better rate, and the facts of it."""
    pilots = better_rate(make, examples)
    torch.manual_seed(0)
    peer = make(next(iter(pilots)))
    steps = len(losses_in(minutes, peer.step, examples()))
    losses = {str(rate or "recommended"): loss for rate, loss in pilots.items()}
    facts = {"images": BATCH * steps, "pilot losses": losses}
    return peer, {**facts, "parameters": sum(p.numel() for p in peer.network.parameters())}


def of_diffusers(out: Path, minutes: float, n: int) -> dict[str, Any]:
    """Trains and measures diffusers' network of sentences."""
    images, test = load_data("avatars", "train"), load_data("avatars", "test")
    peer, facts = trained(diffusers, lambda: captioned(images), minutes)
    unet = peer.average().eval()

    def drawn(sentences: Sequence[str], scale: float) -> np.ndarray:
        with torch.inference_mode():
            torch.manual_seed(0)
            tokens, there = encoded(sentences)
            parts = [
                peer.draw(unet, tokens[i : i + 50].float(), there[i : i + 50], scale)
                for i in range(0, len(sentences), 50)
            ]
        return Pictures((32, 32, 3)).decode(torch.cat(parts))

    captions = [images.captions[row][0] for row in np.random.default_rng(1).integers(len(images), size=SAMPLES)]
    np.savez(out / "diffusers.npz", images=drawn(captions, 1.0))
    judge = classifier(images, VALUES, 0)
    asked = prompts(images, np.arange(1, 60 * HALVES, HALVES), 1)
    right = {scale: accuracies(judge, "", asked, drawn(asked.sentences, scale))[-1].generated for scale in SCALES}
    scale = max(SCALES, key=lambda scale: right[scale].value)
    began = time.perf_counter()
    rows, _ = measured_words(lambda sentences, _: drawn(sentences, scale), images, test, n)
    return {**facts, "guidance": scale, "measuring seconds": time.perf_counter() - began, "rows": as_json(rows)}


def of_lucidrains(out: Path, minutes: float, n: int) -> dict[str, Any]:
    """Trains denoising-diffusion-pytorch without words; its pictures say nothing of a prompt but by chance."""
    images, test = load_data("avatars", "train"), load_data("avatars", "test")
    pixels = np.asarray(images.images)
    peer, facts = trained(
        lambda rate: denoising_diffusion_pytorch(32, 3, rate), lambda: batches(pixels, BATCH, 0), minutes
    )
    torch.manual_seed(0)
    drawn = peer.sample(peer.average().eval(), SAMPLES, EVALUATIONS)
    np.savez(out / "denoising-diffusion-pytorch.npz", images=drawn)
    rows, _ = measured_words(lambda sentences, _: drawn[: len(sentences)], images, test, n)
    return {**facts, "rows": as_json(rows)}


def of_undiffuse(text: str) -> Callable[[Path, float, int], dict[str, Any]]:
    """`undiffuse train avatars --minutes MINUTES --set network.text=TEXT`."""

    def run(out: Path, minutes: float, n: int) -> dict[str, Any]:
        folder = out / f"run-{text}"
        values = {"data.source": "avatars", "network.text": text}
        values["network.tokens"] = TOKENS if text == "words" else PIECES
        finish(preset(preset_for(minutes)) | values, folder, minutes)
        model = load(folder)
        np.savez(out / f"undiffuse-{text}.npz", images=sample(model, SAMPLES, steps=EVALUATIONS))
        found = faithfulness(model, n=n)
        return {"parameters": model.parameters, "training": model.training, "rows": as_json(found.rows)}

    return run


def as_json(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Figures as JSON."""
    return [dataclasses.asdict(row) for row in rows]


SYSTEMS = {
    "undiffuse-words": of_undiffuse("words"),
    "undiffuse-minilm": of_undiffuse("minilm"),
    "diffusers": of_diffusers,
    "denoising-diffusion-pytorch": of_lucidrains,
}


def main() -> None:
    """Trains and measures what OUT has not, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--only", choices=SYSTEMS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in [options.only] if options.only else SYSTEMS:
        path = options.out / f"{name}.json"
        if not path.exists():
            found = SYSTEMS[name](options.out, options.minutes, options.n)
            (evaluation,) = evaluate(str(options.out / f"{name}.npz"), "avatars", n=SAMPLES, metrics="frechet,manifold")
            distances = evaluation.to_json()["metrics"]
            write_json(path, {"minutes": options.minutes, **conditions(), **distances, **found})
            for row in found["rows"]:
                if row["name"] == ALL_RIGHT:
                    print(f"{name:30} {row['of']:25} {row['generated']['value']:.3f}", flush=True)
            print(f"{name:30} Frechet distance {distances['frechet']['value']:.1f}", flush=True)


if __name__ == "__main__":
    main()
