"""Captions in the columns of tables: which are taken, from which types, and what is said of others."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_data_tables import opened, png, values_of, write

from undiffuse import data
from undiffuse.data.shards import open_table
from undiffuse.data.tables import Group, Table, content
from undiffuse.errors import UsageError

ONE = (("a cat",), (), ("two dogs",))
SEVERAL = (("a cat", "a tabby"), (), ("two dogs",))


pytestmark = pytest.mark.usefixtures("own_cache")


TEXTS = ["a cat", None, " two  dogs\n"]
LISTS = [["a cat", "a tabby", "a cat"], [], ["two dogs", "", None]]
STORED = {
    "text": (TEXTS, ONE),
    "large text": (pyarrow.array(TEXTS, pyarrow.large_string()), ONE),
    "text view": (pyarrow.array(TEXTS, pyarrow.string_view()), ONE),
    "categories": (pyarrow.array(TEXTS).dictionary_encode(), ONE),
    "bytes": ([b"a cat", None, b"two dogs"], ONE),
    "lists": (LISTS, SEVERAL),
    "lists or null": ([LISTS[0], None, LISTS[2]], SEVERAL),
    "large lists": (pyarrow.array(LISTS, pyarrow.large_list(pyarrow.string())), SEVERAL),
    "lists of two": (
        pyarrow.array([["a cat", "a tabby"], None, ["two dogs", None]], pyarrow.list_(pyarrow.string(), 2)),
        SEVERAL,
    ),
    "JSON": (['["a cat", "a tabby"]', "", "two dogs"], SEVERAL),
}


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("case", STORED)
@pytest.mark.parametrize("name", ["text", "Caption", "sentences"])
def test_captions_of_every_type(tmp_path: Path, case: str, rows: int, name: str) -> None:
    stored, expected = STORED[case]
    path = write(tmp_path / "m.parquet", range(10, 13), rows, **{name: stored, "label": [1, 0, 1]})
    found = open_table(path).open()
    assert found.captions == expected
    assert (found.classes, found.remarks) == (("0", "1"), ("2 of 3 images have captions, 1 have none",))


def captions(path: Path, **columns: object) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...], tuple[str, ...]]:
    """The captions, classes and remarks of a table of two rows."""
    found = open_table(write(path, range(2), **columns)).open()
    return found.captions, found.classes, found.remarks


def test_a_caption_column_is_never_guessed_nor_taken_for_classes(tmp_path: Path) -> None:
    path, pair, none = tmp_path / "m.parquet", ["x", "y"], ()
    found = (("x",), ("y",))
    assert captions(path, text=pyarrow.array(pair).dictionary_encode()) == (found, none, none)
    assert captions(path, caption=pair, text=["u", "v"]) == (found, none, ("columns not used: text",))
    assert captions(path, text=pair, sentence=pair) == (
        *(none, none),
        (
            "no captions: text, sentence could each be the captions; leave only one in the data",
            "columns not used: text, sentence",
        ),
    )
    assert captions(path, caption_0=pair, caption_1=["z", None]) == ((("x", "z"), ("y",)), none, none)
    assert captions(path, text=[1, 2]) == (none, none, ("columns not used: text",))
    assert captions(path, sentences=[{"raw": "x"}] * 2) == (none, none, ("columns not used: sentences",))
    assert captions(path, text=["", None]) == (none, none, none)
    assert opened(path, range(2), text=pair, label=["u", "v"])[:2] == (("u", "v"), [0, 1])


def test_bytes_of_captions_are_not_the_images(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"a": [png(1), png(2)], "text": [b"x", b"y"]}), tmp_path / "m.parquet")
    assert data.load(tmp_path / "m.parquet", "all").captions == (("x",), ("y",))
    parquet.write_table(pyarrow.table({"a": [png(1), png(2)], "text": [b"x", b"\xff"]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="column text holds bytes that are not UTF-8"):
        data.load(tmp_path / "m.parquet", "all")


def test_splits_and_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", range(10, 13), text=["0", "1", "2"])
    write(tmp_path / "train-00001-of-00002.parquet", range(13, 15), text=["3", "4"])
    write(tmp_path / "test-00000-of-00001.parquet", range(20, 22))
    assert data.load(tmp_path, "train").captions == tuple((str(index),) for index in range(5))
    assert data.load(tmp_path, "test").captions == ()
    assert data.load(tmp_path, "all").captions == (*[(str(index),) for index in range(5)], (), ())
    write(tmp_path / "test-00000-of-00001.parquet", range(20, 22), text=["a", "b"])
    assert data.load(tmp_path, "test").captions == (("a",), ("b",))


def test_captions_stay_with_their_rows_when_corrupt_ones_are_left_out(tmp_path: Path) -> None:
    bad = (0, 4, 5, 18)
    images = [b"broken" if index in bad else png(100 + index) for index in range(20)]
    rows = pyarrow.table({"image": images, "text": [str(100 + index) for index in range(20)]})
    parquet.write_table(rows, tmp_path / "m.parquet", row_group_size=3)
    for split in ("all", "train", "test"):
        got = data.load(tmp_path / "m.parquet", split, skip_corrupt=True)
        assert [int(one) for (one,) in got.captions] == values_of(got)
    assert data.load(tmp_path / "m.parquet", "all", skip_corrupt=True).skipped == len(bad)


def test_captions_of_the_hub(tmp_path: Path) -> None:
    """A column of type Sequence, as `datasets` gives it."""
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageColumn

    features = Features({"image": ImageColumn(), "captions": Sequence(Value("string"))})
    rows = {
        "image": [{"bytes": png(value), "path": None} for value in (1, 2)],
        "captions": [["x", "y"], ["z"]],
    }
    table = Dataset.from_dict(rows, features=features).data.table
    found = content("hub", {"train": Table(table.schema, (Group(2, table.column, Path()),))})
    assert (found.captions, found.remarks) == ((("x", "y"), ("z",)), ())
    assert np.array_equal(found.read(1), np.full((4, 4), 2))
