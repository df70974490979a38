"""Arrays as people have them: what they are called, how they lie, what their numbers and labels mean."""

import gzip
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from undiffuse import data
from undiffuse.data import idx
from undiffuse.data.arrays import open_arrays
from undiffuse.errors import UndiffuseError, UsageError

pytestmark = pytest.mark.usefixtures("own_cache")


def noise(*shape: int) -> np.ndarray:
    """Random bytes, 0 and 255 among them."""
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    values.flat[:2] = 0, 255
    return values


def refusal(path: Path) -> str:
    with pytest.raises(UndiffuseError) as caught:
        data.load(path, "all")
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "uint16", "int32", ">i4", ">u2", "uint64", "int16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_wider_integers_of_0_to_255_are_the_same_pictures(tmp_path: Path, dtype: str, order: str) -> None:
    images = noise(5, 6, 7, 3)
    np.save(tmp_path / "m.npy", np.asarray(images, dtype=dtype, order=order))
    assert np.array_equal(data.load(tmp_path / "m.npy", "all").images, images)


RAMP = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
RECIPES = {
    "0 to 1": (RAMP.astype(np.float32) / 255, {}),
    "0 to 1 with overshoot": (np.float64(RAMP) / 255 * 1.0004 - 0.0002, {}),
    "0 to 1 in half precision": ((RAMP / 255).astype(np.float16), {}),
    "-1 to 1": (RAMP.astype(np.float64) / 127.5 - 1, {}),
    "0 to 255 floats": (RAMP.astype(np.float32), {}),
    "0 to 65535 floats": (RAMP.astype(np.float32) * 257, {"WHITE": 65535}),
    "16 bits": (RAMP.astype(np.uint16) * 257, {"WHITE": 65535}),
    "12 bits": ((RAMP.astype(np.int32) * 4095 + 127) // 255, {"WHITE": 4095}),
    "10 bits": ((RAMP.astype(np.int32) * 1023 + 127) // 255, {"WHITE": 1023}),
    "-128 to 127": ((RAMP.astype(np.int16) - 128).astype(np.int8), {}),
    "0 and 1": ((RAMP > 127).astype(np.int64), {}),
    "0 to 16": (np.rint(RAMP / 255 * 16).astype(np.int64), {"WHITE": 16}),
    "0 to 16 floats": (np.rint(RAMP / 255 * 16), {"WHITE": 16}),
    "standardised": ((RAMP - 127.5) / 64, {"BLACK": -127.5 / 64, "WHITE": 127.5 / 64}),
}


@pytest.mark.parametrize("case", RECIPES)
def test_the_conversion_named_is_right_for_the_values_seen(tmp_path: Path, case: str) -> None:
    """Carried out as it is written, it gives the picture whose numbers were scaled; and it is then accepted."""
    stored, names = RECIPES[case]
    np.save(tmp_path / "m.npy", stored)
    message = refusal(tmp_path / "m.npy")
    assert "must be uint8" in message
    recipes = [code for code in re.findall("`([^`]*)`", message) if "uint8" in code]
    for name, value in names.items():
        assert case == "standardised" or re.search(rf"{name} (=|may be) {value}\b", message)
    converted = eval(recipes[-1], {"x": stored, **names})
    expected = np.where(RAMP > 127, 255, 0) if case == "0 and 1" else RAMP
    step = 255 / 16 if "16" in case.split() and case != "16 bits" else 1
    assert converted.dtype == np.uint8
    assert np.abs(converted.astype(int) - expected).max() <= step
    if step == 1 and case not in ("0 to 1 with overshoot", "10 bits"):
        assert np.array_equal(converted, expected)
    np.save(tmp_path / "m.npy", converted)
    assert np.array_equal(data.load(tmp_path / "m.npy", "all").images[..., 0], converted)


def test_values_are_judged_over_all_of_them(tmp_path: Path) -> None:
    """One value in a million, in the other split, decides; a dark split of wide integers means what the rest does."""
    train, test = noise(20, 8, 8).astype(np.int64), np.full((4, 8, 8), 3, np.int64)
    np.savez(tmp_path / "m.npz", x_train=train, x_test=test)
    assert np.array_equal(data.load(tmp_path / "m.npz", "test").images[..., 0], test)
    test[3, 7, 7] = 256
    np.savez(tmp_path / "m.npz", x_train=train, x_test=test)
    assert "x_train and x_test are int64 from 0 to 256" in refusal(tmp_path / "m.npz")
    big = np.zeros((300, 256, 256), np.float32)
    big[299, 255, 255] = np.nan
    big[1, 1, 1], big[298, 0, 0] = -0.5, np.inf
    np.save(tmp_path / "m.npy", big)
    assert "2 of the values NaN or infinite, the others from -0.5 to 0" in refusal(tmp_path / "m.npy")


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "S2"])
def test_what_is_no_number_is_no_picture(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "m.npz", images=np.zeros((4, 8, 8), dtype=dtype))
    assert "images must be uint8" in refusal(tmp_path / "m.npz")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((10, 784), "`x.reshape(-1, 28, 28)`"),
        ((10, 3072), "`x.reshape(-1, 3, 32, 32)` or `x.reshape(-1, 32, 32, 3)`"),
        ((10, 7), "(10, 7)"),
        ((784,), "(784,)"),
        ((8, 8, 3), "`x[None]`"),
        ((4, 8, 8, 2), "Two channels"),
        ((4, 2, 8, 8), "Two channels"),
        ((2, 4, 8, 8, 3), "(2, 4, 8, 8, 3)"),
        ((4, 3, 8, 3), "not clearly"),
        ((0, 8, 8), "empty"),
        ((4, 0, 8, 3), "empty"),
    ],
)
def test_shapes_that_are_not_clear(tmp_path: Path, shape: tuple[int, ...], said: str) -> None:
    np.save(tmp_path / "m.npy", np.zeros(shape, np.uint8))
    assert said in refusal(tmp_path / "m.npy")


def test_three_grey_pictures_might_have_been_one_of_colour(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", noise(3, 8, 8))
    content = open_arrays(tmp_path / "m.npy").open()
    assert content.count == 3
    assert content.remarks == ("the array of shape (3, 8, 8) is read as 3 grey pictures",)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = noise(6, 5, 5, 4)
    np.save(tmp_path / "m.npy", rgba)
    share = rgba[..., 3:] / 255
    expected = rgba[..., :3] * share + 255 * (1 - share)
    assert np.abs(data.load(tmp_path / "m.npy", "all").images - expected).max() <= 0.5001
    rgba[..., 3] = 0
    np.save(tmp_path / "m.npy", rgba)
    assert "x[..., :3]" in refusal(tmp_path / "m.npy")


def test_masks_are_black_and_white(tmp_path: Path) -> None:
    mask = noise(5, 8, 8) > 100
    np.save(tmp_path / "m.npy", mask)
    assert np.array_equal(data.load(tmp_path / "m.npy", "all").images[..., 0], np.where(mask, 255, 0))


def test_a_npy_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """Sixty-four gigabytes, all of them a hole but the last picture."""
    path, count = tmp_path / "m.npy", 64_000
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (count, 1000, 1000), "fortran_order": False, "descr": "|u1"}
        )
        start = file.tell()
        file.truncate(start + count * 1_000_000)
        file.seek(start + (count - 1) * 1_000_000)
        file.write(bytes(range(200)))
    content = open_arrays(path).open()
    assert content.count == count
    assert content.read(count - 1)[0, :200, 0].tolist() == list(range(200))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        *(("images", "labels"), ("X", "Y"), ("data", "target"), ("imgs", "targets"), ("Image", "Label")),
        *(("arr_0", "arr_1"), ("pixels", "class")),
    ],
)
def test_the_names_people_use(tmp_path: Path, images: str, labels: str) -> None:
    pictures, numbers = noise(12, 8, 8), np.arange(12) % 3
    np.savez(tmp_path / "m.npz", **{images: pictures, labels: numbers})
    got = data.load(tmp_path / "m.npz", "all")
    assert np.array_equal(got.images[..., 0], pictures)
    assert got.labels.tolist() == numbers.tolist()
    assert open_arrays(tmp_path / "m.npz").open().remarks == ()


@pytest.mark.parametrize("train", ["X_train", "train_images", "trainImages", "images-training", "x"])
@pytest.mark.parametrize("test", ["X_test", "images_val", "valid_images", "x_validation", "valImages"])
def test_splits_by_name(tmp_path: Path, train: str, test: str) -> None:
    """A validation split is held out where there is no test split."""
    pictures = noise(15, 8, 8)
    np.savez(tmp_path / "m.npz", **{train: pictures[:12], test: pictures[12:]})
    assert np.array_equal(data.load(tmp_path / "m.npz", "train").images[..., 0], pictures[:12])
    assert np.array_equal(data.load(tmp_path / "m.npz", "test").images[..., 0], pictures[12:])


def test_every_array_that_is_not_used_is_named(tmp_path: Path) -> None:
    arrays = {}
    for split, count in (("train", 12), ("val", 5), ("test", 6)):
        arrays |= {f"{split}_images": noise(count, 8, 8), f"{split}_labels": np.arange(count)[:, None] % 3}
    np.savez(tmp_path / "m.npz", **arrays, meta=np.array({"a": 1}), scale=np.float64(2), extra=noise(3))
    assert open_arrays(tmp_path / "m.npz").open().remarks == (
        "arrays not used: val_images (5 images), val_labels (5 labels), meta, scale, extra",
    )
    assert data.load(tmp_path / "m.npz", "test").labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_not_used_is_said_when_the_cache_has_the_set_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("undiffuse.data.loading.warn", said.append)
    np.savez(tmp_path / "m.npz", images=noise(12, 8, 8), weights=noise(3))
    for _ in range(2):
        data.load(tmp_path / "m.npz")
    assert [text.split(": ", 1)[1] for text in said] == ["arrays not used: weights"] * 2


def test_python_objects_where_they_are_needed(tmp_path: Path) -> None:
    texts = np.array(["cat", "dog"] * 3, dtype=object)
    np.savez(tmp_path / "m.npz", images=noise(6, 8, 8), labels=texts)
    message = refusal(tmp_path / "m.npz")
    assert "labels of" in message and "never unpickled" in message and "x.astype(str)" in message
    np.savez(tmp_path / "m.npz", images=noise(6, 8, 8), labels=texts.astype(str), names=texts)
    content = open_arrays(tmp_path / "m.npz").open()
    assert content.classes == ("cat", "dog")
    assert content.names == ()
    assert content.remarks == ("arrays not used: names",)


def test_images_to_train_on_are_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", x_test=noise(4, 8, 8), weights=noise(4))
    assert "only 'x_test' (held out) among x_test, weights" in refusal(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", faces=noise(4, 8, 8))
    assert len(data.load(tmp_path / "m.npz", "all")) == 4
    np.savez(tmp_path / "m.npz", x_train=noise(4, 8, 8), x_test=noise(4, 8, 8), y_train=np.arange(4))
    assert "y_train are labels, but x_test has none" in refusal(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", x_train=noise(4, 8, 8), x_test=noise(4, 8, 9))
    assert "one shape, not x_train (8, 8, 1), x_test (8, 9, 1)" in refusal(tmp_path / "m.npz")


LABELS = {
    "bytes": (np.array(["é", "a", "é"]).astype("U1"), ("a", "é"), [1, 0, 1]),
    "floats": (np.array([0.0, 2.0, 1.0]), ("0", "1", "2"), [0, 2, 1]),
    "one-hot": (np.eye(3)[[2, 0, 1]], ("0", "1", "2"), [2, 0, 1]),
    "one-hot of bool": (np.eye(3, dtype=bool)[[2, 0, 1]], ("0", "1", "2"), [2, 0, 1]),
    "a column": (np.array([[1], [0], [1]]), ("0", "1"), [1, 0, 1]),
    "big-endian": (np.array([1, 0, 1], ">u8"), ("0", "1"), [1, 0, 1]),
    "names that are numbers": (np.array([2_000_000_017, 5, 2_000_000_017]), ("5", "2000000017"), [1, 0, 1]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_as_they_are_stored(tmp_path: Path, case: str) -> None:
    stored, classes, numbers = LABELS[case]
    if case == "bytes":
        stored = np.char.encode(stored, "utf-8")
    np.savez(tmp_path / "m.npz", images=noise(3, 8, 8), labels=stored)
    got = data.load(tmp_path / "m.npz", "all")
    assert got.classes == classes
    assert got.labels.tolist() == numbers


def test_class_names_as_they_are_stored(tmp_path: Path) -> None:
    def classes(labels: object, names: object) -> tuple[str, ...]:
        np.savez(tmp_path / "m.npz", images=noise(3, 8, 8), labels=np.array(labels), class_names=np.array(names))
        return data.load(tmp_path / "m.npz", "all").classes

    assert classes([0, 1, 1], [b"cat", "hündin".encode()]) == ("cat", "hündin")
    assert classes([0, 1, 1], [7, 9]) == ("7", "9")
    assert classes(["dog", "cat", "dog"], ["dog", "cat"]) == ("dog", "cat")
    assert data.load(tmp_path / "m.npz", "all").labels.tolist() == [0, 1, 0]
    for labels, names, said in (
        ([0, 1, 1], ["cat", "cat"], "'cat' stands for two classes"),
        ([0, 1, 1], [b"\xff", b"a"], "not UTF-8"),
        ([0, 1, 1], [[1, 2], [3, 4]], "expected one string for every class"),
        ([0, 1, 1], [0.5, 1.5], "expected one string for every class"),
        ([0, 1, 2], ["cat", "dog"], "range from 0 to 2, expected 0 to 1"),
        ([-1, 1, 1], ["cat", "dog"], "range from -1 to 1"),
        (["cow", "cat", "cat"], ["cat", "dog"], "'cow' is not among the classes cat, dog"),
    ):
        with pytest.raises(UsageError, match=said):
            classes(labels, names)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0.5, 1, 2]), "1 of 3 are not whole numbers"),
        (np.array([np.nan, 1, np.inf]), "2 of 3 are not whole numbers"),
        (np.array([[1, 1], [0, 1], [1, 0]]), "not one-hot"),
        (np.array([[0, 0], [0, 1], [1, 0]]), "not one-hot"),
        (np.array([[0.1, 0.9], [0, 1], [1, 0]]), "not one-hot"),
        (np.arange(4), "expected 3 integers or strings"),
        (np.array([b"\xff\xfe", b"a", b"b"]), "not UTF-8"),
        (np.array(["2020-01-01"] * 3, "datetime64[D]"), "datetime64"),
        (np.zeros((3, 8, 8)), "shape (3, 8, 8)"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    np.savez(tmp_path / "m.npz", images=noise(3, 8, 8), labels=labels)
    assert said in refusal(tmp_path / "m.npz")


def test_texts_in_one_split_and_numbers_in_the_other(tmp_path: Path) -> None:
    images = {"x_train": noise(2, 8, 8), "x_test": noise(2, 8, 8)}
    np.savez(tmp_path / "m.npz", **images, y_train=np.arange(2), y_test=np.array(["0", "1"]))
    assert "strings in one split and numbers in another" in refusal(tmp_path / "m.npz")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    import pickle

    for name, raw, said in (
        ("m.npz", b"", "it is empty"),
        ("m.npy", b"hello", "not a file written by np.save"),
        ("m.npy", pickle.dumps([1, 2]), "a pickle), which are never loaded"),
    ):
        (tmp_path / name).write_bytes(raw)
        assert said in refusal(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.png", b"x")
    assert "zip file without arrays (1 files)" in refusal(tmp_path / "m.npz")
    with (tmp_path / "m.npy").open("wb") as file:  # two arrays in one file, of which NumPy reads the first
        np.save(file, noise(4, 8, 8))
        np.save(file, noise(4, 8, 8))
    assert "promises 256 bytes, but 640 are there" in refusal(tmp_path / "m.npy")
    np.savez(tmp_path / "right.npz", images=noise(4, 8, 8))
    (tmp_path / "right.npz").rename(tmp_path / "wrong.npy")  # the content decides
    assert len(data.load(tmp_path / "wrong.npy", "all")) == 4


def test_a_stream_that_unpacks_to_more_than_its_zip_says_is_not_unpacked(tmp_path: Path) -> None:
    """The sizes in the directory of a zip bomb lie: 100 MB are written as 100 bytes."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(100_000_000))
    raw = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(raw.replace((100_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    assert "cannot read" in refusal(tmp_path / "m.npz")


def test_a_changed_pixel_is_noticed(tmp_path: Path) -> None:
    """By the checksum of the zip file."""
    np.savez(tmp_path / "m.npz", images=np.full((4, 8, 8), 77, np.uint8))
    raw = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(raw.replace(b"M" * 256, b"M" * 255 + b"N"))
    assert "Bad CRC-32" in refusal(tmp_path / "m.npz")


def write_idx(path: Path, array: np.ndarray, magic: bytes) -> None:
    raw = magic + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_that_are_not_right(tmp_path: Path, end: str) -> None:
    images, labels = (tmp_path / f"train-{kind}{end}" for kind in (idx.IMAGES, idx.LABELS))
    pictures = noise(10, 4, 4)
    write_idx(images, pictures, idx.UBYTE_IMAGES)
    write_idx(labels, np.arange(9), idx.UBYTE_LABELS)
    assert "labels of shape (9,) for 10 images" in refusal(tmp_path)
    write_idx(labels, np.arange(10), idx.UBYTE_IMAGES[:2] + b"\x0c\x01")
    assert "not an IDX file of images or labels" in refusal(tmp_path)
    write_idx(labels, pictures, idx.UBYTE_IMAGES)
    assert "labels of shape (10, 4, 4)" in refusal(tmp_path)
    labels.unlink()
    assert np.array_equal(data.load(tmp_path, "all").images[..., 0], pictures)
    write_idx(images, np.arange(9), idx.UBYTE_LABELS)
    assert "it holds labels, not images" in refusal(tmp_path)
    write_idx(images, pictures[:0], idx.UBYTE_IMAGES)
    assert "is empty" in refusal(tmp_path)
    write_idx(images, np.append(pictures, 1).reshape(-1), idx.UBYTE_IMAGES + np.array((10, 4), ">u4").tobytes())
    assert "cannot read" in refusal(tmp_path)
    images.write_bytes(b"")
    assert re.search("is empty|Compressed file ended", refusal(tmp_path))
    assert "give the folder that holds it" in refusal(images)
    images.rename(tmp_path / f"emnist-{images.name}")
    assert f"emnist-{images.name}" in refusal(tmp_path)
