"""`undiffuse edit` as it is typed: what each technique writes, what stays, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from undiffuse.generate import Recipe, generate
from undiffuse.model import load


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of the tiny model's size and others, a hard mask, a soft one, strokes."""
    values = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    for name, row in zip("ab", values, strict=True):
        Image.fromarray(row).save(tmp_path / f"{name}.png")
    Image.fromarray(values[0]).resize((64, 48)).save(tmp_path / "large.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:12, 6:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask // 2 + 20).save(tmp_path / "soft.png")
    Image.fromarray(mask).resize((64, 48), 0).save(tmp_path / "large-mask.png")
    Image.fromarray(0 * mask).save(tmp_path / "black.png")
    layer = np.zeros((16, 16, 4), dtype=np.uint8)
    layer[2:5, 2:5] = 255
    Image.fromarray(layer).save(tmp_path / "strokes.png")
    return tmp_path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_strength_zero_and_one(command: Command, whole: Path, pictures: Path) -> None:
    """0 writes the input's pixels; 1, with a class, what `sample` draws."""
    model = load(whole)
    for strength, out in (("0", "same"), ("1", "new")):
        options = ["--class", "1", "--strength", strength, "--steps", 3, "-n", 2, "--out", pictures / out]
        assert command("edit", whole, pictures / "a.png", *options)[0] == 0
    for name in ("000000.png", "000001.png"):
        np.testing.assert_array_equal(read(pictures / "same" / name), read(pictures / "a.png"))
    (drawn,) = generate(model, Recipe(steps=3), range(2), model.of_class(1, 2))
    for number, row in enumerate(drawn):
        np.testing.assert_array_equal(read(pictures / "new" / f"{number:06d}.png"), row[..., 0])


@pytest.mark.parametrize("more", [[], ["--resampling", 2, "--sampler", "ddpm"], ["--strength", ".4"]])
def test_bytes_outside_of_a_mask_stay(command: Command, whole: Path, pictures: Path, more: list) -> None:
    options = ["--mask", pictures / "mask.png", "--steps", 3, *more, "--out", pictures / "out"]
    assert command("edit", whole, pictures / "a.png", pictures / "b.png", *options)[0] == 0
    white = read(pictures / "mask.png") > 0
    for number, name in enumerate("ab"):
        before, after = read(pictures / f"{name}.png"), read(pictures / "out" / f"{number:06d}.png")
        np.testing.assert_array_equal(after[~white], before[~white])
        assert (after[white] != before[white]).any()


def test_a_mask_of_the_pictures_size_is_cropped_with_it(command: Command, whole: Path, pictures: Path) -> None:
    """48 of 64 columns are kept and scaled to 16: a third, as the mask's are."""
    options = ["--mask", pictures / "large-mask.png", "--steps", 2, "--out", pictures / "out.npy"]
    assert command("edit", whole, pictures / "large.png", *options)[0] == 0
    plain = ["--strength", "0", "--out", pictures / "plain.npy"]
    assert command("edit", whole, pictures / "large.png", *plain)[0] == 0
    changed = (np.load(pictures / "out.npy") != np.load(pictures / "plain.npy"))[0, ..., 0]
    columns = np.asarray(Image.open(pictures / "large-mask.png").crop((8, 0, 56, 48)).resize((16, 16), 0)) > 0
    assert changed[columns].any() and not changed[~columns].any()


@pytest.mark.parametrize(
    "options",
    [
        ["--strokes", "strokes.png"],
        ["--outpaint", ".5"],
        ["--passes", "2"],
        ["--invert", "friendly", "--class", "1", "--strength", ".5"],
        ["--style", "b.png", "--switch", ".4"],
        ["--class", "0", "--class", "1", "--guidance", "2"],
    ],
)
def test_each_technique_writes_pictures(command: Command, whole: Path, pictures: Path, options: list) -> None:
    here = [pictures / one if one.endswith(".png") else one for one in options]
    code, out, err = command(
        "edit", whole, pictures / "a.png", *here, "-n", 2, "--steps", 3, "--out", pictures / "x.npz"
    )
    assert (code, err) == (0, "")
    assert "2 samples of 16x16" in out
    with np.load(pictures / "x.npz") as file:
        assert (file["images"] != read(pictures / "a.png")[..., None]).any((1, 2, 3)).all()


def test_inversion_as_another_class(command: Command, whole: Path, pictures: Path) -> None:
    options = ["--invert", "exact", "--from-class", "0", "--class", "1", "--steps", 3, "--out", pictures / "x.npy"]
    assert command("edit", whole, pictures / "a.png", *options)[0] == 0
    assert (np.load(pictures / "x.npy")[0, ..., 0] != read(pictures / "a.png")).any()


@pytest.mark.parametrize("words", [["edit", "MODEL", "a.png"], ["train-classifier", "emoji"]])
def test_work_that_is_not_shared_is_not_done_twice(
    command: Command, whole: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, words: list
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command(*(whole if word == "MODEL" else word for word in words))
    assert code == 2 and f"{words[0]} runs in one process" in err


@pytest.mark.parametrize("path", ["slerp", "mean"])
def test_an_interpolation_begins_and_ends_with_the_pictures(
    command: Command, whole: Path, pictures: Path, path: str
) -> None:
    options = ["--to", pictures / "b.png", "--frames", 4, "--path", path, "--steps", 3, "--out", pictures / "out"]
    assert command("edit", whole, pictures / "a.png", *options)[0] == 0
    frames = [read(pictures / "out" / f"{k:06d}.png") for k in range(4)]
    np.testing.assert_array_equal(frames[0], read(pictures / "a.png"))
    np.testing.assert_array_equal(frames[3], read(pictures / "b.png"))


def test_a_restoration_says_how_well_it_fits(command: Command, whole: Path, pictures: Path) -> None:
    Image.fromarray(read(pictures / "a.png")[:4, :4]).save(pictures / "small.png")
    options = ["--restore", "superres:4", "-n", 2, "--steps", 4, "--noise", ".1", "--out", pictures / "out"]
    code, out, _ = command("edit", whole, pictures / "small.png", *options)
    assert code == 0 and "residual" in out
    assert read(pictures / "out" / "000001.png").shape == (16, 16)
    np.save(pictures / "small.npy", read(pictures / "small.png")[..., None])
    options[-1] = pictures / "numbers"
    assert command("edit", whole, pictures / "small.npy", *options)[0] == 0
    np.testing.assert_array_equal(read(pictures / "numbers" / "000001.png"), read(pictures / "out" / "000001.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "there is no such file"),
        (["."], "is a folder"),
        (["a.png", "--mask", "soft.png"], "--mask-threshold 128"),
        (["a.png", "--mask", "large-mask.png"], "is 64x48: it must have the size of the picture, 16x16"),
        (["a.png", "--mask", "black.png"], "white is what is repainted"),
        (["a.png", "--strokes", "b.png"], "no transparent part"),
        (["a.png", "--strength", "1.5"], "between 0, which changes nothing"),
        (["a.png", "--to", "b.png", "--style", "b.png"], "--to and --style are different edits"),
        (["a.png", "--to", "b.png", "-n", "2"], "leave -n out"),
        (["a.png", "--to", "b.png", "--mask", "mask.png"], "--mask has no effect on --to"),
        (["a.png", "--mask", "mask.png", "--outpaint", ".5"], "each say what to repaint"),
        (["a.png", "--to", "b.png", "--guidance", "2"], "--guidance has no effect on --to"),
        (["a.png", "--style", "b.png", "--class", "1"], "--class has no effect on --style"),
        (["a.png", "--invert", "exact", "-n", "2"], "leave -n out"),
        (["a.png", "--invert", "exact", "--sampler", "heun"], "--sampler has no effect on --invert"),
        (["a.png", "--restore", "blur:1", "--guidance", "2"], "--guidance has no effect on --restore"),
        (["a.png", "--restore", "blur:1", "--sampler", "ddpm-learned"], "has not learnt its variance"),
        (["broken.npy", "--restore", "blur:1"], "broken.npy: not an array of numbers"),
        (["archive.npy", "--restore", "blur:1"], "it is an .npz file"),
        (["a.png", "--switch", ".3"], "--switch has no effect on this edit"),
        (["a.png", "--class", "0", "--not", "1"], "--not needs a --guidance"),
        (["a.png", "--class", "0", "--class", "1", "--apg", "0", "--guidance", "2"], "are for one class"),
        (["a.png", "--outpaint", ".01"], "adds no pixel"),
        (["a.png", "--resampling", "2"], "name a --mask or --outpaint"),
        (["a.png", "--invert", "x"], "no inversion is called 'x'"),
        (["a.png", "--restore", "x"], "no restoration 'x'"),
        (["a.png", "b.png", "--restore", "blur:1"], "one file at a time"),
        (["a.png", "--out", "b.png"], "exists already"),
        (["a.png", "--class", "zebra"], "zebra"),
    ],
)
def test_refusals(
    command: Command, whole: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, message: str
) -> None:
    monkeypatch.chdir(pictures)
    Path("broken.npy").write_bytes(b"not NumPy's")
    with Path("archive.npy").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    before = {path.name: path.read_bytes() for path in pictures.glob("*.png")}
    code, _, err = command("edit", whole, *arguments)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in pictures.glob("*.png")} == before
