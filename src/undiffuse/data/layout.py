"""What the folders of a data set mean: wrappers, splits, classes. No decision is silent."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from undiffuse.data.remarks import kinds, readable, some
from undiffuse.data.walk import Found, Kind
from undiffuse.errors import UsageError

SPLIT = re.compile(
    r"(?:images?|imgs?|seg)?[-_ ]*"
    r"(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)"
    r"|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?|held[-_ ]?out))"
    r"[-_ ]*(?:set|data|split|images?|imgs?|(?:19|20)\d\d)?",
    re.IGNORECASE,
)
HELD_OUT = ("test", "val")  # in order of preference
NO_CLASS = frozenset(
    {"images", "image", "imgs", "img", "pictures", "photos", "data", "audio", "sounds", "clips", "wav", "wavs"}
)


@dataclass(frozen=True)
class Layout:
    """The pictures or sounds in use, relative to the root, and what is known about each.

    classes   its class or None; all None for an unlabelled set
    test      whether it is held out; None for a set without splits
    """

    files: list[PurePosixPath]
    classes: list[str | None]
    test: list[bool] | None
    remarks: list[str]


def role(name: str) -> str | None:
    """ "train", "test" or "val" for a folder name that usually means that split, ignoring case; else None."""
    found = SPLIT.fullmatch(name.strip())
    return found.lastgroup if found else None


def _hints(name: str) -> set[str]:
    """The splits mentioned within a longer name: trainA, test.v1, train_cat."""
    words = re.split("[^a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return {split for word in words if word and (split := role(word))}


def arrange(root: Path, found: Found) -> Layout:
    """Splits and classes of the pictures under `root`. Raises UsageError if they are ambiguous."""
    place = readable(str(root))
    seen = [*found.pictures, *found.unread]
    depth, remarks = _unwrap(place, seen, found.kind)
    roles = {top: role(top) for top in sorted(_tops(seen, depth))}
    trains, held_out = ([top for top in roles if roles[top] in kind] for kind in (("train",), HELD_OUT))
    if trains and held_out:
        return _split(place, found, depth, roles, remarks)
    if trains or held_out:
        remarks.append(_no_split(place, found.pictures, depth, roles))
    elif _are_both({role(part) for part in _tops(seen, depth + 1)}):
        return _split_in_classes(place, found, depth, remarks)
    else:
        remarks += _like_splits(place, list(roles))
    remarks += _without_pictures(place, found, depth)
    return Layout(found.pictures, _classes(place, found, depth), None, remarks)


def _are_both(kinds_of_split: set[str | None]) -> bool:
    """Whether there is a split to train on and one to hold out."""
    return "train" in kinds_of_split and not kinds_of_split.isdisjoint(HELD_OUT)


def _tops(files: Sequence[PurePosixPath], depth: int) -> set[str]:
    """The names of the folders at a depth."""
    return {file.parts[depth] for file in files if len(file.parts) > depth + 1}


def _loose(files: Sequence[PurePosixPath], depth: int) -> list[PurePosixPath]:
    """The files at a depth that are in none of its folders."""
    return [file for file in files if len(file.parts) == depth + 1]


def _unwrap(place: str, files: list[PurePosixPath], kind: Kind) -> tuple[int, list[str]]:
    """How many levels of folders are mere wrappers, and remarks about them.

    A folder that holds all pictures, none of them directly, is a wrapper. So is a lone train/, test/ or images/. But
    if a chain of wrappers ends in one folder, that is a single class, named after the first.
    """
    depth = settled = 0
    remarks = []
    while len(tops := _tops(files, depth)) == 1 and not _loose(files, depth):
        only = tops.pop()
        if role(only) or only.lower() in NO_CLASS:
            settled = depth + 1
            if role(only) in HELD_OUT:
                remarks.append(f"{place}: there is {readable(only)}/ and no train/: its {kind.noun}s are the whole set")
        elif _loose(files, depth + 1):
            break
        depth += 1
    return (depth if len(_tops(files, depth)) > 1 else settled), remarks


def _no_split(place: str, pictures: list[PurePosixPath], depth: int, roles: dict[str, str | None]) -> str:
    """A remark on folders named like a split without a counterpart: classes if they look like those beside them."""
    named, others = ([top for top in roles if bool(roles[top]) == wanted] for wanted in (True, False))
    flat = {file.parts[depth] for file in _loose(pictures, depth + 1)}
    if not others or flat.isdisjoint(named):
        beside = f"beside {some(others)}" if others else "alone"
        raise UsageError(
            f"{place}: {some(named)} {beside} may be splits or classes. Splits are train/ with test/ (or val/): "
            "move or rename anything else."
        )
    return f"{place}: {some(named)} is taken for a class, like {some(others)}; splits are train/ with test/ (or val/)"


def _like_splits(place: str, names: list[str]) -> list[str]:
    """A remark on classes with names similar to splits (trainA, testA). Raises UsageError if all of them are."""
    hints = {name: found for name in names if (found := _hints(name))}
    if not _are_both({hint for found in hints.values() for hint in found}):
        return []
    if len(hints) == len(names):
        raise UsageError(
            f"{place}: {some(hints)} may be splits or classes. Splits are train/ with test/ (or val/): rename splits "
            "accordingly, or give one of them; give classes other names."
        )
    return [f"{place}: {some(hints)} are taken for classes; splits are train/ with test/ (or val/)"]


def _split_in_classes(place: str, found: Found, depth: int, remarks: list[str]) -> Layout:
    """The pictures of cat/train/ and cat/test/, where cat is the class; all must be in such folders."""
    roles = {
        file: role(file.parts[depth + 1]) if len(file.parts) > depth + 2 else None
        for file in [*found.pictures, *found.unread]
    }
    if others := [file for file, split in roles.items() if split is None]:
        raise UsageError(
            f"{place}: classes have train/ and test/ (or val/) in them, but {len(others)} {found.kind.noun}s are in "
            f"neither ({some(others[:1])}). Move them, or make train/ and test/ the first level."
        )
    test = next(kind for kind in HELD_OUT if kind in roles.values())
    files = [file for file in found.pictures if roles[file] in ("train", test)]
    if unused := len(found.pictures) - len(files):
        remarks.append(
            f"{place}: {unused} {found.kind.noun}s are in neither split and not used: test is used, not validation"
        )
    classes = _classes(place, replace(found, pictures=files), depth)
    return Layout(files, classes, [roles[file] == test for file in files], remarks)


def _split(place: str, found: Found, depth: int, roles: dict[str, str | None], remarks: list[str]) -> Layout:
    """The pictures of train/ and of test/ (else val/); anything beside them is left out, with a remark."""
    train = _the("train", place, roles)
    test = _the("test" if "test" in roles.values() else "val", place, roles)
    used = {top: _part(place, found, depth, top, remarks) for top in (train, test)}
    unused = Counter(file.parts[depth] for file in found.pictures if not any(file in part for part in used.values()))
    if unused:
        counts = [f"{name}/ ({count})" if name in roles else name for name, count in sorted(unused.items())]
        remarks.append(
            f"{place}: {unused.total()} {found.kind.noun}s are in neither split and not used: {some(counts)}; "
            f"the splits are {readable(train)}/ and {readable(test)}/"
        )
    labelled = {top: None not in part.values() for top, part in used.items()}
    if labelled[train] and not labelled[test]:
        remarks.append(f"{place}: {readable(test)}/ has no class folders, so the splits test and all have no classes")
    if labelled[test] and not labelled[train]:
        remarks.append(f"{place}: {readable(train)}/ has no class folders, so those of {readable(test)}/ are not used")
        used[test] = dict.fromkeys(used[test])
    classes = used[train] | used[test]
    files = sorted(classes)
    return Layout(files, [classes[file] for file in files], [file in used[test] for file in files], remarks)


def _the(kind: str, place: str, roles: dict[str, str | None]) -> str:
    names = [top for top in roles if roles[top] == kind]
    if len(names) > 1:
        raise UsageError(f"{place}: {some(names)} may each be the {kind} split. Move or rename all but one.")
    return names[0]


def _part(place: str, found: Found, depth: int, top: str, remarks: list[str]) -> dict[PurePosixPath, str | None]:
    """The pictures of one split, and the class of each."""
    place = f"{place}/{readable(top)}"
    pictures, unread, bare = (
        [file for file in files if len(file.parts) > depth + 1 and file.parts[depth] == top]
        for files in (found.pictures, found.unread, found.bare)
    )
    if not pictures:
        kind = found.kind
        raise UsageError(
            f"{place} holds only {kind.noun}s in unsupported formats ({kinds(unread)}): convert them to {kind.target}"
        )
    level = depth + 1  # train/images/cat, seg_train/seg_train/cat
    while (
        len(tops := _tops(pictures, level)) == 1
        and not _loose(pictures, level)
        and (role(top := tops.pop()) or top.lower() in NO_CLASS)
    ):
        level += 1
    part = replace(found, pictures=pictures, unread=unread, bare=bare)
    remarks += _without_pictures(place, part, level)
    return dict(zip(pictures, _classes(place, part, level), strict=True))


def _without_pictures(place: str, found: Found, depth: int) -> list[str]:
    """A remark on folders without pictures beside those of the classes, and on empty splits."""
    labelled = bool(_tops(found.pictures, depth))
    bare = [
        one
        for one in found.bare
        if len(one.parts) <= depth + 1 and (role(one.name) or (labelled and len(one.parts) == depth + 1))
    ]
    return [f"{place}: no {found.kind.noun}s in {some(bare)}: not used as classes or splits"] if bare else []


def _classes(place: str, found: Found, depth: int) -> list[str | None]:
    """The class of each picture: its folder's name at a depth; None for all if none has one."""
    noun = found.kind.noun
    loose = _loose(found.pictures, depth)
    if len(loose) == len(found.pictures):
        return [None] * len(loose)
    if loose:
        raise UsageError(
            f"{place}: {len(loose)} {noun}s lie beside class folders (the first is {readable(str(loose[0]))}). "
            f"Move them into a class folder, or all {noun}s into one folder for a set without classes."
        )
    lost = _tops(found.unread, depth) - _tops(found.pictures, depth)
    if lost:
        files = [file for file in found.unread if len(file.parts) > depth + 1 and file.parts[depth] in lost]
        raise UsageError(
            f"{place}: no {noun} of the class {some(sorted(lost))} can be read: {kinds(files)} are not supported. "
            f"Convert them to {found.kind.target}, or move the folder elsewhere."
        )
    return [file.parts[depth] for file in found.pictures]
