"""Parquet, shards of it, `save_to_disk` and the hub: which columns and splits are read, and what is said of others."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from undiffuse import data
from undiffuse.data.loading import _source
from undiffuse.data.shards import open_table, open_tables
from undiffuse.errors import UndiffuseError, UsageError

pytestmark = pytest.mark.usefixtures("own_cache")


def png(value: int) -> bytes:
    """A picture of 4x4 that is `value` all over, so that rows can be told apart."""
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "png")
    return file.getvalue()


def table(values: range, **columns: object) -> pyarrow.Table:
    return pyarrow.table({"image": [{"bytes": png(value), "path": None} for value in values], **columns})


def write(path: Path, values: range, rows: int = 3, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(values, **columns), path, row_group_size=rows)
    return path


def values_of(images: data.ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


LABELS = {
    "int": ([2, 0, 1, 2], ("0", "1", "2"), [2, 0, 1, 2]),
    "small unsigned": (pyarrow.array([2, 0, 1, 2], pyarrow.uint8()), ("0", "1", "2"), [2, 0, 1, 2]),
    "large": ([10**12, 7, 7, 10**12], ("7", "1000000000000"), [1, 0, 0, 1]),
    "floats": ([2.0, 0.0, 1.0, 2.0], ("0", "1", "2"), [2, 0, 1, 2]),
    "bool": ([True, False, True, True], ("0", "1"), [1, 0, 1, 1]),
    "text": (["dog", "cat", "é", "dog"], ("cat", "dog", "é"), [1, 0, 2, 1]),
    "large text": (pyarrow.array(["dog", "cat", "cat", "dog"], pyarrow.large_string()), ("cat", "dog"), [1, 0, 0, 1]),
    "text view": (pyarrow.array(["dog", "cat", "é", "dog"], pyarrow.string_view()), ("cat", "dog", "é"), [1, 0, 2, 1]),
    "bytes": ([b"dog", b"cat", "é".encode(), b"dog"], ("cat", "dog", "é"), [1, 0, 2, 1]),
    "half floats": (np.array([2, 0, 1, 2], np.float16), ("0", "1", "2"), [2, 0, 1, 2]),
    "categories": (pyarrow.array(["dog", "cat", "cat", "dog"]).dictionary_encode(), ("cat", "dog"), [1, 0, 0, 1]),
    "categories of numbers": (pyarrow.array([5, 3, 3, 5]).dictionary_encode(), tuple("012345"), [5, 3, 3, 5]),
}


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("name", ["label", "Class", "y"])
def test_classes_of_every_type(tmp_path: Path, case: str, rows: int, name: str) -> None:
    stored, classes, numbers = LABELS[case]
    got = data.load(write(tmp_path / "m.parquet", range(10, 14), rows, **{name: stored}), "all")
    assert values_of(got) == [10, 11, 12, 13]
    assert got.classes == classes
    assert got.labels.tolist() == numbers


def opened(path: Path, values: range, **columns: object) -> tuple[tuple[str, ...], list[int] | None, tuple[str, ...]]:
    """The classes, labels and remarks of a table."""
    content = open_table(write(path, values, **columns)).open()
    return content.classes, None if content.labels is None else content.labels.tolist(), content.remarks


def test_a_class_column_is_never_guessed(tmp_path: Path) -> None:
    path, none = tmp_path / "m.parquet", ((), None)
    kinds = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    assert opened(path, range(3), label=[0, 1, 0], target=[1, 1, 0]) == (
        *none,
        (
            "no classes: label, target could each be the class column; leave only one in the data",
            "columns not used: label, target",
        ),
    )
    assert opened(path, range(3), label=[0, 1, 0], class_name=["x", "y", "x"], id=[7, 8, 9]) == (
        *(("0", "1"), [0, 1, 0], ("columns not used: class_name, id",)),
    )
    assert opened(path, range(3), species=kinds, id=[7, 8, 9]) == (*(("a", "b"), [0, 1, 0], ("columns not used: id",)),)
    assert opened(path, range(3), species=kinds, colour=kinds)[:2] == none
    assert opened(path, range(3), species=["a", "b", "a"]) == (*none, ("columns not used: species",))
    assert opened(path, range(3), label=[[0], [1], [0]]) == (*none, ("columns not used: label",))
    assert opened(path, range(3), target=[0.5, 1.0, 2.0])[2] == (
        *("no classes: column target holds fractions", "columns not used: target"),
    )
    for missing in ([0, None, 1], [0, -1, 1], [0.0, np.nan, 1.0], ["a", None, "b"], [True, None, False]):
        assert opened(path, range(3), label=missing) == (
            *none,
            ("no classes: 1 of 3 rows are null or below 0 in column label", "columns not used: label"),
        )


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["a.png", "b.png"]},
        {"image": [[[0, 255]], [[255, 0]]]},
        {"pixels": [[0, 255], [255, 0]]},
        {"a": [b"x", b"y"], "b": [b"x", b"y"]},
        {"label": [1, 2]},
    ],
)
def test_image_columns_that_are_not_certain(tmp_path: Path, columns: dict) -> None:
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="expected one image column") as caught:
        data.load(tmp_path / "m.parquet")
    assert all(name in str(caught.value) for name in columns)
    assert len(str(caught.value)) < 500


def test_bytes_that_are_no_text_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="column label holds bytes that are not UTF-8"):
        opened(tmp_path / "m.parquet", range(2), label=[b"caf\xe9", b"tea"])


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    twice = table(range(2)).append_column("label", [[0, 1]]).append_column("label", [["a", "b"]])
    parquet.write_table(twice, tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="several columns are called label"):
        data.load(tmp_path / "m.parquet")


def test_shards_that_store_their_classes_otherwise(tmp_path: Path) -> None:
    """Integers of two widths are the same classes; texts and numbers are not."""
    write(tmp_path / "train-00000-of-00002.parquet", range(2), label=pyarrow.array([1, 0], pyarrow.int8()))
    other = tmp_path / "train-00001-of-00002.parquet"
    write(other, range(2, 4), label=pyarrow.array([2, 1], pyarrow.int64()))
    assert data.load(tmp_path, "all").labels.tolist() == [1, 0, 2, 1]
    write(other, range(2, 4), label=["2", "1"])
    with pytest.raises(UsageError, match="column label holds strings in one file and numbers in another"):
        data.load(tmp_path, "all")


def test_a_picture_beside_shards_is_not_all_there_is(tmp_path: Path) -> None:
    """As in a hub repository whose README has a figure."""
    write(tmp_path / "set/data/train-00000-of-00001.parquet", range(3))
    (tmp_path / "set/assets").mkdir()
    (tmp_path / "set/assets/figure.png").write_bytes(png(9))
    with pytest.raises(
        UsageError, match=r"tables \(data/train.*\) and pictures \(assets/figure.png\): give the folder"
    ):
        data.load(tmp_path / "set")
    assert len(data.load(tmp_path / "set/data", "all")) == 3


def test_previews_beside_shards_are_no_pictures(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(3))
    for name in ("run/run.json", "run/metrics.jsonl", "run/previews/step-1.png", "@eaDir/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    assert len(data.load(tmp_path, "all")) == 3


def test_images_beside_the_table(tmp_path: Path) -> None:
    """A path without bytes starts from the table's folder, wherever the command runs."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.bin").write_bytes(png(99))
    rows = [{"bytes": None, "path": "a.bin"}, {"bytes": png(7), "path": "gone.png"}]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "set" / "m.parquet")
    assert values_of(data.load(tmp_path / "set" / "m.parquet", "all")) == [99, 7]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-{}-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train-{}-of-00002-0123456789abcdef.parquet", "validation-00000-of-00001-0123456789abcdef.parquet"),
        ("default/train/{}.parquet", "default/test/00000.parquet"),
        ("Training/part-{}.PARQUET", "Testing/part-00000.parquet"),
        ("cats_train_{}.parquet", "cats_valid.parquet"),
    ],
)
def test_shards_of_a_hub_repository(tmp_path: Path, train: str, test: str) -> None:
    (tmp_path / "README.md").write_text("")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "train.parquet", range(1))
    write(tmp_path / train.format("00001"), range(4, 9), label=["b"] * 5)
    write(tmp_path / train.format("00000"), range(4), label=["a"] * 4)
    write(tmp_path / test, range(20, 22), label=["c", "a"])
    got = data.load(tmp_path, "train")
    assert values_of(got) == list(range(9))
    assert got.labels.tolist() == [0] * 4 + [1] * 5
    assert got.classes == ("a", "b", "c")
    assert values_of(data.load(tmp_path, "test")) == [20, 21]


def test_shards_without_a_split(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number:04d}.parquet", range(10 * number, 10 * number + 10))
    assert values_of(data.load(tmp_path, "all")) == list(range(30))
    assert len(data.load(tmp_path, "test")) == 3


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    def refusal(*names: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            write(folder / name, range(3))
        with pytest.raises(UsageError) as caught:
            data.load(folder)
        return str(caught.value)

    assert "1 files of train, but their names promise 3" in refusal("train-00000-of-00003.parquet")
    assert "promise 1 or 2" in refusal("train-00000-of-00001.parquet", "train-00001-of-00002.parquet")
    assert "several data sets, in de, en" in refusal("en/train.parquet", "de/train.parquet")
    assert "no split 'train', only cats, dogs" in refusal("cats.parquet", "dogs.parquet")
    assert "no split 'train', only test, validation" in refusal("test.parquet", "validation.parquet")
    assert "several splits to train on: train, training" in refusal("train.parquet", "training.parquet")
    write(tmp_path / "odd" / "train-00000-of-00002.parquet", range(3), label=[1, 1, 1])
    write(tmp_path / "odd" / "train-00001-of-00002.parquet", range(3), colour=[1, 1, 1])
    with pytest.raises(UsageError, match=r"00001-of-00002.parquet and .*00000-of-00002.parquet have different columns"):
        data.load(tmp_path / "odd")


def test_splits_that_are_not_used_are_named_and_counted(tmp_path: Path) -> None:
    for name, rows in (("train", 4), ("test", 3), ("validation", 2), ("extra", 1)):
        write(tmp_path / f"{name}-00000-of-00001.parquet", range(rows))
    source = open_tables(tmp_path)
    assert source is not None
    assert source.open().remarks == ("splits not used: extra (1 rows), validation (2 rows)",)


def test_a_validation_split_with_classes_goes_before_a_test_split_without(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(4), label=[0, 1, 0, 1])
    write(tmp_path / "test.parquet", range(30, 33), label=[-1] * 3)
    assert values_of(data.load(tmp_path, "test")) == [30, 31, 32]
    assert data.load(tmp_path, "test").labels is None
    assert data.load(tmp_path, "train").labels.tolist() == [0, 1, 0, 1]
    write(tmp_path / "validation.parquet", range(50, 52), label=[1, 0])
    source = open_tables(tmp_path)
    assert source is not None
    assert source.open().remarks == ("splits not used: test (3 rows)",)
    assert values_of(data.load(tmp_path, "test")) == [50, 51]
    assert data.load(tmp_path, "test").labels.tolist() == [1, 0]


def test_pictures_beside_a_table_are_what_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "metadata.parquet", range(3))
    (tmp_path / "one.png").write_bytes(png(200))
    assert values_of(data.load(tmp_path, "all")) == [200]
    assert "tables are not used where there are pictures: metadata.parquet" in caplog.text


def saved(folder: Path, **splits: range) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageColumn

    features = Features({"image": ImageColumn(), "kind": ClassLabel(names=["cat", "dog"])})
    tables = {}
    for split, values in splits.items():
        rows = {
            "image": [{"bytes": png(value), "path": None} for value in values],
            "kind": [value % 2 for value in values],
        }
        tables[split] = Dataset.from_dict(rows, features=features)
    if list(splits) == ["one"]:
        tables["one"].select(range(1, len(splits["one"]))).save_to_disk(folder, num_shards=2)
    else:
        DatasetDict(tables).save_to_disk(folder)


def test_save_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "one", one=range(5))
    got = data.load(tmp_path / "one", "all")
    assert values_of(got) == [1, 2, 3, 4]
    assert got.classes == ("cat", "dog")
    assert got.labels.tolist() == [1, 0, 1, 0]
    saved(tmp_path / "two", train=range(4), validation=range(30, 33), other=range(2))
    assert values_of(data.load(tmp_path / "two")) == [0, 1, 2, 3]
    assert values_of(data.load(tmp_path / "two", "test")) == [30, 31, 32]
    assert values_of(data.load(tmp_path / "one" / "data-00000-of-00002.arrow", "all")) == [1, 2]
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UsageError, match=r"files are missing: data-00001-of-00002\.arrow"):
        data.load(tmp_path / "one")


def test_what_save_to_disk_notes_stays_within_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "one", one=range(5))
    state = tmp_path / "one" / "state.json"
    for files in ([{"filename": "../../x.arrow"}], [{"filename": "/x.arrow"}], [{}], 3, [{"filename": ".."}]):
        state.write_text(json.dumps({"_data_files": files}))
        with pytest.raises(UndiffuseError, match=r"cannot read .*state\.json"):
            data.load(tmp_path / "one")
    (tmp_path / "one" / "dataset_dict.json").write_text('{"splits": ["../one"]}')
    with pytest.raises(UndiffuseError, match=r"cannot read .*dataset_dict\.json"):
        data.load(tmp_path / "one")


def test_without_the_extra_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.parquet", range(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source in (path, "someone/pictures"):
        with pytest.raises(UndiffuseError, match=r'pip install "undiffuse\[hub\]"'):
            data.load(source)


def test_parquet_needs_pyarrow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    assert values_of(data.load(write(tmp_path / "m.parquet", range(3), label=[0, 1, 1]), "all")) == [0, 1, 2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub names that were asked for; there is no network."""
    names: list[str] = []

    def ask(_: object, repository: str, **options: object) -> None:
        names.append(repository)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", ask)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the library would try again and again"))
    return names


def test_a_mistyped_path_is_asked_for_once_and_what_is_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    (tmp_path / "faces.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UndiffuseError, match=r"did you mean \./pictures/cats\?\).*it cannot be reached \(no network\)"):
        data.load("picturs/cats")
    assert asked == ["picturs/cats"]
    for name, meant in (
        ("pictures/cat", "./pictures/cats"),  # its first folder is here, so it is no name of the hub
        ("./picturs/Cats", "./pictures/cats"),
        ("faces", "./faces.npz"),
        (str(tmp_path / "picture" / "cats"), str(tmp_path / "pictures" / "cats")),
    ):
        with pytest.raises(UsageError, match="Did you mean .*" + meant.replace(".", r"\.")):
            data.load(name)
    for name in ("", "x" * 10_000, "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UsageError) as caught:
            data.load(name)
        assert len(str(caught.value)) < 500
    assert asked == ["picturs/cats"]


def test_what_the_hubs_library_has_is_used_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    import datasets
    from huggingface_hub import constants

    def cached(*_: object, **__: object) -> None:
        assert (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (True, True)
        raise ValueError("found in the cache")

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "someone___other_pictures").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", cached)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    with pytest.raises(UndiffuseError, match="found in the cache"):
        _source("someone/OtherPictures").open()
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


def test_a_column_shorter_than_its_row_group_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.parquet", range(3), label=[0, 1, 0])
    whole = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda *args, **options: whole(*args, **options).slice(0, 2)
    )
    with pytest.raises(UndiffuseError, match="its row group has 2 of 3 values in column label"):
        data.load(path)
