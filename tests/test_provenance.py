"""Files carry the recipe that made them: it is printed, and makes the same bytes again."""

import io
import json
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

import undiffuse
from undiffuse import provenance
from undiffuse.card import find
from undiffuse.data.png import text_of, with_text
from undiffuse.data.single import read_pictures
from undiffuse.provenance import KEYWORD, LONGEST, Provenance, inscribe, provenance_of, read_provenance

KNOWN = Provenance("undiffuse sample m", "1", 3, "m", "0" * 64, {"a.png": "1" * 64}, {"engine": "torch"})


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def written(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()} if path.is_dir() else {"": path.read_bytes()}


# The text in a file


def test_pillow_reads_the_text_of_a_png_and_the_same_picture() -> None:
    said = 'a "text", é, 日本, \\ and a line\nbreak'
    raw = with_text(png(), KEYWORD, said)
    with Image.open(io.BytesIO(raw)) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile) and image.text == {KEYWORD: said}
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(png()))))
    Image.open(io.BytesIO(raw)).verify()
    assert text_of(io.BytesIO(raw), KEYWORD, 100) == said
    assert text_of(io.BytesIO(png()), KEYWORD, 100) is None and text_of(io.BytesIO(b"GIF89a"), KEYWORD, 9) is None
    with pytest.raises(ValueError, match="not a PNG"):
        with_text(b"GIF89a", KEYWORD, "")


def test_the_text_that_pillow_writes_is_read() -> None:
    """Among other texts, whose keywords begin alike."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for keyword, text in (("undiffused", "no"), ("undiff", "no"), (KEYWORD, "yes"), ("Comment", "no")):
        info.add_itxt(keyword, text)
    Image.new("L", (2, 2)).save(file, "png", pnginfo=info)
    file.seek(0)
    assert text_of(file, KEYWORD, 3) == "yes"
    file.seek(0)
    with pytest.raises(ValueError, match="more than the 2"):
        text_of(file, KEYWORD, 2)


@pytest.mark.parametrize("zipped", ["tEXt", "zTXt", "iTXt"])
def test_texts_of_other_programs_are_not_unpacked(tmp_path: Path, zipped: str) -> None:
    """A bomb of 100 MB in 100 kB is not even looked into."""
    info, path = PngImagePlugin.PngInfo(), tmp_path / "bomb.png"
    bomb = "0" * (10**8 if zipped != "tEXt" else 1000)
    if zipped == "iTXt":
        info.add_itxt(KEYWORD, bomb, zip=True)
    else:
        info.add_text(KEYWORD, bomb, zip=zipped == "zTXt")
    Image.new("L", (2, 2)).save(path, "png", pnginfo=info)
    with pytest.raises(undiffuse.UndiffuseError, match=r"bomb.png: (it takes|it is not stored as undiffuse)"):
        read_provenance(path)


def test_a_recipe_comes_back_from_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    np.savez(tmp_path / "a.npz", images=np.arange(4))
    (tmp_path / "a.txt").write_text("text")
    for name, sample in (("a.png", 7), ("a.npz", None)):
        inscribe(tmp_path / name, KNOWN.text(sample))
        assert read_provenance(tmp_path / name) == replace(KNOWN, sample=sample)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["images"] and arrays["images"].tolist() == [0, 1, 2, 3]
    inscribe(tmp_path / "a.txt", KNOWN.text())
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_recipe_of_thousands_of_sources_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(png())
    inscribe(tmp_path / "a.png", replace(KNOWN, sources={f"{k}.png": "1" * 64 for k in range(2000)}).text())
    assert (tmp_path / "a.png").read_bytes() == png() and "recipe is left out" in caplog.text


def test_words_of_a_command_come_back_from_its_text(whole: Path) -> None:
    words = ["undiffuse", "edit", "it's", 'a "b"  c', "$HOME", "é;rm -rf *", ""]
    made = provenance_of(words, undiffuse.load(whole, "cpu"), 0)
    assert shlex.split(made.command) == words
    assert made.fingerprint == undiffuse.load(whole, "cpu").fingerprint


# The commands


@pytest.mark.parametrize("out", ["grid.png", "one.png", "folder", "arrays.npz"])
def test_samples_are_made_again_byte_by_byte(command: Command, whole: Path, tmp_path: Path, out: str) -> None:
    """The pixels are those of Python, the same command makes the same bytes, and so does what the file says."""
    count = 1 if out == "one.png" else 3
    words = ["sample", whole, "-n", count, "--steps", 3, "--seed", 5, "--sampler", "ddpm", "--out", out]
    code, _, err = command(*words)
    assert code == 0, err
    first = written(tmp_path / out)
    code, said, err = command("show", out)
    assert code == 0 and said.splitlines()[0] == shlex.join(["undiffuse", *map(str, words)])
    assert f"fingerprint {undiffuse.load(whole, 'cpu').fingerprint}" in said and "seed     5" in said
    code, said, err = command("redo", out)
    again = tmp_path / out.replace(".", "-redone.") if "." in out else tmp_path / "folder-redone"
    assert code == 0 and said.splitlines()[-1] == f"{again.name}: the same bytes as {out}", err
    assert written(again) == first == written(tmp_path / out)
    shutil.rmtree(tmp_path / out) if out == "folder" else (tmp_path / out).unlink()
    assert command(*words)[0] == 0 and written(tmp_path / out) == first
    if out == "folder":
        images = undiffuse.sample(whole, 3, steps=3, seed=5, sampler="ddpm")
        for k in range(3):
            assert np.array_equal(np.asarray(Image.open(tmp_path / out / f"{k:06d}.png")), images[k, ..., 0])


def test_one_file_of_a_folder_is_made_again(command: Command, whole: Path, tmp_path: Path) -> None:
    """Under another name too: the number is in the file."""
    assert command("sample", whole, "-n", 3, "--steps", 2, "--out", "all")[0] == 0
    shutil.copy(tmp_path / "all" / "000002.png", tmp_path / "mine.PNG")
    code, out, err = command("redo", "mine.PNG", "-o", "again.png")
    assert code == 0 and "again.png: the same bytes as mine.PNG" in out, err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "all" / "000002.png").read_bytes()
    code, out, _ = command("show", "mine.PNG", "--json")
    assert json.loads(out)["sample"] == 2 and json.loads(out)["machine"]["threads"] == "1"


def edits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(tmp_path / "a photo.jpg")
    Image.fromarray(np.where(np.arange(40)[:, None] < 20, 255, np.zeros(32)).astype(np.uint8)).save(tmp_path / "m.png")


def test_edits_are_made_again_from_the_same_sources_alone(command: Command, whole: Path, tmp_path: Path) -> None:
    edits(tmp_path)
    words = ["edit", whole, "a photo.jpg", "--mask", "m.png", "--steps", 3, "-n", 2, "--out", "e.png"]
    code, _, err = command(*words)
    assert code == 0, err
    found = read_provenance(tmp_path / "e.png")
    assert found.sources == {name: provenance.sha256_of(tmp_path / name) for name in ("a photo.jpg", "m.png")}
    code, out, err = command("redo", "e.png")
    assert code == 0 and "the same bytes as e.png" in out, err
    photo = (tmp_path / "a photo.jpg").read_bytes()
    Image.open(io.BytesIO(photo)).rotate(180).save(tmp_path / "a photo.jpg")
    code, out, err = command("redo", "e.png", "-o", "x.png")
    assert code == 2 and "a photo.jpg is not the file that it was" in err and not (tmp_path / "x.png").exists()
    code, out, err = command("redo", "e.png", "-o", "x.png", "--force")
    assert code == 1 and "x.png: differs from e.png: a photo.jpg" in out and (tmp_path / "x.png").exists(), err
    (tmp_path / "a photo.jpg").unlink()
    code, _, err = command("redo", "e.png", "-o", "y.png")
    assert code == 2 and "a photo.jpg is not here" in err and len(err.splitlines()) == 1


def test_strokes_and_a_mask_by_command(command: Command, whole: Path, tmp_path: Path) -> None:
    """What is black in the mask keeps the bytes of the picture with its strokes; a soft mask needs a threshold."""
    edits(tmp_path)
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[8:, 4:6] = 255
    Image.fromarray(layer).save(tmp_path / "s.png")
    Image.fromarray(np.full((16, 16), 100, np.uint8) * (np.arange(16)[:, None] < 8)).save(tmp_path / "soft.png")
    words = ["edit", whole, "a photo.jpg", "--strokes", "s.png", "--steps", 2, "--out", "e.npz"]
    code, _, err = command(*words, "--mask", "soft.png")
    assert code == 2 and "--mask-threshold" in err and len(err.splitlines()) == 1
    code, _, err = command(*words, "--mask-threshold", 50)
    assert code == 2 and "name a --mask" in err
    code, _, err = command(*words, "--mask", "soft.png", "--mask-threshold", 50)
    assert code == 0, err
    (before,) = read_pictures([tmp_path / "a photo.jpg"], (16, 16, 1))
    (after,) = np.load(tmp_path / "e.npz")["images"]
    assert (after[8:, 4:6] == 255).all() and (after[:8] != before[:8]).mean() > 0.5
    assert np.array_equal(np.delete(after[8:], (4, 5), 1), np.delete(before[8:], (4, 5), 1))
    assert "the same bytes" in command("redo", "e.npz")[1]


def test_another_model_of_the_same_name_is_refused(command: Command, whole: Path, tmp_path: Path) -> None:
    """Of the same configuration; one weight is another."""
    shutil.copytree(find(whole), tmp_path / "run")
    assert command("sample", "run", "-n", 1, "--steps", 2, "-o", "x.png")[0] == 0
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    weights[min(weights)].view(-1)[0] += 1
    save_file(weights, tmp_path / "run" / "weights.safetensors")
    code, _, err = command("redo", "x.png", "-o", "y.png")
    assert code == 2 and "the model run is another one now" in err and "--force" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "y.png").exists()
    code, out, _ = command("redo", "x.png", "-o", "y.png", "--force")
    assert code == 1 and "y.png: differs from x.png: fingerprint" in out
    shutil.rmtree(tmp_path / "run")
    code, _, err = command("redo", "x.png")
    assert code == 2 and len(err.splitlines()) == 1


def test_another_machine_that_draws_the_same_is_told_from_one_that_does_not(
    command: Command, whole: Path, tmp_path: Path
) -> None:
    """The file says it was made by another torch: its pixels are compared. Then they are not those."""
    for name in ("x.png", "x.npz"):
        assert command("sample", whole, "-n", 1, "--steps", 2, "-o", name)[0] == 0
    bare = Image.open(tmp_path / "x.png")
    found = read_provenance(tmp_path / "x.png")
    older = replace(found, machine={**found.machine, "torch": "1.0"}).text()
    inscribe(tmp_path / "x.npz", older)
    bare.save(tmp_path / "x.png")
    inscribe(tmp_path / "x.png", older)
    for name in ("x.png", "x.npz"):
        code, out, err = command("redo", name)
        assert code == 0 and f"shows the same as {name}, in other bytes: torch" in out and "(was 1.0)" in out, err
    bare.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "x.png")
    inscribe(tmp_path / "x.png", found.text())
    code, out, _ = command("redo", "x.png")
    assert code == 1 and "differs from x.png: another program has changed it" in out


def test_the_engine_and_the_device_are_those_of_the_file(command: Command, whole: Path, tmp_path: Path) -> None:
    """What `auto` chose when the file was made; a machine that has them not says so, and --force goes without."""
    assert command("sample", whole, "-n", 1, "--steps", 2, "-o", "x.png")[0] == 0
    bare, found = Image.open(tmp_path / "x.png"), read_provenance(tmp_path / "x.png")
    for fact, said in (("engine", "no engine 'steam'"), ("device", "cannot use the device steam")):
        bare.save(tmp_path / "x.png")
        inscribe(tmp_path / "x.png", replace(found, machine={**found.machine, fact: "steam"}).text())
        code, _, err = command("redo", "x.png")
        assert code == 2 and said in err and len(err.splitlines()) == 1, err
        code, out, _ = command("redo", "x.png", "--force")
        assert code == 0 and f"{fact} {found.machine[fact]} (was steam)" in out


def test_the_lectures_pictures_say_what_drew_them(
    command: Command, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are shown, and not made again: that writes more than one file."""

    def one(model: object, out: Path, *_: object) -> Iterator[tuple[Path, str]]:
        out.mkdir()
        (out / "1-forward.png").write_bytes(png())
        yield out / "1-forward.png", "The forward process."

    monkeypatch.setattr("undiffuse.explain.draw", one)
    assert command("explain", whole, "--seed", 4, "--out", "lecture")[0] == 0
    assert command("show", "lecture/1-forward.png")[1].startswith(f"undiffuse explain {whole} --seed 4")
    code, _, err = command("redo", "lecture/1-forward.png")
    assert code == 2 and "only undiffuse sample and edit are run again" in err


def test_nothing_is_overwritten_without_force(command: Command, whole: Path, tmp_path: Path) -> None:
    assert command("sample", whole, "-n", 2, "--steps", 1, "-o", "x.png")[0] == 0
    assert command("sample", whole, "-n", 2, "--steps", 1, "-o", "all")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    for words in (("x.png", "-o", "x.png"), ("all", "-o", "all"), ("x.png", "-o", "x.npz"), ("x.png", "-o", "all")):
        code, _, err = command("redo", *words)
        assert code == 2 and len(err.splitlines()) == 1, words
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    for name in ("x-redone.png", "x-redone-2.png"):
        assert command("redo", "x.png")[1].splitlines()[-1].startswith(f"{name}: ")
    assert command("redo", "x.png", "-o", "x.png", "--force")[0] == 0
    assert command("redo", "all", "-o", "all", "--force")[0] == 0
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.glob(".tmp*"))


def test_arrays_with_a_recipe_are_data_without_a_remark(
    command: Command, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert command("sample", whole, "-n", 12, "--steps", 1, "-o", "x.npz")[0] == 0
    assert len(undiffuse.data.load(tmp_path / "x.npz", "all")) == 12 and "not used" not in caplog.text


# Files of strangers

FACTS: dict[str, Any] = json.loads(KNOWN.text())
HOSTILE = {
    "no JSON": "{",
    "empty": "",
    "a list": "[]",
    "deep": "[" * 20_000,
    "numbers": "1" * 20_000,
    "twice": '{"format": 1, "format": 1}',
    "NaN": '{"format": NaN}',
    "newer": json.dumps({**FACTS, "format": 2}),
    "more": json.dumps({**FACTS, "path": "/etc"}),
    "less": json.dumps({key: value for key, value in FACTS.items() if key != "seed"}),
    "seed": json.dumps({**FACTS, "seed": -1}),
    "hash": json.dumps({**FACTS, "fingerprint": "x"}),
    "quotes": json.dumps({**FACTS, "command": "undiffuse sample 'm"}),
    "half": json.dumps({**FACTS, "command": "undiffuse sample \udcff"}),
    "long": json.dumps({**FACTS, "command": "a" * 70_000}),
    "binary": "\x1b[31m\x00",
}
COMMANDS = (
    "",
    "undiffuse",
    "rm -rf run",
    "undiffuse train run --out x",
    "undiffuse redo x.png",
    "undiffuse --version",
    "undiffuse sample",
    "undiffuse sample --help",
    "undiffuse sample run --install-completion",
    "undiffuse sample run -n",
    "undiffuse sample run -n 0",
    "undiffuse sample run -n 1e9",
    "undiffuse sample run -n 1000000000000",
    "undiffuse sample run --sampler steam",
    "undiffuse sample run --steps x",
    "undiffuse sample /dev/zero",
    "undiffuse sample run --guide /dev/zero",
    "undiffuse sample 'run\0'",
    "undiffuse sample run; touch x",
    "undiffuse edit run /dev/zero",
    "undiffuse edit run x.png --restore /dev/zero.npz",
    "undiffuse sample run -n 1 --steps 1 --seed 4",  # another model than the file says
)


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_recipes_are_one_line(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.png").write_bytes(with_text(png(), KEYWORD, HOSTILE[name]))
    for words in (("show", "x.png"), ("redo", "x.png")):
        code, out, err = command(*words)
        assert code in (1, 2) and len(err.splitlines()) == 1 and not out, err
        assert "(unexpected" not in err and "x.png" in err and len(err) < 400 and "\x1b" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_of_strangers_are_parsed_and_never_run_blindly(
    command: Command, whole: Path, tmp_path: Path, words: str
) -> None:
    (tmp_path / "run").symlink_to(whole)
    (tmp_path / "x.png").write_bytes(with_text(png(), KEYWORD, replace(KNOWN, command=words, sources={}).text()))
    code, out, err = command("redo", "x.png")
    assert code in (1, 2) and len(err.splitlines()) == 1 and "(unexpected" not in err, err
    assert "Usage" not in out and sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.png"]
    assert command("show", "x.png")[0] == 0


def test_a_strangers_command_writes_to_the_new_file_alone(command: Command, whole: Path, tmp_path: Path) -> None:
    """Whatever it says of its own output; and what it says cannot colour the terminal."""
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "run").symlink_to(whole)
    words = "undiffuse sample run -n 1 --steps 1 --out mine.png --force --class dark\x1b[31m"
    text = replace(KNOWN, command=words, fingerprint=undiffuse.load(whole).fingerprint, sources={}).text()
    (tmp_path / "x.png").write_bytes(with_text(png(), KEYWORD, text))
    code, out, err = command("redo", "x.png", "-o", "new.png")
    assert code == 2 and "\x1b" not in out + err
    text = text.replace("dark\\u001b[31m", "dark")
    (tmp_path / "x.png").write_bytes(with_text(png(), KEYWORD, text))
    code, out, err = command("redo", "x.png", "-o", "new.png")
    assert code == 1 and "differs" in out, err
    assert (tmp_path / "mine.png").read_text() == "mine" and (tmp_path / "new.png").exists()


def test_spoilt_files_are_one_line(tmp_path: Path) -> None:
    """Bits flipped, cut off, cut out: the recipe as it was, none, or one clear sentence."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", images=np.arange(4))
    inscribe(tmp_path / "a.npz", KNOWN.text())
    sound = (with_text(png(), KEYWORD, KNOWN.text()), (tmp_path / "a.npz").read_bytes())
    outcomes = {"read": 0, "refused": 0}
    for number in range(600):
        raw = bytearray(sound[number % 2])
        first, last = sorted(random.integers(0, len(raw), 2))
        match random.integers(3):
            case 0:
                for place in random.integers(0, len(raw), 4):
                    raw[place] ^= 1 << random.integers(8)
            case 1:
                del raw[first:]
            case 2:
                del raw[first:last]
        (tmp_path / "x").write_bytes(raw)
        try:
            found = read_provenance(tmp_path / "x")
            assert number % 2 or found == KNOWN  # a PNG has checksums
            outcomes["read"] += 1
            continue
        except undiffuse.UndiffuseError as error:
            said = str(error)
        outcomes["refused"] += 1
        assert 0 < len(said) < 600 and said.isprintable()
    assert min(outcomes.values()) > 50


def test_what_holds_no_recipe_says_so(command: Command, tmp_path: Path) -> None:
    (tmp_path / "plain.png").write_bytes(png())
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.png").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "plain.npz", "w") as archive:
        archive.writestr("a", b"")
    for name in ("plain.png", "plain.npz", "zero.png", "empty", "missing.png", "/dev/null"):
        for words in (("show", name), ("redo", name)):
            code, out, err = command(*words)
            assert code in (1, 2) and name in err and len(err.splitlines()) == 1 and not out, err
    assert LONGEST == 2**16 - 1  # what a zip file's comment can hold
