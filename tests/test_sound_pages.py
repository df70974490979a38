"""Sounds that can be seen and heard: pictures of them, pages with players, and the commands that write these."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
from conftest import TINY, Command, ignore
from PIL import Image

from undiffuse.config import preset
from undiffuse.data.html import script_of, with_script
from undiffuse.data.soundsamples import are_samples, read_samples
from undiffuse.domains.sounds import Sounds
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.evaluation.page import Page, Room, clips, write_page
from undiffuse.explain import _examples, draw, work
from undiffuse.generate import sample
from undiffuse.model import load
from undiffuse.plots import coloured
from undiffuse.provenance import LONGEST, Provenance, inscribe, read_provenance
from undiffuse.sound.mel import band_edges
from undiffuse.training import train

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE, LENGTH = 4000, 1280
DOMAIN = Sounds((LENGTH,), RATE)
NASTY = """<script>alert("1")</script> & 'it' {{ 7 * 7 }} </figure> ü"""
KNOWN = Provenance("undiffuse sample m --class '</script><!--'", "1", 3, "m", "0" * 64, {}, {"engine": "torch"})


def tones(hertz: float, count: int, seed: int = 0) -> np.ndarray:
    """int16 (count, LENGTH): noisy tones."""
    x = np.sin(2 * np.pi * hertz * np.arange(LENGTH) / RATE) + np.random.default_rng(seed).normal(
        0, 0.2, (count, LENGTH)
    )
    return np.rint(4000 * x).astype(np.int16)


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes of 30 tones, .32 s at 4 kHz."""
    root = tmp_path_factory.mktemp("sounds") / "voices"
    for number, name in enumerate(("high", "low")):
        (root / name).mkdir(parents=True)
        for index, row in enumerate(tones((1200, 300)[number], 30, number)):
            soundfile.write(root / name / f"{index:02}.wav", row, RATE)
    return root


@pytest.fixture(scope="module")
def run(voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on `voices`."""
    folder = tmp_path_factory.mktemp("run") / "voices-run"
    steps = {"training.steps": 2, "training.preview_every": 2, "process.steps": 20}
    train({**TINY, **steps, "data.source": str(voices)}, folder, report=ignore)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of a few steps."""
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.EPOCHS", 1)
    monkeypatch.setattr("undiffuse.metrics.sounds.classifier.LEAST_STEPS", 10)


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the text within each kind of them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.elements and data.strip():
            self.texts[self.elements[-1][0]][-1] += data

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def inside(address: str, kind: str) -> io.BytesIO:
    begins = f"data:{kind};base64,"
    assert address.startswith(begins)
    return io.BytesIO(base64.b64decode(address.removeprefix(begins), validate=True))


def heard(page: Reader) -> np.ndarray:
    """The samples of every player, int16 (N, L)."""
    return np.stack([scipy.io.wavfile.read(inside(one["src"], "audio/wav"))[1] for one in page.of("audio")])


def test_a_tone_is_brightest_where_its_band_is() -> None:
    """Low bands are at the bottom, silence is black, and louder is brighter."""
    centres = band_edges(RATE)[:, 1]
    for hertz in (200.0, 1000.0):
        picture = DOMAIN.pictures(np.rint(8000 * np.sin(2 * np.pi * hertz * np.arange(LENGTH) / RATE))[None])[0]
        assert picture.shape == (64, 16, 3) and picture.dtype == np.uint8
        row = int(picture.sum(2, dtype=int)[:, 8].argmax())
        assert 63 - row == int((centres - hertz).abs().argmin())
    assert DOMAIN.pictures(np.zeros((2, LENGTH), np.int16)).max() <= 4  # the darkest of the colours
    assert (np.diff(coloured(np.linspace(-1, 1, 50)) @ [0.2126, 0.7152, 0.0722]) > 0).all()  # Rec. 709 luminance
    assert (coloured(np.array([-9.0, 9.0])) == coloured(np.array([-1.0, 1.0]))).all()


def test_a_page_plays_and_shows_what_it_was_given(tmp_path: Path) -> None:
    """The bytes of every sound and picture are in it, under its caption; nothing is fetched from elsewhere."""
    rows, captions = tones(440, 5), ["one", NASTY, "", "four", "five"]
    rooms = [Room(NASTY, clips(DOMAIN, rows[:3], captions[:3])), Room("", clips(DOMAIN, rows[3:], captions[3:]), 2)]
    write_page(Page("t", "h", [], [], [], [], [], None, rooms), tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert np.array_equal(heard(page), rows)
    assert [one["aria-label"] for one in page.of("audio")] == captions
    assert all("controls" in one for one in page.of("audio"))
    assert page.texts["figcaption"] == captions and page.texts["h2"] == [NASTY, "Conditions"]
    shown = np.stack([np.asarray(Image.open(inside(one["src"], "image/png"))) for one in page.of("img")])
    assert np.array_equal(shown, DOMAIN.pictures(rows))
    assert all(one["alt"].endswith(caption) for one, caption in zip(page.of("img"), captions, strict=True))
    assert "table" not in page.texts and not {"script", "link", "iframe"} & set(page.texts)
    assert all(one.get("src", "data:").startswith("data:") and "href" not in one for _, one in page.elements)


@pytest.mark.parametrize("text", ['{"a": "</script><!-- <script>"}', json.dumps({"a": "é\u2028\\u003c"}), "{}"])
def test_a_recipe_in_a_page_is_read_as_it_was_and_ends_nothing(text: str) -> None:
    page = "<!doctype html><p>text</p>\n</html>\n"
    file = io.BytesIO(page.encode())
    assert script_of(file, 99) is None
    with_script(file, text)
    assert json.loads(script_of(file, 99) or "") == json.loads(text)
    found = Reader(file.getvalue().decode())
    assert found.of("script") == [{"type": "application/json", "id": "undiffuse"}]
    assert json.loads(found.texts["script"][0]) == json.loads(text)
    assert file.getvalue().endswith(b"</script>\n</html>\n")


def test_recipes_of_pages(tmp_path: Path) -> None:
    """The last block is the recipe, whatever the page shows; a damaged one is an error, none is said to be none."""
    path = tmp_path / "page.html"
    write_page(Page("t", "h", [KNOWN.text()], [], [], [], [], {"a": '<script id="undiffuse">'}), path)
    with pytest.raises(UsageError, match="carries no recipe"):
        read_provenance(path)
    whole = path.read_bytes()
    inscribe(path, KNOWN.text())
    assert read_provenance(path) == KNOWN
    path.write_bytes(whole)
    inscribe(path, '{"format": 1}')
    with pytest.raises(UndiffuseError, match="damaged"):
        read_provenance(path)
    path.write_bytes(whole)
    inscribe(path, "<" * (LONGEST - 9))  # six times as long in the page
    with pytest.raises(UndiffuseError, match="damaged"):
        read_provenance(path)


def test_samples_in_files_are_read_as_they_are(tmp_path: Path) -> None:
    rows = tones(300, 3)
    for index, row in enumerate(rows):
        DOMAIN.save(row, tmp_path / f"{index:06}.wav")
    found = read_samples(tmp_path)
    assert are_samples(tmp_path) and np.array_equal(found.rows, rows) and found.rate == RATE and found.labels is None
    arrays = {"labels": np.array([1, 0, 1]), "classes": np.array(["a", "b"]), "rate": np.array(RATE)}
    np.savez(tmp_path / "x.npz", sounds=rows, **arrays)
    found = read_samples(tmp_path / "x.npz")
    assert np.array_equal(found.rows, rows) and found.rate == RATE and found.classes == ("a", "b")
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1]
    np.savez(tmp_path / "pictures.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
    assert not are_samples(tmp_path / "pictures.npz") and not are_samples(tmp_path / "nothing.npz")


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"data": np.zeros((LENGTH, 2)), "subtype": "PCM_16"}, "2 channels of 16 bits"),
        ({"data": np.zeros(LENGTH), "subtype": "PCM_24"}, "1 channels of 24 bits"),
        ({"data": np.zeros(99), "subtype": "PCM_16"}, "99 samples at 4,000 Hz, and those before it 1,280"),
        ({"data": None}, "cannot read .*1.wav"),
    ],
)
def test_samples_that_cannot_be_measured_are_refused(tmp_path: Path, second: dict[str, Any], expected: str) -> None:
    DOMAIN.save(tones(300, 1)[0], tmp_path / "0.wav")
    (tmp_path / "1.wav").write_bytes(b"RIFF....WAVE")
    if second["data"] is not None:
        soundfile.write(tmp_path / "1.wav", samplerate=RATE, **second)
    with pytest.raises(UndiffuseError, match=expected):
        read_samples(tmp_path)
    np.savez(tmp_path / "x.npz", sounds=np.zeros((2, LENGTH), np.float32))
    with pytest.raises(UsageError, match="float32 of shape"):
        read_samples(tmp_path / "x.npz")


def test_what_samples_are_asked_to_be(run: Path) -> None:
    model = load(run, "cpu")
    condition: Any = model.condition(range(9))
    assert model.asked(range(9)) == [model.data.classes[label] for label in condition.index]


def test_previews_can_be_heard(run: Path) -> None:
    """All 16 in one file, a fifth of a second of silence between them."""
    (path,) = (run / "previews").glob("*.wav")
    assert path.stem == next((run / "previews").glob("*.png")).stem == "step-00000002"
    rate, samples = scipy.io.wavfile.read(path)
    between = RATE // 5
    assert rate == RATE and len(samples) == 16 * LENGTH + 15 * between
    assert not samples[LENGTH : LENGTH + between].any() and samples.any()


def test_sample_writes_a_page_that_can_be_made_again(command: Command, run: Path, tmp_path: Path) -> None:
    code, out, err = command("sample", run, "-n", 5, "--steps", 2, "--out", "page.html")
    assert (code, err) == (0, "") and "5 samples of 0.32 s: page.html" in out
    page, model = page_of(tmp_path / "page.html"), load(run, "cpu")
    assert np.array_equal(heard(page), sample(model, 5, steps=2, engine="torch"))
    assert page.texts["figcaption"] == [f"{k}: {name}" for k, name in enumerate(model.asked(range(5)))]
    recipe = json.loads(page.texts["script"][0])
    assert recipe == json.loads(page.texts["pre"][0]) and recipe["command"].startswith("undiffuse sample")
    assert command("show", "page.html")[1].startswith("undiffuse sample")
    code, out, err = command("redo", "page.html")
    assert code == 0 and "the same bytes" in out, err
    assert command("sample", run, "-n", 2, "--steps", 2, "--class", "low", "--out", "low.html")[0] == 0
    assert page_of(tmp_path / "low.html").texts["figcaption"] == ["0: low", "1: low"]
    for arguments, expected in (
        ((run, "-n", 999, "--out", "x.html"), "a page holds at most 512"),
        ((run, "--out", "x.jpg"), ".wav (one after another), .html (a page with players)"),
        (("fashion-mnist", "--out", "x.html"), "--out x.html: write .png"),
    ):
        code, _, err = command("sample", *arguments)
        assert code == 2 and expected in err
    assert not list(tmp_path.glob("x.*"))


def test_evaluate_hears_what_sample_writes(
    command: Command, run: Path, voices: Path, tmp_path: Path, quick: None
) -> None:
    """By the vocoder that is asked for."""
    options = {"data.source": str(voices), "training.steps": 2, "training.batch_size": 2}
    vocoder = tmp_path / "vocoder"
    train(preset("vocoder") | options, vocoder, report=ignore)
    names = ("-n", 12, "--steps", 2, "--metrics", "classes")
    values = []
    for choice in (vocoder, "griffin-lim"):
        code, _, err = command("evaluate", run, *names, "--vocoder", choice, "--json", "a.json", "--force")
        assert code == 0, err
        found = json.loads((tmp_path / "a.json").read_text())
        values.append([row["value"] for row in found["rows"]])
        named = found["conditions"]["sampling"]["vocoder"]
        assert named == (str(vocoder) if choice == vocoder else None)
    assert values[0] != values[1]
    code, _, err = command("evaluate", "fashion-mnist", "--vocoder", vocoder)
    assert code == 2 and "--vocoder is for models of sounds" in err


def test_evaluate_measures_models_and_files_alike(
    command: Command, run: Path, voices: Path, tmp_path: Path, quick: None
) -> None:
    """The same samples have the same figures, drawn by evaluate, in an .npz and, without their classes, in a folder."""
    names = ("--metrics", "classes,copying")
    report = ("--json", "a.json", "--report", "a.html")
    code, out, err = command("evaluate", run, "-n", 12, "--steps", 2, "--metrics", f"{names[1]},speed", *report)
    assert code == 0, err
    assert "class as asked for" in out and "reference: 6 sounds of" in out and "0.32 s at 4,000 Hz" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["n"] == 12 and found["conditions"]["sampling"]["steps"] == 2 and found["conditions"]["rate"] == RATE
    assert found["conditions"]["model"]["learnt_this_data"] is True and "versions" in found["conditions"]
    speed = found["rows"].pop()
    assert speed["measure"] == "real-time factor" and 0 < speed["interval"][0] <= speed["value"] <= speed["interval"][1]
    for out_of_samples in ("x.npz", "folder"):
        assert command("sample", run, "-n", 12, "--steps", 2, "--out", out_of_samples)[0] == 0
    assert read_samples(tmp_path / "x.npz").rate == RATE
    for subject in ("x.npz", "folder"):
        code, _, err = command("evaluate", subject, "--data", voices, *names, "--json", f"{subject}.json")
        assert code == 0, err
        other = json.loads((tmp_path / f"{subject}.json").read_text())
        rows = [row for row in found["rows"] if subject == "x.npz" or row["measure"] != "class as asked for"]
        assert [row["measure"] for row in other["rows"]] == [row["measure"] for row in rows]
        for one, same in zip(other["rows"], rows, strict=True):  # batches of 12 and of 64 are rounded differently
            assert one["value"] == pytest.approx(same["value"], rel=1e-3) and one["what"] == same["what"]
    page = page_of(tmp_path / "a.html")
    model = load(run, "cpu")
    samples = sample(model, 64, steps=2, engine="torch")[:12]  # in batches as evaluate draws them
    played = {row.tobytes() for row in heard(page)}
    assert len(played & {row.tobytes() for row in samples}) >= 8  # four of each class, and the nearest to training
    assert len(page.texts["tr"]) == 2 + len(found["rows"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("RUN", "--features", "inception"), "--features is not for models of sounds, which take --data"),
        (("RUN", "--split", "train"), "--split is not for models of sounds"),
        (("RUN", "--metrics", "bpd"), "no metric of sounds"),
        (("RUN", "--steps", "2,3"), "one number for a model of sounds"),
        (("RUN", "--metrics", "classes", "--data", "digits"), "--data digits is not a set of sounds"),
        (("x.npz",), "name the data to measure against with --data"),
        (("x.npz", "--data", "VOICES", "--metrics", "speed"), "the metric speed is that of a model"),
        (("x.npz", "--sampler", "ddim"), "--sampler is not for sounds in files"),
        (("x.npz", "--data", "VOICES", "-n", "9"), "holds 3 sounds, fewer than -n 9"),
    ],
)
def test_evaluate_refuses(
    command: Command, run: Path, voices: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    np.savez(tmp_path / "x.npz", sounds=tones(300, 3))
    places = {"RUN": run, "VOICES": voices}
    code, _, err = command("evaluate", *(places.get(one, one) for one in arguments))
    assert code == 2 and expected in err


def test_samples_of_another_length_are_compared_with_data_read_for_them(
    command: Command, voices: Path, tmp_path: Path, quick: None
) -> None:
    """Rows of .64 s at 8 kHz: the data is read again at that rate and length; other lengths cannot be."""
    np.savez(tmp_path / "x.npz", sounds=np.zeros((4, 5120), np.int16), rate=np.array(8000))
    code, out, err = command("evaluate", "x.npz", "--data", voices, "--metrics", "copying")
    assert code == 0 and "0.64 s at 8,000 Hz" in out, err
    np.savez(tmp_path / "y.npz", sounds=np.zeros((4, 1000), np.int16), rate=np.array(RATE))
    code, _, err = command("evaluate", "y.npz", "--data", voices, "--metrics", "copying")
    assert code == 2 and "multiples of .32 s: 1,280 values" in err


def test_a_model_of_sounds_takes_sentences(command: Command, tmp_path: Path) -> None:
    """From files beside the sounds to a prompt; and fewer sounds than `explain` shows are enough for it."""
    (tmp_path / "tones").mkdir()
    for index, (row, text) in enumerate(zip(tones(600, 3), ("a low tone", "a tone", "some tone"), strict=True)):
        soundfile.write(tmp_path / "tones" / f"{index}.wav", row, RATE)
        (tmp_path / "tones" / f"{index}.txt").write_text(text)
    settings = {"data.source": str(tmp_path / "tones"), "training.steps": 3, "network.text": "words"}
    train({**TINY, **settings, "training.batch_size": 2}, tmp_path / "run", report=ignore)
    model = load(tmp_path / "run", "cpu")
    assert model.data.takes is not None and model.data.takes.kind == "sentences" and len(_examples(model, 4, 0)[0]) == 3
    code, out, error = command("sample", "run", "--prompt", "a low tone", "-n", 2, "--steps", 2, "--out", "low.html")
    assert code == 0 and "2 samples of 0.32 s" in out, error
    assert "0: a low tone" in (tmp_path / "low.html").read_text()


def test_explain_draws_and_plays(run: Path, tmp_path: Path) -> None:
    """The pictures of the lecture, and a page that has them and plays both processes."""
    model, ticks = load(run, "cpu"), []
    written = list(draw(model, tmp_path / "lecture", 2, 0, ticks.append))
    assert sum(ticks) == work(model, 2)
    assert sorted(path.name for path, _ in written) == sorted(path.name for path in (tmp_path / "lecture").iterdir())
    assert len(written) == 7 and written[-1][0].name == "explain.html"
    page = page_of(written[-1][0])
    assert page.texts["h2"][0] == "The forward process" and len(page.of("audio")) == 30
    rows = heard(page)
    loudness = np.sqrt(np.square(rows.astype(float)).mean(1))
    assert loudness.max() < 10 ** (-22.9 / 20) * 2**15 and loudness[:10].argmax() > 0  # full noise hurts no ears
    first = model.domain.decode(model.domain.encode(rows[:1]))  # t = 0 is the data, as the representation keeps it
    assert (model.domain.encode(first) - model.domain.encode(rows[:1])).abs().mean() < 0.05
    assert any("sound is of" in caption for _, caption in written)
    for path, _ in written[:-1]:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_data_show_counts_and_plays(command: Command, voices: Path, tmp_path: Path) -> None:
    code, out, err = command("data", "show", voices)
    assert code == 0, err
    assert "54 sounds of 0.32 s at 4,000 Hz" in out and "29 high" in out and "0.3 minutes of sound" in out
    assert "loudness -23.0 dB" in out  # what the policy makes it
    with Image.open(tmp_path / "voices.png") as sheet:
        assert sheet.size == (16 * 18 + 2, 2 * 66 + 2)  # 16 frames by 64 bands, margins of two
    code, _, err = command("data", "show", voices, "--out", "page.html")
    assert code == 0, err
    page = page_of(tmp_path / "page.html")
    assert page.texts["h2"][:2] == ["high", "low"] and page.texts["td"] == ["high", "29", "low", "25"]
    assert len(page.of("audio")) == 16
    for arguments, expected in (
        ((voices, "--size", 8), "--size is for pictures"),
        ((voices, "--out", "x.wav"), "must end in .png or .html"),
    ):
        code, _, err = command("data", "show", *arguments)
        assert code == 2 and expected in err
