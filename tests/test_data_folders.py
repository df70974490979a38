"""What the folders of a data set mean: splits, classes, wrappers, and what is no data."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse import data, model
from undiffuse.data import layout, remarks, splits
from undiffuse.errors import UndiffuseError, UsageError

Tree = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a folder of files at these paths: grey pictures, each of its own value, or empty files of other kinds."""

    def make(*paths: str) -> Path:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for index, path in enumerate(paths):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if Path(path).suffix in (".png", ".jpg"):
                Image.new("L", (8, 8), 100 + index).save(root / path)
            else:
                (root / path).write_bytes(b"?")
        return root

    return make


def classes_of(root: Path, split: str = "all") -> dict[str, str | None]:
    """name -> class of every picture of a split."""
    got = data.load(root, split)
    labels = [None] * len(got) if got.labels is None else [got.classes[label] for label in got.labels]
    return dict(zip(got.names, labels, strict=True))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[
            ("train", "test"),
            ("Training", "Testing"),
            ("TRAIN", "Val"),
            ("train", "validation"),
            ("train_set", "valid"),
        ],
        *[("seg_train", "seg_test"), ("trainset", "testset"), ("train2017", "val2017"), ("train", "dev")],
        *[("training-data", "eval"), ("Train Images", "Test Images")],
    ],
)
def test_splits_in_any_usual_spelling(tree: Tree, train: str, test: str) -> None:
    root = tree(f"{train}/a/0.png", f"{train}/b/0.png", f"{test}/a/0.png", f"{test}/b/0.png")
    assert classes_of(root, "train") == {f"{train}/a/0.png": "a", f"{train}/b/0.png": "b"}
    assert classes_of(root, "test") == {f"{test}/a/0.png": "a", f"{test}/b/0.png": "b"}


@pytest.mark.parametrize("name", ["trainer", "contest", "tests of skill", "devil", "values", "strain", "cat", "2017"])
def test_words_that_are_no_splits(name: str) -> None:
    assert layout.role(name) is None


@pytest.mark.parametrize(
    "prefix",
    ["train/", "Training/", "zip/animals/train/", "zip/animals/", "images/train/", "animals/", "train/images/"],
)
def test_wrappers_and_a_lone_split_are_no_classes(tree: Tree, prefix: str) -> None:
    root = tree(f"{prefix}cat/0.png", f"{prefix}cat/1.png", f"{prefix}dog/deep/er/0.png", "notes.txt", "labels/0.txt")
    assert classes_of(root) == {
        f"{prefix}cat/0.png": "cat",
        f"{prefix}cat/1.png": "cat",
        f"{prefix}dog/deep/er/0.png": "dog",
    }


@pytest.mark.parametrize("prefix", ["", "zip/", "zip/animals/", "images/"])
def test_splits_inside_wrappers(tree: Tree, prefix: str) -> None:
    root = tree(
        f"{prefix}train/cat/0.png", f"{prefix}train/dog/0.png", f"{prefix}val/cat/0.png", f"{prefix}val/dog/0.png"
    )
    assert set(classes_of(root, "train").values()) == {"cat", "dog"}
    assert classes_of(root, "test") == {f"{prefix}val/cat/0.png": "cat", f"{prefix}val/dog/0.png": "dog"}


def test_wrappers_below_the_splits(tree: Tree) -> None:
    root = tree(*(f"seg_{split}/seg_{split}/{kind}/0.png" for split in ("train", "test") for kind in ("sea", "wood")))
    assert list(classes_of(root, "train").values()) == ["sea", "wood"]
    assert list(classes_of(root, "test").values()) == ["sea", "wood"]


def test_wrappers_that_name_no_class(tree: Tree) -> None:
    """As detection sets have them: train/images beside train/labels."""
    root = tree(*(f"{split}/{kind}/0.{end}" for split in ("train", "valid") for kind, end in
                  (("images", "png"), ("labels", "txt"))))  # fmt: skip
    assert classes_of(root, "train") == {"train/images/0.png": None}
    assert classes_of(root, "test") == {"valid/images/0.png": None}


def test_images_alone_are_no_class(tree: Tree) -> None:
    assert classes_of(tree("zip/images/0.png", "zip/images/1.png")) == {
        "zip/images/0.png": None,
        "zip/images/1.png": None,
    }


@pytest.mark.parametrize("wrapper", ["", "zip/"])
def test_splits_inside_classes(tree: Tree, caplog: pytest.LogCaptureFixture, wrapper: str) -> None:
    paths = ("cat/train/0.png", "cat/test/a/0.png", "dog/Train/0.png", "dog/test/0.png", "dog/val/0.png")
    root = tree(*(wrapper + path for path in paths))
    assert classes_of(root, "train") == {f"{wrapper}cat/train/0.png": "cat", f"{wrapper}dog/Train/0.png": "dog"}
    assert classes_of(root, "test") == {f"{wrapper}cat/test/a/0.png": "cat", f"{wrapper}dog/test/0.png": "dog"}
    assert "1 pictures are in neither split" in caplog.text


def test_a_class_called_much_like_a_split(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("bullet_train/0.png", "test-tube/0.png", "cat/0.png")
    assert set(classes_of(root).values()) == {"bullet_train", "test-tube", "cat"}
    assert "bullet_train, test-tube are taken for classes" in caplog.text


@pytest.mark.parametrize("empty", ["dog/notes.txt", "dog/deep/.keep", "test/.keep"])
def test_folders_without_a_picture_are_told(tree: Tree, caplog: pytest.LogCaptureFixture, empty: str) -> None:
    assert set(classes_of(tree("cat/0.png", "bee/0.png", empty)).values()) == {"cat", "bee"}
    assert f"no pictures in {empty.split('/')[0]}: not used as class" in caplog.text


def test_an_empty_class_of_one_split_is_told(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    data.load(tree("train/a/0.png", "train/b/0.png", "train/c/x.txt", "test/a/0.png", "test/b/0.png", "labels/0.txt"))
    assert "root/train: no pictures in train/c" in caplog.text
    assert "labels" not in caplog.text


def test_one_class_keeps_its_name(tree: Tree) -> None:
    root = tree("cat/2024/0.png", "cat/2024/1.png")
    assert set(classes_of(root).values()) == {"cat"}
    tree("cat/2.png", "cat/2025/0.png")  # pictures of its own: no wrapper
    assert set(classes_of(root).values()) == {"cat"}


def test_one_class_below_a_lone_train(tree: Tree) -> None:
    assert set(classes_of(tree("zip/train/cat/0.png", "zip/train/cat/1.png")).values()) == {"cat"}


def test_flat_splits_have_no_classes(tree: Tree) -> None:
    root = tree("train/0.png", "train/1.png", "test/0.png")
    assert classes_of(root, "train") == {"train/0.png": None, "train/1.png": None}
    assert classes_of(root, "test") == {"test/0.png": None}


def test_a_flat_test_split_is_unlabelled(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("train/a/0.png", "train/b/0.png", "test/0.png", "test/1.png")
    assert classes_of(root, "train") == {"train/a/0.png": "a", "train/b/0.png": "b"}
    test = data.load(root, "test")
    assert (test.names, test.labels, test.classes) == (("test/0.png", "test/1.png"), None, ())
    assert data.load(root, "all").labels is None
    assert "test/ has no class folders" in caplog.text


def test_test_classes_without_training_classes_are_not_used(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("train/0.png", "test/a/0.png", "test/b/0.png")
    assert set(classes_of(root, "test").values()) == {None}
    assert data.load(root).classes == data.load(root, "test").classes == ()
    assert "those of test/ are not used" in caplog.text


def test_what_lies_beside_the_splits_is_counted(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("train/a/0.png", "test/a/0.png", "val/a/0.png", "val/a/1.png", "extra/0.png", "logo.png")
    assert set(classes_of(root)) == {"train/a/0.png", "test/a/0.png"}
    assert "4 pictures are in neither split and not used: extra/ (1), logo.png, val/ (2)" in caplog.text


def test_a_class_called_test(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("cat/0.png", "dog/0.png", "test/0.png")
    assert set(classes_of(root).values()) == {"cat", "dog", "test"}
    assert "test is taken for a class" in caplog.text


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train/a/0.png", "train/b/0.png", "extra/0.png"), "train beside extra may be splits or classes"),
        (("test/a/0.png", "val/a/0.png"), "test, val alone may be splits"),
        (("train/a/0.png", "Training/a/0.png", "test/a/0.png"), "Training, train may each be the train split"),
        (("train/a/0.png", "Test/a/0.png", "test/a/0.png"), "Test, test may each be the test split"),
        (
            ("train/a/0.png", "train/stray.png", "test/a/0.png"),
            r"train: 1 pictures lie beside class folders .*stray\.png",
        ),
        (("trainA/0.png", "trainB/0.png", "testA/0.png"), "testA, trainA, trainB may be splits or classes"),
        (("train_32x32/0.png", "valid_32x32/0.png"), "train_32x32, valid_32x32 may be splits"),
        (("test.v1/a/0.png", "train.v1/a/0.png"), "test.v1, train.v1 may be splits"),
        (("a/train/0.png", "a/test/0.png", "b/ground_truth/0.png"), "1 pictures are in neither .*ground_truth/0.png"),
        (("train/a/0.png", "test/a/0.heic"), r"test holds only pictures in unsupported formats \(1 \.heic\)"),
    ],
)
def test_what_would_be_a_guess_is_refused(tree: Tree, paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.load(tree(*paths))


def test_thumbnails_and_leavings_are_no_pictures(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    kept = {"cat/0.png": "cat", "dog/0.png": "dog"}
    junk = [
        "cat/@eaDir/0.png/SYNO_THUMB.jpg",
        "Thumbs/0.png",
        "__MACOSX/cat/._0.png",
        "cat/._0.png",
        "lost+found/0.png",
    ]
    junk += [".thumbnails/0.png", ".ipynb_checkpoints/0.png", "dog/Thumbs.db", "dog/desktop.ini", "@eaDir/dog/0.jpg"]
    assert classes_of(tree(*kept, *junk)) == kept
    assert "left out 4: thumbnails" in caplog.text
    assert "cat/@eaDir" in caplog.text
    assert "MACOSX" not in caplog.text  # it holds none


def test_kinds_that_are_not_read_are_counted(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("cat/0.png", "cat/1.HEIC", "cat/2.heic", "dog/0.png", "dog/1.jxl", "dog/README.txt")
    assert set(classes_of(root)) == {"cat/0.png", "dog/0.png"}
    assert "left out 3 files (2 .heic, 1 .jxl)" in caplog.text
    assert "convert them to PNG" in caplog.text


def test_every_kind_is_counted(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    data.load(tree("0.png", *(f"a.{kind}" for kind in ("heic", "jxl", "svg", "jls", "exr", "psd", "nef"))))
    assert re.search(r"left out 7 files \((1 \.\w+, ){5}2 of other kinds\)", caplog.text)


@pytest.mark.parametrize(
    "begins", [b"\xff\x0a", b"\0\0\0\x18ftypheic\0\0\0\0", b"\0\0\0\x0cJXL \r\n\x87\n", b"8BPS\0\1"]
)
def test_kinds_that_are_not_read_by_their_content(tree: Tree, caplog: pytest.LogCaptureFixture, begins: bytes) -> None:
    root = tree("cat/0.png", "cat/photo")
    (root / "cat/photo").write_bytes(begins + bytes(20))
    assert set(classes_of(root)) == {"cat/0.png"}
    assert "left out 1 files (1 without an extension): pictures in unsupported formats" in caplog.text


def test_a_class_does_not_vanish(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"class dog can be read: 2 \.cr2 are not supported. Convert"):
        data.load(tree("cat/0.png", "dog/0.cr2", "dog/1.CR2"))


def test_a_wrapper_is_told_by_all_kinds(tree: Tree) -> None:
    """zip/ alone holds pictures that are read, but it is a class beside raw/."""
    with pytest.raises(UsageError, match="class raw can be read"):
        data.load(tree("zip/a/0.png", "zip/b/0.png", "raw/a/0.nef"))


def test_only_kinds_that_are_not_read(tree: Tree) -> None:
    with pytest.raises(UsageError, match=r"no images in .*: 1 \.jxl, 1 \.svg cannot be read; convert"):
        data.load(tree("a/0.jxl", "a/1.svg"))


def test_pictures_by_content(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("cat/0.png", "cat/1.png", "cat/2.png", "cat/LICENSE")
    (root / "cat/1.png").rename(root / "cat/n02085620_7")
    (root / "cat/2.png").rename(root / "cat/2.png~")
    Image.new("L", (8, 8), 50).save(root / "cat/lies.jpg", "png")
    got = data.load(root, "all")
    assert got.names == ("cat/0.png", "cat/lies.jpg", "cat/n02085620_7")
    assert got.images[:, 0, 0, 0].tolist() == [100, 50, 101]
    assert "left out 1 files (1 .png~): pictures by their content but not by their name" in caplog.text


def test_a_link_to_a_class_beside_it_is_refused_in_any_order(tree: Tree) -> None:
    for name in ("aardvark", "zebra"):
        root = tree("cat/0.png", "dog/0.png")
        (root / name).symlink_to(root / "cat")
        with pytest.raises(UsageError, match="one folder with two names") as caught:
            data.load(root)
        assert "cat" in str(caught.value)
        assert name in str(caught.value)
        (root / name).unlink()


def test_links_elsewhere_are_followed_and_loops_are_not(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree("cat/0.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (8, 8), 7).save(tmp_path / "elsewhere" / "0.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "up").symlink_to(tmp_path)
    (root / "cow").symlink_to(tmp_path / "nowhere")
    assert classes_of(root) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    assert "left out 1: broken links: cow" in caplog.text


def test_a_folder_that_cannot_be_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = tree("cat/0.png", "dog/0.png"), os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UndiffuseError, match=r"cannot read the folder .*dog: Permission denied"):
        data.load(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_does_not_hang(tree: Tree) -> None:
    root = tree("0.png")
    os.mkfifo(root / "1.png")
    os.mkfifo(root / "2")
    with pytest.raises(UndiffuseError, match=r"1 of 2 images[\s\S]*1\.png: not a regular file"):
        data.load(root)


@pytest.mark.parametrize("run", ["runs/root", "cat/run"])
def test_runs_are_no_data(tree: Tree, run: str, caplog: pytest.LogCaptureFixture) -> None:
    written = [f"{run}/run.json", f"{run}/metrics.jsonl", f"{run}/previews/step-1.png", f"{run}/other.png"]
    root = tree("cat/0.png", "dog/0.png", *written)
    assert classes_of(root) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    assert f"the output of undiffuse is not data: {run}" in caplog.text


def test_a_run_among_its_own_data(tree: Tree) -> None:
    assert set(classes_of(tree("0.png", "1.png", "run.json", "metrics.jsonl", "previews/step-1.png"))) == {
        "0.png",
        "1.png",
    }


def test_a_run_alone_is_no_data(tree: Tree) -> None:
    with pytest.raises(UsageError, match="holds a model and no data"):
        data.load(tree("run.json", "metrics.jsonl", "previews/step-1.png"))


def test_training_on_the_working_directory_goes_on(tree: Tree, command: Callable[..., tuple[int, str, str]]) -> None:
    root = tree(*(f"{index}.png" for index in range(12)))
    os.chdir(root)
    tiny = ["training.batch_size=4", "network.channels=8", "training.preview_every=1", "training.checkpoint_every=1"]
    settings = [part for setting in tiny for part in ("--set", setting)]
    assert command("train", ".", "--out", "runs/here", "--steps", 2, *settings)[0] == 0
    assert list((root / "runs/here/previews").glob("*.png"))
    code, out, error = command("train", ".", "--out", "runs/here", "--resume")
    assert (code, "already finished at step 2" in out) == (0, True), error


LATIN = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8, as an old disk has it


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_plain_text(
    tree: Tree, command: Callable[..., tuple[int, str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(*(f"{kind}/{LATIN}{index}\n.png" for kind in (LATIN, "tea\x1b[31m") for index in range(2)))
    code, out, _ = command("data", "show", root, "--out", root.parent / "sheet.png")
    assert code == 0
    assert "2 caf\\xe9\n" in out
    assert "written caf\\xe9, tea\\x1b[31m" in caplog.text
    run = root.parent / "run"
    settings = ["--set", "training.batch_size=4", "--set", "network.channels=8", "--steps", 1]
    assert command("train", root, "--out", run, *settings)[0] == 0
    assert model.load(run).data.classes == ("caf\\xe9", "tea\\x1b[31m")
    assert model.load(run).label("caf\\xe9") == 0
    assert data.load(root).names[0] == "caf\\xe9/caf\\xe90\\n.png"
    (root / "caf\\xe9").mkdir()
    Image.new("L", (8, 8)).save(root / "caf\\xe9" / "0.png")
    with pytest.raises(UsageError, match="both written"):
        data.load(root)
    (root / LATIN / "broken\n.png").write_bytes(b"?")
    (root / "caf\\xe9" / "0.png").unlink()
    with pytest.raises(UndiffuseError) as caught:
        data.load(root)
    str(caught.value).encode()
    os.rename(root, root.parent / LATIN)
    with pytest.raises(UsageError, match=r"caf\\xe9 is not plain UTF-8 text"):
        data.load(root.parent / LATIN)


def test_a_class_keeps_a_training_image() -> None:
    labels = np.repeat(np.arange(30), 2)
    plain, kept = splits.held_out(60), splits.held_out(60, labels)
    assert set(labels[~kept]) == set(range(30))
    emptied = set(range(30)) - set(labels[~plain])
    alone = np.arange(60)
    assert splits.held_out(60, alone).sum() == 0
    assert np.array_equal(splits.held_out(60, labels * 0), plain)
    assert kept.sum() == plain.sum() - len(emptied)
    labels[np.flatnonzero(plain)[[1, 3]]] = 99  # a class that would be held out as a whole
    kept = splits.held_out(60, labels)
    assert np.flatnonzero(kept != plain)[0] == np.flatnonzero(plain)[1]
    assert (labels[~kept] == 99).sum() == 1


def test_classes_without_a_training_image_are_told_and_never_drawn(
    tree: Tree, caplog: pytest.LogCaptureFixture, command: Callable[..., tuple[int, str, str]]
) -> None:
    root = tree("train/ant/0.png", "train/cow/0.png", "test/ant/0.png", "test/bee/0.png", "test/yak/0.png")
    got = data.load(root)
    assert got.classes == ("ant", "bee", "cow", "yak")
    assert "no image to train on in 2 of 4 classes: bee, yak" in caplog.text
    run = root.parent / "run"
    settings = ["--set", "training.batch_size=4", "--set", "network.channels=8", "--steps", 1]
    assert command("train", root, "--out", run, *settings)[0] == 0
    trained = model.load(run)
    assert trained.data.learnt == ("ant", "cow")
    assert set(trained.condition(range(10_000)).index.tolist()) == {0, 2}
    code, _, error = command("sample", run, "--class", "bee")
    assert code == 2
    assert "saw no picture of 'bee' in training" in error
    assert "ant, cow" in error
    facts = dataclasses.replace(
        trained.data, class_share=(0.4999996, 0, 0.4999996, 0)
    )  # rounded shares may sum to less than 1
    assert set(dataclasses.replace(trained, data=facts).condition(range(1000)).index.tolist()) == {0, 2}


def test_a_class_emptied_by_skip_corrupt_is_told(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree("ant/0.png", "bee/0.png")
    (root / "bee/0.png").write_bytes(b"?")
    data.load(root, skip_corrupt=True)
    assert "no image to train on in 1 of 2 classes: bee" in caplog.text


def test_gaps_in_array_labels_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.full((4, 8, 8), 200, np.uint8)
    np.savez(tmp_path / "m.npz", images=images, labels=np.array([0, 2, 2, 0]))
    data.load(tmp_path / "m.npz")
    assert "1 of 3 classes: 1." in caplog.text


@pytest.mark.parametrize(("values", "told"), [([0, 1], True), ([0, 16], True), ([0, 64], True), ([0, 200], False)])
def test_nearly_black_images_are_told_each_time(
    tmp_path: Path, values: list[int], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.resize(np.array(values, np.uint8), (4, 8, 8))
    np.save(tmp_path / "m.npy", images)
    for _ in range(2):  # built, and from the cache
        caplog.clear()
        remarks.warn.cache_clear()
        data.load(tmp_path / "m.npy")
        assert (f"the brightest value of all images is {max(values)} of 255" in caplog.text) is told


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "root").mkdir()
    Image.fromarray(ramp).save(tmp_path / "root" / "0.png")
    data.load(tmp_path / "root")
    assert "the brightest value of all images is 16 of 255" in caplog.text


def test_the_command_shows_remarks_once(tree: Tree) -> None:
    root = tree("cat/0.png", "cat/1.heic")
    arguments = ["data", "show", str(root), "--out", str(root.parent / "sheet.png")]
    shown = subprocess.run([sys.executable, "-m", "undiffuse", *arguments], capture_output=True, text=True, check=True)
    assert shown.stderr.count("1 .heic") == 1


def test_plain_folders_keep_their_fingerprints(tree: Tree) -> None:
    """Computed by the version before this test."""
    root = tree(*(f"{kind}/{index}.png" for kind in ("cat", "dog") for index in range(10)))
    assert data.load(root).fingerprint == "f5f342eba1c5845bcbc3a27cc76279bddb27087bfcbbd58b40c82ae3f2d251bd"
    assert data.load(root, "test").fingerprint == "e80af551bf423876a26bdec6b91808958e62cb2f3e3b83b634b502462b2b46d4"
