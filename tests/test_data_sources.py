"""Arrays, parquet and folders of images, and the one resize and crop policy."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from undiffuse import data
from undiffuse.errors import UndiffuseError, UsageError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_npz_round_trip(tmp_path: Path) -> None:
    images, labels = noise(20, 6, 9, 3), np.arange(20) % 2
    np.savez(tmp_path / "mine.npz", images=images, labels=labels, classes=np.array(["cat", "dog"]))
    got = data.load(tmp_path / "mine.npz", "all")
    assert np.array_equal(got.images, images)
    assert np.array_equal(got.labels, labels)
    assert got.classes == ("cat", "dog")


def test_array_layouts_mean_the_same(tmp_path: Path) -> None:
    images = noise(5, 8, 9, 3)
    np.save(tmp_path / "last.npy", images)
    np.save(tmp_path / "first.npy", images.transpose(0, 3, 1, 2))
    np.save(tmp_path / "grey.npy", images[..., 0])
    assert np.array_equal(data.load(tmp_path / "last.npy").images, images)
    assert np.array_equal(data.load(tmp_path / "first.npy").images, images)
    assert np.array_equal(data.load(tmp_path / "grey.npy").images, images[..., :1])


def test_npz_with_its_own_split(tmp_path: Path) -> None:
    train, test = noise(6, 8, 8), noise(3, 8, 8) // 2
    np.savez(tmp_path / "m.npz", x_train=train, x_test=test, y_train=np.arange(6), y_test=np.arange(3))
    assert np.array_equal(data.load(tmp_path / "m.npz", "train").images[..., 0], train)
    assert np.array_equal(data.load(tmp_path / "m.npz", "test").images[..., 0], test)
    assert data.load(tmp_path / "m.npz", "all").labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8, 8), np.float32), "must be uint8"),
        (np.zeros((4, 8, 8), np.int64), "must be uint8"),
        (np.zeros((4, 3, 8, 3), np.uint8), "not clearly"),
        (np.zeros((8, 8, 3), np.uint8), "not clearly"),
        (np.zeros((0, 8, 8), np.uint8), "empty"),
    ],
)
def test_unclear_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "m.npz", images=array)
    with pytest.raises(UsageError, match=message):
        data.load(tmp_path / "m.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return pytest.fail, ("unpickled",)

    np.savez(tmp_path / "m.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(UndiffuseError, match="cannot read"):
        data.load(tmp_path / "m.npz")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def test_parquet_with_typed_columns(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    images = noise(12, 10, 10, 3)
    rows = {"photo": [{"bytes": png(image), "path": None} for image in images], "kind": [0, 1, 2] * 4}
    kinds = ClassLabel(names=["ant", "bee", "cow"])
    table = Dataset.from_dict(rows, features=Features({"photo": ImageColumn(), "kind": kinds}))
    table.to_parquet(tmp_path / "mine.parquet")
    got = data.load(tmp_path / "mine.parquet", "all")
    assert np.array_equal(got.images, images)
    assert got.labels.tolist() == [0, 1, 2] * 4
    assert got.classes == ("ant", "bee", "cow")


def test_parquet_of_plain_bytes_reports_bad_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    images = noise(3, 10, 10)
    files = [png(images[0]), b"not an image", png(images[2])]
    parquet.write_table(pyarrow.table({"bytes": files, "id": [1, 2, 3]}), tmp_path / "m.parquet")
    with pytest.raises(UndiffuseError, match=r"1 of 3 images(.|\n)*row 1"):
        data.load(tmp_path / "m.parquet")
    assert np.array_equal(data.load(tmp_path / "m.parquet", skip_corrupt=True).images[..., 0], images[[0, 2]])


def test_subfolders_are_classes(folder: Path) -> None:
    for kind, value in (("dog", 10), ("cat", 200)):
        (folder / kind / "deeper").mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (8, 8), (value,) * 3).save(folder / kind / "deeper" / f"{index}.png")
    (folder / "README.txt").write_text("not an image")
    (folder / "cat" / ".hidden.png").write_text("not an image")
    got = data.load(folder, "all")
    assert got.classes == ("cat", "dog")
    assert [got.classes[label] for label in got.labels] == ["cat", "cat", "dog", "dog"]
    assert got.images[:, 0, 0, 0].tolist() == [200, 200, 10, 10]
    assert got.names[0] == "cat/deeper/0.png"


def test_loose_images_beside_classes_are_refused(folder: Path) -> None:
    (folder / "cat").mkdir()
    for path in (folder / "cat" / "a.png", folder / "stray.png"):
        Image.new("L", (8, 8)).save(path)
    with pytest.raises(UsageError, match=r"stray\.png"):
        data.load(folder)


def test_train_and_test_folders_are_the_splits(folder: Path) -> None:
    for split, mode in (("train", "L"), ("test", "RGB")):
        for kind in ("a", "b"):
            (folder / split / kind).mkdir(parents=True)
            Image.new(mode, (8, 8)).save(folder / split / kind / "0.png")
    train, test = data.load(folder, "train"), data.load(folder, "test")
    assert train.names == ("train/a/0.png", "train/b/0.png")
    assert test.names == ("test/a/0.png", "test/b/0.png")
    assert train.classes == test.classes == ("a", "b")
    assert train.shape == test.shape == (8, 8, 3)


def test_empty_folder(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="no images in"):
        data.load(folder)


def test_corrupt_files_are_all_named_or_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = noise(3, 40, 40, 3)
    for index, image in enumerate(good):
        Image.fromarray(image).save(folder / f"good{index}.png")
    (folder / "a_truncated.png").write_bytes((folder / "good0.png").read_bytes()[:2000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    Image.new("L", (300, 300)).save(folder / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(UndiffuseError, match="--skip-corrupt") as caught:
        data.load(folder, size=40)
    message = str(caught.value)
    assert message.startswith("5 of 8 images cannot be read")
    for name in ("a_truncated.png", "empty.jpg", "text.png", "dangling.png", "bomb.png: Image size (90000 pixels)"):
        assert name in message
    got = data.load(folder, size=40, skip_corrupt=True)
    assert np.array_equal(got.images, good)
    assert got.names == ("good0.png", "good1.png", "good2.png")
    assert got.skipped == 5


def test_a_corrupt_file_is_refused_whichever_split_it_falls_in(folder: Path) -> None:
    """Each of ten files broken in turn: one of them is held out, and loading the training split refuses it too."""
    for broken in range(10):
        for index in range(10):
            Image.new("L", (8, 8), index).save(folder / f"{index}.png")
        (folder / f"{broken}.png").write_text("not an image")
        with pytest.raises(UndiffuseError, match=rf"1 of 10 images[\s\S]*{broken}\.png"):
            data.load(folder)
        held_out = data.load(folder, "test", skip_corrupt=True) if broken == 0 else None
        assert held_out is None or len(held_out) == 1


def test_progress_reaches_the_end(folder: Path) -> None:
    for index in range(3):
        Image.new("L", (8, 8)).save(folder / f"{index}.png")
    calls: list[tuple[int, int]] = []
    data.load(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def only(folder: Path, image: Image.Image, name: str = "one.png", **options: object) -> np.ndarray:
    image.save(folder / name)
    return data.load(folder, "all", **options).images[0]


@pytest.mark.parametrize("name", ["one.png", "one.tif"])
def test_sixteen_bits_keep_their_range(folder: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    got = only(folder, Image.fromarray(ramp), name)
    assert got.shape == (64, 64, 1)
    assert np.abs(got[..., 0] - ramp / 257).max() <= 0.5


def test_float_images(folder: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert np.abs(only(folder, Image.fromarray(ramp), "one.tif")[..., 0] - ramp * 255).max() <= 0.501
    with pytest.raises(UndiffuseError, match="range from 0 to 255, expected 0 to 1"):
        only(folder, Image.fromarray(ramp * 255), "one.tif")


def test_a_circle_stays_a_circle(folder: Path) -> None:
    wide = Image.new("L", (400, 200), 255)
    ImageDraw.Draw(wide).ellipse((130, 30, 270, 170), fill=0)
    ink = only(folder, wide, size=40)[..., 0] < 128
    assert abs(int(ink.any(0).sum()) - int(ink.any(1).sum())) <= 1
    rows, columns = np.nonzero(ink)
    assert abs(rows.mean() - 19.5) < 0.5
    assert abs(columns.mean() - 19.5) < 0.5
    assert ink.sum() == pytest.approx(np.pi * 14**2, rel=0.05)


def test_fine_checkerboard_goes_to_grey(folder: Path) -> None:
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    got = only(folder, Image.fromarray(board), size=32).astype(float)
    assert np.abs(got - 127.5).max() < 3


def test_small_images_are_enlarged(folder: Path) -> None:
    assert only(folder, Image.new("RGB", (5, 7), (10, 20, 30)), size=16).reshape(-1, 3).tolist() == [[10, 20, 30]] * 256


def test_exif_orientation_is_applied(folder: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    Image.fromarray(pixels).save(folder / "one.png", exif=exif)
    got = data.load(folder).images[0]
    assert (got[:16] == 255).all()
    assert (got[16:] == 0).all()


def test_transparency_is_laid_on_white(folder: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (255, 0, 0, 255)
    got = only(folder, Image.fromarray(pixels))
    assert (got[:4] == (255, 0, 0)).all()
    assert (got[4:] == 255).all()
    palette = Image.fromarray(pixels[..., 0] // 255).convert("P")
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.save(folder / "one.png", transparency=0)
    assert np.array_equal(data.load(folder).images[0], got)


def test_modes_and_channels(folder: Path) -> None:
    assert only(folder, Image.new("1", (8, 8), 1)).ravel().tolist() == [255] * 64
    assert only(folder, Image.new("LA", (8, 8), (0, 0))).ravel().tolist() == [255] * 64
    assert only(folder, Image.new("L", (8, 8), 9), channels=3).reshape(-1, 3).tolist() == [[9, 9, 9]] * 64
    assert only(folder, Image.new("RGB", (8, 8), (9, 9, 9)), channels=1).ravel().tolist() == [9] * 64
    (folder / "one.png").unlink()
    assert only(folder, Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "one.tif").ravel().tolist() == [255] * 192


def test_first_frame_of_an_animation(folder: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (50, 200)]
    frames[0].save(folder / "one.gif", save_all=True, append_images=frames[1:])
    assert (data.load(folder).images == 50).all()


@pytest.mark.parametrize(("sides", "expected"), [([(28, 28)] * 2, 28), ([(65, 65)], 32), ([(64, 64), (50, 64)], 32)])
def test_default_size(folder: Path, sides: list[tuple[int, int]], expected: int) -> None:
    for index, side in enumerate(sides):
        Image.new("L", side).save(folder / f"{index}.png")
    assert data.load(folder).shape == (expected, expected, 1)


def test_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    images = noise(6, 8, 8)

    def table(rows: slice) -> datasets.Dataset:
        features = datasets.Features({"image": datasets.Image()})
        return datasets.Dataset.from_dict({"image": [{"bytes": png(one)} for one in images[rows]]}, features=features)

    def fetch(repository: str, revision: str | None) -> datasets.DatasetDict:
        assert (repository, revision) == ("someone/pictures", "v1.0")
        return datasets.DatasetDict(train=table(slice(4)), validation=table(slice(4, 6)))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    assert np.array_equal(data.load("someone/pictures@v1.0").images[..., 0], images[:4])
    assert np.array_equal(data.load("someone/pictures@v1.0", "test").images[..., 0], images[4:])

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert len(data.load("someone/pictures@v1.0")) == 4
    with pytest.raises(UndiffuseError, match=r"'someone/others' from the Hugging Face hub.*no such path.*no route"):
        data.load("someone/others")
