"""What lies in a folder: files of some kinds, what else there is, and the classes and splits that names tell."""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runs.console import quoted, suggest, user_path
from ..runs.regular_files import special_kind
from .columns import split_columns, with_columns
from .decode import EXTENSIONS
from .file_names import Names, Numbers, encode_names
from .tiling import split_tiling

HUB, LANCE = "hf:", ".lance"  # what the address of a data set of the Hub begins with, and of a Lance one ends with
PICTURES = (*EXTENSIONS, ".parquet")  # what a source of images is read from
PACK_INDEX, PACK_WORK = "index.json", ".pack"  # of shards that `unveil pack` has written, and is writing

SPLITS = {  # the names that folders and Parquet files of each split go by
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_ARRAYS = "save each image as a file: PIL.Image.fromarray(pixels).save('FOLDER/CLASS/0.png')"
_RECORDS = "write each image to a file, FOLDER/CLASS/NAME.jpg, with the library that reads them"
_CONVERT = "convert them to JPEG or PNG, as in magick mogrify -format jpg *"
_WAYS = (  # from what is not read to what is
    (
        ("tgz", "gz", "bz2", "xz", "zst"),
        "unpack them into a folder (tar -xf FILE -C FOLDER); shards are read as plain .tar (gunzip FILE)",
    ),
    (("tar",), "give the .tar files alone, FOLDER/*.tar, to read them as shards"),
    (("zip", "7z", "rar"), "unpack them into a folder (unzip FILE -d FOLDER)"),
    (("arrow",), "datasets.load_from_disk('FOLDER').to_parquet('data.parquet') writes what is read"),
    (("tfrecord", "tfrecords", "mdb", "lmdb", "rec", "beton"), _RECORDS),
    (("npy", "npz", "h5", "hdf5", "mat", "pkl", "pickle", "pt", "bin", "idx"), _ARRAYS),
    (("mp4", "mov", "avi", "mkv", "webm", "m4v"), "write their frames: ffmpeg -i FILE FOLDER/%06d.png"),
    (("heic", "heif", "cr2", "cr3", "nef", "arw", "dng", "raf", "svg", "eps"), _CONVERT),
)

_LISTERS = 16  # threads; they wait for the disk most of the time
Listings = dict[tuple[str, ...], tuple[Names, Counter[str]]]  # by folder and extensions
_listings: ContextVar[Listings | None] = ContextVar("listings", default=None)


def list_files(root: Path, extensions: Collection[str]) -> tuple[Names, Counter[str]]:
    """The files below a folder with one of these extensions, sorted, and what else is there by kind.

    Hidden names are passed over, and counted where they are folders or have such an extension. Links to folders are
    followed, each real folder once, so a circle of links ends. Several threads list them, since on a network drive
    each answer takes long.
    """
    listings, key = _listings.get(), (os.path.realpath(root), *sorted(extensions))
    if listings is not None and key in listings:
        names, counts = listings[key]
        return names, Counter(counts)
    others, visited = Counter[str](), set[str]()

    def enter(place: str, scan: Future[_Listed]) -> _Folder | None:
        if (real := os.path.realpath(place)) in visited:
            return None
        visited.add(real)
        try:
            listed = scan.result()
        except OSError as error:
            raise PermissionError(
                f"cannot list {error.filename!r}: {error.strerror}. Make it readable or leave it out"
            ) from error
        others.update(listed.others)
        below = [(name, os.path.join(place, name)) for name in listed.folders]
        scans = [pool.submit(_scan, path, extensions) for _, path in below]
        inner = {name: enter(path, scan) for (name, path), scan in zip(below, scans, strict=True)}
        return _Folder(listed.files, {name: folder for name, folder in inner.items() if folder})

    pool = ThreadPoolExecutor(_LISTERS, thread_name_prefix="unveil-list")
    try:
        tree = enter(str(root), pool.submit(_scan, str(root), extensions))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    assert tree
    parts: list[tuple[str, bytes]] = []
    _join_sorted(tree, "", parts)
    numbers = {path: number for number, path in enumerate(dict.fromkeys(path for path, _ in parts))}
    folder = np.repeat([numbers[path] for path, _ in parts], [names.count(0) for _, names in parts]).astype(np.int32)
    names = Names(list(numbers), folder, b"".join(names for _, names in parts))
    if listings is not None:
        listings[key] = names, +others
    return names, +others


@contextmanager
def sharing_listings(listings: Listings) -> Iterator[Listings]:
    """Within, what `list_files` finds is added to `listings`, and what they hold already is not listed again."""
    token = _listings.set(listings)
    try:
        yield listings
    finally:
        _listings.reset(token)


@dataclass(frozen=True)
class _Listed:
    """One folder: its sub-folders, its files as `Names` holds them, both sorted, and the others by kind."""

    folders: list[str]
    files: bytes
    others: Counter[str]


@dataclass(frozen=True)
class _Folder:
    files: bytes
    folders: dict[str, _Folder]


def _scan(place: str, extensions: Collection[str]) -> _Listed:
    folders, files, others = [], [], Counter[str]()
    with os.scandir(place) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if name.startswith("."):
                    others["hidden folder"] += 1
                else:
                    folders.append(name)
                continue
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                others[f"hidden {extension}"] += extension in extensions
            elif extension in extensions:
                if kind := _special(entry):
                    others[kind] += 1
                else:
                    files.append(name)
            else:
                others[kind_of(name)] += 1
    return _Listed(sorted(folders), encode_names(sorted(files)), others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to what cannot be read: a file, and a broken one
        return False


def _special(entry: os.DirEntry[str]) -> str | None:
    """What an entry is that is no regular file; a link that leads nowhere is a file, and a broken one."""
    try:
        return None if entry.is_file() else special_kind(entry.path)
    except OSError:
        return None


def _join_sorted(folder: _Folder, path: str, parts: list[tuple[str, bytes]]) -> None:
    """Append to `parts` the files of a folder and below it, by path: a folder sorts as its name and /."""
    rest = folder.files
    for name in sorted(folder.folders, key=lambda name: f"{name}/"):
        if rest:
            names = rest[:-1].decode(errors="surrogateescape").split("\0")
            count = bisect(names, f"{name}/")
            if count:
                parts.append((path, encode_names(names[:count])))
            rest = encode_names(names[count:])
        _join_sorted(folder.folders[name], f"{path}/{name}" if path else name, parts)
    if rest:
        parts.append((path, rest))


def list_matches(path: Path, extensions: Collection[str]) -> tuple[Path, Names, Counter[str]]:
    """The folder that a pattern such as `photos/**/*.jpg` starts from, and what it matches there, as `list_files`.

    The longest part of the path that exists is taken as it is written, so brackets in names of folders stay.
    """
    base = next(folder for folder in path.parents if folder.is_dir())
    matches = sorted(match for match in base.glob(path.relative_to(base).as_posix()) if not match.is_dir())
    special = Counter(kind for match in matches if (kind := special_kind(match)))
    names = [match.relative_to(base).as_posix() for match in matches if match.is_file()]
    files = [name for name in names if os.path.splitext(name)[1].lower() in extensions]
    return base, Names.of(files), special + Counter(map(kind_of, {*names} - {*files}))


def kind_of(name: str) -> str:
    """The extension of a file, without what follows it, such as -00000-of-00010."""
    return re.split("[-_]", os.path.splitext(name)[1].lower())[0] or "without extension"


def splits_in(files: Sequence[str]) -> dict[str, str]:
    """The folder or pattern that holds the files of each split, train, val or test; {} unless there are two.

    Parquet files and shards tell their split by a word of their name (`train-00000-of-00003`, `plain_train`), else of
    a folder (`default/train/0000`), as the `datasets` library reads them. Pictures tell it by a folder of such a name;
    by one that has it as a word (`val2017`) only where all folders beside it do, for a class may be called `test tube`.
    """
    files = _telling(files)
    pictures = [path.split("/")[:-1] for path in files if not is_container(path)]
    level = next((n for n, names in enumerate(zip(*pictures, strict=False)) if len({*names}) > 1), 0)
    are_words = all(len(folders) > level and _split_word(folders[level]) for folders in pictures)
    places: dict[str, set[str]] = {}
    for path in files:
        parts = path.split("/")
        if is_container(path):
            depth = next((n for n in reversed(range(len(parts))) if _split_word(parts[n])), None)
        else:
            depth = next((n for n, name in enumerate(parts[:-1]) if name.lower() in _SPLIT_OF), None)
            depth = level if depth is None and are_words else depth
        if depth is not None:
            word = _split_word(parts[depth])
            shown = parts[depth]
            if depth == len(parts) - 1:  # a file: all whose names begin like its own
                begin = shown[: shown.lower().index(word) + len(word) + 1]
                shown = shown if begin.endswith(".") else f"{begin}*{os.path.splitext(path)[1]}"
            places.setdefault(_SPLIT_OF[word], set()).add("/".join([*parts[:depth], shown]))
    return {split: _in_one(places[split]) for split in sorted(places)} if len(places) > 1 else {}


def _telling(files: Sequence[str]) -> list[str]:
    """The files that tell what all do: every one that holds many images, and one picture of each folder."""
    names = files if isinstance(files, Names) else Names.of(files)
    are_containers = names.end_with(".parquet") | names.end_with(".tar")
    return names.take(~are_containers).first_of_folders() + list(names.take(are_containers))


def _split_word(name: str) -> str:
    return next((word for word in re.findall("[a-z]+", name.lower()) if word in _SPLIT_OF), "")


def _in_one(places: set[str]) -> str:
    """One address for several: by the name that they share below all folders, else the first of them."""
    names = {place.rsplit("/", 1)[-1] for place in places}
    if len(places) == 1 or len(names) > 1:
        return min(places)
    return f"**/{min(names)}" + ("" if is_container(min(names)) else "/**/*")


def is_parquet(path: str) -> bool:
    """Whether a name is that of a Parquet file."""
    return path.lower().endswith(".parquet")


def is_table(address: str) -> bool:
    """Whether an address is one of a table by its spelling: a Parquet file or pattern, a Lance or a Hub data set."""
    place = split_columns(address)[0]
    return place.startswith(HUB) or place.lower().endswith((".parquet", LANCE)) or _holds_tables(place)


def _holds_tables(place: str) -> bool:
    root = user_path(place)
    return root.is_dir() and any(root.glob("*.parquet")) and not any(entry.is_dir() for entry in root.iterdir())


def is_container(path: str) -> bool:
    """Whether a name is that of a file of many images: a Parquet file, or a shard."""
    return path.lower().endswith((".parquet", ".tar"))


def is_remote(address: str) -> bool:
    """Whether an address is one of another machine, or of a store of objects: `https://`, `s3://`."""
    return re.match(r"[a-z][a-z0-9+]+://", address) is not None


def are_shards(address: str) -> bool:
    """Whether an address is one of shards, without a look at it unless it is a folder: the index of a pack is there."""
    if is_remote(address) or address.lower().endswith(".tar"):
        return True
    folder = user_path(address)
    if (folder / PACK_WORK).is_dir():
        return True
    if not (folder / PACK_INDEX).is_file():
        return False
    with (folder / PACK_INDEX).open("rb") as file:
        return b'"__kind__"' in file.read(64)


def split_addresses(address: str) -> dict[str, str]:
    """What to give for each split, train, val or test, of a folder or a pattern that holds several; else {}."""
    place, tiling = split_tiling(address)
    if tiling is not None:
        return {s: path + address.removeprefix(place) for s, path in split_addresses(place).items()}
    place, columns = split_columns(address)
    if columns.flags:
        return {s: with_columns(path, columns.image, columns.label) for s, path in split_addresses(place).items()}
    if address.startswith(HUB):
        from .hub_datasets import hub_splits  # which reads names of this module

        return hub_splits(address)
    if is_remote(address):
        return {}
    path = user_path(address)
    if not path.is_dir():
        root, files, _ = list_matches(path, (".parquet", ".tar")) if not path.exists() else (path, [], None)
        return {split: str(root / place) for split, place in splits_in(files).items()}
    inside = {folder.name.lower(): str(folder) for folder in path.iterdir() if folder.is_dir()}
    named = {s: next((inside[name] for name in names if name in inside), "") for s, names in SPLITS.items()}
    if sum(map(bool, named.values())) > 1:  # the files need not be listed
        return {split: folder for split, folder in named.items() if folder}
    return {split: str(path / place) for split, place in splits_in(list_files(path, (*PICTURES, ".tar"))[0]).items()}


def refuse_splits(address: str, root: Path, files: Sequence[str]) -> None:
    """Raise ValueError where files are of several splits, with what to give instead."""
    if splits := splits_in(files):
        ways = " or ".join(str(root / splits[split]) for split in sorted(splits, key=list(SPLITS).index))
        raise ValueError(
            f"{address!r} holds the splits {', '.join(splits)}; training on all would spoil the test. Name one: {ways}"
        )


def folder_labels(files: Names) -> tuple[Numbers | None, list[str] | None]:
    """The class of each file and the classes' names, where every file lies in one of several sub-folders."""
    used = np.unique(files.folder).tolist()
    top_of = {number: files.folders[number].split("/", 1)[0] for number in used}
    if not all(files.folders[number] for number in used):
        return None, None
    classes = sorted({*top_of.values()})
    if len(classes) < 2 or {name.lower() for name in classes} <= _SPLIT_OF.keys():
        return None, None
    number_of = {name: i for i, name in enumerate(classes)}
    label_of = np.array([number_of.get(top_of.get(n, ""), -1) for n in range(len(files.folders))], np.int32)
    return Numbers(label_of[files.folder]), classes


def none_found(others: Counter[str], accepted: Iterable[str], otherwise: str = "nothing") -> str:
    """The words for a folder without files of the `accepted` kinds: what else is there, and how to read that."""
    if way := way_from(others):
        return f"found {counted(others)}, which is not read as it is: {way}"
    return f"found {counted(others) or otherwise}. What counts: {' '.join(accepted)}"


def way_from(others: Collection[str]) -> str:
    """What to do with archives, records, arrays, films and raw photographs among these kinds; empty for none."""
    return "; ".join(way for kinds, way in _WAYS if any(kind.lstrip(".") in kinds for kind in others))


def counted(others: Mapping[str, int]) -> str:
    """Counts by kind, the most frequent first: 20 .heic, 2 .txt."""
    return ", ".join(f"{n:,} {quoted(kind)}" for kind, n in Counter(others).most_common(8))


def existing_folder(address: str, needed: str) -> Path:
    """The folder at an address; FileNotFoundError where nothing is there, ValueError for a file."""
    place, columns = split_columns(address)
    root = user_path(place)
    if root.exists() and columns.flags:
        raise ValueError(f"{columns.flags} names a column of a Parquet file. {needed}")
    if not root.exists():
        raise FileNotFoundError(missing(root, needed))
    if not root.is_dir():
        raise ValueError(f"{address!r} is a file. {needed}")
    return root


def missing(path: Path, needed: str) -> str:
    """The words for a path that is not there: what is near, and what is needed."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    names = sorted(os.listdir(parent)) if os.access(parent, os.R_OK) else []
    hint = suggest(wanted, names, f"{parent} exists.", lambda name: str(parent / name))
    return f"no data at {str(path)!r}: {hint} {needed}"
