"""Images and samples in shards: tar files of the WebDataset layout, those of `unveil pack` and those of others."""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor

from ..modeling.rng import SampleRng, sample_keys
from ..runs.cache import cached, store
from ..runs.console import quoted
from ..runs.regular_files import stays_below
from .columns import LABEL_NAMES, Columns, number_classes, split_columns
from .decode import EXTENSIONS, Unreadable
from .file_names import Names
from .listing import PACK_INDEX, PACK_WORK, counted, folder_labels, is_remote, refuse_splits
from .prefetch import prefetch
from .shard_files import LocalPlace, Place, ShardFile, expand_braces, place_of
from .shard_table import TABLE, Members, ShardTable, from_bytes, sha256, tabulate, to_bytes
from .source_bases import LabelledImages
from .tar_members import ReadAt, ahead, members

PICTURES = tuple(kind.removeprefix(".") for kind in EXTENSIONS)
_IMAGE_NAMES = (
    "image",
    "img",
    "rgb",
    "input",
)  # the first words of a member that is the image, where there are several
_LABELS_AT_ONCE = 256
_CACHE = "shards-2"
_BUFFER = 4  # shards over which samples are shuffled where shards are copied one by one


@dataclass(frozen=True)
class Shards:
    """The samples of the shards at an address, and what else is in these."""

    address: str
    place: Place = field(repr=False)
    table: ShardTable = field(repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def identities(self) -> UInt64[np.ndarray, " N"] | None:
        """Of a pack, the identity of what each sample was made of, as `data.identity` has it; else None."""
        return self.table.numbers("identity") if "identity" in self.table.rows.column_names else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a pack says of itself; {} of shards that others wrote."""
        return self.table.facts

    def name(self, row: int) -> str:
        """The key of a sample; where several shards have the same keys, with the name of its shard."""
        key = self.table.key(row)
        return key if self.table.keys_differ else f"{self._shard(row).removesuffix('.tar')}/{key}"

    def _shard(self, row: int) -> str:
        return self.table.shards[int(self.table.shard[row])]

    def location(self, row: int) -> str:
        """Where a sample lies: its shard, and its key there."""
        return f"{self.place.location(self._shard(row))}#{self.table.key(row)}"

    def read(self, row: int, member: Members) -> bytes:
        """The bytes of a member of a sample; raises `Unreadable`."""
        shard, size = self._shard(row), int(member.size[row])
        try:
            data = self.place.read(shard, int(member.start[row]), size)
        except OSError as error:
            raise Unreadable(self.name(row), error.strerror or str(error)) from error
        if len(data) < size:
            raise Unreadable(self.name(row), f"its shard {shard} is cut off")
        return data

    def order(self, keys: Int[Tensor, " N"], rows: Sequence[int], seed: int, epoch: int) -> Int[Tensor, " N"] | None:
        """The samples in `rows` in the order of an epoch, where shards are copied one by one; None where they are not.

        Shards in random order, their samples shuffled, and each sample up to 4 shards later: a function of seed, epoch
        and sample alone. `keys` are random, one a sample.
        """
        if not self.place.is_copied:
            return None
        count = len(self.table.shards)
        turn = SampleRng(sample_keys(seed, epoch, torch.arange(count))).fold("shards").key.argsort()
        rank = torch.empty(count, dtype=torch.int64)
        rank[turn] = torch.arange(count)
        self.place.expect([self.table.shards[i] for i in turn.tolist()])
        of_sample = rank[torch.from_numpy(self.table.shard[np.asarray(rows)].astype(np.int64))]
        shuffled = keys.argsort()
        stream = shuffled[of_sample[shuffled].argsort(stable=True)]
        later = SampleRng(keys[stream]).fold("buffer").uniform("later", 1)[:, 0].double()
        buffer = _BUFFER * len(rows) / count
        return stream[(torch.arange(len(rows)) + later * buffer).argsort(stable=True)]

    def texts(self, member: Members) -> Iterator[str | None]:
        """The `text` of a member of each sample, in order."""

        def of(rows: range) -> list[str | None]:
            return [self.text(row, member) for row in rows]

        starts = range(0, len(self), _LABELS_AT_ONCE)
        jobs = (partial(of, range(i, min(i + _LABELS_AT_ONCE, len(self)))) for i in starts)
        with closing(prefetch(jobs, 16)) as chunks:
            for chunk in chunks:
                yield from chunk

    def text(self, row: int, member: Members) -> str | None:
        """The text of a member of a sample; None where it has none, or one that cannot be read."""
        try:
            return self.read(row, member).decode() if member.has(row) else None
        except (Unreadable, UnicodeDecodeError):
            return None

    def only(self, has: np.ndarray, what: str) -> Shards:
        """The samples for which this holds; the others are counted as `what`."""
        if has.all():
            return self
        others = Counter(self.passed_over) + Counter({what: int((~has).sum())})
        return replace(self, table=self.table.only(has.nonzero()[0]), passed_over=others)


def read_shards(address: str, *, as_recorded: bool = False) -> Shards:
    """The samples at an address: from the index of a pack, else from the headers of its tar files.

    Raises FileNotFoundError where none are; ValueError for damaged ones, an unfinished pack, and, unless it is
    `as_recorded` in a run, shards of several splits.
    """
    place, pattern = place_of(address)
    content = place.content(PACK_INDEX)
    facts = _facts(content, f"{place.root}/{PACK_INDEX}") if content else {}
    if splits := facts.get("splits"):
        ways = " or ".join(f"{address.rstrip('/')}/{split}" for split in splits)
        raise ValueError(f"{address!r} holds the splits {', '.join(splits)}; name one: {ways}")
    if place.content(f"{PACK_WORK}/pack.json") is not None and not facts:
        raise ValueError(f"{address!r} is an unfinished pack: give the command that made it again, and it is finished")
    if facts:
        return _of_pack(address, place, pattern, facts)
    files = place.find(pattern)
    if not as_recorded:
        refuse_splits(address, Path(place.root), [file.name for file in files])
    table, others = _scanned(place, tuple(files))
    if not len(table):
        raise ValueError(f"no files in the shards of {address!r}: {counted(others) or 'they are empty'}")
    return Shards(address, place, table, others)


def _facts(content: bytes, name: str) -> dict[str, Any]:
    """What the index of a pack says; {} where it is that of another program."""
    try:
        index = json.loads(content)
        own = index.get("unveil") if isinstance(index, dict) else None
        return {**own, "shardlist": index.get("shardlist", [])} if isinstance(own, dict) else {}
    except ValueError as error:
        raise ValueError(f"{name} is damaged ({error}); copy it again") from error


def _of_pack(address: str, place: Place, pattern: str, facts: Mapping[str, Any]) -> Shards:
    """The samples of a pack; its shards must have the sizes that its index says."""
    names = tuple(str(shard["url"]) for shard in facts["shardlist"])
    if unsafe := [name for name in names if not stays_below(name) or is_remote(name)]:
        raise ValueError(f"the index of the pack {place.root} names {quoted(unsafe[0])}, which does not lie in it")
    table = ShardTable(names, _rows(place, facts), facts)
    wanted = {*expand_braces(pattern)} if pattern and not set(pattern) & set("*?[") else None
    if pattern and wanted is None:
        wanted = {file.name for file in place.find(pattern)}
    if isinstance(place, LocalPlace):
        for shard in facts["shardlist"]:
            path = place.folder / shard["url"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["filesize"] and (wanted is None or shard["url"] in wanted):
                is_there = "is not there" if size is None else f"has {size:,} bytes, not {shard['filesize']:,}"
                raise ValueError(f"the shard {path} {is_there}, as the index of the pack says: copy it again")
    if wanted is not None:
        if unknown := wanted - {*table.shards}:
            raise FileNotFoundError(
                f"{min(unknown)} is no shard of the pack {place.root}, which has {len(table.shards)}"
            )
        numbers = [n for n, shard in enumerate(table.shards) if shard in wanted]
        table = table.only(np.isin(table.shard, numbers).nonzero()[0])
    return Shards(address, place, table)


def _rows(place: Place, facts: Mapping[str, Any]) -> Any:
    """The table of a pack, mapped into memory where it is a file."""
    name = f"{place.root}/{TABLE}"
    content: mmap.mmap | bytes | None
    if isinstance(place, LocalPlace) and (place.folder / TABLE).is_file():
        with (place.folder / TABLE).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
        content = place.content(TABLE)
    if content is None:
        raise ValueError(f"the pack {place.root} has lost {TABLE}: copy it again")
    if sha256(content) != facts["table_sha256"]:
        raise ValueError(f"{name} is damaged (its checksum differs from the one in {PACK_INDEX}): copy it again")
    return from_bytes(content)


@lru_cache(maxsize=4)
def _scanned(place: Place, files: tuple[ShardFile, ...]) -> tuple[ShardTable, Counter[str]]:
    """The samples of shards that have no index, from the headers of all of them, or kept since they were last read."""
    key = json.dumps([place.root, *files])
    if (content := cached(_CACHE, key)) is not None:
        rows = from_bytes(content)
        metadata = rows.schema.metadata or {}
        names = tuple(file.name for file in files)
        return ShardTable(names, rows.replace_schema_metadata(None)), Counter(json.loads(metadata[b"others"]))
    others: Counter[str] = Counter()

    def scan(file: ShardFile) -> tuple[list[Any], Counter[str]]:
        own: Counter[str] = Counter()
        read_at: ReadAt = partial(place.read, file.name)
        if not isinstance(place, LocalPlace) and not place.is_copied:
            read_at = ahead(read_at)
        listed = members(read_at, file.size, place.location(file.name), own)
        return list(listed), own

    shards = {}
    with closing(prefetch((partial(scan, file) for file in files), 16)) as results:
        for file, (listed, own) in zip(files, results, strict=True):
            shards[file.name] = listed
            others += own
    rows = tabulate(shards, others)
    store(_CACHE, key, to_bytes(rows.replace_schema_metadata({"others": json.dumps(others)})))
    return ShardTable(tuple(shards), rows), others


@dataclass(frozen=True)
class InShards:
    """Images or samples of shards, in the order of these; `name` is the key of a sample."""

    shards: Shards

    @property
    def address(self) -> str:
        return self.shards.address

    @property
    def passed_over(self) -> Mapping[str, int]:
        """By kind, what lies in the shards and is not read."""
        return self.shards.passed_over

    @property
    def identities(self) -> UInt64[np.ndarray, " N"] | None:
        """Of a pack, the identity of what each sample was made of; else None."""
        return self.shards.identities

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, index: int) -> str:
        return self.shards.name(index)

    def location(self, index: int) -> str:
        """Where a sample lies: its shard, and its key there."""
        return self.shards.location(index)


@dataclass(frozen=True)
class ShardSource(InShards, LabelledImages):
    """The images of shards.

    The image is the member `image`, the label comes from `named` (a member, or a field of a json), else from a pack's
    index, a `.cls`, a field of a `.json` with a usual name, a `.txt` that holds classes, or folders in the keys.
    """

    channels: int
    image_member: Members = field(repr=False)
    named_columns: Columns = field(default_factory=Columns)

    @property
    def columns(self) -> dict[str, str]:
        """The members that are read, by what they hold."""
        images = {"images": "/".join(self.image_member.suffixes)}
        return images | ({"labels": self._label_from} if self.labels is not None and self._label_from else {})

    def encoded(self, index: int) -> bytes:
        return self.shards.read(index, self.image_member)

    @property
    def unlabelled(self) -> str:
        """Why there are no labels, and what to do, in the words of a message."""
        return (
            f"of the members {', '.join(self.shards.table.suffixes)} none holds classes; they are read from KEY.cls, a"
            " field label of KEY.json, a KEY.txt with a class, or folders in the keys. --label-column NAME names a"
            " member, or a field of KEY.json"
        )

    @cached_property
    def _label_from(self) -> str:
        """The member, or the field of a json, that labels come from; empty where it is none of these."""
        suffixes, named = self.shards.table.suffixes, self.named_columns.label
        if named is not None:
            if named not in suffixes and "json" not in suffixes:
                raise ValueError(f"{self.address} has no member {named!r}; there are {', '.join(suffixes)}")
            return named if named in suffixes else f"json {named}"
        if self.shards.facts or "cls" in suffixes:
            return "cls" if "cls" in suffixes else ""
        fields = _json(self.shards.text(0, self.shards.table.place(["json"]))) if "json" in suffixes else {}
        field_name = next((name for name in LABEL_NAMES if name in fields), None)
        return f"json {field_name}" if field_name else "txt" if "txt" in suffixes else ""

    @cached_property
    def _labelled(self) -> tuple[Sequence[int] | None, list[str] | None]:
        table, source = self.shards.table, self._label_from
        if self.shards.facts and self.named_columns.label is None:
            has = "label" in table.rows.column_names
            return (table.numbers("label").tolist() if has else None), self.shards.facts.get("classes")
        if not source:
            return folder_labels(Names.of(table.key(row) for row in range(len(table))))
        member, _, name = source.partition(" ")
        values: list[Any] = list(self.shards.texts(table.place([member])))
        values = [_json(text).get(name) for text in values] if name else [_number_or_word(text) for text in values]
        try:
            labels = number_classes(values, None, is_named=source == "cls" or self.named_columns.label is not None)
        except ValueError as error:
            raise ValueError(f"{source} of {self.address} gives no classes: {error}") from error
        return labels if labels[0] is not None else folder_labels(Names.of(table.key(row) for row in range(len(table))))


def _json(text: str | None) -> Mapping[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _number_or_word(text: str | None) -> int | str | None:
    word = (text or "").strip()
    return None if not word else int(word) if word.lstrip("-").isdecimal() else word


def open_shards(address: str, channels: int | None = None, *, as_recorded: bool = False) -> ShardSource:
    """The images of the shards at an address; `shards:image=jpg,label=txt` names members.

    Raises ValueError where no member, or several, are pictures, and what `read_shards` raises.
    """
    place, columns = split_columns(address)
    shards = replace(read_shards(place, as_recorded=as_recorded), address=address)
    member = shards.table.place(_image_suffixes(shards, columns.image))
    has = member.start >= 0
    shards = shards.only(has, "sample without a picture")
    member = replace(member, kind=member.kind[has], start=member.start[has], size=member.size[has])
    return ShardSource(shards, channels or shards.facts.get("channels", 3), member, columns)


def _image_suffixes(shards: Shards, named: str | None) -> list[str]:
    """The members that are the image of a sample; of one sample the first that it has counts."""
    suffixes = shards.table.suffixes
    pictures = [s for s in suffixes if s.rpartition(".")[2] in PICTURES or (shards.facts and s.endswith("npy"))]
    if named is not None:
        if named not in suffixes:
            raise ValueError(f"{shards.address} has no member {named!r}; there are {', '.join(suffixes)}")
        return [named]
    if not pictures:
        others = ", ".join(suffixes) or "none"
        raise ValueError(f"no member of the samples of {shards.address!r} is a picture (there are: {others})")
    plain = [s for s in pictures if "." not in s]
    for chosen in (plain, *([s for s in pictures if s.partition(".")[0] == word] for word in _IMAGE_NAMES)):
        if chosen:
            return chosen
    if len({s.rpartition(".")[0] for s in pictures}) == 1:
        return pictures
    more = f" and {len(pictures) - 5} more (a key ends at the first dot of a name)" if len(pictures) > 5 else ""
    raise ValueError(
        f"the samples of {shards.address!r} have several pictures, {', '.join(pictures[:5])}{more}: name one,"
        f" --image-column {pictures[0]}, or tell them apart by --modalities"
    )
