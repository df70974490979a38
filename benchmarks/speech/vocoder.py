"""Waveforms from spectrograms: the vocoder after some minutes, Griffin-Lim, both together, and real clips.

    OMP_NUM_THREADS=1 python benchmarks/speech/vocoder.py RUN OUT.json [--minutes 20] [--data digits-spoken]

Trains `--preset vocoder` in RUN, on one thread, for these minutes of CPU time (what is there is kept), and makes
waveforms of the spectrograms of 60 held-out clips. Log-spectral distances are those of another transform (frames of
25 ms every 10 ms, floor -100 dB) to the real clip, over its sound; words are those PocketSphinx hears, quality is
DNSMOS.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import stft

sys.path.insert(0, str(Path(__file__).parents[1]))
from equal_time import QUIET, finish

from undiffuse import load
from undiffuse.config import preset
from undiffuse.data.sounds import load_sounds
from undiffuse.devices import conditions
from undiffuse.domains.log_mel import LogMel
from undiffuse.errors import UsageError
from undiffuse.files import write_json
from undiffuse.metrics.sounds.quality import dnsmos
from undiffuse.metrics.sounds.recogniser import recognise
from undiffuse.vocoder import vocoded

CLIPS = 60
STEPS = (1, 2, 5, 10)


def distances(found: np.ndarray, real: np.ndarray, lengths: np.ndarray, rate: int) -> np.ndarray:
    """The log-spectral distance of each clip in dB, (N,)."""

    def decibels(x: np.ndarray) -> np.ndarray:
        frame, hop = rate // 40, rate // 100
        spectrum: np.ndarray = stft(x / 32768, rate, "hann", frame, frame - hop)[2]
        return 20 * np.log10(np.abs(spectrum) + 1e-5)

    return np.array(
        [
            np.sqrt(((decibels(a[:length]) - decibels(b[:length])) ** 2).mean(0)).mean()
            for a, b, length in zip(found, real, lengths, strict=True)
        ]
    )


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--data", default="digits-spoken")
    options = parser.parse_args()
    torch.set_num_threads(1)
    finish(preset("vocoder") | {"data.source": options.data, **QUIET}, options.run, options.minutes)
    vocoder, data = load(options.run), load_sounds(options.data, "test")
    rows = np.linspace(0, len(data) - 1, CLIPS).astype(int)
    real, lengths = np.array(data.images[rows]), data.lengths[rows]
    words = [data.classes[label] for label in data.labels[rows]] if data.labels is not None else []
    try:
        recognise(real[: bool(words)], data.rate, list(data.classes))
    except UsageError as error:  # classes that are no words
        print(f"words are left out: {error}", flush=True)
        words = []
    domain = LogMel(data.shape, data.rate)
    levels = domain.encode(real)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "real clips": lambda: real,
        "Griffin-Lim": lambda: domain.decode(levels),
        **{f"vocoder, {n} steps": lambda n=n: vocoded(vocoder, levels[:, 0], steps=n) for n in STEPS},  # type: ignore[misc]
    }
    found: dict[str, Any] = {"training": vocoder.training, **conditions()}
    for name, made in ways.items():
        began = time.process_time()
        sounds = made()
        seconds = time.process_time() - began
        distance = distances(sounds, real, lengths, data.rate)
        heard = recognise(sounds, data.rate, list(data.classes)) if words else []
        found[name] = {
            "log-spectral distance, dB": float(distance.mean()),
            "standard error": float(distance.std(ddof=1) / CLIPS**0.5),
            "words": float(np.mean([a == b for a, b in zip(heard, words, strict=True)])) if words else None,
            "quality": {key: measure.value for key, measure in dnsmos(sounds, data.rate).items()},
            "real-time factor": seconds / (sounds.size / data.rate),
        }
        print(f"{name:20}", found[name], flush=True)
    write_json(options.out, found)


if __name__ == "__main__":
    main()
