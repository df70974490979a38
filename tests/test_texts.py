"""Texts: what is read as one, what is refused, where the held-out end begins, windows, the cache and the domain."""

import gzip
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.build import make_data
from undiffuse.cache import cache_dir
from undiffuse.config import DataConfig
from undiffuse.data import corpus, texts
from undiffuse.data.corpus import cut, separated
from undiffuse.data.textfiles import is_text
from undiffuse.data.texts import TextSet, load_text
from undiffuse.domains import domain_of
from undiffuse.domains.texts import Texts
from undiffuse.errors import UndiffuseError, UsageError

pytestmark = pytest.mark.usefixtures("own_cache")
SENTENCES = "".join(f"This is sentence number {number} of all. " for number in range(200))


def spelled(path: Path | str, split: str = "all") -> str:
    found = load_text(path, split, tokens="bytes", length=1)
    return found.tokenizer.decode(found.flat)


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    return written(tmp_path / "sentences.txt", SENTENCES)


def test_a_file_is_its_text(tmp_path: Path) -> None:
    text = "naïve cafe\u0301, CAFÉ\u2028 \t漢字 😀\n\n  end " * 9
    assert unicodedata.normalize("NFC", text) != text  # and it stays so
    assert spelled(written(tmp_path / "a.txt", text)) == text


def test_a_mark_and_the_line_ends_of_other_systems_are_not_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.TXT", b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\nfour \xef\xbb\xbf five, six, seven, eight")
    assert spelled(path) == "one\ntwo\nthree\n\nfour \ufeff five, six, seven, eight"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no text"),
        (b" \r\n \n" * 40, "holds no text"),
        (b"a", "holds next to no text"),
        (b"word " * 50 + b"caf\xe9 and so on", r"a\.txt is not UTF-8 at byte 253 \(0xe9\): save it as UTF-8"),
        ("some text".encode("utf-16"), r"a\.txt is not UTF-8 at byte 0 \(0xff\): it is UTF-16; save it as UTF-8"),
        (b"word " * 50 + b"\0 and", r"a\.txt is not a text: it has a NUL at byte 250"),
        (b"\xed\xa0\x80 half of a pair", "not UTF-8 at byte 0"),
        (gzip.compress(b"text", mtime=0), "not UTF-8 at byte 1"),
    ],
)
def test_what_is_not_text_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UndiffuseError, match=reason) as caught:
        load_text(written(tmp_path / "a.txt", content))
    assert "\n" not in str(caught.value)
    assert [one.suffix for one in cache_dir().rglob("*") if one.is_file()] == [".lock"]


def test_a_huge_text_is_refused_before_it_is_read(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undiffuse.data.textfiles.LARGEST", 7000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it is read"))
    with pytest.raises(UsageError, match=r"sentences.txt has .* MiB, and a text at most .*: take a part of it"):
        load_text(sentences)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing.txt", "no text and no path is called"),
        ("shakespear", "Did you mean shakespeare"),
        ("a.csv", "cannot use .* as a text"),
        ("", "no text and no path is called ''"),
        ("x" * 5000, "no text and no path"),
        ("a\0b", "not plain UTF-8 text"),
        ("pictures", "cannot use .* as a text"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.csv", "a,b")
    written(tmp_path / "pictures" / "one.png", b"")
    written(tmp_path / "pictures" / "one.txt", "a caption")
    with pytest.raises(UsageError, match=reason):
        load_text(name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"split": "val"}, "no split 'val'"),
        ({"tokens": "words"}, "no way to spell a text 'words'"),
        ({"length": 0}, "length must be from 1 to 65,536 tokens, not 0"),
        ({"tokens": "bpe", "vocabulary": 256}, "vocabulary must be 257 to 65,536"),
    ],
)
def test_wrong_options(sentences: Path, options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_text(sentences, **options)


def test_a_folder_is_its_texts_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    for name, content in (
        ("b/1.txt", "four.\n\n\n"),
        ("a.txt", "three\n and more."),
        ("a/2.txt", "two."),
        ("a/10.txt", "one."),
        ("c.jsonl", '"five"\n"six"\n'),
        (".hidden.txt", "no"),
        ("notes.md", "no"),
        ("empty.txt", " \n"),
    ):
        written(folder / name, content)
    assert is_text(folder)
    assert spelled(folder) == "one.\n\ntwo.\n\nthree\n and more.\n\nfour.\n\nfive\n\nsix"
    written(folder / "one.jpg", b"")
    assert not is_text(folder)


def test_documents_of_one_line_follow_without_a_blank_line() -> None:
    assert separated(["a\n", "", "b", "c\n\n"]) == ("a\n", "b\n", "c\n\n")
    assert separated(["a", "b\nc", "d"]) == ("a\n\n", "b\nc\n\n", "d")
    assert separated([]) == () == separated([" \n"])


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [
        '{"text": "a\\u2028b", "id": "7"}',
        "",
        '{"id": "8", "text": "c\\r\\nd"}',
        '{"text": "e 😀 \\ud83d\\ude00"}',
    ]
    assert spelled(written(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(rows))) == "a\u2028b\n\nc\nd\n\ne 😀 😀"
    assert spelled(written(tmp_path / "b.jsonl", '{"story": "one two", "n": 1}\n"three"\n')) == "one two\nthree"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"a": "1", "a": "2"}', "line 2 is not JSON: the key 'a' appears twice"),
        ("3", "line 2 is neither a string nor an object with one under 'a'"),
        ('{"b": "x"}', "line 2 is neither a string nor an object with one under 'a'"),
        ('{"a": null}', "line 2 is neither"),
        ('{"a": "x\\ud83d"}', "line 2 is not UTF-8 at byte 1"),
        ('{"a": "x\\u0000"}', "line 2 is not a text: it has a NUL at byte 1"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(UndiffuseError, match=reason):
        load_text(written(tmp_path / "a.jsonl", '{"a": "fine"}\n' + line + "\n"))


def test_which_string_of_a_line_is_the_text_must_be_clear(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 1.*called 'text' or be the only string.*a, b"):
        load_text(written(tmp_path / "a.jsonl", '{"a": "1", "b": "2", "c": 3}'))


def test_a_column_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def table(name: str, **columns: object) -> Path:
        parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=2)
        return tmp_path / name

    path = table("a.parquet", title=["x", "y", "z"], text=["one two", None, "three\r\nfour"])
    assert is_text(path) and spelled(path) == "one two\n\nthree\nfour"
    assert spelled(table("b.parquet", story=["one two", "three"], n=[1, 2])) == "one two\nthree"
    with pytest.raises(UsageError, match="strings here are a, b of a, b"):
        load_text(table("c.parquet", a=["x"], b=["y"]))
    with pytest.raises(UndiffuseError, match="row 1 is not a text: it has a NUL at byte 0"):
        load_text(table("d.parquet", text=["x", "\0"]))
    assert not is_text(table("e.parquet", image=[b"png"], text=["a caption"]))
    assert not is_text(table("f.parquet", image=[{"bytes": b"png", "path": ""}], text=["a caption"]))
    with pytest.raises(UndiffuseError, match=r"cannot read .*broken\.parquet"):
        load_text(written(tmp_path / "broken.parquet", b"PAR1"))
    with pytest.raises(UndiffuseError, match=r"cannot read .*broken\.parquet"):
        is_text(tmp_path / "broken.parquet")


def test_a_column_on_the_hub(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"title": ["x", "y", "z"], "text": ["one two", None, "three"]}
    splits = {"test": datasets.Dataset.from_dict({"text": ["no"]}), "train": datasets.Dataset.from_dict(rows)}
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    assert spelled("someone/words") == "one two\nthree"
    assert "splits not used: test" in caplog.text
    splits["val"] = splits.pop("train")
    with pytest.raises(UsageError, match=r"no split 'train', only test, val"):
        load_text("someone/others")
    long = {"text": [f"line {number}" for number in range(200)]}
    lines = datasets.DatasetDict({"train": datasets.Dataset.from_dict(long)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: lines)
    assert make_data(DataConfig(source="someone/lines", kind="text", length=8)).domain == "texts"


def test_what_is_a_text_by_its_name(tmp_path: Path) -> None:
    assert is_text("shakespeare") and is_text("brown") and is_text("kjv")
    assert is_text("missing.txt") and is_text(Path("missing.JSONL"))  # so that reading it tells what is wrong
    for name in ("emoji", "digits", "a.npz", "a.png", "", "owner/name", "missing.parquet", str(tmp_path)):
        assert not is_text(name)


@pytest.mark.parametrize(
    ("documents", "place", "kind"),
    [
        (["x" * 500, "y" * 455, "z" * 45], 955, "document"),
        (["x" * 931, "y" * 36, "z" * 33], 967, "document"),  # the nearer of two
        (["x" * 900, "y. " + "y" * 97], 950, "character"),  # 50 away is too far
        (["x" * 940 + "\n \n  " + "y. " + "y\n" * 26], 945, "paragraph"),
        (["x" * 940 + '." ' + "y\n" * 28 + "y"], 943, "sentence"),
        (["字" * 940 + "。」" + "字" * 58], 942, "sentence"),
        (["x" * 940 + "\n" + "y y" * 19 + "yy"], 941, "line"),
        (["x" * 960 + "  " + "y" * 38], 962, "word"),
        (["x" * 1000], 950, "character"),
        (["3.14 " + "x" * 940 + "3.14!x" + "x" * 49], 950, "character"),
    ],
)
def test_where_the_held_out_end_begins(documents: list[str], place: int, kind: str) -> None:
    train, test, found = cut(documents)
    assert sum(map(len, documents)) == 1000
    assert (len(train), found) == (place, kind) and train + test == "".join(documents)


def test_no_sentence_is_on_both_sides(sentences: Path) -> None:
    train, test = spelled(sentences, "train"), spelled(sentences, "test")
    assert train + test == SENTENCES
    assert train.endswith("number 189 of all. ") and test.startswith("This is sentence number 190 of")
    assert abs(len(test) / len(SENTENCES) - corpus.TEST) < 0.01


def test_a_cut_between_words_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_text(written(tmp_path / "a.txt", "word " * 200), length=9)
    assert "the held-out text begins after a word" in caplog.text


@pytest.mark.parametrize("tokens", ["characters", "bytes", "bpe"])
def test_windows(sentences: Path, tokens: str) -> None:
    train, test, whole = (
        load_text(sentences, split, tokens=tokens, vocabulary=300, length=7) for split in ("train", "test", "all")
    )
    for one in (train, test, whole):
        assert isinstance(one, TextSet) and one.domain == "texts" and one.shape == (7,) and one.labels is None
        assert one.condition is None and one.flat.dtype == one.images.dtype == np.uint16
        assert one.tokenizer == train.tokenizer and one.characters == len(one.tokenizer.decode(one.flat))
        assert np.shares_memory(one.images, one.flat) and not one.images.flags.writeable
    assert len(train) == len(train.flat) - 6
    for row in (0, 1, 100, len(train) - 1):
        assert train.images[row].tolist() == train.flat[row : row + 7].tolist()
    assert len(test) == len(test.flat) // 7
    assert test.images.reshape(-1).tolist() == test.flat[: len(test) * 7].tolist()
    assert len(test.flat) % 7  # what is left is in `flat` alone
    assert len(whole) == len(whole.flat) - 6  # from every position too
    assert whole.flat.tolist() == [*train.flat, *test.flat] and whole.characters == len(SENTENCES)


def test_the_tokenizer_learns_from_the_training_text_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start, end = "A line of the text.\n" * 95, "zqzqzqzqzqzqzqzqzπ.\n" * 5
    path = written(tmp_path / "a.txt", start + end)
    assert "zq" not in "".join(map("".join, load_text(path, tokens="bpe", length=10).tokenizer.facts["merges"]))
    held_out = load_text(path, "test", length=10)
    assert held_out.tokenizer.facts == {"alphabet": "\n .Aefhilnotx\ufffd"}
    assert held_out.tokenizer.decode(held_out.flat) == end.translate(dict.fromkeys(map(ord, "zqπ"), "\ufffd"))
    assert "3 characters of the held-out text are not in the training text" in caplog.text and "q, z, π" in caplog.text


def test_a_text_shorter_than_a_window_is_refused_with_the_numbers(sentences: Path) -> None:
    held_out = len(load_text(sentences, "test", length=1).flat)
    assert len(load_text(sentences, "test", length=held_out)) == 1
    for split in ("train", "test", "all"):
        with pytest.raises(UsageError, match=rf"{len(SENTENCES) - held_out:,} tokens to train on and {held_out} held"):
            load_text(sentences, split, length=held_out + 1)


def test_the_cache(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = load_text(sentences, progress=lambda *done: told.append(done))
    assert told[-1] == (len(SENTENCES), len(SENTENCES)) and math.isclose(told[0][0] / told[0][1], 0.95, abs_tol=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(texts, "_build", lambda *given: pytest.fail("it is built again"))
        again, other = load_text(sentences), load_text(sentences, length=64)
    assert again.fingerprint == first.fingerprint and (again.flat == first.flat).all()
    assert isinstance(first.flat, np.memmap)
    prints = {
        one.fingerprint for one in (first, other, load_text(sentences, "test"), load_text(sentences, tokens="bytes"))
    }
    assert len(prints) == 4
    copied = load_text(written(sentences.with_name("copy.txt"), SENTENCES))
    assert copied.fingerprint == first.fingerprint
    next(cache_dir().glob("texts/*/tokens.npy")).write_bytes(b"damage")
    next(cache_dir().glob("texts/*/meta.json")).write_text("{}")
    assert load_text(sentences).fingerprint == first.fingerprint
    written(sentences, SENTENCES.replace("all", "none"))
    assert load_text(sentences).fingerprint != first.fingerprint


def test_the_domain(tmp_path: Path, sentences: Path) -> None:
    found = load_text(sentences, length=16)
    domain = domain_of(found)
    assert domain == Texts((16,)) and domain.shape == (16,) and domain.values is None
    x0 = domain.encode(found.images[:3])
    assert x0.dtype == torch.int64 and x0.tolist() == found.images[:3].tolist()
    back = domain.decode(domain.encode(np.array([[0, 65535]], np.uint16)))
    assert back.dtype == np.uint16 and back.tolist() == [[0, 65535]]
    assert domain.augment(found.images, DataConfig(), None) is found.images
    domain.save(found.images[0], tmp_path / "row.txt")
    assert (tmp_path / "row.txt").read_text().split() == [str(number) for number in found.images[0]]
    domain.show(found.images[:5], tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    domain.check(DataConfig())
    for wrong in ({"size": 32}, {"channels": 1}, {"flip": True}, {"shift": 1}, {"augment": 0.1}):
        with pytest.raises(UsageError, match=f"data.{next(iter(wrong))} is for pictures"):
            domain.check(DataConfig(**wrong))
    with pytest.raises(ValueError, match=r"\(L,\)"):
        Texts((3, 4))
