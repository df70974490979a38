"""Vocoders: models of waveforms, given their log-mel spectrograms, which make the samples of `LogMel` models audible.

A vocoder is any model in the domain "mdct" that takes `Spectra`, as `undiffuse train DATA --preset vocoder` trains it.
Where there is none, `LogMel.decode` finds phases by Griffin-Lim.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.conditions.spectra import SILENCE, Spectra
from undiffuse.domains.log_mel import LogMel
from undiffuse.errors import UsageError
from undiffuse.model import DataFacts, Model, load
from undiffuse.randomness import keyed_draws
from undiffuse.registry import SAMPLERS
from undiffuse.sampling import make_grid, trajectory
from undiffuse.sound import hop_length

GRIFFIN_LIM = "griffin-lim"
SAMPLER, STEPS = "dpm++2m", 5
BLOCK = 64
"""Clips at once."""


def with_vocoder(model: Model, vocoder: Model | str | os.PathLike[str] | None = None) -> Model:
    """`model` with a vocoder: a folder, a built-in name or the thing itself; None and "griffin-lim" are none.

    Raises UsageError for a model of anything but log-mel spectrograms, and for a vocoder that takes no spectrograms or
    is for another rate.
    """
    if vocoder is None:
        return model
    if model.data.domain != "log-mel":
        raise UsageError(f"--vocoder is for models of log-mel spectrograms, {model.name} is one of {model.data.domain}")
    if not isinstance(vocoder, Model):
        if vocoder == GRIFFIN_LIM:
            return dataclasses.replace(model, vocoder=None)
        vocoder = load(vocoder, model.device)
    _check(vocoder)
    if _rate(vocoder) != _rate(model):
        raise UsageError(
            f"the vocoder {vocoder.name} is for sounds at {_rate(vocoder)} Hz, and {model.name} makes them at "
            f"{_rate(model)} Hz: train one at that rate (--preset vocoder --set data.rate={_rate(model)}), or take "
            f"--vocoder {GRIFFIN_LIM}"
        )
    return dataclasses.replace(model, vocoder=vocoder)


def rows_of(model: Model, x0: Tensor) -> np.ndarray:
    """The rows that x_0 (N, *shape) of `model` means, by its vocoder if it has one: what samples and edits end with."""
    return model.domain.decode(x0) if model.vocoder is None else vocoded(model.vocoder, x0[:, 0])


@torch.no_grad()
def vocoded(
    vocoder: Model,
    levels: Tensor,
    *,
    steps: int = STEPS,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """Waveforms with the log-mel spectrograms `levels`, float (N, 64, K): rows int16 (N, L), L = K hops of 20 ms.

    K need not be that of the clips trained on. Where K hops are no whole number of the network's frames, silence is
    appended meanwhile.

    Args:
        steps: of DPM-Solver++(2M), an evaluation of the network each.
        seed, numbers: of the noise, and so of the phases, each clip's a pure function of both. None: the same for all,
            so that the waveform depends on nothing but the vocoder and the spectrogram.

    Raises UsageError for a model that is no vocoder, for too many steps, and for waveforms that are not finite.
    """
    _check(vocoder)
    hop = hop_length(_rate(vocoder))
    samples = vocoder.domain.shape[1] * (vocoder.config.network.patch or 1)  # in a frame of the network
    frames = levels.shape[2]
    padded = functional.pad(levels.float(), (0, -frames % (math.lcm(hop, samples) // hop)), value=SILENCE)
    shape = (padded.shape[2] * hop,)
    domain = dataclasses.replace(vocoder, data=dataclasses.replace(vocoder.data, shape=shape)).domain
    process, sampler = vocoder.denoiser.process, SAMPLERS[SAMPLER]
    try:
        grid = make_grid(sampler.grid, process.schedule, steps)
    except ValueError as error:
        raise UsageError(f"the vocoder {vocoder.name}: {error}") from None
    numbers = [0] * len(levels) if numbers is None else numbers
    rows = np.empty((len(levels), frames * hop), np.int16)
    for first in range(0, len(levels), BLOCK):
        here = slice(first, first + BLOCK)
        condition = Spectra.of(padded[here].to(vocoder.device), _rate(vocoder))
        draws = keyed_draws(seed, numbers[here])
        start = process.prior(torch.empty(len(condition), *domain.shape, device=vocoder.device)).sample(draws(0))
        for state in trajectory(vocoder.denoiser.bind(condition), process, grid, sampler.step, start, draws):
            last = state.x
        if not last.isfinite().all():
            raise UsageError(f"the waveforms of the vocoder {vocoder.name} are not finite: are the spectrograms?")
        rows[here] = domain.decode(last)[:, : frames * hop]
    return rows


def is_vocoder(data: DataFacts) -> bool:
    """Whether a model of this data makes waveforms from spectrograms."""
    return data.domain == "mdct" and data.takes is not None and data.takes.kind == Spectra.kind


def no_vocoder(name: str, data: DataFacts) -> None:
    """Raises UsageError for a vocoder, where a model is wanted that needs no spectrogram."""
    if is_vocoder(data):
        raise UsageError(
            f"{name} is a vocoder, and makes waveforms of spectrograms: --vocoder {name} gives it those of another "
            f"model, undiffuse edit {name} FILE those of a sound"
        )


def resynthesised(vocoder: Model, rows: np.ndarray, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """Waveforms made anew from the log-mel spectrograms of rows, int16 (N, L): int16 (N, L). Errors as `vocoded`."""
    _check(vocoder)
    spectrograms = LogMel(vocoder.data.shape, _rate(vocoder)).encode(rows)
    return vocoded(vocoder, spectrograms[:, 0], steps=steps, seed=seed)


def _check(vocoder: Model) -> None:
    if not is_vocoder(vocoder.data):
        raise UsageError(
            f"{vocoder.name} is no vocoder: it makes no waveforms from spectrograms, as undiffuse train DATA --preset "
            "vocoder learns to"
        )


def _rate(model: Model) -> int:
    rate = (model.data.sound or {})["rate"]
    assert isinstance(rate, int)
    return rate
