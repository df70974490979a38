"""Features of the encoder of Silero VAD (Silero Team 2024), a detector of speech trained on thousands of languages.

The weights are those of PyPI silero-vad (MIT), from its safetensors file (those of its ONNX models are others, of the
same network); the encoder is written anew here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.metrics.features.extractor import Extractor, Features
from undiffuse.metrics.sounds.packages import RATE, at_16_khz, file_of
from undiffuse.weights import read_tensors, sha256_of_weights

WEIGHTS = "data", "silero_vad_16k.safetensors"
CHUNK, CONTEXT = 512, 64  # samples that the detector hears at once, and those before that it remembers
WINDOW, HOP, BINS = 256, 128, 129
CHANNELS = 128


class Encoder(nn.Module):
    """The magnitudes of a short-time Fourier transform and four convolutions: one vector for every 32 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, WINDOW, HOP, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, CHANNELS, 3, padding=1)

    def forward(self, chunks: Tensor) -> Tensor:
        """Chunks of speech with the 64 samples before them, float32 (N, 576) in [-1, 1] -> (N, 128)."""
        real, imaginary = self.stft_conv(functional.pad(chunks[:, None], (0, CONTEXT), "reflect")).split(BINS, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = convolution(x).relu()
        return x.squeeze(2)


def encoder() -> Encoder:
    """The encoder with its weights. Raises UsageError if silero-vad is not installed."""
    network = Encoder()
    tensors = read_tensors(file_of("silero-vad", *WEIGHTS))
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)


def chunked(x: Tensor) -> Tensor:
    """(N, L) -> (N, T, 576), T = ceil(L / 512), with silence before the first sample and after the last."""
    return functional.pad(x, (CONTEXT, -x.shape[1] % CHUNK)).unfold(1, CHUNK + CONTEXT, CHUNK)


def silero(rate: int) -> Extractor:
    """256 features of each int16 row at `rate` Hz: mean and standard deviation, over its chunks of 32 ms, of ln(1 + x).

    The encoder's output x is not bounded: one clip that breaks off would decide the covariance of hundreds.
    """
    network = encoder()

    @torch.inference_mode()
    def extract(rows: Tensor) -> Features:
        chunks = chunked(torch.from_numpy(at_16_khz(rows.numpy(), rate) / 32768).float())
        frames = network(chunks.flatten(0, 1)).log1p().unflatten(0, chunks.shape[:2])
        return Features(torch.cat([frames.mean(1), frames.std(1, correction=0)], 1))

    facts = {
        "network": "encoder of Silero VAD, 16 kHz (PyPI silero-vad)",
        "weights_sha256": sha256_of_weights(network),
        "preprocessing": f"{rate} Hz" + ("" if rate == RATE else f", resampled to {RATE} Hz"),
        "pooled": "mean and standard deviation over time of ln(1 + x) of its 128 channels",
    }
    return Extractor("silero-vad", extract, facts)
