"""The cache of the user: entries come back whole or not at all, and it never grows beyond its bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.runs import cache
from unveil.runs.cache import cache_folder, cached, store


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_what_is_stored_comes_back_by_kind_and_key(folder: Path):
    assert cached("a-1", "key") is None
    assert store("a-1", "key", b"one")
    assert store("a-2", "key", b"two")
    assert store("a-1", "\udcff/..", b"")
    assert (cached("a-1", "key"), cached("a-2", "key"), cached("a-1", "\udcff/..")) == (b"one", b"two", b"")
    assert cached("a-1", "else") is None
    assert all(path.suffix == ".entry" for path in _entries(folder))  # no temporary file is left


@pytest.mark.parametrize("content", [b"", b"one", b"unveil cache 0\n" + bytes(19)])
def test_a_damaged_entry_is_none_and_is_removed(folder: Path, content: bytes):
    store("a-1", "key", b"one")
    (entry,) = _entries(folder)
    entry.write_bytes(content)
    assert cached("a-1", "key") is None
    assert _entries(folder) == []
    store("a-1", "key", b"one")
    entry.write_bytes(entry.read_bytes()[:-1] + b"E")
    assert cached("a-1", "key") is None


def test_what_was_unused_for_longest_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_LIMIT", 1000)
    for age, key in enumerate(("c", "b", "a")):
        store("a-1", key, bytes(300))
        os.utime(max(_entries(folder), key=os.path.getmtime), (age, age))
    assert cached("a-1", "c") is not None  # which makes it the newest
    store("b-1", "d", bytes(300))
    assert cached("a-1", "b") is None
    assert None not in (cached("a-1", "c"), cached("a-1", "a"), cached("b-1", "d"))
    assert sum(path.stat().st_size for path in _entries(folder)) <= 1000
    assert store("a-1", "huge", bytes(2000))  # alone beyond the bound, it stays until the next is stored
    assert cached("a-1", "huge") is not None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "file" / "below"))
    assert not store("a-1", "key", b"one")
    assert cached("a-1", "key") is None


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNVEIL_CACHE", "off")
    assert cache_folder() is None
    assert not store("a-1", "key", b"one")
    monkeypatch.delenv("UNVEIL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "unveil"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "unveil"


def test_two_processes_store_the_same_at_once(folder: Path):
    write = "from unveil.runs.cache import store\nfor n in range(100): assert store('a-1', 'key', bytes([{}]) * 5000)"
    processes = [subprocess.Popen([sys.executable, "-c", write.format(n)]) for n in (1, 2)]
    seen = set()
    while any(process.poll() is None for process in processes):
        seen.add(cached("a-1", "key"))
    assert [process.returncode for process in processes] == [0, 0]
    assert seen - {None} <= {bytes([1]) * 5000, bytes([2]) * 5000}
    assert cached("a-1", "key") in seen | {bytes([1]) * 5000, bytes([2]) * 5000}
    assert len(_entries(folder)) == 1
