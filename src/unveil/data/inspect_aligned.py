"""What samples of several maps hold, modality by modality, and which lack one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..modeling.types import to_float
from ..runs.console import table
from .decode import Unreadable
from .inspect_images import counted, listed, size_range
from .modality_config import Declared
from .read_map import Map
from .samples import SampleSource, as_sample, origin
from .sources import Source, spread

_LISTED = 10


@dataclass(frozen=True)
class MapFacts:
    """One modality of a source. Sizes are (height, width); mean and std are per channel, over valid pixels.

    `ids` counts the pixels of each class id.
    """

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

    @property
    def median(self) -> tuple[int, int] | None:
        """The median size of the first modality's maps."""
        return self.maps[0].median

    def settle(self, declared: tuple[Declared, ...]) -> tuple[Declared, ...]:
        """The modalities with their means, stds and numbers of classes, where those were left to the data."""
        measured = {facts.name: facts for facts in self.maps}
        return tuple(
            d.settled(
                _rounded(measured[d.name].mean), _rounded(measured[d.name].std, 1e-3), measured[d.name].num_classes
            )
            for d in declared
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("samples", f"{self.count:,}")]
        if self.classes:
            rows.append(("labels", f"{len(self.classes)} classes: {counted(self.classes)}"))
        for facts in self.maps:
            rows += _rows(facts)
            if lacking := self.orphans.get(facts.name):
                names = ", ".join(lacking[:_LISTED]) + (", ..." if len(lacking) > _LISTED else "")
                rows.append(("", f"missing in {len(lacking):,} sample{'s' * (len(lacking) > 1)}: {names}"))
        rows += listed("unreadable", self.unreadable)
        lines = [self.address, table(rows, "l", "  ")]
        if self.num_decoded < self.count:
            lines.append(
                f"  Sizes, values and damage come from {self.num_decoded:,} samples, evenly spread; all {self.count:,}"
                " were checked for alignment."
            )
        return "\n".join(lines)


def inspect_samples(source: Source, limit: int | None = None) -> AlignedInspection:
    """Look at the samples of a source of several maps: the names of all, the maps of up to `limit` (default 2000)."""
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} samples leaves nothing to measure; give 1 or more, or none for 2000")
    whole, numbers = origin(source)
    assert isinstance(whole, SampleSource)
    n = len(numbers)
    orphans: defaultdict[str, list[str]] = defaultdict(list)
    unreadable: dict[str, str] = {}
    tallies = {d.name: _Tally(d) for d in whole.declared}
    modalities = [d.modality for d in whole.declared]
    decoded = spread(n, limit or 2000)
    for i in numbers:
        for d, has in zip(whole.declared, whole.has(i), strict=True):
            tallies[d.name].count += has
            if not has:
                orphans[d.name].append(whole.name(i))
    for place in decoded:
        try:
            read = whole.read(numbers[place])
            as_sample(read, modalities, whole.name(numbers[place]))  # do they fit one another?
        except Unreadable as error:
            unreadable[whole.name(numbers[place])] = str(error)
            continue
        for name, read_map in read.items():
            tallies[name].add(read_map)
    labels, names = whole.labels, whole.classes
    classes = None
    if labels is not None and names is not None:
        counts = Counter(labels[i] for i in numbers)
        classes = {name: counts[label] for label, name in enumerate(names)}
    maps = tuple(tally.facts() for tally in tallies.values())
    return AlignedInspection(source.address, n, len(decoded), maps, dict(orphans), unreadable, classes)


@dataclass
class _Tally:
    """Sums over the maps of one modality; every map weighs the same, whatever its size."""

    declared: Declared
    count: int = 0
    measured: int = 0
    valid: float = 0.0
    stored: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    ids: Counter[int] = field(default_factory=Counter)
    sums: torch.Tensor | None = None

    def add(self, read_map: Map) -> None:
        image = read_map.values
        self.stored[read_map.stored] += 1
        self.sizes.append((image.shape[-2], image.shape[-1]))
        self.valid += 1.0 if read_map.valid is None else float(read_map.valid.float().mean())
        known = torch.ones(image.shape[-2:], dtype=torch.bool) if read_map.valid is None else read_map.valid[0]
        if self.declared.is_categorical:
            ids, counts = image[0][known].unique(return_counts=True)
            self.ids.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        elif known.any():
            pixels = to_float(image)[:, known].double()
            sums = torch.stack([pixels.mean(1), pixels.square().mean(1)])
            self.sums = sums if self.sums is None else self.sums + sums
            self.measured += 1

    def facts(self) -> MapFacts:
        channels = self.declared.modality.channels
        mean, square = torch.zeros(2, channels, dtype=torch.float64) if self.sums is None else self.sums / self.measured
        sizes = sorted(self.sizes, key=math.prod)
        is_continuous = not self.declared.is_categorical
        return MapFacts(
            name=self.declared.name,
            unit=self.declared.unit,
            count=self.count,
            channels=channels,
            stored=dict(self.stored.most_common()),
            smallest=sizes[0] if sizes else None,
            median=sizes[len(sizes) // 2] if sizes else None,
            largest=sizes[-1] if sizes else None,
            mean=tuple(mean.tolist()) if is_continuous else (),
            std=tuple((square - mean.square()).clamp_min(0).sqrt().tolist()) if is_continuous else (),
            share_valid=self.valid / max(len(self.sizes), 1),
            ids=dict(sorted(self.ids.items())),
        )


def _rows(facts: MapFacts) -> list[tuple[str, str]]:
    channels = f"{facts.channels} channel{'s' * (facts.channels > 1)}"
    rows = [(facts.name, f"{facts.count:,} maps of {channels} ({counted(facts.stored)})")]
    if facts.smallest and facts.largest and facts.median:
        sizes = size_range(facts.smallest, facts.median, facts.largest)
        rows.append(("", f"width x height {sizes}"))
    if facts.mean:
        suffix = f" {facts.unit}" if facts.unit else ""
        rows.append(("", f"mean {_numbers(facts.mean)}{suffix}, std {_numbers(facts.std)}{suffix}"))
    if facts.ids:
        total = sum(facts.ids.values())
        shares = {str(i): n for i, n in facts.ids.items()}
        shown = ", ".join(f"{i} {n / total:.1%}" for i, n in list(shares.items())[: 4 * _LISTED])
        rows.append(("", f"{len(facts.ids)} class ids: {shown}"))
    rows.append(("", f"{facts.share_valid:.1%} of the pixels valid"))
    return rows


def _numbers(values: tuple[float, ...]) -> str:
    return "  ".join(f"{value:.4f}" for value in values)


def _rounded(values: tuple[float, ...], least: float | None = None) -> tuple[float, ...]:
    rounded = [round(value, 4) for value in values]
    return tuple(rounded if least is None else [max(least, value) for value in rounded])
