"""Edits of sounds: which samples and cells may change, that the others do not, that no border is heard, refusals."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from conftest import TINY, Command, ignore
from test_sound import HOP, LENGTH, RATE, voices

from undiffuse.data.recordings import Recordings, read_sounds
from undiffuse.domains import sounds as domains
from undiffuse.domains.log_mel import LogMel
from undiffuse.domains.mdct import MDCT, band_scales
from undiffuse.domains.sounds import Waves
from undiffuse.editing.rows import edit
from undiffuse.editing.sounds import denoise, missing, missing_gap, piece_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.generate import Recipe
from undiffuse.model import load
from undiffuse.sound.companding import expand
from undiffuse.sound.griffin_lim import griffin_lim
from undiffuse.sound.joining import joined
from undiffuse.sound.mel import decibels, filters, noise_level, share_of
from undiffuse.sound.stft import stft
from undiffuse.training import train

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
SHORT, SLOW = 5120, 8000  # of the tiny models: .64 s at 8 kHz
DOMAINS: tuple[Any, ...] = (
    Waves((LENGTH,), RATE),
    LogMel((LENGTH,), RATE),
    MDCT((LENGTH,), RATE, band_scales(voices())),
)
each = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: type(domain).__name__)
GAPS = [range(3000, 4000), range(1), range(3520, 3521), range(6400, 6720), range(9000, LENGTH), range(LENGTH)]
GAPS += [range(k, k + 1) for k in (95, 96, 159, 160, 639, 640, 641)]  # the first and last samples of windows


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files: 32 of voices, in two classes, to train on; and to edit."""
    root = tmp_path_factory.mktemp("sounds")
    for number, row in enumerate(voices(32, SHORT)):
        (root / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        scipy.io.wavfile.write(root / "data" / "ab"[number % 2] / f"{number}.wav", SLOW, row)
    scipy.io.wavfile.write(root / "a.wav", SLOW, speech(SHORT))
    scipy.io.wavfile.write(root / "b.wav", SLOW, speech(SHORT, seed=1) // 3)
    return root


@pytest.fixture(scope="session")
def runs(folder: Path) -> dict[str, Path]:
    """A model of each kind, of two steps; read only."""
    for kind in ("log-mel", "mdct", "waves"):
        settings = {**TINY, "training.steps": 2, "data.source": str(folder / "data"), "data.sound": kind}
        train({**settings, "data.rate": SLOW, "data.seconds": SHORT / SLOW}, folder / kind, report=ignore)
    return {kind: folder / kind for kind in ("log-mel", "mdct", "waves")}


def speech(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """int16 (L,): a tone with harmonics that glides, and hiss, active from end to end."""
    time, random = np.arange(length) / RATE, np.random.default_rng(seed)
    phase = 2 * np.pi * (140 + 20 * seed) * (time + 0.2 * time**2)
    sound = sum(np.sin(k * phase) / k for k in range(1, 15)) + 0.05 * random.standard_normal(length)
    return np.round(3000 * sound).astype(np.int16)


@each
@pytest.mark.parametrize("gap", GAPS, ids=str)
def test_a_gap_reaches_exactly_the_cells_that_depend_on_it(domain: Any, gap: range) -> None:
    """By experiment: cells that change when noise is put into the gap."""
    random, x = np.random.default_rng(0), np.random.default_rng(1).uniform(-8000, 8000, (1, LENGTH))
    changed = np.zeros(domain.shape[1:], bool)
    for _ in range(3):
        other = x.copy()
        other[0, gap.start : gap.stop] = random.uniform(-32000, 32000, len(gap))
        changed |= (domain.encode(other) != domain.encode(x))[0, 0].numpy()
    if not isinstance(domain, Waves):  # a single sample at a window's end may be less than rounding in some bands
        changed = np.tile(changed.any(0), (domain.shape[1], 1))
    np.testing.assert_array_equal(domain.reached(gap), changed)


def test_bands_that_are_kept_lie_below_the_frequency() -> None:
    """A sine 260 Hz above it is hardly seen in them: the MDCT's window has side lobes, and mel's falls off faster."""
    time = np.arange(LENGTH) / RATE
    for hertz in (500, 1900, 5000):
        rows = np.round(8000 * np.sin(2 * np.pi * (hertz + 260) * time)).astype(np.int16)[None]
        mel, mdct = DOMAINS[1], DOMAINS[2]
        seen = decibels(mel.encode(rows)[0, 0])
        kept = ~mel.above(hertz)
        assert kept.any() and seen.max() > -15
        assert seen[:, 2:-2][kept[:, 2:-2]].max() < seen.max() - 60
        power = mdct.encode(rows)[0, 0].double() ** 4 * torch.tensor(mdct.scale)[:, None] ** 2
        power = power[:, 1:-1]  # at its ends the window is cut off
        assert 10 * (power[~mdct.above(hertz)[:, 1:-1]].max() / power.max()).log10() < -25
        edges = (
            filters(RATE)[~mel.above(hertz)[:, 0]] @ torch.fft.rfftfreq(3 * HOP, 1 / RATE).double().gt(hertz).double()
        )
        assert (edges == 0).all()


@each
@pytest.mark.parametrize("gap", [range(3000, 4700), range(2003, 2010), range(7000, LENGTH), range(2000)], ids=str)
def test_a_gap_keeps_the_other_samples(domain: Any, gap: range) -> None:
    rows, found = filled(domain, gap)
    outside = np.setdiff1d(np.arange(LENGTH), gap)
    np.testing.assert_array_equal(found[outside], rows[outside])
    assert (found != rows).any()


@pytest.mark.parametrize("domain", DOMAINS[1:], ids=lambda domain: type(domain).__name__)
def test_gaps_do_not_click(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jumps at the borders of twelve gaps are those of the sound everywhere; switched over hard, they would be more
    than twice as large."""
    sizes = []
    for fade in (1 << 62, domains.FADE):  # the first is a fade of no sample
        monkeypatch.setattr(domains, "FADE", fade)
        jumps = []
        for start in range(1000, 8200, 600):
            rows, found = filled(domain, range(start, start + 900))
            jumps += [int(found[k]) - int(found[k - 1]) for k in (start, start + 900)]
        sizes.append(np.sqrt(np.mean(np.square(jumps))))
    usual = np.sqrt(np.mean(np.diff(rows.astype(float)) ** 2))
    assert sizes[1] < 1.3 * usual and sizes[0] > 2 * usual


def filled(domain: Any, gap: range) -> tuple[np.ndarray, np.ndarray]:
    """A sound, int16 (L,), and the same with x_0 of another one, of half the level, in the gap."""
    rows, other = speech()[None], speech(seed=3)[None] // 2
    mask = domain.reached(gap)
    x0 = torch.where(torch.from_numpy(mask), domain.encode(other), domain.encode(rows))
    return rows[0], domain.rejoin(x0, rows, mask[None], gap)[0]


def test_an_error_is_continued_by_its_mirror_image() -> None:
    """A constant error e becomes e cos^2: next to the border all of it, in the middle of the fade half."""
    known, gap, fade = torch.zeros(1, 100, dtype=torch.float64), range(40, 90), 10
    found = joined(torch.ones_like(known), known, gap, fade)[0]
    ramp = np.cos(np.pi / 2 * (np.arange(10) + 0.5) / 10) ** 2
    np.testing.assert_allclose(found[40:50], 1 - ramp, atol=1e-15)
    np.testing.assert_allclose(found[80:90], 1 - ramp[::-1], atol=1e-15)
    assert (found[:40] == 0).all() and (found[50:80] == 1).all() and (found[90:] == 0).all()
    line = torch.arange(100, dtype=torch.float64)[None]  # an error that grows is mirrored: no jump, whatever its slope
    assert joined(0 * line, line, gap, fade)[0, 40] == pytest.approx(39 * ramp[0])
    assert torch.equal(joined(line, line, gap, fade), line)
    everything = joined(line, 0 * line, range(100), fade)
    assert torch.equal(everything, line)


def test_griffin_lim_begins_with_the_phases_it_is_given() -> None:
    """With the magnitudes and phases of a waveform it is that waveform, after any number of steps."""
    x = torch.from_numpy(speech() / 32768)[None]
    spectra = stft(x, HOP)
    for steps in (0, 8):
        found, error = griffin_lim(spectra.abs(), HOP, steps, initial=spectra)
        assert (found - x).abs().max() < 1e-12 and error.max() < 1e-12


def test_griffin_lim_continues_what_is_known() -> None:
    """The magnitudes of a tone in a gap of 100 ms: with the samples around it, the tone comes back with its phase."""
    time = torch.arange(LENGTH, dtype=torch.float64) / RATE
    x = (0.3 * torch.sin(2 * math.pi * 440 * time))[None]
    gap = range(4000, 5600)
    spectra, hidden = stft(x, HOP), torch.from_numpy(DOMAINS[1].reached(gap)[0])
    errors = []
    for impose in (None, partial(joined, known=x, gap=gap, fade=80)):
        found, _ = griffin_lim(spectra.abs(), HOP, 32, initial=spectra * ~hidden, impose=impose)
        errors.append(((found - x)[:, gap.start : gap.stop].square().mean().sqrt() / x.square().mean().sqrt()).item())
    assert errors[1] < 0.2 and errors[1] < errors[0]


def test_cells_that_are_kept_come_back_as_they_sounded() -> None:
    """With nothing repainted, log-mel keeps magnitudes and phases: it is the waveform."""
    domain, rows = DOMAINS[1], speech()[None]
    found = domain.rejoin(domain.encode(rows), rows, np.zeros((1, *domain.shape[1:]), bool))
    assert np.abs(found - rows).max() <= 1
    assert torch.equal(share_of(torch.ones(1, 64, 2, dtype=torch.bool), RATE), torch.ones(1, 3 * HOP // 2 + 1, 2))
    half = torch.zeros(1, 64, 1, dtype=torch.bool)
    half[:, :32] = True
    assert share_of(half, RATE)[0, [200, 400], 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("piece", [None, range(6000, LENGTH)], ids=["quietest", "named"])
def test_noise_is_found_and_speech_is_kept(piece: range | None) -> None:
    """White noise over a tone of 300 ms: its cells are missing, but for a few; the tone's, 25 dB above it, are not."""
    random, clean = np.random.default_rng(0), np.zeros(LENGTH)
    clean[:4800] = 6000 * np.sin(2 * np.pi * 1000 * np.arange(4800) / RATE)
    rows = np.round(clean + 100 * random.standard_normal(LENGTH)).astype(np.int16)[None]
    domain = DOMAINS[1]
    mask = domain.noisy(rows, np.array([LENGTH]), piece)[0]
    assert mask[:, 18:].mean() > 0.98
    tone = (decibels(domain.encode(clean[None])) > -50)[0, 0].numpy()
    assert tone.sum() > 20 and not mask[tone].any()
    level = noise_level(domain.encode(np.round(100 * random.standard_normal((1, LENGTH))))[0, 0], 1.0)
    # E |stft|^2 of white noise of variance v is v times the window's energy, 3 N / 8, over (N / 4)^2, N = 3 HOP
    expected = 10 * (filters(RATE).sum(1) * (100 / 32768) ** 2 * 6 / (3 * HOP)).log10()
    assert (level[:, 0] - expected).abs().max() < 3.5  # of 32 frames and one bin, 3 deviations are 2.3 dB; 64 bands
    silent = domain.noisy(rows, np.array([8000]), None)[0]
    assert not silent[:, 25:].any()


def written(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_files_keep_their_bytes_and_edits_their_level(tmp_path: Path) -> None:
    """All 16 bit values, ends included, and every one again after a change of another sample."""
    stored = np.random.default_rng(0).integers(-32768, 32768, LENGTH).astype(np.int16)
    stored[:2] = -32768, 32767
    quiet = (stored // 300).astype(np.int16)
    clips = read_sounds([written(tmp_path / "a.wav", stored), written(tmp_path / "b.flac", quiet)], DOMAINS[0], False)
    np.testing.assert_array_equal(clips.stored, [stored, quiet])
    assert clips.lengths.tolist() == [LENGTH, LENGTH] and clips.gains[0] < 0.2 and clips.gains[1] > 10
    levels = np.sqrt((clips.rows.astype(float) ** 2).mean(1)) / 32768
    np.testing.assert_allclose(levels, 10 ** (-23 / 20), rtol=2e-3)
    np.testing.assert_array_equal(clips.at_their_level(clips.rows), clips.stored)
    edited = clips.rows.copy()
    edited[:, 100:200] = 1000
    found = clips.at_their_level(edited)
    np.testing.assert_array_equal(np.delete(found, range(100, 200), 1), np.delete(clips.stored, range(100, 200), 1))
    np.testing.assert_allclose(found[:, 150], 1000 / clips.gains, atol=0.5)
    twice = clips.repeated(2)
    np.testing.assert_array_equal(twice.stored, clips.stored[[0, 0, 1, 1]])
    first, last = (Recordings(*(values[[k]] for values in dataclasses.astuple(clips))) for k in (0, 1))
    frames = first.between(last, np.full((3, LENGTH), 500, np.int16))
    np.testing.assert_array_equal(frames[[0, 2]], clips.stored)
    np.testing.assert_array_equal(frames[1], np.round(500 / np.sqrt(clips.gains.prod())))


def test_other_files_are_brought_to_the_models_rate_and_length(
    tmp_path: Path, own_cache: None, caplog: pytest.LogCaptureFixture
) -> None:
    sine = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    clips = read_sounds([written(tmp_path / "slow.wav", np.stack([sine, sine], 1), 8000)], DOMAINS[0], False)
    assert clips.lengths.tolist() == [8000] and (clips.stored[0, 8000:] == 0).all()
    expected = 0.3 * 32768 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE)
    assert np.abs(clips.stored[0, 500:7500] - expected[500:7500]).max() < 3
    assert "nothing above 4,000 Hz" in caplog.text and "slow.wav" in caplog.text
    padded = np.concatenate([np.zeros(6400), sine, np.zeros(9000)])
    trimmed = read_sounds([written(tmp_path / "long.wav", padded)], DOMAINS[0], True)
    assert trimmed.lengths[0] == 4000 + 2 * HOP - 4000 % HOP + HOP * (4000 % HOP > 0)
    with pytest.raises(UsageError, match=r"long.wav has 1.21 s, and this model 0.64 s: cut"):
        read_sounds([tmp_path / "long.wav"], DOMAINS[0], False)
    longer = written(tmp_path / "longer.wav", np.tile(sine, 3))
    clips = read_sounds([longer], DOMAINS[0], False)
    np.testing.assert_array_equal(clips.stored[0], soundfile.read(longer, dtype="int16")[0][:LENGTH])
    assert "longer.wav has 0.75 s: the end is left out" in caplog.text
    with pytest.raises(UsageError, match=r"none.wav: there is no such file"):
        read_sounds([tmp_path / "none.wav"], DOMAINS[0], False)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UndiffuseError, match=r"text.wav: cannot read it as audio"):
        read_sounds([tmp_path / "text.wav"], DOMAINS[0], False)
    with pytest.raises(UndiffuseError, match=r"silent.wav: it is silent"):
        read_sounds([written(tmp_path / "silent.wav", 0 * sine)], DOMAINS[0], False)


@pytest.mark.parametrize("kind", ["log-mel", "mdct", "waves"])
def test_gaps_of_a_model(runs: dict[str, Path], kind: str) -> None:
    """Bytes outside stay at strength 1, with resampling and in any batch; strength 0 is the identity."""
    model = load(runs[kind], "cpu")
    domain: Any = model.domain
    rows, recipe, condition = np.stack([speech(SHORT), speech(SHORT, 1)]), Recipe(steps=2), model.unconditional(2)
    gap = range(1000, 2300)
    part = missing_gap(domain, gap)
    change = partial(edit, model, rows, recipe, condition, repaint=part.repaint, join=part.join)
    found = change(strength=1.0, resampling=2)
    outside = np.setdiff1d(np.arange(SHORT), gap)
    np.testing.assert_array_equal(found[:, outside], rows[:, outside])
    assert (found[:, gap.start : gap.stop] != rows[:, gap.start : gap.stop]).mean() > 0.9
    np.testing.assert_array_equal(change(strength=0.0), rows)
    alone = edit(model, rows[:1], recipe, model.unconditional(1), strength=1, repaint=part.repaint, join=part.join)
    together = change(strength=1.0)
    assert np.abs(alone[0].astype(int) - together[0]).max() <= (0 if kind == "waves" else 40)  # sums in another order


@pytest.mark.parametrize("kind", ["log-mel", "mdct"])
def test_bandwidth_keeps_what_is_below(runs: dict[str, Path], kind: str) -> None:
    model = load(runs[kind], "cpu")
    domain: Any = model.domain
    slow = scipy.signal.sosfilt(scipy.signal.butter(8, 1500, fs=SLOW, output="sos"), speech(SHORT))
    rows = np.round(slow).astype(np.int16)[None]
    part = missing("bandwidth:1800", domain, None)
    found = edit(
        *(model, rows, Recipe(steps=2), model.unconditional(1)), strength=1, repaint=part.repaint, join=part.join
    )
    below, above = ~domain.above(1800), domain.above(2500)
    before, after = domain.encode(rows)[0, 0], domain.encode(found)[0, 0]
    if kind == "mdct":  # rounding to 16 bits moves a coefficient by 1/sqrt(12) steps; 6 deviations
        before, after = (32768 * expand(x0.double(), torch.tensor(domain.scale)) for x0 in (before, after))
        assert (after - before)[torch.from_numpy(below)].abs().max() < 2
    else:
        loud = torch.from_numpy(below) & (before > -0.2)
        assert (40 * (after - before))[loud].square().mean().sqrt() < 1  # dB
    assert (after - before)[torch.from_numpy(above)].abs().mean() > 0.1


def test_denoised_is_no_louder_than_what_was_heard(runs: dict[str, Path]) -> None:
    model = load(runs["log-mel"], "cpu")
    domain: Any = model.domain
    rows = np.round(speech(SHORT) * (np.arange(SHORT) < 2500) + 60 * np.random.default_rng(0).standard_normal(SHORT))
    stored = rows.astype(np.int16)[None]
    clips = Recordings(stored, stored, np.ones(1), np.array([SHORT]))
    part = missing("denoise", domain, clips)
    assert 0.3 < part.repaint.mean() < 0.9
    seen: list[Any] = []
    x0 = domain.encode(stored)
    wild = x0 + torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    rejoin = type(domain).rejoin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(domain), "rejoin", lambda *args: seen.append(args[1]) or rejoin(*args))
        part.join(wild, stored, part.repaint)
    assert (seen[0] <= x0).all() and torch.equal(seen[0], torch.minimum(wild, x0))
    found = edit(
        model, stored, Recipe(steps=2), model.unconditional(1), strength=1, repaint=part.repaint, join=part.join
    )
    assert found.shape == stored.shape and (found != stored).any()


def test_denoising_of_samples_agrees_with_the_observation(runs: dict[str, Path]) -> None:
    """y = x_0 + n of a model of samples: where the noise is nearly none, x_0 is y."""
    model = load(runs["waves"], "cpu")
    stored = speech(SHORT)[None]
    clips = Recordings(stored, stored, np.ones(1), np.array([SHORT]))
    restored = denoise(model, clips, noise=1e-3, method="dps", recipe=Recipe(steps=3), n=2, condition=None)
    assert restored.rows.shape == (2, SHORT) and restored.observed == SHORT and restored.noise == 1e-3
    misfit = restored.x0[:, 0].double() - torch.from_numpy(stored / 32768)
    np.testing.assert_allclose(restored.residual, misfit.square().sum(1) / 1e-6, rtol=1e-5)


EDITS: dict[str, tuple[str, list[str]]] = {
    "sdedit": ("log-mel", ["--strength", ".6", "--class", "b"]),
    "invert": ("mdct", ["--invert", "friendly", "--class", "b", "--strength", ".5"]),
    "style": ("waves", ["--style", "b.wav"]),
    "gap": ("log-mel", ["--gap", ".2,.3", "--resampling", "2"]),
    "continued": ("mdct", ["--gap", ".3,"]),
    "bandwidth": ("mdct", ["--restore", "bandwidth:2000", "--resampling", "2"]),
    "denoise": ("log-mel", ["--restore", "denoise"]),
    "denoise by a piece": ("log-mel", ["--restore", "denoise:.4,.6"]),
    "denoise samples": ("waves", ["--restore", "denoise", "--noise", ".01", "--method", "dps"]),
}


@pytest.mark.parametrize("case", EDITS)
def test_each_edit_writes_sounds(
    command: Command, runs: dict[str, Path], folder: Path, tmp_path: Path, case: str
) -> None:
    kind, options = EDITS[case]
    here = [folder / one if one.endswith(".wav") else one for one in options]
    code, out, err = command("edit", runs[kind], folder / "a.wav", *here, "--steps", 2, "-n", 2, "--out", "x")
    assert (code, err) == (0, ""), err
    assert "2 samples of 0.64 s: x" in out
    before = scipy.io.wavfile.read(folder / "a.wav")[1]
    for number in range(2):
        rate, after = scipy.io.wavfile.read(tmp_path / "x" / f"{number:06d}.wav")
        assert rate == SLOW and after.shape == (SHORT,)
        assert case in ("invert", "style") or (after != before).any()  # which an untrained network does not change
        if "--gap" in options:
            end = {"gap": 2400, "continued": SHORT}[case]
            start = {"gap": 1600, "continued": 2400}[case]
            np.testing.assert_array_equal(np.delete(after, range(start, end)), np.delete(before, range(start, end)))


def test_strength_zero_and_the_name_of_the_file(command: Command, runs: dict[str, Path], folder: Path) -> None:
    for kind in runs:
        code, out, err = command("edit", runs[kind], folder / "a.wav", "--strength", "0", "--gap", ".1,.2", "--force")
        assert (code, err) == (0, "") and ": a-edited" in out
        np.testing.assert_array_equal(
            scipy.io.wavfile.read(folder / "a.wav")[1], scipy.io.wavfile.read(out.split(": ")[1].strip())[1]
        )


def test_an_interpolation_has_the_files_as_its_ends(command: Command, runs: dict[str, Path], folder: Path) -> None:
    options = ["--to", folder / "b.wav", "--frames", 3, "--steps", 2, "--out", "x.npz"]
    code, out, err = command("edit", runs["waves"], folder / "a.wav", *options)
    assert (code, err) == (0, "") and "3 samples" in out
    with np.load("x.npz") as file:
        for number, name in ((0, "a"), (2, "b")):
            np.testing.assert_array_equal(file["sounds"][number], scipy.io.wavfile.read(folder / f"{name}.wav")[1])


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "mask": ("mdct", ["--mask", "a.png"], "--mask is not for sounds: --gap START,END"),
    "strokes": ("mdct", ["--strokes", "a.png"], "--strokes is not for sounds"),
    "outpaint": ("mdct", ["--outpaint", ".5"], "--outpaint is not for sounds"),
    "infill": ("mdct", ["--infill", "a_"], "--infill is not for sounds"),
    "both": ("mdct", ["--gap", ".1,.2", "--restore", "denoise"], "choose one"),
    "no comma": ("mdct", ["--gap", ".1"], "write START,END in seconds, from 0 to 0.64"),
    "backwards": ("mdct", ["--gap", ".3,.2"], "write START,END in seconds"),
    "beyond": ("mdct", ["--gap", ".3,.7"], "write START,END in seconds"),
    "words": ("mdct", ["--gap", "a,b"], "write START,END in seconds"),
    "nan": ("mdct", ["--gap", "nan,.2"], "write START,END in seconds"),
    "empty": ("mdct", ["--gap", ".1,.10001"], "write START,END in seconds"),
    "restore": ("mdct", ["--restore", "superres:2"], "no restoration of sounds is called 'superres'"),
    "frequency": ("mdct", ["--restore", "bandwidth:x"], "takes a frequency in Hz"),
    "too high": ("mdct", ["--restore", "bandwidth:4000"], "between 0 and 4000 Hz"),
    "too low": ("mdct", ["--restore", "bandwidth:10"], "leaves no band"),
    "samples": ("waves", ["--restore", "bandwidth:2000"], "take one of log-mel spectrograms or of the MDCT"),
    "mdct": ("mdct", ["--restore", "denoise"], "this one is of the MDCT"),
    "noise": (
        "mdct",
        ["--restore", "bandwidth:2000", "--noise", ".1"],
        "--noise is for --restore denoise and a model of",
    ),
    "no noise": ("waves", ["--restore", "denoise"], "say how loud it is"),
    "method": ("waves", ["--restore", "denoise", "--noise", ".1", "--method", "ddrm"], "take mmps"),
    "guidance": ("waves", ["--restore", "denoise", "--noise", ".1", "--strength", ".1"], "--strength has no effect on"),
    "piece": ("log-mel", ["--restore", "denoise:.1,.12"], "name 80 ms at least"),
    "to and gap": ("mdct", ["--to", "b.wav", "--gap", ".1,.2"], "--gap has no effect on --to"),
    "resampling": ("mdct", ["--resampling", "2"], "--resampling joins old and new"),
    "suffix": ("mdct", ["--out", "a.mp3"], "write .wav"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(command: Command, runs: dict[str, Path], folder: Path, tmp_path: Path, case: str) -> None:
    kind, options, message = REFUSED[case]
    here = [folder / one if one == "b.wav" else one for one in options]
    code, _, err = command("edit", runs[kind], folder / "a.wav", *here, "--steps", 2)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_gap_is_for_sounds(command: Command, whole: Path) -> None:
    code, _, err = command("edit", whole, "a.png", "--gap", ".1,.2")
    assert code == 2 and "--gap is for models of sounds" in err


def test_pieces_of_time() -> None:
    found = [piece_of("--gap", text, DOMAINS[0]) for text in (".1,.2", "0.3,", ",.2", ",", " .25 , 0.5 ")]
    assert found == [range(1600, 3200), range(4800, LENGTH), range(3200), range(LENGTH), range(4000, 8000)]
