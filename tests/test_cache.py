"""Where the cache is."""

import sys
from pathlib import Path

import pytest

from undiffuse.cache import cache_dir, folder_for


def test_the_variable_goes_before_the_systems_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$UNDIFFUSE_CACHE, with ~ as a shell has it; nothing is made by asking."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("UNDIFFUSE_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine" and not cache_dir().exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the place of Linux")
def test_on_linux_the_place_is_what_it_always_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """~/.cache/undiffuse, or within $XDG_CACHE_HOME: what is there already goes on to be found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("UNDIFFUSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "undiffuse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "undiffuse" and not list(tmp_path.iterdir())


def test_a_folder_is_known_by_all_it_depends_on() -> None:
    """Equal identities have one folder, whatever the order of their keys; any other has another."""
    one = folder_for("data", {"a": 1, "b": [2]})
    assert one == folder_for("data", {"b": [2], "a": 1}) and one.parent == cache_dir() / "data"
    assert len({one, folder_for("data", {"a": 1, "b": [3]}), folder_for("features", {"a": 1, "b": [2]})}) == 3
