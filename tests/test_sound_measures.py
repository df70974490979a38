"""Measures of sounds: closed forms, independent implementations, and what packages on PyPI compute themselves."""

import dataclasses
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.data import ImageSet
from undiffuse.data.stored import fingerprint
from undiffuse.errors import UsageError
from undiffuse.evaluation.sounds import measured
from undiffuse.metrics.scores import am_score, modified_inception_score, share_distance
from undiffuse.metrics.sounds import packages, quality, silero
from undiffuse.metrics.sounds.classifier import jittered, sound_classifier
from undiffuse.metrics.sounds.recogniser import recognise
from undiffuse.metrics.sounds.spectrogram import BLOCK, spectrograms
from undiffuse.sound import MEL_BANDS
from undiffuse.sound.mel import log_mel

RATE = 16000
PARTS = "weight", "bias"
DIGITS = Path("/usr/share/asterisk/sounds/en_US_f_Allison/digits")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def noise(n: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8000, 8000, (n, length), dtype=np.int16)


def tones(n: int, seed: int, classes: int = 3, length: int = 2560) -> tuple[np.ndarray, np.ndarray]:
    """Noisy tones of 400, 800, 1600 ... Hz, one for each class."""
    generator, labels = np.random.default_rng(seed), np.arange(n) % classes
    frequencies = 400 * 2.0 ** labels[:, None] * generator.uniform(0.9, 1.1, (n, 1))
    x = np.sin(2 * np.pi * frequencies * np.arange(length) / RATE) + generator.normal(0, 0.3, (n, length))
    return np.rint(3000 * x).astype(np.int16), labels


def sounds(rows: np.ndarray, labels: np.ndarray, split: str, classes: tuple[str, ...] = WORDS[:3]) -> ImageSet:
    key = fingerprint(rows, labels, classes)
    return ImageSet("tones", split, rows, labels.astype(np.int64), classes, (), "made here", key)


def test_spectrograms_are_those_of_models_in_any_block() -> None:
    """Those of 16-bit rows at full scale 1, whose measures tests/test_sound.py checks, however many rows there are."""
    rows = noise(BLOCK + 3, 640)
    found = spectrograms(rows, RATE)
    assert found.shape == (BLOCK + 3, MEL_BANDS, 2) and found.dtype == np.float32
    expected = log_mel(torch.from_numpy(rows / 32768), RATE).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # of float64; 2e-4 dB
    assert (spectrograms(np.zeros((1, 640), np.int16), RATE) == -1).all()


def test_modified_inception_score() -> None:
    """K classes with a logit of a for one of them, evenly: pairs of unlike ones are a (p_1 - p_2) apart."""
    a, k = 3.0, 5
    logits = a * np.eye(k)[np.arange(50) % k]
    apart = (1 - 1 / k) * a * (np.e**a - 1) / (np.e**a + k - 1)
    assert modified_inception_score(logits).value == pytest.approx(np.exp(apart), rel=1e-12)
    assert modified_inception_score(np.tile(np.arange(5.0), (50, 1))).value == pytest.approx(1, rel=1e-12)
    p = np.random.default_rng(0).dirichlet(np.ones(4), 12)
    pairs = np.mean([np.sum(one * np.log(one / other)) for one in p for other in p])
    assert modified_inception_score(np.log(p) + 7).value == pytest.approx(np.exp(pairs), rel=1e-12)


def test_am_score_and_shares() -> None:
    """Sure, with the classes of training: 0. Undecided: log K. Sure of one of K: log K too, by the first term."""
    even, sure = np.full(5, 0.2), 700 * np.eye(5)
    assert am_score(sure[np.arange(50) % 5], even).value == pytest.approx(0, abs=1e-12)
    assert am_score(np.zeros((50, 5)), even).value == pytest.approx(np.log(5), rel=1e-12)
    assert am_score(sure[np.zeros(50, int)], np.eye(5)[0]).value == pytest.approx(0, abs=1e-12)
    assert am_score(np.log(np.tile([[0.6, 0.4]], (9, 1))), np.array([0.5, 0.5])).value == pytest.approx(
        0.5 * np.log(0.5 / 0.6) + 0.5 * np.log(0.5 / 0.4) - 0.6 * np.log(0.6) - 0.4 * np.log(0.4), rel=1e-12
    )
    assert share_distance(np.arange(50) % 5, even).value == pytest.approx(0, abs=1e-12)
    assert share_distance(np.zeros(50, int), even).value == pytest.approx(0.8, rel=1e-12)


def test_silero_is_the_packages_encoder() -> None:
    """The same 128 numbers as inside its ONNX model, given the weights of the safetensors file, which has others."""
    pytest.importorskip("silero_vad")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(packages.file_of("silero-vad", "data", "silero_vad_16k_op15.onnx"))
    names = {f"model.encoder.{i}.reparam_conv.{part}": f"conv{i + 1}.{part}" for i in range(4) for part in PARTS}
    weights = silero.encoder().state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[names[tensor.name]].numpy(), tensor.name))
    inside = "/model/encoder/3/activation/Relu_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(inside, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = noise(3, 5000) // np.array([[1], [10], [1000]], np.int16)
    chunks = silero.chunked(torch.from_numpy(rows / 32768).float())
    assert chunks.shape == (3, 10, 576)
    assert not chunks[:, 0, :64].any() and (chunks[:, 1, :64] == chunks[:, 0, -64:]).all()
    given = {"state": np.zeros((2, 30, 128), np.float32), "sr": np.array(RATE)}
    (theirs,) = session.run([inside], {"input": chunks.flatten(0, 1).numpy(), **given})
    ours = silero.encoder()(chunks.flatten(0, 1))
    assert theirs.max() > 0.1
    np.testing.assert_allclose(ours.numpy(), theirs[..., 0], atol=1e-4, rtol=1e-4)
    frames = np.log1p(theirs[..., 0].reshape(3, 10, 128))
    pooled = silero.silero(RATE).extract(torch.from_numpy(rows)).pooled.numpy()
    np.testing.assert_allclose(pooled, np.concatenate([frames.mean(1), frames.std(1)], 1), atol=1e-4, rtol=1e-4)


def test_dnsmos_is_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own class, whose spectrogram of another model is left out, gives the same scores."""
    pytest.importorskip("onnxruntime")
    folder = packages.file_of("speechmos", "dnsmos.py").parent if _has("speechmos") else pytest.skip("no speechmos")
    for name in ("librosa", "requests"):  # which it imports, and which are needed for nothing that is called here
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["requests"].session = None  # type: ignore[attr-defined]
    theirs = importlib.import_module("speechmos.dnsmos").DNSMOS(
        *(str(folder / "dnsmos_models" / name) for name in ("sig_bak_ovr.onnx", "model_v8.onnx"))
    )
    monkeypatch.setattr(theirs, "audio_melspec", lambda audio: np.zeros((900, 120)), raising=False)
    rows = noise(9, RATE) // 8
    expected = theirs(quality.pieces(rows)[0], RATE, False)
    found = quality.dnsmos(rows, RATE)
    for key in ("sig", "bak", "ovrl"):
        assert found[key].value == pytest.approx(expected[f"{key}_mos"], rel=1e-5)


def test_pieces() -> None:
    """Nine seconds of whole rows with .2 s between, in order; too few rows are repeated."""
    rows = noise(25, 10240)
    found = quality.pieces(rows)
    assert found.shape == (2, 144160) and found.dtype == np.float32
    each = 10240 + 3200
    for piece, first in enumerate((0, 11)):  # 144160 / 13440 is 10.7
        for number in range(10):
            here = found[piece, number * each : (number + 1) * each] * 32768
            assert (here[:10240] == rows[first + number]).all() and not here[10240:].any()
    few = quality.pieces(rows[:2])
    assert few.shape == (1, 144160) and (few[0, 2 * each : 4 * each] == few[0, : 2 * each]).all()


def test_words_are_recognised() -> None:
    """Recorded digits, whatever is heard before and however loud; words that it cannot know are refused."""
    pytest.importorskip("pocketsphinx")
    for words in (("zero", "zzyzx"), ("one", "a | b"), ("One",)):
        with pytest.raises(UsageError, match="does not know the words"):
            recognise(noise(1, RATE), RATE, words)
    if not DIGITS.exists():
        pytest.skip("no recorded digits")
    soundfile = pytest.importorskip("soundfile")
    rows = np.zeros((10, 8000), np.int16)
    for number, row in enumerate(rows):
        x = soundfile.read(DIGITS / f"{number}.wav", dtype="int16")[0][:8000]
        row[: len(x)] = x
    heard = recognise(rows, 8000, WORDS)
    assert sum(one == word for one, word in zip(heard, WORDS, strict=True)) >= 8
    assert recognise(rows[::-1], 8000, WORDS) == heard[::-1]
    assert recognise(rows[3:4] // 2, 8000, WORDS) == heard[3:4]


def test_jitter() -> None:
    """A function of its key; silence stays; nothing is below it; all that remains is moved by at most 3 frames."""
    x = torch.full((200, 1, MEL_BANDS, 32), -1.0)
    x[:, :, 20, 16] = 0.5
    found = jittered(x, 1, 2)
    assert (found == jittered(x, 1, 2)).all() and (found != jittered(x, 1, 3)).any()
    row, band, frame = (found > -1).squeeze(1).nonzero(as_tuple=True)
    assert (band == 20).all() and set(frame.tolist()) == set(range(13, 20)) and len(row.unique()) == len(row)
    assert 0.75 < len(row) / 200 < 1  # a band is masked with chance 4/64 or so, a frame with 2/32
    assert (found[row, 0, band, frame] - 0.5).abs().max() <= 6 / 40 + 1e-6
    assert (found >= -1).all()


def test_the_classifier_learns_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.LEAST_STEPS", 40)
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.EPOCHS", 1)
    train = sounds(*tones(300, 0), "train")
    rows, labels = tones(90, 1)
    first = sound_classifier(train, RATE)
    found = first.extract(torch.from_numpy(rows))
    assert found.pooled.shape == (90, 128) and found.logits is not None and found.spatial is None
    assert (found.logits.argmax(1).numpy() == labels).mean() > 0.9
    calls: list[int] = []
    again = sound_classifier(train, RATE, lambda done, steps: calls.append(done))
    assert not calls and again.facts == first.facts
    assert (again.extract(torch.from_numpy(rows)).logits == found.logits).all()


def test_real_halves_are_alike_whatever_the_order() -> None:
    """Every second sound is noise. So it is with clips in order of voice and speed, and halves that took every second
    one would be as far apart as noise and tones are."""
    pytest.importorskip("silero_vad")
    rows = tones(120, 0)[0]
    rows[::2] = noise(60, rows.shape[1])
    real = dataclasses.replace(sounds(rows, np.arange(120) % 2, "test", WORDS[:2]), labels=None, classes=())
    found = measured(rows[1::2], real, real, RATE, metrics=["frechet"])[0]
    assert found.real is not None and found.real.value < 0.2 * found.value.value


def test_measured(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Real sounds have the values of real ones; copies are found; noise is far; what cannot be measured is left out."""
    pytest.importorskip("silero_vad")
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.LEAST_STEPS", 40)
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.EPOCHS", 1)
    train, real = sounds(*tones(300, 0), "train"), sounds(*tones(120, 1), "test")
    names = ["frechet", "classes", "copying"]
    rows, requested = tones(120, 2)
    good = {row.measure: row for row in measured(rows, real, train, RATE, requested=requested, metrics=names)}
    bad = {row.measure: row for row in measured(noise(120, 2560), real, train, RATE, metrics=names)}
    for key in (one for one in good if one.startswith("Frechet") and "limit" not in one and "N ->" not in one):
        assert good[key].value.value < 2 * good[key].real.value < 0.2 * bad[key].value.value  # type: ignore[union-attr]
    right = good["class as asked for"]
    assert right.value.value > 0.9 and right.real is not None and right.real.value > 0.9
    assert "class as asked for" not in bad
    assert good["classes, distance from training"].value.value < 0.05
    copied = {row.measure: row for row in measured(train.images[:60], real, train, RATE, metrics=["copying"])}
    assert copied["copies"].value.value == copied["nearer to training data than real"].value.value == 1
    assert good["copies"].value.value < 0.1
    with pytest.raises(UsageError, match="no measure of sounds"):
        measured(rows, real, train, RATE, metrics=["beauty"])
    with pytest.raises(UsageError, match="names of the classes asked for"):
        measured(rows, real, train, RATE, metrics=["words"])
    with pytest.raises(UsageError, match="have to be int16"):
        measured(rows.astype(np.float32), real, train, RATE)
    monkeypatch.setattr("undiffuse.metrics.sounds.packages.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "undiffuse\[speech\]"'):
        measured(rows, real, train, RATE, metrics=["frechet"])
    found = measured(rows, real, train, RATE, requested=requested)
    assert not any("Frechet" in row.measure for row in found) and any("class" in row.measure for row in found)
    assert "left out frechet: this measure of sounds needs silero-vad" in caplog.text


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
