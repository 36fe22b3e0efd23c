"""Packs: a source as tar shards of pre-resized samples, written so that a killed process can be continued.

A shard, the table of its samples, the index: each file is complete when it has its name, and the index comes last. The
bytes depend on data and options alone.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .._version import __version__
from ..modeling.rng import SampleRng, sample_keys
from ..runs.atomic import make_folder, replacing, write_bytes, write_json
from ..runs.console import Progress, quoted
from ..runs.lock import hold
from .decode import Unreadable
from .listing import PACK_INDEX, PACK_WORK
from .pack_members import Encoding, PackedSample, packed
from .pack_processes import Packing
from .pack_shard import FinishedShard, ShardWriter, unique_keys
from .shard_table import KIND, NONE, TABLE, to_bytes
from .sources import SampleSource, Source, spread
from .splits import names_digest

_FORMAT = 1  # of index and table; another one is another pack
_PROBED = 16  # samples whose content tells one data set from another of the same names
_TRIED_BEFORE_STOPPING = 20
_START = "pack.json"


@dataclass(frozen=True)
class PackOptions:
    """What the bytes of a pack depend on, beside its data; `shard_size` in bytes, `shuffle` a seed or None."""

    encoding: Encoding = field(default_factory=Encoding)
    shard_size: int = 256_000_000
    shuffle: int | None = None


@dataclass(frozen=True)
class PackReport:
    """What a pack holds: samples, shards, bytes of these, broken samples; `written` of the samples were written now."""

    samples: int
    shards: int
    nbytes: int
    broken: dict[str, str]
    written: int


def write_pack(
    source: Source, folder: Path, options: PackOptions, max_broken: float = 0.05, workers: int | None = None
) -> PackReport:
    """Write a source as shards into a folder, or go on with an unfinished pack of the same data and options.

    Broken samples are left out and listed in `broken.json`. Raises ValueError where more than `max_broken` of the
    samples are broken, where the folder holds anything else, and where another process writes it; OSError, which says
    what to do, where the disk is full.
    """
    made_from = _made_from(source, options)
    _check_folder(folder, made_from)
    try:
        make_folder(folder)
        with hold(folder / f"{PACK_WORK}.lock", waits=True) as owner:
            if owner is not None:
                raise ValueError(f"{owner} is writing the pack {folder}; wait for it, or give another --out")
            return _write(source, folder, options, made_from, max_broken, workers)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done = len(list(folder.glob("*.tar")))
        raise OSError(
            error.errno,
            f"the disk of {folder} is full, finished shards: {done}; make room and give the same command",
        ) from error


def _made_from(source: Source, options: PackOptions) -> dict[str, Any]:
    """What a pack is made from: options, and facts that tell its data from others."""
    probe = sha256()
    for index in spread(len(source), _PROBED):
        try:
            for content in packed(source, index, Encoding(short_side=32)).members.values():
                probe.update(content)
        except Unreadable as error:
            probe.update(error.reason.encode(errors="replace"))
    declared = [asdict(d) for d in source.declared] if isinstance(source, SampleSource) else None
    facts = {"names": names_digest(source), "samples": len(source), "probe": probe.hexdigest()[:16]}
    return dict(json.loads(json.dumps({"format": _FORMAT, **asdict(options), "modalities": declared, "data": facts})))


def _check_folder(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds a pack of something else, or no pack."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    start, index = folder / PACK_WORK / _START, folder / PACK_INDEX
    if index.is_file():
        there = json.loads(index.read_text()).get("unveil", {}).get("made_from", {})
    elif start.is_file():
        there = json.loads(start.read_text())
    elif all(path.name.startswith(PACK_WORK) for path in folder.iterdir()):  # killed before it began
        return
    else:
        raise ValueError(f"{folder} holds files that are no pack; give another --out, or an empty folder")
    if differing := [name for name in made_from if made_from[name] != there.get(name)]:
        words = {"data": "other data", "modalities": "other modalities", "format": "another version of unveil"}
        what = "; ".join(
            words.get(name) or f"{name.replace('_', ' ')} {there.get(name)} instead of {made_from[name]}"
            for name in differing
        )
        raise ValueError(f"{folder} holds a pack of {what}; give another --out, or remove it")


def _write(
    source: Source,
    folder: Path,
    options: PackOptions,
    made_from: dict[str, Any],
    max_broken: float,
    workers: int | None,
) -> PackReport:
    work, index = folder / PACK_WORK, folder / PACK_INDEX
    if not index.is_file():
        make_folder(work)
        write_json(work / _START, made_from)
        shards = _finished(folder)
        for path in (*folder.glob(".*.part"), *work.glob(".*.part")):  # of a killed process
            path.unlink()
        before = sum(shard.rows.num_rows for shard in shards)
        shards += _write_shards(source, folder, options, shards, max_broken, workers)
        written = sum(shard.rows.num_rows for shard in shards) - before
        _write_index(source, folder, shards, made_from)
    else:
        written = 0
    shutil.rmtree(work, ignore_errors=True)
    facts = json.loads(index.read_text())
    sizes = [shard["filesize"] for shard in facts["shardlist"]]
    broken = json.loads((folder / "broken.json").read_text()) if (folder / "broken.json").is_file() else {}
    return PackReport(facts["unveil"]["samples"], len(sizes), sum(sizes), broken, written)


def _finished(folder: Path) -> list[FinishedShard]:
    """The shards that are complete, up to the first that is not."""
    shards: list[FinishedShard] = []
    while (table := folder / PACK_WORK / f"{len(shards):06}.arrow").is_file():
        shard, path = FinishedShard.from_bytes(table.read_bytes()), folder / _shard_name(len(shards))
        if not path.is_file() or path.stat().st_size != shard.filesize:
            break
        shards.append(shard)
    return shards


def _shard_name(number: int) -> str:
    return f"{number:06}.tar"


def _write_shards(
    source: Source,
    folder: Path,
    options: PackOptions,
    shards: Sequence[FinishedShard],
    max_broken: float,
    workers: int | None,
) -> list[FinishedShard]:
    """The shards that are still to be written, in order."""
    order = torch.arange(len(source))
    if options.shuffle is not None:
        order = SampleRng(sample_keys(options.shuffle, 0, order)).fold("pack").key.argsort()
    indices, keys = order.tolist(), unique_keys([source.name(i) for i in range(len(source))])
    begun = shards[-1].next if shards else 0
    broken = {name: reason for shard in shards for name, reason in shard.broken.items()}
    progress = Progress()

    def samples() -> Iterator[tuple[int, PackedSample | str]]:
        with closing(Packing(options.encoding, indices[begun:], workers).samples(source)) as results:
            yield from enumerate(results, start=begun)

    def show(place: int) -> None:
        text = f"packed {place:,} of {len(indices):,} samples"
        progress.update(text, place, len(indices), "pack")

    made: list[FinishedShard] = []
    stream = _Ahead(samples())
    try:
        while stream.has_next():
            number = len(shards) + len(made)
            with replacing(folder / _shard_name(number)) as temporary:
                with temporary.open("wb") as file:
                    writer = ShardWriter(file)
                    failed: dict[str, str] = {}
                    for place, sample in stream.while_fits(writer, options.shard_size):
                        index = indices[place]
                        if isinstance(sample, str):
                            failed[source.name(index)] = sample
                            check_broken(broken | failed, place + 1, len(indices), max_broken, source.address)
                        else:
                            label = -1 if source.labels is None else source.labels[index]
                            writer.add(keys[index], sample, label)
                        show(place + 1)
                        last = place
                    shard = writer.finish(last + 1, failed, number)
                broken |= failed
                write_bytes(folder / PACK_WORK / f"{number:06}.arrow", shard.to_bytes())
            made.append(shard)
    finally:
        stream.close()
        progress.close()
    return made


def check_broken(broken: Mapping[str, str], tried: int, total: int, max_broken: float, address: str) -> None:
    """Raise ValueError where more samples are broken than is accepted, beyond chance as long as not all were tried."""
    expected = max_broken * tried
    if tried < total and (tried < _TRIED_BEFORE_STOPPING or len(broken) <= expected + 2 * expected**0.5):
        return
    if len(broken) > expected:
        named = "; ".join(f"{quoted(name)}: {quoted(reason)}" for name, reason in list(broken.items())[:10])
        raise ValueError(
            f"{len(broken)} of the {tried} samples read so far from {address} are broken, more than {max_broken:.0%}"
            f" ({named}). Repair or remove them, or accept more with a higher --max-broken"
        )


class _Ahead:
    """The numbered samples of an iterator, cut into shards."""

    def __init__(self, samples: Iterator[tuple[int, PackedSample | str]]) -> None:
        self._samples = samples
        self._next = next(samples, None)

    def has_next(self) -> bool:
        return self._next is not None

    def while_fits(self, writer: ShardWriter, limit: int) -> Iterator[tuple[int, PackedSample | str]]:
        """The samples from here on, up to the first that a shard of this many bytes has no room for; at least one."""
        while self._next is not None:
            sample = self._next[1]
            if not isinstance(sample, str) and not writer.fits(sample, limit):
                return
            yield self._next
            self._next = next(self._samples, None)

    def close(self) -> None:
        getattr(self._samples, "close", lambda: None)()


def _write_index(source: Source, folder: Path, shards: Sequence[FinishedShard], made_from: Mapping[str, Any]) -> None:
    """Write the table of all samples, the list of broken ones and, last, the index."""
    rows = pa.concat_tables([shard.rows for shard in shards], promote_options="default")
    for name in rows.column_names:
        if name.startswith(("start ", "size ")):  # of members that some shards have none of
            absent = NONE if name.startswith("start ") else 0
            rows = rows.set_column(rows.column_names.index(name), name, rows[name].fill_null(absent))
    if source.labels is None:
        rows = rows.drop_columns(["label"])
    rows = rows.set_column(
        rows.column_names.index("header"), "header", rows["header"].combine_chunks().dictionary_encode()
    )
    content = to_bytes(rows.select(sorted(rows.column_names)))
    broken = {name: reason for shard in shards for name, reason in shard.broken.items()}
    if broken:
        write_json(folder / "broken.json", broken)
    write_bytes(folder / TABLE, content)
    sizes = rows.select(["height", "width"])
    suffixes = [name.removeprefix("start ") for name in rows.column_names if name.startswith("start ")]
    facts = {
        "version": __version__,
        "samples": rows.num_rows,
        "channels": source.channels,
        "classes": source.classes,
        "modalities": made_from["modalities"],
        "members": {s: int(np.count_nonzero(rows[f"start {s}"].to_numpy() >= 0)) for s in sorted(suffixes)},
        "largest": [int(max(column.to_pylist(), default=0)) for column in sizes.columns],
        "broken": len(broken),
        "table_sha256": sha256(content).hexdigest(),
        "made_from": made_from,
    }
    listed = [
        {"url": _shard_name(n), "nsamples": s.rows.num_rows, "filesize": s.filesize, "sha256": s.sha256}
        for n, s in enumerate(shards)
    ]
    write_json(folder / PACK_INDEX, {"__kind__": KIND, "wids_version": 1, "shardlist": listed, "unveil": facts})


def write_splits(folder: Path, splits: Iterable[str]) -> None:
    """Write the index of a folder that holds a pack for each split."""
    write_json(
        folder / PACK_INDEX, {"__kind__": KIND, "wids_version": 1, "shardlist": [], "unveil": {"splits": [*splits]}}
    )
