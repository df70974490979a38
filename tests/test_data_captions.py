"""Captions of people's own pictures: every form, splits, what is left out and said, and what is refused."""

import csv
import json
import logging
import os
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from undiffuse import data
from undiffuse.data import remarks
from undiffuse.errors import UndiffuseError, UsageError

Folder = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes a folder of grey pictures, each of its own value, and of texts: a list of names, then name -> text."""

    def make(pictures: str, texts: dict[str, str | bytes]) -> Path:
        root = tmp_path / "root"
        for index, name in enumerate(pictures.split(";")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 100 + index).save(root / name)
        for name, text in texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return root

    return make


def captions(root: Path, split: str = "all", **options: bool) -> dict[str, tuple[str, ...]]:
    """Name -> captions of the pictures that have any."""
    got = data.load(root, split, **options)
    return {name: one for name, one in zip(got.names, got.captions or [()] * len(got), strict=True) if one}


AB = {"a.png": ("a red cat",), "b c.png": ("a dog, asleep",)}
FORMS = {
    "tab": ("captions.txt", "a.png\ta red cat\nb c.png\ta dog, asleep\n"),
    "bar": ("captions.txt", "a.png|a red cat\nb c.png | a dog, asleep"),
    "comma": ("captions.txt", "a.png,a red cat\nb c.png, a dog, asleep\n"),
    "colon": ("captions.txt", "a.png: a red cat\nb c.png: a dog, asleep\n"),
    "space": ("captions.txt", "a.png a red cat\nb c.png a dog, asleep\n"),
    "spaces": ("captions.txt", "  a.png   a  red cat  \n\n\nb c.png  a dog, asleep"),
    "mixed": ("captions.txt", "a.png\ta red cat\nb c.png a dog, asleep\n"),
    "quotes": ("captions.txt", 'a.png,"a red cat"\n"b c.png","a dog, asleep"\n'),
    "Windows": ("Captions.TXT", "\ufeffa.png\ta red cat\r\n.\\b c.png\ta dog, asleep\r\n"),
    "COCO": ("captions.txt", "a.png#0\ta red cat\nb c.png#4\ta dog, asleep\n"),
    "Flickr8k": ("captions.txt", 'image,caption\na.png,a red cat\nb c.png,"a dog, asleep"\n'),
    "header without quotes": ("captions.txt", "image,caption\na.png,a red cat\nb c.png,a dog, asleep\n"),
    "Flickr30k": ("captions.csv", "image_name| number| caption\na.png| 0| a red cat\nb c.png| 1| a dog, asleep\n"),
    "csv without a header": ("captions.csv", 'a.png,a red cat\nb c.png,"a dog, asleep"\n'),
    "Excel in Europe": ("captions.csv", 'image;caption\na.png;"a red cat"\nb c.png;a dog, asleep\n'),
    "tsv": ("captions.tsv", 'filename\ttext\na.png\t"a red cat"\nb c.png\ta dog, asleep\n'),
    "metadata.csv": ("metadata.csv", 'file_name,text,score\na.png,a red cat,3\nb c.png,"a dog, asleep",4\n'),
    "other order": ("metadata.csv", 'caption,file_name\na red cat,a.png\n"a dog,\nasleep",b c.png\n'),
    "metadata.jsonl": (
        "metadata.jsonl",
        '{"file_name": "a.png", "text": "a red cat"}\n\n{"file_name": "b c.png", "text": ["a dog, asleep"]}\n',
    ),
    "numbered": (
        "captions.jsonl",
        '{"file_name": "a.png", "caption_0": "a red cat"}\n{"file_name": "b c.png", "caption_1": "a dog, asleep"}',
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_list(form: str, folder: Folder) -> None:
    name, text = FORMS[form]
    assert captions(folder("a.png;b c.png", {name: text})) == AB


def test_texts_beside_pictures(folder: Folder) -> None:
    texts = {"a.txt": "a red cat\n\n a  tabby \r\na red cat\n", "b c.TXT": "a dog, asleep", "d.txt": " \n"}
    got = captions(folder("a.png;b c.png;d.png", texts))
    assert got == {"a.png": ("a red cat", "a tabby"), "b c.png": ("a dog, asleep",)}


def test_several_captions_and_sources_of_one_picture(folder: Folder) -> None:
    """In the order of the files' names, then the text beside the picture, each caption once."""
    texts = {
        "captions.txt": "a.png#0\tone\nb.png#0\tother\na.png#1\ttwo\na.png#2\tone\n",
        "metadata.jsonl": '{"file_name": "a.png", "sentences": ["three", "", null, "two"], "id": 3}',
        "a.txt": "four\none\n",
    }
    assert captions(folder("a.png;b.png", texts)) == {"a.png": ("one", "two", "three", "four"), "b.png": ("other",)}


def test_lists_of_captions_within_a_cell(folder: Folder) -> None:
    text = 'file_name,text\na.png,"[""a cat"", ""a tabby""]"\nb.png,"[""not"" JSON]"\nc.png,[1] of 3\n'
    got = captions(folder("a.png;b.png;c.png", {"metadata.csv": text}))
    assert got == {"a.png": ("a cat", "a tabby"), "b.png": ('["not" JSON]',), "c.png": ("[1] of 3",)}


def test_text_is_brought_to_one_form(folder: Folder) -> None:
    caption = unicodedata.normalize("NFD", "un café") + "\u00a0\x00noir\u3000\u200dfin\x85"
    root = folder("a.png;b.png", {"captions.txt": f"a.png\t{caption}"})
    assert captions(root) == {"a.png": ("un café noir \u200dfin",)}
    (root / "captions.jsonl").write_text('{"file": "b.png", "text": "half \\ud800 of it, \\ud83d\\ude00"}')
    assert captions(root)["b.png"] == ("half \ufffd of it, \U0001f600",)


def test_names_are_composed_too(folder: Folder) -> None:
    """macOS writes é as two characters in file names; editors write one."""
    name = unicodedata.normalize("NFD", "é.png")
    assert captions(folder(name, {"captions.txt": "é.png a letter"})) == {name: ("a letter",)}


def test_paths_start_at_the_file_and_may_leave_out_folders(folder: Folder) -> None:
    root = folder(
        "Images/one/a.png;Images/one/b.png;Images/two/b.png",
        {"captions.txt": "a.png\tfirst\nImages/one/b.png\tsecond\ntwo/b.png\tthird\n"},
    )
    expected = {"Images/one/a.png": ("first",), "Images/one/b.png": ("second",), "Images/two/b.png": ("third",)}
    assert captions(root) == expected
    (root / "captions.txt").unlink()
    (root / "notes").mkdir()
    lines = "../Images/one/a.png\tfirst\n../Images/one/b.png\tsecond\n../Images/two/b.png\tthird\n"
    (root / "notes/captions.txt").write_text(lines)
    assert captions(root) == expected


def test_a_name_that_several_pictures_end_with_is_not_guessed(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    root = folder("cat/1.png;dog/1.png;dog/2.png", {"captions.txt": "1.png\tone\n2.png\ttwo\n"})
    got = data.load(root, "all")
    assert (got.captions, got.classes, got.labels.tolist()) == (((), (), ("two",)), ("cat", "dog"), [0, 1, 1])
    assert "1 of 2 captions are not used, since they name no picture, or several: 1.png" in caplog.text
    assert "1 of 3 pictures have captions, 2 have none" in caplog.text


def test_splits(folder: Folder) -> None:
    """A list in a split describes that split alone; one above both describes both."""
    root = folder(
        "train/cat/1.png;train/dog/2.png;test/cat/1.png;val/cat/3.png",
        {
            "train/metadata.jsonl": '{"file_name": "cat/1.png", "text": "a trained cat"}\n'
            '{"file_name": "2.png", "text": "a trained dog"}',
            "test/metadata.csv": "file_name,text\ncat/1.png,a tested cat",
            "captions.txt": "test/cat/1.png another\nval/cat/3.png unused",
        },
    )
    assert captions(root, "train") == {"train/cat/1.png": ("a trained cat",), "train/dog/2.png": ("a trained dog",)}
    assert captions(root, "test") == {"test/cat/1.png": ("another", "a tested cat")}
    (root / "test/metadata.csv").write_text("file_name,text\n1.png,a tested cat\n2.png,a dog of the other split\n")
    assert captions(root, "train")["train/dog/2.png"] == ("a trained dog",)
    (root / "test/metadata.csv").unlink()
    (root / "captions.txt").unlink()
    assert data.load(root, "test").captions == ()
    assert len(data.load(root, "train").captions) == 2


def test_captions_stay_with_their_pictures_when_corrupt_ones_are_left_out(folder: Folder) -> None:
    names = [f"{index:02d}.png" for index in range(20)]
    root = folder(";".join(names), {"captions.txt": "".join(f"{name}\tvalue {name[:2]}\n" for name in names)})
    for broken in (0, 3, 11, 19):
        (root / f"{broken:02d}.png").write_bytes(b"broken")
    for split in ("all", "train", "test"):
        got = data.load(root, split, skip_corrupt=True)
        values = (got.images[:, 0, 0, 0].astype(int) - 100).tolist()
        assert [one for (one,) in got.captions] == [f"value {value:02d}" for value in values]
        assert list(got.names) == [f"{value:02d}.png" for value in values]
    assert len(data.load(root, "all", skip_corrupt=True).captions) == 16


def test_changed_captions_are_noticed(folder: Folder) -> None:
    root = folder("a.png;b.png", {"captions.txt": "a.png\tone", "b.txt": "two"})
    before = data.load(root, "all")
    (root / "captions.txt").write_text("a.png\tanother")
    changed = data.load(root, "all")
    assert changed.captions == (("another",), ("two",))
    assert changed.fingerprint != before.fingerprint
    stamp = (root / "b.txt").stat().st_mtime_ns
    (root / "b.txt").write_text("six")
    os.utime(root / "b.txt", ns=(stamp, stamp + 1))
    assert data.load(root, "all").captions == (("another",), ("six",))
    (root / "b.txt").unlink()
    (root / "captions.txt").unlink()
    assert data.load(root, "all").captions == ()


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"captions.txt": "a.png\tone\nx.png\tgone\ny.png\tgone"}, "2 of 3 captions are not used.*: x.png gone, y.png"),
        ({"captions.txt": "a.png\tone"}, "1 of 2 pictures have captions, 1 have none"),
        ({"captions.txt": "\n \n"}, "captions.txt: there are no captions in it"),
        ({"metadata.csv": "id,label\n3,4\n"}, "metadata.csv: not used: expected .*, found not both among id,label"),
        ({"metadata.jsonl": '{"file_name": "a.png"}'}, "metadata.jsonl: not used: .*among file_name"),
        (
            {"metadata.jsonl": '{"file_name": "a.png", "text": "x", "texts": "y"}'},
            "metadata.jsonl: not used: .*found text, texts among",
        ),
        ({"metadata.csv": "file_name,text,label\na.png,x,3"}, "metadata.csv: columns not used: label"),
        ({"a.txt": "0 .5 .5 .2 .2", "b.txt": "1 .5 .5 .2 .2"}, "hold no word .boxes of objects..: a.txt, b.txt"),
        ({"a.txt": "one", "c.txt": "gone"}, "1 texts beside no picture of the same name: c.txt"),
        ({"captions_2017.json": "{}"}, "not read: captions_2017.json; lists of captions are called captions.txt"),
    ],
)
def test_what_is_left_out_is_said(
    texts: dict[str, str | bytes], told: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder("a.png;b.png", texts)
    for _ in range(2):  # also from the cache
        remarks.warn.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(data.load(root, "all")) == 2
        assert [record for record in caplog.records if re.search(told, record.message)], caplog.text


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "captions.txt",
            "x.png\tone\ny.png\ttwo",
            r"none of its 2 entries names a picture .*'x.png one'.*lines such as a",
        ),
        ("captions.csv", "image,caption\nx.png,one", "none of its 1 entries .*'x.png'"),
        ("metadata.jsonl", '{"file_name": "x.png", "text": ""}', r'lines such as \{"file_name": "a.png", "text"'),
        ("metadata.csv", "file_name,text\nx.png,one", "a header file_name,text and lines such as a.png,"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file', "metadata.jsonl, line 2: it is not JSON"),
        ("metadata.jsonl", "[1]", "metadata.jsonl, line 1: expected"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1: text: it is neither a string nor a list"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": [["x"]]}', "line 1: text: it is neither"),
        ("metadata.jsonl", '{"file_name": 3, "text": "x"}', "line 1: file_name is 3, expected the name of a picture"),
        (
            "captions.jsonl",
            '{"file_name": "a.png", "label": 3}',
            "captions.jsonl: expected one column .* not both among",
        ),
        ("metadata.csv", "text,file_name\n\nx,a.png,y\n", "line 3: 3 cells, but the header has 2"),
        ("metadata.csv", 'file_name,text\na.png,"x" y\n', "metadata.csv, line 2: ',' expected after"),
        ("captions.txt", "a.png\tcaf\u00e9".encode("latin-1"), "captions.txt is not UTF-8 text: save it again"),
        ("captions.txt", "a.png\tone".encode("utf-16"), "captions.txt is not UTF-8 text"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8 text"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, text: str | bytes, reason: str, folder: Folder) -> None:
    root = folder("a.png;b.png", {name: text})
    with pytest.raises(UsageError, match=reason) as caught:
        data.load(root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_captions_are_regular_files(folder: Folder) -> None:
    root = folder("a.png", {})
    os.mkfifo(root / "captions.txt")  # reading it would never end
    with pytest.raises(UndiffuseError, match=r"captions\.txt: it is not a file"):
        data.load(root)
    (root / "captions.txt").unlink()
    (root / "captions.txt").symlink_to("gone")
    with pytest.raises(UndiffuseError, match=r"cannot read .*captions\.txt"):
        data.load(root)


def test_names_and_captions_in_all_their_forms(folder: Folder) -> None:
    """Odd names and captions, written by the csv and json modules and in plain lines, come back as they were."""
    draw = random.Random(0)
    letters = "ab ,|;:\"'#é1-"
    names = {f"{''.join(draw.choices(letters, k=4)).strip()}{index}.png" for index in range(40)}
    root = folder(";".join(sorted(name.replace(";", "-") for name in names)), {})
    names = sorted(path.name for path in root.iterdir())
    expected = {name: (" ".join(("x" + "".join(draw.choices(letters, k=12)) + "x").split()),) for name in names}
    rows = [(name, caption) for name, (caption,) in expected.items()]
    for kind in ("tab", "csv", "jsonl"):
        path = root / {"tab": "captions.txt", "csv": "metadata.csv", "jsonl": "metadata.jsonl"}[kind]
        with path.open("w", encoding="utf-8", newline="") as file:
            if kind == "csv":
                csv.writer(file).writerows([("file_name", "text"), *rows])
            for name, caption in rows:
                if kind == "tab":
                    file.write(f"{name}\t{caption}\n")
                if kind == "jsonl":
                    file.write(json.dumps({"file_name": name, "text": caption}) + "\n")
        assert captions(root) == expected, kind
        path.unlink()


def test_spoilt_lists_give_captions_or_one_sentence(folder: Folder) -> None:
    random_bytes = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(3)]
    root = folder(";".join(names), {})
    outcomes = []
    for name, text in FORMS.values():
        whole = text.replace("a.png", "0.png").replace("b c.png", "1.png").encode()
        path = root / name
        for _ in range(12):
            raw = bytearray(whole)
            for place in random_bytes.integers(0, len(raw), 2):
                raw[place] = random_bytes.choice([0, 9, 10, 32, 34, 44, 92, 124, 0xFF])
            del raw[: max(0, int(random_bytes.integers(-20, 6)))]
            path.write_bytes(raw)
            outcomes.append(outcome(root))
        path.unlink()
    refusals = [one for one in outcomes if isinstance(one, str)]
    assert all(0 < len(reason) < 600 and "\n" not in reason for reason in refusals)
    assert 10 < len(refusals) < len(outcomes) - 50
    assert {one for one in outcomes if isinstance(one, int)} == {0, 1, 2}


def outcome(root: Path) -> int | str:
    """How many pictures have captions, or why the folder is refused; any other exception is a failure."""
    try:
        return len(captions(root))
    except UndiffuseError as error:
        return str(error)


def test_data_show_shows_captions(folder: Folder, command: Command) -> None:
    root = folder("a.png;b.png;c.png", {"captions.txt": "a.png#0 a cat\na.png#1 a tabby\nc.png " + "long " * 99})
    code, out, _ = command("data", "show", root, "--split", "all", "-o", "sheet.png")
    assert code == 0
    assert "captions: 2 of 3 have 1 to 2 each, such as\n  a.png: a cat\n  c.png: long long" in out
    assert max(map(len, out.splitlines())) < 160
