"""The small classifier of a labelled set of sounds: that of pictures, of log-mel spectrograms, trained here."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.cache import folder_for, locked
from undiffuse.data import ImageSet
from undiffuse.errors import UsageError
from undiffuse.metrics.features.classifier import BATCH, WIDTHS, fitted, keep, kept
from undiffuse.metrics.features.extractor import Extractor, Features
from undiffuse.metrics.sounds.spectrogram import DECIBELS, FACTS, spectrogram
from undiffuse.randomness import Purpose, stream
from undiffuse.weights import sha256_of_weights

FORMAT = 1
CHANNELS = 5
EPOCHS, LEAST_STEPS = 12, 500
SHIFT = 3  # frames of 20 ms, either way
LEVEL = 6.0  # dB, either way


def sound_classifier(train: ImageSet, rate: int, tick: Callable[[int, int], None] | None = None) -> Extractor:
    """The classifier of int16 rows (N, L) at `rate` Hz, trained on `train` if there is none yet.

    `tick` gets (steps done, steps in all). Raises UsageError for data with fewer than two classes.
    """
    if train.labels is None or len(np.unique(train.labels)) < 2:
        raise UsageError(f"{train.name} has fewer than two classes, too few for a classifier")

    def seen(rows: np.ndarray) -> Tensor:
        return spectrogram(rows, rate).unsqueeze(1)

    folder = folder_for("sound-classifiers", [FORMAT, FACTS, rate, train.fingerprint])
    with locked(folder):
        if not folder.exists():
            network, steps = fitted(
                CHANNELS,
                len(train.classes),
                lambda rows, epoch: _input(jittered(seen(train.images[rows]), epoch, int(rows[0]))),
                np.array(train.labels),
                EPOCHS,
                tick,
                LEAST_STEPS,
            )
            keep(folder, network, {"data": train.name, "steps": steps, "batch": BATCH})
    network, _ = kept(folder, CHANNELS, len(train.classes))

    @torch.inference_mode()
    def extract(rows: Tensor) -> Features:
        return network(_input(seen(rows.numpy())))._replace(spatial=None)

    facts = {
        "network": f"three 3x3 convolutions ({', '.join(map(str, WIDTHS))}), trained on the classes of the data",
        "trained_on": {"name": train.name, "split": "train", "sounds": len(train), "fingerprint": train.fingerprint},
        "weights_sha256": sha256_of_weights(network),
        "preprocessing": f"{rate} Hz; {FACTS}",
        "pooled": f"mean of the last {WIDTHS[-1]} maps",
    }
    return Extractor(f"classifier of {train.name}", extract, facts, train.classes, batch_size=250)


def _input(x: Tensor) -> Tensor:
    """(N, 1, 64, T) -> (N, 5, 32, ceil(T / 2)): patches of 2 x 2, four times as fast, and beside each the place of its
    band, which convolutions do not know."""
    patches = functional.pixel_unshuffle(functional.pad(x, (0, x.shape[3] % 2), value=-1), 2)
    bands = torch.linspace(-1, 1, patches.shape[2])[:, None].expand(len(x), 1, -1, patches.shape[3])
    return torch.cat([patches, bands], 1)


def jittered(x: Tensor, *key: int) -> Tensor:
    """Spectrograms (N, 1, 64, T) in [-1, inf) as other recordings would have them: a function of the key.

    Each is moved in time and made louder or softer, and a band of frequencies and a stretch of time are silenced (Park
    et al. 2019, SpecAugment).
    """
    random = stream(0, Purpose.AUGMENT, *key)
    level = torch.from_numpy(random.uniform(-LEVEL, LEVEL, (len(x), 1, 1, 1))).float() / DECIBELS
    silence = _masks(random, len(x), x.shape[2])[:, None, :, None] | _masks(random, len(x), x.shape[3])[:, None, None]
    louder = torch.where((x > -1) & ~silence, x + level, -1).clamp(min=-1)
    shifts = random.integers(-SHIFT, SHIFT + 1, len(x))
    padded = functional.pad(louder, (SHIFT, SHIFT), value=-1)
    return torch.stack([one[..., SHIFT - by : SHIFT - by + x.shape[3]] for one, by in zip(padded, shifts, strict=True)])


def _masks(random: np.random.Generator, count: int, size: int) -> Tensor:
    """bool (count, size), true for a stretch of each, of none to an eighth of it."""
    width = random.integers(0, size // 8 + 1, (count, 1))
    first = random.integers(0, size - width + 1)
    place = np.arange(size)
    return torch.from_numpy((place >= first) & (place < first + width))
