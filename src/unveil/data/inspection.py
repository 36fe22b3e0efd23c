"""What a source holds, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt64

from ..modeling.types import Modality
from ..runs.console import plural, printable, quoted, table
from ..runs.hardware import num_cores
from ..runs.run_config import Check
from .decode import Unreadable
from .headers import Headers, look_at_rendered, mean_std, moments, pixel_moments, read_headers, to_check
from .identity import UNKNOWN
from .listing import counted
from .modality_config import Declared
from .prefetch import prefetch
from .read_map import Map
from .sources import EncodedSource, SampleSource, Source, origin, presence, spread
from .transforms import as_sample

_LISTED = 10  # names shown before "and n more"


@dataclass(frozen=True)
class Inspection:
    """The facts about a source. Sizes are (height, width); mean and std are per channel, of images in [0, 1].

    Headers are read from `num_checked` files, pixels from `num_decoded` images, evenly spread: damage in the others
    stays unseen, and duplicates among files whose header was not read. `identities` stand for the contents of files,
    0 where that is not known. Every image weighs the same in mean and std, whatever its size, as it does in training.
    """

    address: str
    count: int
    channels: int
    num_decoded: int
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    share_not_square: float
    modes: dict[str, int]
    bits: dict[int, int]
    formats: dict[str, int]
    num_with_alpha: int
    classes: dict[str, int] | None
    duplicates: list[list[str]]
    unreadable: dict[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    passed_over: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)  # of a table, by what they hold
    num_checked: int | None = None  # headers that were read; None of old runs, which read all
    identities: ClassVar[UInt64[np.ndarray, " N"] | None] = None  # of one source, and no field: it is no JSON

    @property
    def modality(self) -> Modality:
        """The images as a modality, normalised by their own statistics."""
        return Modality("rgb", self.channels, *_rounded(self.mean, self.std))

    def __str__(self) -> str:
        rows = [("images", f"{self.count:,}"), ("channels", f"{self.channels} ({_counted(self.modes)})")]
        if self.formats:
            bits = {str(bits): n for bits, n in self.bits.items()}
            rows += [("files", _counted(self.formats)), ("bits", _counted(bits))]
        if sizes := _size_range(self):
            rows += [("width x height", sizes), ("not square", f"{self.share_not_square:.0%}")]
        rows += _label_row(self.classes)
        if self.columns:
            rows.append(("columns", ", ".join(f"{what} in {quoted(name)}" for what, name in self.columns.items())))
        rows += [("mean", _numbers(self.mean)), ("std", _numbers(self.std))]
        if self.num_with_alpha:
            rows.append(("alpha", f"{self.num_with_alpha:,} images have transparency; it is dropped"))
        if self.duplicates:
            extra = sum(len(names) - 1 for names in self.duplicates)
            rows.append(
                ("duplicates", f"{extra:,} exact copies, such as {' = '.join(map(quoted, self.duplicates[0][:3]))}")
            )
        checked = self.count if self.num_checked is None else self.num_checked
        rest = f"the headers of all {self.count:,} were read"
        if checked < self.count:
            rest = f"checked {checked:,} of {self.count:,} headers (--check all reads all)"
        return _report(
            self, rows, f"Mean, std and damage come from {self.num_decoded:,} images, evenly spread; {rest}."
        )


def inspect_source(source: Source, limit: int | None = None, check: Check = "auto") -> Inspection:
    """Look at a source: headers of images, the pixels of up to `limit` (default 2000, evenly spread).

    Headers are read of all images up to 100,000 and of so many beyond; `check` asks for `all`, for such a `sample`
    or for `none` but those whose pixels are read. What was read once is cached for as long as a file stays as it is.
    """
    decoded = np.array(_measured(len(source), limit, "images"), np.int64)
    whole = origin(source)[0]
    damaged: dict[int, str] = {}
    if isinstance(whole, EncodedSource):
        headers = read_headers(source, np.union1d(to_check(source, check), decoded))
        values, damaged = pixel_moments(source, decoded)
    else:
        values, headers = look_at_rendered(source, decoded)
    unreadable = {source.name(row): reason for row, reason in sorted((damaged | headers.unreadable).items())}
    is_good = ~np.isnan(values[:, 0, 0])
    mean, std = mean_std(values[is_good])
    sizes = headers.size[headers.kind >= 0]
    facts = Inspection(
        address=source.address,
        count=len(source),
        channels=source.channels,
        num_decoded=len(decoded),
        num_checked=len(headers.rows) if isinstance(whole, EncodedSource) else len(source),
        **_size_facts(sizes),
        share_not_square=float((sizes[:, 0] != sizes[:, 1]).mean()) if len(sizes) else 0.0,
        modes=headers.count(lambda header: header.mode),
        bits=headers.count(lambda header: header.bits),
        formats={name: n for name, n in headers.count(lambda header: header.format).items() if name},
        num_with_alpha=headers.count(lambda header: header.has_alpha).get(True, 0),
        classes=_class_counts(source),
        duplicates=_duplicates(source, headers),
        unreadable=unreadable,
        mean=mean,
        std=std,
        passed_over=dict(getattr(whole, "passed_over", {})),
        columns=dict(getattr(whole, "columns", {})),
    )
    if isinstance(whole, EncodedSource) and source is whole:
        identities = np.zeros(len(source), np.uint64)
        identities[headers.rows] = headers.identities
        object.__setattr__(facts, "identities", identities)
    return facts


def _duplicates(source: Source, headers: Headers) -> list[list[str]]:
    """The names of files of the same content, in the order of the source."""
    is_known = headers.identities != UNKNOWN
    rows, numbers = headers.rows[is_known], headers.identities[is_known]
    order = numbers.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=np.uint64(0)))
    counts = np.diff(starts, append=len(rows))
    groups = [rows[order[start : start + n]] for start, n in zip(starts[counts > 1], counts[counts > 1], strict=True)]
    return [[source.name(row) for row in group.tolist()] for group in sorted(groups, key=lambda group: int(group[0]))]


def _measured(count: int, limit: int | None, what: str) -> list[int]:
    """The samples whose pixels are read."""
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} {what} leaves nothing to measure; give 1 or more, or none for 2000")
    return spread(count, limit or 2000)


def _size_facts(sizes: Int[np.ndarray, "K 2"]) -> dict[str, tuple[int, int] | None]:
    names, order = ("smallest", "median", "largest"), sizes.prod(axis=1, dtype=np.int64).argsort(kind="stable")
    if not len(order):
        return dict.fromkeys(names)
    chosen = sizes[order[[0, len(order) // 2, -1]]].tolist()
    return {name: (height, width) for name, (height, width) in zip(names, chosen, strict=True)}


def _class_counts(source: Source) -> dict[str, int] | None:
    if source.labels is None:
        return None
    counts = Counter(source.labels)
    names = source.classes or [str(label) for label in range(max(counts) + 1)]
    return {name: counts[label] for label, name in enumerate(names)} | ({"unknown": counts[-1]} if counts[-1] else {})


def _rounded(mean: Iterable[float], std: Iterable[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics as a run normalises by them: of 4 digits, and no deviation below 0.001."""
    return tuple(round(value, 4) for value in mean), tuple(max(1e-3, round(value, 4)) for value in std)


def _size_range(facts: Inspection | MapFacts) -> str:
    """The sizes as width x height; nothing where none is known."""
    if not (facts.smallest and facts.median and facts.largest):
        return ""
    low, middle, high = (f"{width} x {height}" for height, width in (facts.smallest, facts.median, facts.largest))
    return low if low == high else f"{low} to {high}, median {middle}"


def _report(facts: Inspection | AlignedInspection, rows: list[tuple[str, str]], sampled: str) -> str:
    """A table of these rows, then of what could not be read; `sampled` is said where not all pixels were read."""
    rows = [*rows, *_listed("unreadable", facts.unreadable)]
    rows += [("passed over", counted(facts.passed_over))] if facts.passed_over else []
    last = f"\n  {sampled}" if facts.num_decoded < facts.count else ""
    return printable(f"{quoted(facts.address)}\n{table(rows, 'l', '  ')}{last}")


def _label_row(classes: Mapping[str, int] | None) -> list[tuple[str, str]]:
    return [("labels", f"{len(classes)} {plural('class', len(classes))}: {_counted(classes)}")] if classes else []


def _counted(counts: Mapping[str, int]) -> str:
    """Counts by name, the first of them."""
    shown = ", ".join(f"{quoted(name)} {n:,}" for name, n in list(counts.items())[:_LISTED])
    return shown + (f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else "")


def _listed(title: str, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """How many there are, as a row, and the first of them with their reasons, as more."""
    rows = [(title, f"{len(reasons):,}")]
    rows += [("", f"{quoted(name)}: {quoted(reason)}") for name, reason in list(reasons.items())[:_LISTED]]
    return rows + ([("", f"and {len(reasons) - _LISTED:,} more")] if len(reasons) > _LISTED else [])


def _numbers(values: Iterable[float]) -> str:
    return "  ".join(f"{value:.4f}" for value in values)


@dataclass(frozen=True)
class MapFacts:
    """One modality: sizes (height, width), mean and std per channel over valid pixels; `ids` counts pixels by id."""

    name: str
    unit: str
    count: int
    channels: int
    stored: dict[str, int]
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    share_valid: float
    ids: dict[int, int]

    @property
    def num_classes(self) -> int:
        """One more than the highest class id."""
        return max(self.ids, default=-1) + 1


@dataclass(frozen=True)
class AlignedInspection:
    """The facts about samples of several maps. Of `count`, `num_decoded`, evenly spread, were read.

    `orphans` names, for each modality, the samples that lack it.
    """

    address: str
    count: int
    num_decoded: int
    maps: tuple[MapFacts, ...]
    orphans: dict[str, list[str]]
    unreadable: dict[str, str]
    classes: dict[str, int] | None
    passed_over: dict[str, int] = field(default_factory=dict)
    num_checked: int | None = None  # whose class ids were read where these are not declared; None of old runs: all

    @property
    def median(self) -> tuple[int, int] | None:
        """The median size of the first modality's maps."""
        return self.maps[0].median

    def settle(self, declared: tuple[Declared, ...]) -> tuple[Declared, ...]:
        """The modalities with their means, stds and numbers of classes, where those were left to the data."""
        measured = {facts.name: facts for facts in self.maps}
        facts = [measured[d.name] for d in declared]
        return tuple(d.settled(*_rounded(f.mean, f.std), f.num_classes) for d, f in zip(declared, facts, strict=True))

    def __str__(self) -> str:
        rows = [("samples", f"{self.count:,}"), *_label_row(self.classes)]
        for facts in self.maps:
            rows += _rows(facts)
            if lacking := self.orphans.get(facts.name):
                names = ", ".join(map(quoted, lacking[:_LISTED])) + (", ..." if len(lacking) > _LISTED else "")
                rows.append(("", f"missing in {len(lacking):,} sample{'s' * (len(lacking) > 1)}: {names}"))
        rest = f"all {self.count:,} were checked for alignment, and "
        checked = self.count if self.num_checked is None else self.num_checked
        rest += "" if checked == self.count else f"{checked:,} (--check all reads all) "
        rest += "for class ids that are not declared"
        sample = f"{self.num_decoded:,} samples, evenly spread"
        return _report(self, rows, f"Sizes, values and damage come from {sample}; {rest}.")


def inspect_samples(source: Source, limit: int | None = None, check: Check = "auto") -> AlignedInspection:
    """Look at the samples of a source of several maps: the names of all, the maps of up to `limit` (default 2000).

    Maps of classes whose number is not declared are all read, for a class may be in one of them alone; `check` asks
    for those of a `sample` of 100,000, or for `none` beyond the limit.
    """
    whole, numbers = origin(source)
    assert isinstance(whole, SampleSource)
    columns = presence(source).T
    orphans: dict[str, list[str]] = {}
    unreadable: dict[str, str] = {}
    tallies: dict[str, _MapSums] = {}
    for d, column in zip(whole.declared, columns, strict=True):
        tallies[d.name] = _MapSums(d, int(column.sum()))
        if not column.all():
            orphans[d.name] = [source.name(i) for i in np.flatnonzero(~column).tolist()]
    modalities = [d.modality for d in whole.declared]
    decoded = [numbers[place] for place in _measured(len(numbers), limit, "samples")]
    for i in decoded:
        try:
            read = whole.read(i)
            as_sample(read, modalities, whole.name(i))  # do they fit one another?
        except Unreadable as error:
            unreadable[whole.name(i)] = str(error)
            continue
        for name, read_map in read.items():
            tallies[name].add(read_map)
    rows = range(len(numbers)) if check == "auto" else to_check(source, check).tolist()
    looked_at = {numbers[row] for row in rows}.union(decoded)
    for d in whole.declared if len(decoded) < len(looked_at) else ():
        if d.measured and d.is_categorical:
            others = sorted(looked_at.difference(decoded))
            alone = whole.settled((d,))
            jobs = (partial(_ids_of, alone, i) for i in others if alone.has(i)[0])
            with closing(prefetch(jobs, 4 * num_cores())) as counted_ids:
                for ids in counted_ids:
                    tallies[d.name].ids.update(ids)
    maps = tuple(tally.facts() for tally in tallies.values())
    classes = _class_counts(source)
    passed_over = dict(getattr(whole, "passed_over", {}))
    return AlignedInspection(
        source.address, len(numbers), len(decoded), maps, orphans, unreadable, classes, passed_over, len(looked_at)
    )


def _ids_of(source: SampleSource, index: int) -> dict[int, int]:
    """The pixels of each class in the only map of a sample; none where it cannot be read."""
    try:
        return _tally_ids(next(iter(source.read(index).values())))
    except Unreadable:
        return {}


def _tally_ids(classes: Map) -> dict[int, int]:
    ids = classes.values[0] if classes.valid is None else classes.values[0][classes.valid[0]]
    unique, counts = ids.unique(return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


class _MapSums:
    """Sums over the maps of one modality; every map weighs the same, whatever its size."""

    def __init__(self, declared: Declared, count: int) -> None:
        self.declared, self.count, self.valid = declared, count, 0.0
        self.stored: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.ids: Counter[int] = Counter()
        self.moments: list[Float64[np.ndarray, "2 C"]] = []

    def add(self, read_map: Map) -> None:
        image = read_map.values
        self.stored[read_map.stored] += 1
        self.sizes.append((image.shape[-2], image.shape[-1]))
        known = torch.ones(image.shape[-2:], dtype=torch.bool) if read_map.valid is None else read_map.valid[0]
        self.valid += float(known.float().mean())
        if self.declared.is_categorical:
            self.ids.update(_tally_ids(read_map))
        elif known.any():
            self.moments.append(moments(image[:, known]))

    def facts(self) -> MapFacts:
        mean, std = (
            ((), ())
            if self.declared.is_categorical
            else mean_std(np.array(self.moments).reshape(-1, 2, self.declared.modality.channels))
        )
        return MapFacts(
            name=self.declared.name,
            unit=self.declared.unit,
            count=self.count,
            channels=self.declared.modality.channels,
            stored=dict(self.stored.most_common()),
            **_size_facts(np.array(self.sizes, np.int64).reshape(-1, 2)),
            mean=mean,
            std=std,
            share_valid=self.valid / max(len(self.sizes), 1),
            ids=dict(sorted(self.ids.items())),
        )


def _rows(facts: MapFacts) -> list[tuple[str, str]]:
    channels = f"{facts.channels} channel{'s' * (facts.channels > 1)}"
    rows = [(facts.name, f"{facts.count:,} maps of {channels} ({_counted(facts.stored)})")]
    if sizes := _size_range(facts):
        rows.append(("", f"width x height {sizes}"))
    if facts.mean:
        suffix = f" {facts.unit}" if facts.unit else ""
        rows.append(("", f"mean {_numbers(facts.mean)}{suffix}, std {_numbers(facts.std)}{suffix}"))
    if facts.ids:
        total = sum(facts.ids.values())
        shown = ", ".join(f"{i} {n / total:.1%}" for i, n in list(facts.ids.items())[: 4 * _LISTED])
        rows.append(("", f"{len(facts.ids)} class ids: {shown}"))
    if len(facts.ids) == 1:
        rows.append(("", "warning: one class alone; 255 is no class: save it as another id, or declare `void`"))
    is_8_bit = {kind[:5] for kind in facts.stored} <= {"8-bit", "uint8"}
    if facts.unit == "m" and is_8_bit and facts.mean and facts.mean[0] < 0.256:  # metres
        rows.append(("", "warning: 8-bit numbers are read as millimetres; declare their scale in a .toml"))
    return [*rows, ("", f"{facts.share_valid:.1%} of the pixels valid")]
