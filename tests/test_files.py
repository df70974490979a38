"""Atomic writes: whole or absent, whatever happens in between."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from undiffuse import output
from undiffuse.domains.pictures import Pictures
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import atomic_file, atomic_folder, fsynced_at_the_end, read_json, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failed write leaves the old content and nothing else; a good one replaces it."""
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half" * (1 // 0))
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """The same for folders."""
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
        assert [file.name for file in path.iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        (temporary / "half").mkdir(1 // 0)
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_folder_survives_a_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the new folder is in its place the old one is not lost: a crash in between must leave one of them."""
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "old").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UndiffuseError, match="Input/output"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert (path / "old").exists()


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_explained(tmp_path: Path, writer: type) -> None:
    """ENOSPC becomes an UndiffuseError that names the path; nothing is left."""
    with (
        pytest.raises(UndiffuseError, match=r"cannot write .*x: No space left.*Free some space"),
        writer(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_is_explained(tmp_path: Path, writer: type) -> None:
    """A path below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UndiffuseError, match="cannot write"), writer(tmp_path / "file" / "x"):
        raise AssertionError("nothing to write to")


def test_permissions_are_the_umasks(tmp_path: Path) -> None:
    """A file and a folder written atomically have the modes of ones that were not."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain-folder").mkdir()
    write_json(tmp_path / "x", 1)
    with atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain-folder").stat().st_mode


@pytest.mark.parametrize("content", [None, "", "{", '{"a": 1', "\xff\xfe", r'{"a": "\udcff"}', "[" * 100_000])
def test_bad_json_is_named(tmp_path: Path, content: str | None) -> None:
    """Missing, empty, cut off, binary, absurd, and half of a surrogate pair: an UndiffuseError with the path."""
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UndiffuseError, match=r"x\.json"):
        read_json(path)


def test_text_goes_through_json_and_what_is_none_is_named(tmp_path: Path) -> None:
    """Any UTF-8 comes back; bytes that are none (as Python reads a file's name) are named, and the old file stays."""
    path = tmp_path / "x.json"
    good = {"classes": ["été", "猫", "\U0001f600", "a\u2028b"]}
    write_json(path, good)
    assert read_json(path) == good
    with pytest.raises(UndiffuseError, match=r"cannot write .*x\.json.*b\\udcffd.*not UTF-8"):
        write_json(path, {"classes": ["good", "b\udcffd"]})
    assert read_json(path) == good
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def _log_of_writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is synced and what is renamed, in order: ("sync" | "rename", inode)."""
    log: list[tuple[str, int]] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        log.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        log.append(("rename", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    return log


def test_a_file_is_on_the_disk_before_it_is_renamed_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a power cut: the content, the rename, the folder that holds the name."""
    log = _log_of_writes(monkeypatch)
    with atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("content")
        assert not log
    inode = (tmp_path / "x").stat().st_ino
    assert log == [("sync", inode), ("rename", inode), ("sync", tmp_path.stat().st_ino)]


def test_a_folder_is_on_the_disk_before_it_is_renamed_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder in it and then itself, the rename, the folder that holds the name."""
    log = _log_of_writes(monkeypatch)
    with atomic_folder(tmp_path / "x") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "deep").write_text("content")
        (temporary / "file").write_text("content")
    folder = tmp_path / "x"
    inodes = [path.stat().st_ino for path in (folder / "inner", folder / "inner" / "deep", folder / "file")]
    own = folder.stat().st_ino
    assert sorted(log[:3]) == sorted(("sync", inode) for inode in inodes)
    assert log[3:] == [("sync", own), ("rename", own), ("sync", tmp_path.stat().st_ino)]


def test_the_name_of_an_output_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last thing that happens to a file or a folder, new or with --force over an old one: its folder is synced."""
    log = _log_of_writes(monkeypatch)

    def last_synced(force: bool, folder: bool) -> int:
        log.clear()
        if folder:
            own = output.names_of_samples(".png")
            output.put_folder(tmp_path / "f", lambda path: write_json(path / "000000.png", 1), own, force)
        else:
            output.put(tmp_path / "x.json", lambda path: write_json(path, 1), force)
        assert log[-1][0] == "sync"
        return log[-1][1]

    here = tmp_path.stat().st_ino
    assert last_synced(force=False, folder=False) == last_synced(force=True, folder=False) == here
    assert last_synced(force=False, folder=True) == here
    assert last_synced(force=True, folder=True) == (tmp_path / "f").stat().st_ino  # it has the names


def test_a_fresh_name_is_over_nothing(tmp_path: Path) -> None:
    """The name itself while it is free, then -2, -3 ...; a file keeps its suffix, a folder its whole name."""
    for name, second in (("x.png", "x-2.png"), ("v.1", "v.1-2"), ("plain", "plain-2")):
        path = tmp_path / name
        assert output.fresh(path) == path
        path.touch() if path.suffix == ".png" else path.mkdir()
        assert output.fresh(path) == tmp_path / second
    (tmp_path / "x-2.png").symlink_to("nowhere")
    assert output.fresh(tmp_path / "x.png") == tmp_path / "x-3.png"


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.npz", "folder", "X.PNG", "X.NPY", "X.NPZ", "a/b/x.npz"])
def test_every_kind_of_output_can_be_read_again(tmp_path: Path, name: str) -> None:
    """What is written is read back by the package's own reader, pixel for pixel where it is not a grid."""
    from PIL import Image

    from undiffuse.data import load

    out = tmp_path / name
    output.check(out, 3)
    said = output.write(out, Pictures((8, 8, 3)), IMAGES, np.array([0, 1, 1, 0, 2]), ("a", "b", "c"))
    assert str(out) in said and "5 samples of 8x8" in said
    if out.suffix.lower() == ".png":
        with Image.open(out) as grid:
            assert grid.size == (3 * 10 + 2, 2 * 10 + 2) if grid.width < 100 else grid.width % 32 == 0
        return
    if out.suffix.lower() == ".npy":
        assert np.array_equal(np.load(out), IMAGES)
    again = load(out, "all")
    assert np.array_equal(again.images, IMAGES)
    if out.suffix.lower() == ".npz":
        assert again.classes == ("a", "b", "c") and again.labels is not None
        assert again.labels.tolist() == [0, 1, 1, 0, 2]
        with np.load(out) as arrays:
            assert sorted(arrays) == ["classes", "images", "labels"]


@pytest.mark.parametrize("name", ["x.jpg", "x.txt", "file"])
def test_outputs_that_cannot_be_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    """An unknown suffix, or a file where a folder is meant."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        output.check(tmp_path / name, 3)


def test_a_grid_too_large_is_refused(tmp_path: Path) -> None:
    """A grid has a limit, and the message says what to write instead."""
    with pytest.raises(UsageError, match="npz"):
        output.check(tmp_path / "x.png", 4097)


def test_what_a_command_writes_is_flushed_once_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of a folder, the folder, then the name; and a failure leaves flushing as it was."""
    log = _log_of_writes(monkeypatch)
    move = os.rename

    def rename(made: Path, target: Path) -> None:
        log.append(("named", made.stat().st_ino))
        move(made, target)

    def write(folder: Path) -> None:
        folder.mkdir()
        for name in ("a", "b"):
            write_json(folder / name, name)
        assert not [kind for kind, _ in log if kind == "sync"]
        write_json(tmp_path / "elsewhere", 1)
        assert [kind for kind, _ in log if kind == "sync"]
        log.clear()

    monkeypatch.setattr(os, "rename", rename)
    output.put_folder(tmp_path / "x", write, re.compile(""))
    written = {path.stat().st_ino for path in (tmp_path / "x" / "a", tmp_path / "x" / "b", tmp_path / "x")}
    log = [entry for entry in log if entry[0] != "rename"]  # of each file to its name in the folder
    assert {inode for _, inode in log[:3]} == written and {kind for kind, _ in log[:3]} == {"sync"}
    assert log[3:] == [("named", (tmp_path / "x").stat().st_ino), ("sync", tmp_path.stat().st_ino)]

    with pytest.raises(RuntimeError), fsynced_at_the_end(tmp_path):
        raise RuntimeError
    monkeypatch.undo()
    log = _log_of_writes(monkeypatch)
    write_json(tmp_path / "y", 1)
    assert [kind for kind, _ in log] == ["sync", "rename", "sync"]
