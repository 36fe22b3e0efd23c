"""What a source holds, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..modeling.types import to_float
from ..runs.console import table
from .decode import Header, Unreadable, decode, read_header, to_channels
from .samples import origin
from .sources import EncodedSource, Source, spread

_LISTED = 10  # names shown before "and n more"


@dataclass(frozen=True)
class Inspection:
    """The facts about a source. Sizes are (height, width); mean and std are per channel, of images in [0, 1].

    Headers are read from every file, pixels from `num_decoded` images, evenly spread: damage in the others stays
    unseen. Every image weighs the same in mean and std, whatever its size, as it does in training.
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

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**asdict(self), "bits": {str(k): v for k, v in self.bits.items()}}

    def __str__(self) -> str:
        rows = [("images", f"{self.count:,}"), ("channels", f"{self.channels} ({counted(self.modes)})")]
        if self.formats:
            rows.append(("files", counted(self.formats)))
            rows.append(("bits", counted({str(bits): n for bits, n in self.bits.items()})))
        if self.smallest and self.median and self.largest:
            rows.append(("width x height", size_range(self.smallest, self.median, self.largest)))
            rows.append(("not square", f"{self.share_not_square:.0%}"))
        if self.classes:
            rows.append(("labels", f"{len(self.classes)} classes: {counted(self.classes)}"))
        rows.append(("mean", "  ".join(f"{value:.4f}" for value in self.mean)))
        rows.append(("std", "  ".join(f"{value:.4f}" for value in self.std)))
        if self.num_with_alpha:
            rows.append(("alpha", f"{self.num_with_alpha:,} images have transparency; it is dropped"))
        if self.duplicates:
            extra = sum(len(names) - 1 for names in self.duplicates)
            rows.append(("duplicates", f"{extra:,} exact copies, such as {' = '.join(self.duplicates[0][:3])}"))
        lines = [self.address, table([*rows, *listed("unreadable", self.unreadable)], "l", "  ")]
        if self.num_decoded < self.count:
            lines.append(
                f"  Mean, std and damage come from {self.num_decoded:,} images, evenly spread;"
                f" the headers of all {self.count:,} were read."
            )
        return "\n".join(lines)


def inspect_source(source: Source, limit: int | None = None) -> Inspection:
    """Look at a source: the header of every image, the pixels of up to `limit` (default 2000, evenly spread)."""
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} images leaves nothing to measure; give 1 or more, or none for 2000")
    n = len(source)
    decoded = set(spread(n, limit or 2000))
    whole, numbers = origin(source)
    files = whole if isinstance(whole, EncodedSource) else None  # None where images are made
    headers: list[Header] = []
    unreadable: dict[str, str] = {}
    copies: defaultdict[bytes, list[str]] = defaultdict(list)
    made: list[tuple[int, int]] = []  # sizes of images that have no file
    kinds: Counter[str] = Counter()
    depths: Counter[int] = Counter()
    sums = torch.zeros(2, source.channels, dtype=torch.float64)
    measured = 0
    for i in range(n):
        name = source.name(i)
        try:
            if files is not None:
                data = files.encoded(numbers[i])
                headers.append(read_header(data, name))
                copies[hashlib.blake2b(data, digest_size=16).digest()].append(name)
            if i not in decoded:
                continue
            image = source.image(i) if files is None else to_channels(decode(data, name), source.channels, name)
        except Unreadable as error:
            unreadable[name] = error.reason
            continue
        if files is None:
            made.append((image.shape[-2], image.shape[-1]))
            kinds["made here"] += 1
            depths[8 * image.element_size()] += 1
        pixels = to_float(image).double()
        sums += torch.stack([pixels.mean((1, 2)), pixels.square().mean((1, 2))])
        measured += 1
    mean, square = sums / max(measured, 1)
    sizes = sorted([*(header.size for header in headers), *made], key=lambda size: size[0] * size[1])
    return Inspection(
        address=source.address,
        count=n,
        channels=source.channels,
        num_decoded=len(decoded),
        smallest=sizes[0] if sizes else None,
        median=sizes[len(sizes) // 2] if sizes else None,
        largest=sizes[-1] if sizes else None,
        share_not_square=sum(h != w for h, w in sizes) / max(len(sizes), 1),
        modes=_tally(header.mode for header in headers) or dict(kinds),
        bits=_tally(header.bits for header in headers) or dict(depths),
        formats=_tally(header.format for header in headers),
        num_with_alpha=sum(header.has_alpha for header in headers),
        classes=_class_counts(source),
        duplicates=[names for names in copies.values() if len(names) > 1],
        unreadable=unreadable,
        mean=tuple(mean.tolist()),
        std=tuple((square - mean.square()).clamp_min(0).sqrt().tolist()),
    )


def _tally(values: Iterable[Any]) -> dict[Any, int]:
    return dict(Counter(values).most_common())


def _class_counts(source: Source) -> dict[str, int] | None:
    if source.labels is None:
        return None
    counts = Counter(source.labels)
    names = source.classes or [str(label) for label in range(max(counts) + 1)]
    return {name: counts[label] for label, name in enumerate(names)} | ({"unknown": counts[-1]} if counts[-1] else {})


def size_range(smallest: tuple[int, int], median: tuple[int, int], largest: tuple[int, int]) -> str:
    """Sizes (height, width) as one text in width x height."""
    low, middle, high = (f"{width} x {height}" for height, width in (smallest, median, largest))
    return low if low == high else f"{low} to {high}, median {middle}"


def counted(counts: Mapping[str, int]) -> str:
    """Counts by name, the first of them."""
    shown = ", ".join(f"{name} {n:,}" for name, n in list(counts.items())[:_LISTED])
    return shown + (f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else "")


def listed(title: str, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """How many there are, as a row, and the first of them with their reasons, as more."""
    rows = [(title, f"{len(reasons):,}")]
    rows += [("", f"{name}: {reason}") for name, reason in list(reasons.items())[:_LISTED]]
    return rows + ([("", f"and {len(reasons) - _LISTED:,} more")] if len(reasons) > _LISTED else [])
