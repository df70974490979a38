"""Sounds as data: the policy of one file against closed forms and scipy, windows, splits, folders, bad input, sets."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import firwin, resample_poly

from undiffuse.data import espeak, soundbuild
from undiffuse.data.soundfiles import pcm16, read_sound
from undiffuse.data.soundrows import default_length, windows
from undiffuse.data.sounds import SoundSet, is_sounds, load_sounds
from undiffuse.data.speech import SPEECH
from undiffuse.data.zhuyin import pinyin
from undiffuse.errors import UndiffuseError, UsageError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytestmark = pytest.mark.usefixtures("own_cache")
LOUD = 10 ** (-23 / 20)  # the root mean square of the active part


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def written(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def noise(count: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """int16 (count,): every frame of it is active, and its peak never decides the gain."""
    return np.rint(np.random.default_rng(seed).uniform(-level, level, count) * 2**15).astype(np.int16)


def many(root: Path, count: int = 20, seconds: float = 0.3) -> Path:
    for index in range(count):
        written(root / f"{index:02}.wav", noise(round(seconds * 16_000), index))
    return root


def test_samples_of_16_bits_are_only_scaled_by_the_gain_told(tmp_path: Path) -> None:
    stored = noise(16_000)
    sound = read_sound(written(tmp_path / "a.wav", stored, subtype="PCM_16"), 16_000)
    frames = (stored / 2**15).reshape(-1, 320)
    assert sound.gain == pytest.approx(LOUD / np.sqrt((frames**2).mean()), rel=1e-6)  # float32 sums
    # float32 has 24 bits: products of it are off by less than a hundredth of a step.
    assert np.abs(sound.samples * 2.0**15 - stored * sound.gain).max() < 0.01
    assert np.abs(pcm16(sound.samples) - stored * sound.gain).max() <= 0.51


def test_a_file_that_is_loud_as_it_should_be_keeps_every_sample(tmp_path: Path) -> None:
    stored = noise(16_000)
    once = pcm16(read_sound(written(tmp_path / "a.wav", stored), 16_000).samples)
    again = read_sound(written(tmp_path / "b.wav", once), 16_000)
    assert again.gain == pytest.approx(1, abs=1e-5)  # rounding has changed its power by that little
    np.testing.assert_array_equal(pcm16(again.samples), once)


def test_rounding_is_to_nearest_and_saturates() -> None:
    steps = np.array([0, 0.49, 0.51, -0.49, -0.51, 32766.6, 32768, 40000, -32768, -40000]) / 2**15
    assert pcm16(steps.astype(np.float32)).tolist() == [0, 0, 1, 0, -1, 32767, 32767, 32767, -32768, -32768]


@pytest.mark.parametrize(("amplitude", "seconds"), [(0.9, 1.0), (0.01, 0.5), (0.3, 0.1)])
def test_the_loudness_of_a_sine_is_that_of_its_closed_form(tmp_path: Path, amplitude: float, seconds: float) -> None:
    # 400 Hz has 8 whole periods in a frame of 20 ms: its mean square there is half the square of the amplitude.
    path = written(tmp_path / "a.wav", tone(seconds, hertz=400, amplitude=amplitude), subtype="FLOAT")
    assert read_sound(path, 16_000).gain == pytest.approx(LOUD * np.sqrt(2) / amplitude, rel=1e-6)


def test_silence_does_not_count_towards_loudness(tmp_path: Path) -> None:
    sine = tone(0.5, hertz=400)
    with_pause = np.concatenate([sine, 0.001 * sine, sine])
    gains = [read_sound(written(tmp_path / "a.wav", one, subtype="FLOAT"), 16_000).gain for one in (sine, with_pause)]
    assert gains[0] == pytest.approx(gains[1], rel=1e-6)


def test_a_peak_is_never_clipped(tmp_path: Path) -> None:
    samples = 0.01 * tone(1)
    samples[8000] = 0.5
    sound = read_sound(written(tmp_path / "a.wav", samples, subtype="FLOAT"), 16_000)
    assert np.abs(sound.samples).max() == pytest.approx(0.99, rel=1e-6)
    assert sound.gain == pytest.approx(0.99 / 0.5, rel=1e-6)


def test_silence_is_trimmed_to_one_frame(tmp_path: Path) -> None:
    quiet, loud = 0.004 * np.ones(3200), 0.5 * np.ones(1600)  # 42 dB below
    path = written(tmp_path / "a.wav", np.concatenate([quiet, loud, quiet, loud, quiet]), subtype="FLOAT")
    trimmed, whole = read_sound(path, 16_000), read_sound(path, 16_000, trim=False)
    assert len(whole.samples) == 3 * 3200 + 2 * 1600
    np.testing.assert_array_equal(trimmed.samples, whole.samples[3200 - 320 : -3200 + 320])
    audible = written(tmp_path / "b.wav", np.concatenate([1.5 * quiet, loud]), subtype="FLOAT")  # 38 dB below
    assert len(read_sound(audible, 16_000).samples) == 4800


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = noise(8000, 1) / 2**15, noise(8000, 2) / 2**15
    both = read_sound(written(tmp_path / "a.wav", np.stack([left, right, 0 * left], 1), subtype="FLOAT"), 16_000)
    mono = read_sound(written(tmp_path / "b.wav", (left + right) / 3, subtype="FLOAT"), 16_000)
    np.testing.assert_allclose(both.samples, mono.samples, atol=1e-6)


@pytest.mark.parametrize(("given", "rate"), [(48_000, 16_000), (8_000, 16_000), (44_100, 8_000)])
def test_resampling_agrees_with_scipy_on_what_both_rates_can_hold(tmp_path: Path, given: int, rate: int) -> None:
    samples = sum(tone(1.5, given, hertz, 0.1) for hertz in (200, 1000, 2500))
    path = written(tmp_path / "a.wav", samples, given, "FLOAT")
    ours = read_sound(path, rate, trim=False)
    common = np.gcd(given, rate)
    # A filter 13 times as long as scipy's own, which is not flat up to 2,500 Hz.
    longest = max(given, rate) // common
    taps = firwin(2 * 128 * longest + 1, 1 / longest, window=("kaiser", 14.0))
    other = resample_poly(samples, rate // common, given // common, window=taps)
    assert abs(len(ours.samples) - len(other)) <= 1
    exact = sum(tone(1.5, rate, hertz, 0.1) for hertz in (200, 1000, 2500))
    middle = slice(rate // 4, -rate // 4)  # the ends depend on what lies beyond the file
    assert np.abs(ours.samples[middle] / ours.gain - exact[middle]).max() < 1e-5  # soxr in float32: 90 dB below
    length = min(len(ours.samples), len(other))
    assert np.abs(ours.samples[:length] / ours.gain - other[:length])[middle].max() < 1e-5


def test_what_the_lower_rate_cannot_hold_is_removed(tmp_path: Path) -> None:
    low, high = tone(1, 16_000, 500, 0.1), tone(1, 16_000, 6_000, 0.4)
    sound = read_sound(written(tmp_path / "a.wav", low + high, subtype="FLOAT"), 8_000, trim=False)
    middle = slice(2000, 6000)
    assert np.abs(sound.samples[middle] / sound.gain - tone(1, 8_000, 500, 0.1)[middle]).max() < 1e-6


def test_a_file_of_several_blocks_is_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", noise(50_000), 44_100)
    whole = read_sound(path, 16_000)
    monkeypatch.setattr("undiffuse.data.soundfiles.BLOCK", 999)
    np.testing.assert_array_equal(read_sound(path, 16_000).samples, whole.samples)


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "aiff"])
def test_other_formats_are_read(tmp_path: Path, kind: str) -> None:
    samples = tone(1.0, hertz=500)
    sound = read_sound(written(tmp_path / f"a.{kind}", samples), 16_000, trim=False)
    assert is_sounds(tmp_path / f"a.{kind}")
    middle = sound.samples[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 250  # 500 Hz in half a second
    assert np.sqrt((middle**2).mean()) == pytest.approx(LOUD, rel=0.02)  # mp3 and ogg change a little


def headless(channels: int) -> bytes:
    """A WAV file of 16 bits with so many channels."""
    body = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, channels, 16_000, 32_000, 2, 16, b"data", 640) + bytes(640)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"this is no sound at all " * 9, "cannot read it as audio: .*(recognised|format)"),
        (b"", "cannot read it as audio"),
        (headless(0), "cannot read it as audio"),
        (headless(1), "it is silent: all of it is below -80 dB"),
        (np.zeros(0), "it is empty: it has no samples"),
        (np.array([0.1, np.nan, 0.1] * 400), "samples that are NaN or infinite"),
        (np.array([0.1, 0.1, -np.inf] * 400), "samples that are NaN or infinite"),
        (np.full(4000, 5e-5), "it is silent"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path: Path, content: bytes | np.ndarray, reason: str) -> None:
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        written(path, content, subtype="FLOAT")
    with pytest.raises(UndiffuseError, match=reason):
        read_sound(path, 16_000)


def test_bad_files_are_reported_together_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many(tmp_path, 15)
    for index in range(12):
        (tmp_path / f"bad{index:02}.wav").write_bytes(b"no sound")
    with pytest.raises(UndiffuseError, match=r"12 of 27 sounds cannot be read") as caught:
        load_sounds(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  bad00.wav: cannot read it as audio")
    assert lines[-2:] == ["  ... and 2 more", "Use --skip-corrupt to leave them out."]
    found = load_sounds(tmp_path, "all", skip_corrupt=True)
    assert (len(found), found.skipped) == (15, 12)
    assert "They are left out." in caplog.text


def test_remarks_count_what_is_clipped_and_what_has_a_lower_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many(tmp_path, 4)
    written(tmp_path / "clipped.wav", np.clip(tone(0.3, amplitude=1.2), -1, 1))
    touches = noise(4800)
    touches[100] = 2**15 - 1  # one of 4,800 samples
    written(tmp_path / "touches.wav", touches)
    written(tmp_path / "low.wav", tone(0.3, 8_000), 8_000)
    assert load_sounds(tmp_path).rate == 16_000
    assert "1 of 7 sounds are clipped" in caplog.text
    assert "1 of 7 sounds were stored at 8,000 Hz: there is nothing above 4,000 Hz in them" in caplog.text


def test_windows_follow_each_other_and_short_ends_are_left_out() -> None:
    assert windows(250, 100) == [(0, 100), (100, 200), (200, 250)]
    assert windows(249, 100) == [(0, 100), (100, 200)]
    assert windows(3, 100) == [(0, 3)]
    assert windows(100, 100) == [(0, 100)]


@pytest.mark.parametrize(
    ("lengths", "seconds"),
    [([0.1] * 20, 0.32), ([0.3] * 19 + [9], 0.32), ([0.3] * 18 + [0.5] * 2, 0.64), ([0.65], 0.96), ([99], 1.28)],
)
def test_rows_cover_most_files_but_are_short(lengths: list[float], seconds: float) -> None:
    assert default_length([round(one * 8000) for one in lengths], 8000) == round(seconds * 8000)


def test_a_long_file_becomes_rows_and_a_short_one_is_filled_up(tmp_path: Path) -> None:
    long, short = noise(3 * 5120 + 2000, 1), noise(1000, 2)
    written(tmp_path / "long.wav", long)
    written(tmp_path / "short.wav", short)
    found = load_sounds(tmp_path, "all", seconds=0.3, trim=False)
    assert found.images.shape == (4, 5120)  # .32 s; the end of 2,000 samples is less than half of that
    assert found.lengths.tolist() == [5120, 5120, 5120, 1000]
    assert found.names[1] == "long.wav, 0.32 s"
    gain = read_sound(tmp_path / "long.wav", 16_000).gain
    assert np.abs(found.images[:3].reshape(-1) - long[: 3 * 5120] * gain).max() <= 0.51
    assert (found.images[3, 1000:] == 0).all() and found.images[3, :1000].any()


def test_files_are_held_out_and_never_rows(tmp_path: Path) -> None:
    many(tmp_path, 25, seconds=0.9)
    parts = {split: load_sounds(tmp_path, split, seconds=0.3) for split in ("train", "test", "all")}
    files = {split: {name.split(",")[0] for name in part.names} for split, part in parts.items()}
    assert len(files["test"]) == 2 and files["train"].isdisjoint(files["test"])
    assert files["train"] | files["test"] == files["all"] and len(files["all"]) == 25
    both = np.concatenate([parts["train"].images, parts["test"].images])
    np.testing.assert_array_equal(both, parts["all"].images)


def test_folders_are_classes_and_splits_as_those_of_pictures_are(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("seven", "one"):
            many(tmp_path / split / name, count)
    found = {split: load_sounds(tmp_path, split) for split in ("train", "test")}
    assert found["train"].classes == found["test"].classes == ("one", "seven")
    assert found["train"].labels is not None and found["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found["test"].names == ("test/one/00.wav", "test/one/01.wav", "test/seven/00.wav", "test/seven/01.wav")
    written(tmp_path / "train" / "stray.wav", noise(4000))
    with pytest.raises(UsageError, match="1 sounds lie beside class folders"):
        load_sounds(tmp_path)


def test_captions_are_found_as_those_of_pictures_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many(tmp_path, 4)
    (tmp_path / "metadata.csv").write_text("file_name,text\n00.wav,a low hum\n01.wav,a door\n")
    (tmp_path / "02.txt").write_text("rain on a roof\nheavy rain")
    found = load_sounds(tmp_path, "all")
    assert found.captions == (("a low hum",), ("a door",), ("rain on a roof", "heavy rain"), ())
    assert "3 of 4 sounds have captions, 1 have none" in caplog.text


def test_what_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many(tmp_path, 2)
    (tmp_path / "x.m4a").write_bytes(b"x")
    load_sounds(tmp_path, "all")
    assert "left out 1 files (1 .m4a): sounds in unsupported formats; convert them to FLAC first" in caplog.text


def test_the_second_time_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = many(tmp_path / "a", 12)
    first = load_sounds(root)
    with monkeypatch.context() as patch:
        patch.setattr(soundbuild, "read_sound", None)
        again, other = load_sounds(root), load_sounds(root, "test")
        np.testing.assert_array_equal(first.images, again.images)
        assert isinstance(again.images, np.memmap) and not again.images.flags.writeable
        assert first.fingerprint == again.fingerprint != other.fingerprint
        with pytest.raises(TypeError):
            load_sounds(root, trim=False)
    written(root / "00.wav", noise(4000, 99))
    assert load_sounds(root).fingerprint != first.fingerprint


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    root = many(tmp_path / "a", 12)
    first = load_sounds(root)
    (meta,) = (tmp_path / "cache" / "sounds").glob("*/meta.json")
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "shape": [1, 1]}))
    assert load_sounds(root).fingerprint == first.fingerprint


def test_the_rate_is_the_commonest_but_16_khz_at_most(tmp_path: Path) -> None:
    for index, rate in enumerate((8_000, 8_000, 44_100)):
        written(tmp_path / "a" / f"{index}.wav", noise(4000), rate)
    assert load_sounds(tmp_path / "a", "all").rate == 8_000
    assert load_sounds(tmp_path / "a", "all", rate=12_000).rate == 12_000
    for name, rate, chosen in (("b", 44_100, 16_000), ("c", 11_025, 11_200)):
        written(tmp_path / name / "0.wav", noise(9000), rate)
        assert load_sounds(tmp_path / name, "all").rate == chosen


def test_what_is_no_source_or_option_is_refused(tmp_path: Path) -> None:
    many(tmp_path / "few", 3)
    (tmp_path / "empty").mkdir()
    for source, options, message in (
        ("sylables", {}, "no sounds and no path are called 'sylables'. Did you mean syllables"),
        (str(tmp_path / "empty"), {}, "no sounds in .*looked for .aif"),
        (__file__, {}, "cannot use .* as sounds: give a sound file"),
        (str(tmp_path / "few"), {"rate": 11_025}, "rate must be a multiple of 200 from 4,000 to 48,000 Hz, not 11025"),
        (str(tmp_path / "few"), {"seconds": 0}, "seconds must be above 0 and at most 60, not 0"),
        (str(tmp_path / "few"), {"seconds": float("nan")}, "seconds must be above 0 and at most 60"),
        (str(tmp_path / "few"), {"split": "val"}, "no split 'val'"),
        (str(tmp_path / "few"), {"split": "test"}, "has no test split: too few files"),
    ):
        with pytest.raises(UsageError, match=message):
            load_sounds(source, **options)  # type: ignore[arg-type]


def test_what_counts_as_sounds(tmp_path: Path) -> None:
    many(tmp_path / "sounds" / "deep", 1)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    assert all(is_sounds(one) for one in ("syllables", "a.WAV", tmp_path / "sounds", *SPEECH))
    assert not any(is_sounds(one) for one in ("emoji", "kjv", tmp_path / "pictures", "a.txt", "owner/name"))


def installed(name: str) -> SoundSet:
    if SPEECH[name].find() is None:
        pytest.skip(f"{name} is not installed")
    return load_sounds(name, "all")


def test_prompts_have_folders_as_classes_and_words_as_captions() -> None:
    found = installed("prompts")
    assert found.rate == 8_000 and found.shape == (10_240,)
    assert found.classes == ("dictate", "digits", "followme", "letters", "phonetic", "phrases")
    assert ("call forwarding",) in found.captions


@pytest.mark.slow
def test_syllables_have_tones() -> None:
    found = installed("syllables")
    assert len(found) == 2342 and found.rate == 16_000 and found.shape == (10_240,)
    assert found.classes == tuple(f"tone {number}" for number in range(1, 6))
    assert found.labels is not None and np.bincount(found.labels).tolist() == [611, 479, 582, 648, 22]
    row = found.names.index("ㄇㄚ3/5.ogg")
    assert found.captions[row] == ("ma3",) and found.attributes["voice"][row] == "Chu Lo"
    assert found.attributes["zhuyin"][row] == "ㄇㄚˇ"
    assert found.captions[found.names.index("ㄌㄩ4/3.ogg")] == ("lv4",)  # "lü4" loses its dots in an encoder
    assert len({*found.captions}) == len({*zip(found.attributes["syllable"], found.attributes["zhuyin"], strict=True)})


@pytest.mark.parametrize(
    ("zhuyin", "spelled"),
    [
        *[
            ("ㄕ", "shi"),
            ("ㄙ", "si"),
            ("ㄒㄩㄝ", "xue"),
            ("ㄌㄩ", "lü"),
            ("ㄩ", "yu"),
            ("ㄩㄥ", "yong"),
            ("ㄒㄩㄥ", "xiong"),
        ],
        *[
            ("ㄨㄥ", "weng"),
            ("ㄓㄨㄥ", "zhong"),
            ("ㄧㄡ", "you"),
            ("ㄌㄧㄡ", "liu"),
            ("ㄨㄣ", "wen"),
            ("ㄉㄨㄣ", "dun"),
        ],
        *[("ㄧㄣ", "yin"), ("ㄦ", "er"), ("ㄩㄢ", "yuan"), ("ㄨㄟ", "wei"), ("ㄧㄝ", "ye"), ("ㄅ", None), ("ma", None)],
    ],
)
def test_pinyin(zhuyin: str, spelled: str | None) -> None:
    assert pinyin(zhuyin) == spelled


def test_digits_spoken_are_the_same_each_time_and_voices_differ() -> None:
    program = espeak.find()
    if program is None:
        pytest.skip("espeak-ng is not installed")
    known = espeak.voices(program)
    said = [espeak.speak(program, voice, "seven", 30, 170) for voice in known[:5]]
    assert said == [espeak.speak(program, voice, "seven", 30, 170) for voice in known[:5]]
    assert len(set(said)) == 5 and len(known) > 90
    clips = SPEECH["digits-spoken"].source().open()
    voices, test = np.array(clips.attributes["voice"]), clips.test
    assert test is not None and 0.08 < test.mean() < 0.12
    assert set(voices[test]).isdisjoint(voices[~test])
    assert read_sound(clips.place(17), 16_000).rate == 22_050


def test_a_missing_set_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UndiffuseError, match=r"digits-spoken is not on this machine: `sudo apt-get install espeak-ng`"):
        load_sounds("digits-spoken")
