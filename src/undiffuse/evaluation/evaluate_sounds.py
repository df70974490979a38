"""The evaluation of a model of sounds, or of sounds in files: `undiffuse.evaluation.sounds` and its conditions."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from undiffuse.build import make_data
from undiffuse.config import DataConfig
from undiffuse.data.sounds import SoundSet
from undiffuse.data.soundsamples import SoundSamples, read_samples
from undiffuse.devices import conditions
from undiffuse.domains.sounds import Sounds
from undiffuse.engines import with_engine
from undiffuse.errors import UsageError
from undiffuse.evaluation.sounds import Row, measured
from undiffuse.evaluation.store import sample_into_cache
from undiffuse.generate import Recipe, generate
from undiffuse.guide import with_guide
from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.sounds.spectrogram import FACTS
from undiffuse.model import Model, load
from undiffuse.names import counted
from undiffuse.progress import Bar, no_bar
from undiffuse.vocoder import no_vocoder, with_vocoder

DEFAULT_N = 500
PACKAGES = ("silero-vad", "speechmos", "pocketsphinx", "onnxruntime")
SPEED, TIMED = "speed", 16


@dataclass(frozen=True)
class SoundEvaluation:
    """What was measured, and under which conditions.

    Attributes:
        name: of the model or of the files.
        rows: the figures.
        samples: int16 (N, L), mono, at the rate of `real`.
        requested: the class that was asked for, int64 (N,), an index into `train.classes`; None if that is not known.
        conditions: data, fingerprints, sampling, versions: JSON.
    """

    name: str
    rows: list[Row]
    samples: np.ndarray
    requested: np.ndarray | None
    real: SoundSet
    train: SoundSet
    conditions: dict[str, Any]

    @property
    def domain(self) -> Sounds:
        """That of the waveforms, whatever represents them in a model."""
        return Sounds(self.real.shape, self.real.rate)

    def to_json(self) -> dict[str, Any]:
        """Everything but the sounds, as JSON."""
        rows = [
            {"measure": row.measure, **_as_json(row.value), "real": row.real and _as_json(row.real), "what": row.what}
            for row in self.rows
        ]
        return {"name": self.name, "n": len(self.samples), "rows": rows, "conditions": self.conditions}


def _as_json(measure: Measure) -> dict[str, Any]:
    return {"value": measure.value, "interval": None if measure.low is None else [measure.low, measure.high]}


def evaluate_model(
    name: str,
    data: str | None = None,
    *,
    n: int = DEFAULT_N,
    metrics: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    guide: str | None = None,
    device: str | None = None,
    engine: str = "auto",
    vocoder: str | None = None,
    bar: Bar = no_bar,
) -> SoundEvaluation:
    """Draws the first n samples of a model, those that are not in the cache, and measures them.

    Args:
        data: what to measure against; None: the model's training data, its test split.
        metrics: names in SOUND_METRICS; None: all that can be measured.
        vocoder: as in `undiffuse.vocoder.with_vocoder`.

    Raises UsageError for a model that is not of sounds or whose data is not known, and as `measured` does.
    """
    recipe = recipe or Recipe()
    model = load(name, device)
    no_vocoder(name, model.data)
    if not isinstance(model.domain, Sounds):
        raise UsageError(f"{name} generates {model.domain.noun}, not sounds")
    if model.learnt is None and data is None:
        raise UsageError(f"{name} was imported without data: name the data to measure against with --data")
    recipe = recipe.for_model(model)
    recipe.check(model)
    learnt = model.learnt if model.learnt and data in (None, model.learnt.source) else DataConfig(source=str(data))
    train, real = _data_like(learnt, model.data.shape[0], model.domain.rate, bar)
    model = with_vocoder(with_guide(model, guide) if guide else model, vocoder)
    model = with_engine(model, engine, n * recipe.evaluations, bar)
    with bar(f"sampling {name}, {recipe.sampler} in {recipe.steps} steps", n * recipe.steps) as tick:
        drawn = sample_into_cache(model, recipe, n, tick)
    assert drawn is not None, "one process draws"
    facts = {
        "model": {
            "parameters": model.parameters,
            "fingerprint": model.fingerprint,
            "training": model.training,
            "learnt_this_data": model.has_learnt(train.fingerprint),
        },
        "sampling": {
            **dataclasses.asdict(recipe),
            "evaluations": recipe.cost(model),
            "engine": model.engine,
            "guide": None if model.guide is None else model.guide.name,
            "vocoder": None if model.vocoder is None else model.vocoder.name,
        },
    }
    asked = model.asked(range(n))
    known = bool(train.classes) and set(asked) <= set(train.classes)  # by a sentence too, if it is a class's name
    labels = np.array([train.classes.index(name) for name in asked]) if known else None
    samples = SoundSamples(drawn.gathered(), train.rate, labels, train.classes)
    evaluation = _evaluated(name, samples, train, real, metrics, facts, bar)
    if metrics is None or SPEED in metrics:
        evaluation.rows.append(_speed(model, recipe, bar))
    return evaluation


def _speed(model: Model, recipe: Recipe, bar: Bar) -> Row:
    """How long a second of sound takes, waveforms included: three times TIMED samples at once, after a first time."""
    sound = TIMED * model.data.shape[0] / model.domain.rate  # type: ignore[attr-defined]
    taken = []
    with bar("measuring its speed", 4) as tick:
        for _ in range(4):
            began = time.perf_counter()
            list(generate(model, recipe, range(TIMED), model.condition(range(TIMED)), batch_size=TIMED))
            taken.append((time.perf_counter() - began) / sound)
            tick(1)
    again = taken[1:]
    threads = torch.get_num_threads() if model.device.type == "cpu" else 0
    where = f"{counted(threads, 'thread')} of a CPU" if threads else str(model.device)
    value = Measure(statistics.median(again), min(again), max(again))
    return Row("real-time factor", value, None, f"seconds for one of sound, {TIMED} at once, on {where}; three times")


def evaluate_files(
    path: str, data: str, *, n: int | None = None, metrics: Sequence[str] | None = None, bar: Bar = no_bar
) -> SoundEvaluation:
    """Measures samples in files (`undiffuse.data.soundsamples`), or the first n of them, against `data`.

    Arrays that do not state a rate are taken to have that of the data. Raises UsageError for samples that the data
    cannot be compared with, and as `measured` does.
    """
    if metrics is not None and SPEED in metrics:
        raise UsageError(f"the metric {SPEED} is that of a model: files were drawn somewhere else")
    samples = read_samples(path)
    if n is not None and n > len(samples.rows):
        raise UsageError(f"{path} holds {len(samples.rows)} sounds, fewer than -n {n}")
    if n is not None:
        labels = None if samples.labels is None else samples.labels[:n]
        samples = dataclasses.replace(samples, rows=samples.rows[:n], labels=labels)
    train, real = _data_like(DataConfig(source=data), samples.rows.shape[1], samples.rate, bar)
    return _evaluated(path, samples, train, real, metrics, {}, bar)


def _data_like(config: DataConfig, length: int, rate: int | None, bar: Bar) -> tuple[SoundSet, SoundSet]:
    """Both splits in rows of `length` samples at `rate` Hz: as they are if they fit, else read for it."""
    train, real = (_sounds(config, split, bar) for split in ("train", "test"))
    rate = rate or train.rate
    if (train.shape[0], train.rate) == (length, rate):
        return train, real
    fitting = config.model_copy(update={"rate": rate, "seconds": length / rate})
    train, real = (_sounds(fitting, split, bar) for split in ("train", "test"))
    if (train.shape[0], train.rate) != (length, rate):
        raise UsageError(
            f"the samples have {length:,} values at {rate:,} Hz, and rows of {config.source} are read in whole "
            f"multiples of .32 s: {train.shape[0]:,} values. Cut the samples, or fill them up with silence"
        )
    return train, real


def _sounds(config: DataConfig, split: str, bar: Bar) -> SoundSet:
    with bar(f"reading {config.source} ({split})", 0) as tick:
        data = make_data(config, split, tick)
    if not isinstance(data, SoundSet):
        raise UsageError(f"--data {config.source} is not a set of sounds")
    return data


def _evaluated(
    name: str,
    samples: SoundSamples,
    train: SoundSet,
    real: SoundSet,
    metrics: Sequence[str] | None,
    facts: dict[str, Any],
    bar: Bar,
) -> SoundEvaluation:
    requested = samples.labels if samples.classes == train.classes else None
    of_sounds = None if metrics is None else [one for one in metrics if one != SPEED]
    rows = measured(samples.rows, real, train, real.rate, requested=requested, metrics=of_sounds, bar=bar)
    against = {
        "data": train.name,
        "split": "test",
        "sounds": len(real),
        "fingerprint": real.fingerprint,
        "train_fingerprint": train.fingerprint,
        "shape": real.shape,
        "rate": real.rate,
        "spectrograms": FACTS,
    }
    return SoundEvaluation(
        name, rows, samples.rows, requested, real, train, {**against, **facts, **conditions(*PACKAGES)}
    )
