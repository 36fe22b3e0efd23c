"""Start-up on many files: they are listed in order and compactly, and headers are read once, of very many a sample."""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unveil.data import headers as headers_module
from unveil.data import sources
from unveil.data.aligned_folders import open_samples
from unveil.data.file_ends import Ends
from unveil.data.file_names import Names, Numbers, encode_names
from unveil.data.folder_source import FolderSource
from unveil.data.identity import identities, shared, stored_identities
from unveil.data.inspection import Inspection, inspect_source
from unveil.data.listing import folder_labels, list_files, list_matches, sharing_listings, splits_in
from unveil.data.modality_config import DEPTH, RGB
from unveil.data.read_map import READ
from unveil.data.sources import Subset, open_source, origin
from unveil.data.splits import hold_out, names_digest
from unveil.runs.run_config import Check
from unveil.training.data_setup import facts_to_store

_ODD = ["a b.png", "a-b.png", "a.png", "é.png", "\U0001f600.png", "\ue000.png", "\udcff.png", "new\nline.PNG", "A.JPG"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been opened."""
    counts, own = Counter[str](), os.open

    def counting(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> int:
        if Path(path).suffix in (".png", ".jpg"):
            counts[Path(path).name] += 1
        return own(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", counting)
    return counts


def _write(path: Path, value: int, size: tuple[int, int] = (8, 8), *, is_old: bool = True) -> None:
    """A picture, changed an hour ago: files that have just been written are not cached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value % 256, np.uint8)).save(path)
    if is_old:
        os.utime(path, (time.time() - 3600, time.time() - 3600 + value))


def _folder(root: Path, count: int) -> Path:
    for n in range(count):
        _write(root / f"{'ab'[n % 2]}/{n:03}.png", n)
    return root


def _inspect(root: Path, limit: int | None = None, check: Check = "auto") -> Inspection:
    return inspect_source(open_source(root, 3), limit, check)


def test_files_are_in_the_order_of_their_paths(tmp_path: Path):
    """As sorted paths, on which the samples of every run depend: a folder's / sorts after - and before 0."""
    draw = random.Random(0)
    for folder in ("", "a", "a-b", "a.png-x", "a/b", "a/b.c", "ab", "Z", "é", "\U0001f600/\ue000", "a b/.."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in draw.sample(_ODD, 5):
            (tmp_path / folder / name).touch()
    (tmp_path / "a/.hidden").mkdir()
    (tmp_path / "a/.hidden/x.png").touch()
    (tmp_path / "a/notes.txt").touch()
    (tmp_path / "ab/up").symlink_to(tmp_path)
    (tmp_path / "Z/gone.png").symlink_to(tmp_path / "nowhere")
    expected, visited = [], set()
    for folder, below, names in os.walk(tmp_path, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (real := os.path.realpath(folder)) in visited:
            below.clear()
            continue
        visited.add(real)
        paths = [os.path.relpath(os.path.join(folder, name), tmp_path) for name in names]
        expected += [path for path in paths if path.lower().endswith((".png", ".jpg"))]
    files, others = list_files(tmp_path, (".png", ".jpg"))
    assert files == sorted(expected)
    assert others == {"hidden folder": 1, ".txt": 1}
    matches = sorted((tmp_path / "a").glob("**/*.png"))  # by the parts of the paths, as patterns always were
    names = [path.relative_to(tmp_path / "a").as_posix() for path in matches]
    assert list_matches(tmp_path / "a" / "**" / "*.png", (".png",))[1] == names


def test_names_are_the_list_that_they_stand_for():
    paths = [f"{folder}{name}" for folder in ("", "x/", "x/y/", "/", "/z/") for name in _ODD]
    names = Names.of(paths)
    assert names == paths
    assert [names[i] for i in range(-len(paths), len(paths))] == paths * 2
    assert names[3:11] == paths[3:11]
    assert names[::-2] == paths[::-2]
    assert names[5:5] == Names.of([]) == []
    assert names != paths[:-1]
    assert names.take(np.array([7, 0, 7])) == [paths[7], paths[0], paths[7]]
    assert names.end_with(".png").tolist() == [path.lower().endswith(".png") for path in paths]
    assert len({*names.hashes().tolist()}) == len(paths)
    assert (Names.of(reversed(paths)).hashes()[::-1] == names.hashes()).all()
    with pytest.raises(IndexError):
        names[len(paths)]
    numbers = Numbers(np.array([3, -1], np.int32))
    assert numbers == [3, -1]
    assert json.dumps([numbers[0], *numbers, *numbers[:1]]) == "[3, 3, -1, 3]"


def test_an_image_takes_less_than_100_bytes():
    """What a source of 200,000 files in 200 classes holds, with the numbers of those to train on."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    names = b"".join(encode_names(f"n{c:08}_{n}.JPEG" for n in range(1000)) for c in range(200))
    files = Names([f"n{c:08}" for c in range(200)], np.repeat(np.arange(200, dtype=np.int32), 1000), names)
    del names
    source = FolderSource("photos", Path("photos"), files, 3, *folder_labels(files))
    train = hold_out(source, 0.05, 0)[0]
    numbers, labels = origin(Subset(train, range(0, len(train), 2)))[1], train.labels
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert labels is not None
    assert len(numbers) == 99_500
    assert source.name(numbers[1]) in ("n00000000_2.JPEG", "n00000000/n00000000_2.JPEG")
    assert source.labels == [n // 1000 for n in range(200_000)]
    assert held < 100 * len(source)


def test_headers_and_pixels_are_read_once(tmp_path: Path, opened: Counter[str]):
    root = _folder(tmp_path / "photos", 12)
    first = _inspect(root)
    assert set(opened.values()) == {2}  # its header, its pixels
    opened.clear()
    assert _inspect(root) == first
    assert not opened
    _write(root / "b/new.png", 99, (4, 6))
    _write(root / "a/000.png", 7, (8, 9))
    second = _inspect(root)
    assert set(opened) == {"new.png", "000.png"}
    assert (second.count, second.smallest, second.largest) == (13, (4, 6), (8, 9))
    (root / "a/000.png").unlink()
    opened.clear()
    assert _inspect(root).count == 12
    assert not opened


def test_the_channels_of_a_folder_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = Counter[str]()
    header = sources.read_header
    monkeypatch.setattr(sources, "read_header", lambda data, name: read.update([name]) or header(data, name))
    root = _folder(tmp_path / "images", 6)
    assert [open_source(root).channels, read.total(), open_source(root).channels, read.total()] == [3, 6, 3, 6]
    for file in root.rglob("*.png"):
        Image.new("L", (9, 9)).save(file)
    assert [open_source(root).channels, open_source(root).channels] == [1, 1]
    assert read.total() == 3 * 6  # files that have just been written may change yet


def test_what_is_cached_equals_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = _folder(tmp_path / "photos", 9)
    Image.new("LA", (5, 5)).save(root / "a/grey.png")
    Image.new("RGB", (700, 700), (1, 2, 3)).save(root / "b/photo.jpg", quality=100, exif=b"Exif\0\0" + bytes(60_000))
    (root / "b/broken.png").write_bytes(b"no picture")
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    first, again = _inspect(root, 4), _inspect(root, 4)
    monkeypatch.setenv("UNVEIL_CACHE", "off")
    uncached = _inspect(root, 4)
    assert first == again == uncached
    assert again.identities is not None
    assert uncached.identities is not None
    assert (again.identities == uncached.identities).all()
    assert list(again.unreadable) == ["b/broken.png"]
    assert again.identities.tolist().count(0) == 1


def test_a_damaged_cache_is_rebuilt(tmp_path: Path, opened: Counter[str]):
    root = _folder(tmp_path / "photos", 4)
    first = _inspect(root)
    entries = list((tmp_path / "cache").rglob("*.entry"))
    assert len(entries) == 2  # headers, and what is known of pixels
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-5])
    assert _inspect(root) == first
    opened.clear()
    assert _inspect(root) == first
    assert not opened


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path):
    """It may change once more within a tick of the file system's clock."""
    for value in (1, 2):
        _write(tmp_path / "photos/0.png", value, is_old=False)
        facts = _inspect(tmp_path / "photos")
        assert facts.mean[0] == pytest.approx(value / 255)


def test_a_file_that_replaces_one_of_its_size_and_date_is_read(tmp_path: Path, opened: Counter[str]):
    """As `rsync -t` and `cp -p` write it."""
    root = _folder(tmp_path / "photos", 4)
    _inspect(root)
    path = root / "a/000.png"
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    opened.clear()
    _inspect(root)
    assert set(opened) == {"000.png"}


def test_headers_of_very_many_files_are_sampled(tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(headers_module, "SAMPLED", 10)
    root = _folder(tmp_path / "photos", 40)
    facts = _inspect(root, limit=2)
    assert facts.num_checked in (10, 11, 12)
    assert f"checked {facts.num_checked} of 40 headers" in str(facts)
    assert sum(opened.values()) == facts.num_checked + 2
    assert facts.identities is not None
    assert np.count_nonzero(facts.identities) == facts.num_checked
    opened.clear()
    _write(root / "a/0005.png", 5)
    assert _inspect(root, limit=2).num_checked in (10, 11, 12)
    assert len(opened) <= 4  # one of the sample, two whose pixels are measured
    assert (_inspect(root, 2, "all").num_checked, _inspect(root, 2, "none").num_checked) == (41, 2)
    assert _inspect(root, 2, "sample") == _inspect(root, 2)


def test_a_run_stores_few_names(tmp_path: Path):
    for n in range(30):
        for copy in range(25):
            _write(tmp_path / f"photos/{n}-{copy}.png", n)
            (tmp_path / f"photos/{n}-{copy}x.png").write_bytes(b"broken")
    facts = _inspect(tmp_path / "photos")
    assert [len(facts.duplicates), len(facts.unreadable)] == [30, 750]
    stored = facts_to_store(facts)
    assert (stored["num_duplicates"], stored["num_unreadable"]) == (30 * 24, 750)
    assert [len(names) for names in stored["duplicates"]] == [20] * 20
    assert len(stored["unreadable"]) == 20
    assert len(json.dumps(stored)) < 20_000


def test_other_processes_do_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = _folder(tmp_path / "photos", 6)
    with sharing_listings({}) as listings:
        source = open_source(root)
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"lists {path}"))
    with sharing_listings(dict(listings)):
        assert names_digest(open_source(root)) == names_digest(source)


def test_long_files_are_known_by_their_ends(tmp_path: Path):
    """Runs of before stored checksums of whole files; both are known again."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    (tmp_path / "a").mkdir()
    for name, shift in (("0.png", 0), ("1.png", 1), ("2.bmp", 2), ("3.jpg", 3)):
        Image.fromarray(np.roll(pixels, shift)).save(tmp_path / "a" / name)
    whole = (tmp_path / "a/0.png").read_bytes()
    ends = Ends.of_file(tmp_path / "a/0.png", "0.png")
    assert (ends, len(ends.start + ends.stop)) == (Ends.within(whole), 9 << 13)
    assert Ends.of_file(tmp_path / "a/2.bmp", "2.bmp") == Ends((tmp_path / "a/2.bmp").read_bytes())
    source = open_source(tmp_path / "a")
    assert isinstance(source, FolderSource)
    by_ends, old = identities(source), identities(source, by_ends=False)
    assert (by_ends == old).tolist() == [False, False, True, (tmp_path / "a/3.jpg").stat().st_size <= 9 << 13]
    assert len({*by_ends.tolist()}) == 4
    assert shared(source, np.frombuffer(stored_identities(by_ends[:2]), np.uint64)) == [True, True, False, False]
    assert shared(source, old[1:3]) == [False, True, True, False]


def test_aligned_folders_in_order_and_with_gaps(tmp_path: Path):
    for name in ("a", "a-b", "b/c", "z"):
        _write(tmp_path / f"rgb/{name}.png", 1)
        if name != "a-b":
            _write(tmp_path / f"depth/{name}.png", 1)
    _write(tmp_path / "depth/only.png", 1)
    source = open_samples(tmp_path, (RGB, DEPTH))
    assert source.names == ["a", "a-b", "b/c", "only", "z"]
    assert [source.has(i) for i in range(5)] == [(True, True), (True, False), (True, True), (False, True), (True, True)]
    assert [Path(source.location(i)).relative_to(tmp_path.resolve()).as_posix() for i in (1, 3, 4)] == [
        *("rgb/a-b.png", "depth/only.png", "rgb/z.png"),
    ]


def test_splits_are_told_by_folders():
    names = [f"{split}/{n}.png" for split in ("train", "val") for n in range(3)]
    assert splits_in(Names.of(names)) == splits_in(names) == {"train": "train", "val": "val"}


@pytest.mark.parametrize("classes", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_aligned_folders_take_less_than_300_bytes_a_sample(tmp_path: Path, classes: int):
    """Of 1,000 samples a class with a map in 9 of 10, by made-up listings."""
    root = Path(os.path.realpath(tmp_path))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    rgb = (f"n{c:08}/n{c:08}_{n:04}.JPEG" for c in range(classes) for n in range(1000))
    depth = (f"n{c:08}/n{c:08}_{n:04}.png" for c in range(classes) for n in range(1000) if n % 10)
    listings = {
        (str(root / "rgb"), *sorted(READ)): (Names.of(rgb), Counter[str]()),
        (str(root / "depth"), *sorted(READ)): (Names.of(depth), Counter[str]()),
    }
    for folder in ("rgb", "depth"):
        (root / folder).mkdir()
    with sharing_listings(listings):
        source = open_samples(root, (RGB, DEPTH))
    train = hold_out(source, 0.05, 0)[0]
    listings.clear()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(source) == 1000 * classes
    assert len(train) == len(source) - min(1000, len(source) // 20)
    assert [source.has(i) for i in (0, 1)] == [(True, False), (True, True)]
    assert held < 300 * len(source)


@pytest.mark.slow
def test_the_second_start_on_200_000_files_opens_no_header(tmp_path: Path, opened: Counter[str]):
    """Neither all nor a sample of them, and what it holds then is under 300 bytes an image."""
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / "one.jpg")
    picture = (tmp_path / "one.jpg").read_bytes()
    root = tmp_path / "photos"
    for n in range(200_000):
        folder = root / f"n{n % 200:08}"
        if n < 200:
            folder.mkdir(parents=True)
        with open(folder / f"n{n % 200:08}_{n}.jpg", "wb", buffering=0) as file:  # each differs by a comment
            file.write(picture[:2] + b"\xff\xfe\x00\x0a" + n.to_bytes(8, "big") + picture[2:])
    time.sleep(2.1)  # files that have just been written are not cached
    opened.clear()
    first = _inspect(root, check="all")
    assert (first.num_checked, first.duplicates, sum(opened.values())) == (200_000, [], 202_000)
    opened.clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    source = open_source(root, 3)
    second = inspect_source(source, check="all")
    train = hold_out(source, 0.05, 0)[0]
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert second == first
    assert not opened
    assert len(train) == 199_000
    assert held < 300 * len(source)
    assert 100_000 <= (inspect_source(source).num_checked or 0) <= 102_000
    assert not opened
