"""The captions of a folder of pictures: lists of them (captions.txt, metadata.jsonl), and a text beside a picture."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from undiffuse.data.caption_lists import Find, Listed, read_list
from undiffuse.data.captions import captions_of, coverage, distinct
from undiffuse.data.remarks import readable, some
from undiffuse.data.walk import Found
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_text

LISTS = ("captions.txt", "captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
NUMBER = re.compile(r"#\d+$")  # image.jpg#0, image.jpg#1: the captions of one picture


@dataclass(frozen=True)
class CaptionFiles:
    """The files with captions under a folder, relative to it: lists, and the text beside each picture that has one.

    noun is what has captions: "sound" for sounds.
    """

    lists: tuple[PurePosixPath, ...]
    beside: dict[PurePosixPath, PurePosixPath]
    remarks: tuple[str, ...]
    noun: str = "picture"

    def paths(self) -> list[PurePosixPath]:
        """All files, each once, in a fixed order."""
        return [*self.lists, *sorted(set(self.beside.values()))]


def find_captions(root: Path, found: Found) -> CaptionFiles:
    """The caption files among all that was found under `root`, going by their names; nothing is opened."""
    if not found.texts:
        return CaptionFiles((), {}, (), found.kind.noun)  # without looking at a hundred thousand names
    lists = tuple(file for file in found.texts if file.name.lower() in LISTS)
    others = [file for file in found.texts if file not in set(lists)]
    texts = {_stem(file): file for file in others if file.suffix.lower() == ".txt"}
    beside = {picture: texts[_stem(picture)] for picture in found.pictures if _stem(picture) in texts}
    folders = {file.parent for file in beside.values()}
    known = {_stem(file) for file in (*found.pictures, *found.unread)}
    alone = [file for stem, file in texts.items() if file.parent in folders and stem not in known]
    unread = [file for file in others if "caption" in file.stem.lower() and _stem(file) not in known]
    place, remarks = readable(str(root)), []
    if alone := [file for file in alone if file not in unread]:
        remarks.append(f"{place}: {len(alone)} texts beside no {found.kind.noun} of the same name: {some(alone)}")
    if unread:
        remarks.append(f"{place}: not read: {some(unread)}; lists of captions are called {', '.join(LISTS)}")
    return CaptionFiles(lists, beside, tuple(remarks), found.kind.noun)


def _stem(file: PurePosixPath) -> PurePosixPath:
    return file.with_suffix("")


def read_captions(
    root: Path, pictures: Sequence[PurePosixPath], used: Sequence[PurePosixPath], files: CaptionFiles
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The captions of each picture of `used`, () if none has any, and remarks on those that were not given or not used.

    `pictures` are all those under `root`. Raises UsageError if a file cannot be understood or none of its names is that
    of a picture, UndiffuseError if it cannot be read.
    """
    captions: dict[PurePosixPath, list[str]] = defaultdict(list)
    remarks: list[str] = []
    names = _Names(pictures)
    for file in files.lists:
        place = readable(str(root / file))
        listed = read_list(place, _text(root / file), names.under(file.parent))
        lost = _lost(place, listed, file, pictures, files.noun)
        remarks += [f"{readable(str(file))}: {one}" for one in (*listed.remarks, *lost)]
        for picture, sentences in listed.found:
            captions[picture] += sentences
    texts = {picture: _sentences(root / file) for picture, file in files.beside.items()}
    if any(character.isalpha() for one in texts.values() for sentence in one for character in sentence):
        for picture, sentences in texts.items():
            captions[picture] += sentences
    elif texts:
        some_of = some(sorted(set(files.beside.values())))
        remarks.append(f"no captions: the texts beside the {files.noun}s hold no word (boxes of objects?): {some_of}")
    found = tuple(distinct(captions[picture]) for picture in used)
    return (found if any(found) else ()), (*remarks, *coverage(found, files.noun))


def _lost(place: str, listed: Listed, file: PurePosixPath, pictures: Sequence[PurePosixPath], noun: str) -> list[str]:
    """A remark on entries without a picture. Raises UsageError if no entry has one."""
    if not listed.lost:
        return [] if listed.found or listed.remarks else ["there are no captions in it"]
    if not listed.found:
        example = readable(posixpath.relpath(str(pictures[0]), str(file.parent)))
        raise UsageError(
            f"{place}: none of its {len(listed.lost):,} entries names a {noun} (the first: {listed.lost[0]!r}). "
            f"Expected {_example(file.name.lower(), example)}"
        )
    return [
        f"{len(listed.lost):,} of {len(listed.lost) + len(listed.found):,} captions are not used, since they "
        f"name no {noun}, or several: {some(dict.fromkeys(listed.lost))}"
    ]


def _example(name: str, picture: str) -> str:
    if name.endswith(".jsonl"):
        return f'lines such as {{"file_name": "{picture}", "text": "a caption"}}'
    if name.startswith("metadata"):
        return f'a header file_name,text and lines such as {picture},"a caption"'
    return f"lines such as {picture}, a tab (or | or a comma) and a caption"


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UndiffuseError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        raise UsageError(f"{readable(str(path))} is not UTF-8 text: save it again with the encoding UTF-8") from error


def _sentences(path: Path) -> tuple[str, ...]:
    """The captions of a text beside a picture: one on each line."""
    return distinct(one for line in _text(path).split("\n") for one in captions_of(line))


class _Names:
    """Pictures by name: by their path, or by the end of it where it is the only one of that end."""

    def __init__(self, pictures: Iterable[PurePosixPath]) -> None:
        self._exact: dict[str, list[PurePosixPath]] = defaultdict(list)
        self._ends: dict[str, list[PurePosixPath]] = defaultdict(list)
        for picture in pictures:
            parts = _composed(str(picture)).split("/")
            self._exact["/".join(parts)].append(picture)
            for start in range(len(parts)):
                self._ends["/".join(parts[start:])].append(picture)

    def under(self, folder: PurePosixPath) -> Find:
        """Looks up names as a file in `folder` writes them; None for no picture, and for several."""

        def find(name: str) -> PurePosixPath | None:
            name = _composed(name.strip()).replace("\\", "/")
            for one in (name, NUMBER.sub("", name).rstrip()):
                exact = self._exact.get(posixpath.normpath(posixpath.join(_composed(str(folder)), one)))
                ends = exact or [path for path in self._ends.get(one, ()) if path.is_relative_to(folder)]
                if ends:
                    return ends[0] if len(ends) == 1 else None
            return None

        return find


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
