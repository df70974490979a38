"""What a model of spoken words does beside drawing them: gaps, ends, high frequencies, noise, other words, sentences.

    OMP_NUM_THREADS=1 python benchmarks/speech/tasks.py MODEL OUT.json [--n 100] [--figure FILE.png] [--page FILE.html]

MODEL is of log-mel spectrograms. n clips of its test split are damaged and mended, each once, in 20 evaluations, by a
model that is told their class and by the same one that is not; beside each result stand what was done to the clip and
something simple. `classes`: share in which the classifier of the data sees the clip's class (of SDEdit: the class that
was asked for); `words`: the same by PocketSphinx; `dB`: log-spectral distance to the clip that was damaged (of SDEdit:
to its source), in the gap alone where there is one; `quality`: DNSMOS, overall. Of a model with captions, samples of
the test split's captions are classified too.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import istft, stft
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from vocoder import distances

from undiffuse import load
from undiffuse.build import make_data
from undiffuse.conditions import Condition, Labels
from undiffuse.data.recordings import Recordings
from undiffuse.data.sounds import SoundSet
from undiffuse.devices import conditions
from undiffuse.domains.log_mel import LogMel
from undiffuse.editing import sounds
from undiffuse.editing.rows import edit
from undiffuse.errors import UsageError
from undiffuse.evaluation.page import Page, Room, clips, write_page
from undiffuse.evaluation.sounds import Subject, measured
from undiffuse.files import write_json
from undiffuse.generate import Recipe, generate
from undiffuse.metrics.sounds.quality import dnsmos
from undiffuse.metrics.sounds.recogniser import recognise
from undiffuse.model import Model
from undiffuse.plots import strips

GAP, END = (0.12, 0.22), 0.15
HERTZ, DECIBELS = 2000.0, 10.0
STRENGTHS = (0.5, 0.7, 0.9)
RECIPE = Recipe(steps=20)
SHOWN = 8


@dataclass
class Tasks:
    """A model, n test clips of it, and what was made of them.

    made     a task -> a name -> rows int16 (N, L)
    asked    a task -> the classes that count as right, where they are not the clips' own
    where    a task -> the samples that are compared, where they are not all
    """

    model: Model
    domain: LogMel
    train: SoundSet
    test: SoundSet
    chosen: np.ndarray
    made: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    asked: dict[str, np.ndarray] = field(default_factory=dict)
    where: dict[str, slice] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """The clips, int16 (N, L)."""
        return np.array(self.test.images[self.chosen])

    @property
    def lengths(self) -> np.ndarray:
        """How many samples of each are sound, (N,)."""
        return self.test.lengths[self.chosen]

    @property
    def labels(self) -> np.ndarray:
        """Their classes, (N,)."""
        assert self.test.labels is not None
        return self.test.labels[self.chosen].astype(np.int64)

    def told(self) -> dict[str, Condition]:
        """The two conditions of the clips."""
        none = self.model.unconditional(len(self.chosen))
        assert none is not None
        return {"told the class": Labels(torch.from_numpy(self.labels), len(self.test.classes)), "not told": none}

    def repaired(self, damaged: np.ndarray, missing: sounds.Missing) -> dict[str, np.ndarray]:
        """What is missing, made anew under both conditions."""
        settings = {"strength": 1.0, "repaint": missing.repaint, "join": missing.join}
        return {
            f"undiffuse, {name}": edit(self.model, damaged, RECIPE, condition, **settings)  # type: ignore[arg-type]
            for name, condition in self.told().items()
        }

    def gap(self) -> None:
        """A tenth of a second in the middle; the simple way goes evenly from the levels before it to those after it."""
        gap = sounds.piece_of("--gap", "{},{}".format(*GAP), self.domain)
        silent = self.rows
        silent[:, gap.start : gap.stop] = 0
        missing = sounds.missing_gap(self.domain, gap)
        between = self.interpolated(missing.repaint)
        repaint = np.broadcast_to(missing.repaint, (len(silent), *missing.repaint.shape))
        plain = {"silence": silent, "interpolated": missing.join(between, silent, repaint)}
        self.made["a gap of .1 s"] = plain | self.repaired(silent, missing)
        self.where["a gap of .1 s"] = slice(gap.start, gap.stop)

    def interpolated(self, repaint: np.ndarray) -> Tensor:
        """x_0 of the clips with their repainted frames on a line between those around them, (N, 1, 64, K)."""
        x0, frames = self.domain.encode(self.rows), np.flatnonzero(repaint[0])
        first, last = x0[..., frames[0] - 1, None], x0[..., frames[-1] + 1, None]
        x0[..., frames] = first + (last - first) * torch.linspace(0, 1, len(frames) + 2)[1:-1]
        return x0

    def end(self) -> None:
        """Everything after the first .15 s."""
        gap = sounds.piece_of("--gap", f"{END},", self.domain)
        silent = self.rows
        silent[:, gap.start :] = 0
        missing = sounds.missing_gap(self.domain, gap)
        self.made["continued from .15 s"] = {"silence": silent} | self.repaired(silent, missing)
        self.where["continued from .15 s"] = slice(gap.start, None)

    def bandwidth(self) -> None:
        """Nothing above 2 kHz."""
        spectrum = np.fft.rfft(self.rows)
        spectrum[:, np.fft.rfftfreq(self.rows.shape[1], 1 / self.domain.rate) >= HERTZ] = 0
        dull = saturated(np.fft.irfft(spectrum, self.rows.shape[1]))
        missing = sounds.missing_band(self.domain, HERTZ)
        self.made["nothing above 2 kHz"] = {"as it is": dull} | self.repaired(dull, missing)

    def noise(self) -> None:
        """White noise 10 dB below the speech; the simple way subtracts its known power (Boll 1979)."""
        power = np.array([np.square(row[:length], dtype=float).mean() for row, length in self.pairs()])
        sigma = np.sqrt(power * 10 ** (-DECIBELS / 10))[:, None]
        random = np.random.default_rng(0)
        noisy = saturated(self.rows + sigma * random.standard_normal(self.rows.shape))
        frame = 3 * self.domain.rate // 50
        _, _, spectra = stft(noisy, self.domain.rate, "hann", frame, frame - frame // 3)
        window = np.hanning(frame + 1)[:-1]
        expected = sigma[..., None] ** 2 * np.square(window).sum() / window.sum() ** 2
        gains = np.sqrt(np.maximum(1 - expected / np.maximum(np.abs(spectra) ** 2, 1e-12), 0.01))
        _, plain = istft(spectra * gains, self.domain.rate, "hann", frame, frame - frame // 3)
        whole = np.full(len(noisy), noisy.shape[1])
        heard = Recordings(noisy, noisy, np.ones(len(noisy)), whole)
        missing = sounds.missing("denoise", self.domain, heard)
        found = {"as it is": noisy, "spectral subtraction": saturated(plain[:, : noisy.shape[1]])}
        self.made["noise at -10 dB"] = found | self.repaired(noisy, missing)

    def pairs(self) -> Iterator[tuple[np.ndarray, int]]:
        """Each clip with its length."""
        return zip(self.rows, self.lengths.tolist(), strict=True)

    def other_words(self) -> None:
        """SDEdit into the class after the clip's own, and samples of that class that know nothing of the clip."""
        name, target = "into the next class", (self.labels + 1) % len(self.test.classes)
        condition = Labels(torch.from_numpy(target), len(self.test.classes))
        found = {"the source": self.rows}
        for strength in STRENGTHS:
            found[f"undiffuse, strength {strength:g}"] = edit(
                self.model, self.rows, RECIPE, condition, strength=strength
            )
        found["undiffuse, a sample"] = drawn(self.model, condition)
        self.made[name], self.asked[name] = found, target

    def figures(self, name: str, rows: np.ndarray, subject: Subject) -> dict[str, Any]:
        """What is measured of rows made in a task."""
        truth, part = self.asked.get(name, self.labels), self.where.get(name, slice(None))
        names = [self.test.classes[label] for label in truth]
        real, lengths = self.rows[:, part], self.lengths
        if name in self.where:
            lengths = np.full(len(real), real.shape[1])
        distance = distances(rows[:, part], real, lengths, self.domain.rate)
        logits = subject.features(rows, subject.classifier).logits
        assert logits is not None
        heard = recognise(rows, self.domain.rate, list(self.test.classes))
        return {
            "classes": float(np.mean(logits.argmax(1) == truth)),
            "words": float(np.mean([one == asked for one, asked in zip(heard, names, strict=True)])),
            "dB": float(distance.mean()),
            "standard error of dB": float(distance.std(ddof=1) / len(rows) ** 0.5),
            "quality": dnsmos(rows, self.domain.rate)["ovrl"].value,
        }


def saturated(x: np.ndarray) -> np.ndarray:
    """Steps of 16 bits."""
    return np.clip(np.rint(x), -(2**15), 2**15 - 1).astype(np.int16)


def drawn(model: Model, condition: Condition) -> np.ndarray:
    """A sample of each condition."""
    return np.concatenate(list(generate(model, RECIPE, range(len(condition)), condition)))


def of_measures(tasks: Tasks, rows: np.ndarray, metrics: list[str], labels: np.ndarray | None) -> dict[str, Any]:
    """Value and real value of the measures of `undiffuse evaluate`."""
    found = measured(rows, tasks.test, tasks.train, tasks.domain.rate, requested=labels, metrics=metrics)
    return {row.measure: {"value": row.value.value, "real": row.real and row.real.value} for row in found}


def sentences(tasks: Tasks) -> dict[str, Any]:
    """The share of samples of the clips' captions in which the classifier sees the clip's class."""
    captions = [tasks.test.captions[row][0] for row in tasks.chosen]
    first, *others = (tasks.model.of_prompt(caption, 1) for caption in captions)
    return of_measures(tasks, drawn(tasks.model, first.joined(*others)), ["classes"], tasks.labels)


def show(tasks: Tasks, figure: Path | None, page: Path | None) -> None:
    """One clip of each class, as spectrograms and as players."""
    chosen = np.unique(tasks.labels, return_index=True)[1][:SHOWN]
    made = [(f"{task}: {name}", rows) for task, found in tasks.made.items() for name, rows in found.items()]
    shown = [(name, rows[chosen]) for name, rows in [("the clip", tasks.rows), *made]]
    titles = [tasks.test.classes[label] for label in tasks.labels[chosen]]
    if figure:
        pictures = [(name, tasks.domain.pictures(rows)) for name, rows in shown]
        strips(pictures, titles, "Spoken words, damaged and mended", figure)
    if page:
        rooms = [Room(name, clips(tasks.domain, rows, titles), len(rows)) for name, rows in shown]
        facts = {"model": tasks.model.name, "fingerprint": tasks.model.fingerprint}
        write_page(Page("Spoken words", "Spoken words, damaged and mended", [], [], [], [], [], facts, rooms), page)


def main() -> None:
    """Does the tasks, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options.model)
    if model.learnt is None or not isinstance(model.domain, LogMel):
        raise UsageError(f"{options.model} is no model of log-mel spectrograms that names its data")
    train, test = (make_data(model.learnt, split) for split in ("train", "test"))
    assert isinstance(train, SoundSet) and isinstance(test, SoundSet)
    chosen = np.linspace(0, len(test) - 1, min(options.n, len(test))).astype(int)
    tasks = Tasks(model, model.domain, train, test, chosen)
    facts = {"model": Path(model.name).name, "fingerprint": model.fingerprint}  # a path says nothing elsewhere
    found: dict[str, Any] = {**facts, "n": len(chosen), **conditions()}
    if train.captions:
        found["sentences"] = sentences(tasks)
        print("sentences", found["sentences"], flush=True)
    else:
        free = model.unconditional(len(chosen))
        assert free is not None
        found["no class asked for"] = of_measures(tasks, drawn(model, free), ["frechet", "classes"], None)
        subject = Subject(tasks.rows, test, train, model.domain.rate, None)
        ways: tuple[Callable[[Tasks], None], ...] = (
            Tasks.gap,
            Tasks.end,
            Tasks.bandwidth,
            Tasks.noise,
            Tasks.other_words,
        )
        for way in ways:
            way(tasks)
        found["real clips"] = tasks.figures("", tasks.rows, subject)
        for task, made in tasks.made.items():
            found[task] = {name: tasks.figures(task, rows, subject) for name, rows in made.items()}
        for task in ("real clips", *tasks.made):
            print(task, found[task], flush=True)
        show(tasks, options.figure, options.page)
    write_json(options.out, found)


if __name__ == "__main__":
    main()
