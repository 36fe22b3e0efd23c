"""Records what a command does to a folder, and rebuilds the folder as a power loss at any moment may leave it.

The recorder looks at the folder before every call of Python that changes names (an audit hook on open for writing,
rename, remove, mkdir, rmdir, link, truncate) and before every fsync, and writes down what has changed since. So it
sees the bytes of every writer, those of safetensors, Arrow and torch too, for it reads them back. It does not see: the
order of writes between two such calls, which a power loss may change anyway; a temporary file that native code makes
and renames between two of them; an fsync by native code, which counts as none; other processes.

What a power loss leaves follows ALICE and CrashMonkey: data are certain once their file was synced, names once their
folder was. Whatever is newer may be there or not, in any order, and data may be cut off, zero, or half new.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TOP = 0  # the number of the folder that is recorded
_HOT = 50_000_000  # ns: a file read so soon after its last change may change again without another time
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_Place = tuple[int, str]  # a folder and a name in it


@dataclass(frozen=True)
class Named:
    """A name appears, goes, or both at once (a rename); `node` is the file or folder that it stands for."""

    node: int
    old: _Place | None
    new: _Place | None

    @property
    def folders(self) -> set[int]:
        return {place[0] for place in (self.old, self.new) if place is not None}


@dataclass(frozen=True)
class Written:
    """A file has this content now."""

    node: int
    content: bytes


@dataclass(frozen=True)
class Synced:
    """What a file holds, or the names in a folder, are on the disk."""

    node: int


@dataclass(frozen=True)
class Promise:
    """From here on the user relies on something."""

    what: str
    value: Any


Operation = Named | Written | Synced | Promise


@dataclass
class _Node:
    inode: int
    is_folder: bool
    stamp: tuple[int, int] = (-1, -1)  # size and time of the last change
    read_at: int = 0  # ns
    content: bytes = b""


class Journal:
    """The operations of a command on a folder, in order; nodes (files and folders) are numbers."""

    active: Journal | None = None

    def __init__(self, folder: Path):
        self.folder, self.operations = folder, list[Operation]()
        self._nodes = {TOP: _Node(folder.stat().st_ino, True)}
        self._names: dict[_Place, int] = {}
        self._lock, self._last, self._numbers = threading.RLock(), "", 0
        self.folders = {TOP}
        self.look("")  # what is there is on the disk
        self.operations += [Synced(number) for number in self._nodes]
        self.start = len(self.operations)

    def promise(self, what: str, value: Any = True) -> None:
        with self._lock:
            self.look("")
            self.operations.append(Promise(what, value))

    def see(self, event: str, what: Any) -> None:
        """What is about to happen."""
        if event == "fsync":
            self._sync(what)
        elif event != "read":
            self.look(event)

    def _sync(self, descriptor: int) -> None:
        with self._lock:
            self.look("fsync")
            inode = os.fstat(descriptor).st_ino
            self.operations += [Synced(n) for n, node in self._nodes.items() if node.inode == inode]

    def look(self, event: str) -> None:
        """Write down what has changed since the last look; `event` is the call that comes next."""
        with self._lock:
            moves, self._last = self._last in ("os.rename", "os.link"), event
            self._numbered = {(n.inode, n.is_folder): number for number, n in self._nodes.items()}
            there: dict[_Place, int] = {}
            read: list[Operation] = []
            self._list(self.folder, TOP, moves, there, read)
            before, self._names = self._names, there
            gone = {place: node for place, node in before.items() if there.get(place) != node}
            for place, node in there.items():
                if before.get(place) != node:
                    old = next((p for p, n in gone.items() if n == node and p not in there), None)
                    self.operations.append(Named(node, old, place))
                    if old is not None:
                        del gone[old]
                    gone.pop(place, None)
            self.operations += [Named(node, place, None) for place, node in gone.items()]
            self.operations += read
            living = {TOP, *there.values()}
            self._nodes = {number: node for number, node in self._nodes.items() if number in living}

    def _list(self, folder: Path, above: int, moves: bool, there: dict[_Place, int], read: list[Operation]) -> None:
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            status, is_folder = entry.stat(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
            place, inode = (above, entry.name), (status.st_ino, is_folder)
            number = self._numbered.get(inode)
            if number is None or (self._names.get(place) != number and not moves):  # an inode may be used again
                self._numbers = number = self._numbers + 1
                self._nodes[number] = _Node(status.st_ino, is_folder)
                self.folders |= {number} if is_folder else set()
                self._numbered[inode] = number
            there[place] = number
            if is_folder:
                self._list(Path(entry.path), number, moves, there, read)
                continue
            node, stamp = self._nodes[number], (status.st_size, status.st_mtime_ns)
            if stamp != node.stamp or node.read_at - stamp[1] < _HOT:
                content = Path(entry.path).read_bytes()
                node.stamp, node.read_at = stamp, time.time_ns()
                if content != node.content:
                    node.content = content
                    read.append(Written(number, content))


Watcher = Callable[[str, Any], None]  # is called with what is about to happen and with a path, or a descriptor
_watchers: list[Watcher] = []


def _hook(event: str, words: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    if event == "open" and isinstance(words[2], int):
        event = "write" if words[2] & _WRITING else "read"
    elif event not in _EVENTS:
        return
    for watcher in _watchers:
        watcher(event, words[0])


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call something before this process opens a file (`read` or `write`), changes a name or syncs (`fsync`).

    Syncs are not made.
    """
    if not getattr(Journal, "hooked", False):  # a hook stays for as long as the process
        sys.addaudithook(_hook)
        Journal.hooked = True  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: watcher("fsync", file if isinstance(file, int) else file.fileno()))
        _watchers.append(watcher)
        try:
            yield
        finally:
            _watchers.remove(watcher)


@contextmanager
def recording(folder: Path) -> Iterator[Journal]:
    """Record what this process does below a folder."""
    journal = Journal.active = Journal(folder)
    with watching(journal.see):
        yield journal
    journal.look("")


@dataclass(frozen=True)
class Crash:
    """Power is lost after so many operations; `seed` draws what of the rest is on the disk."""

    after: int
    kind: str
    seed: int


# What becomes of operations that were not synced: of names, and of data.
KINDS = {
    "killed": ("all", "new"),  # no power loss: the system writes all that the process had handed over
    "synced": ("none", "old"),  # nothing but what is certain
    "names first": ("all", "old"),
    "zeros": ("all", "zeros"),
    "cut": ("all", "cut"),
    "data first": ("none", "new"),
    "in order": ("some first", "any"),
    "any": ("any", "any"),
}


@dataclass
class _Disk:
    folders: set[int]
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)


def disk_after(journal: Journal, crash: Crash) -> _Disk:
    """What is on the disk after a power loss."""
    made, rng = journal.operations[: crash.after], random.Random(f"{crash.after} {crash.kind} {crash.seed}")
    names, data = KINDS[crash.kind]
    last_sync: dict[int, int] = {}
    for i, operation in enumerate(made):
        if isinstance(operation, Synced):
            last_sync[operation.node] = i
    open_names = [i for i, o in enumerate(made) if isinstance(o, Named) and not _is_certain(o, i, last_sync)]
    share = rng.random()
    if names == "all":
        there = set(open_names)
    elif names == "some first":
        there = set(open_names[: rng.randint(0, len(open_names))])
    else:
        there = {i for i in open_names if names == "any" and rng.random() < share}
    disk = _Disk(journal.folders)
    lost = set(open_names) - there
    for i, operation in enumerate(made):
        if isinstance(operation, Named) and i not in lost:
            if operation.old is not None:
                entries = disk.names.setdefault(operation.old[0], {})
                if entries.get(operation.old[1]) == operation.node:
                    del entries[operation.old[1]]
            if operation.new is not None:
                disk.names.setdefault(operation.new[0], {})[operation.new[1]] = operation.node
    versions: dict[int, list[bytes]] = {}
    for i, operation in enumerate(made):
        if isinstance(operation, Written):
            if i < last_sync.get(operation.node, -1):
                versions[operation.node] = [operation.content]
            else:
                versions.setdefault(operation.node, [b""]).append(operation.content)
    for node, contents in versions.items():
        disk.contents[node] = contents[0] if len(contents) == 1 else _left(contents, data, rng)
    return disk


def _is_certain(operation: Named, index: int, last_sync: dict[int, int]) -> bool:
    return all(last_sync.get(folder, -1) > index for folder in operation.folders)


def _left(versions: list[bytes], kind: str, rng: random.Random) -> bytes:
    """What is left of a file: the first version is synced, the others are not."""
    old, new = versions[0], versions[-1]
    if kind == "any":
        kind, new = rng.choice(("old", "new", "zeros", "cut", "mixed")), rng.choice(versions[1:])
    place = rng.randint(0, len(new))
    kept = len(old) if new.startswith(old) else 0  # what was appended to stays
    match kind:
        case "old":
            return old
        case "new":
            return new
        case "zeros":
            return new[:kept] + bytes(len(new) - kept)
        case "cut":
            return new[: kept + (len(new) - kept) // 2]
    return new[:place] + old[place : len(new)] + bytes(max(0, len(new) - max(place, len(old))))


def rebuild(disk: _Disk, folder: Path, node: int = TOP) -> None:
    """Make a folder as it is on the disk."""
    folder.mkdir(exist_ok=True)
    for name, below in disk.names.get(node, {}).items():
        if below in disk.folders:
            rebuild(disk, folder / name, below)
        else:
            (folder / name).write_bytes(disk.contents.get(below, b""))


def _tree(disk: _Disk, node: int = TOP) -> frozenset[tuple[str, Any]]:
    """What is in a folder; states of the disk are the same where this is."""
    return frozenset(
        (name, _tree(disk, below) if below in disk.folders else disk.contents.get(below, b""))
        for name, below in disk.names.get(node, {}).items()
    )


def states(journal: Journal, count: int, rng: random.Random) -> Iterator[tuple[Crash, _Disk]]:
    """So many different states of the disk at random moments, or all that there are of each kind and some draws."""
    operations = journal.operations
    first, rest = [], []
    for after in range(journal.start, len(operations) + 1):
        synced = operations[after] if after < len(operations) else None
        if isinstance(synced, Synced):  # most is uncertain then: torn data of a file, lost names of a folder
            likely = ("data first", "synced", "any") if synced.node in journal.folders else ("zeros", "cut", "any")
            first.append(Crash(after, rng.choice(likely), rng.randrange(4)))
        rest += [Crash(after, kind, seed) for kind, how in KINDS.items() for seed in range(4 if "any" in how else 1)]
    rng.shuffle(first)
    rng.shuffle(rest)
    known: set[Any] = set()
    for crash in first + rest:
        disk = disk_after(journal, crash)
        if len(known) < count and (tree := (tuple(sorted(promised(journal, crash).items())), _tree(disk))) not in known:
            known.add(tree)
            yield crash, disk


def promised(journal: Journal, crash: Crash) -> dict[str, Any]:
    """What the user relied on at the moment of a crash: the last of each promise."""
    return {o.what: o.value for o in journal.operations[: crash.after] if isinstance(o, Promise)}
