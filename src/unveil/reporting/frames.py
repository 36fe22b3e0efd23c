"""Pictures over training as HTML: frames in one place, moved by a slider or a play button, and masks on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .markup import Markup, brief, picture, tag
from .run_record import Files, ProbeEpoch, RunRecord

T = TypeVar("T")
SIDE = 320  # pixels of a picture's longer side, twice what it is shown at
Mask = tuple[Sequence[int], tuple[int, int]]  # hidden patches, and the rows and columns of their grid


@dataclass(frozen=True)
class Frames:
    """A picture at each place of a slider; `kinds` has others that a switch shows instead, `errors` theirs in words."""

    alt: str
    kinds: Mapping[str, Sequence[Path | None]]
    errors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mask: Mask | None = None


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def epoch_name(at: ProbeEpoch) -> str:
    """When pictures were drawn, in words."""
    if math.isnan(at.epoch):
        return f"step {at.step}"
    return f"epoch {brief(round(at.epoch, 1))}" if at.epoch >= 1 else f"epoch {at.epoch:.2g}"


def epochs_with(run: RunRecord, most: int, shows: Callable[[Files], object]) -> list[ProbeEpoch]:
    """The epochs of a run that have such pictures, evenly spread."""
    return evenly_spaced([e for e in run.probes.epochs if any(map(shows, e.items.values()))], most)


def probes_over(epochs: Sequence[ProbeEpoch], run: RunRecord) -> Iterator[tuple[int, str, list[Files]]]:
    """Each probe that has pictures at these epochs: its number, its name and the pictures at each."""
    for probe, name in enumerate(run.probes.names):
        if any(probe in epoch.items for epoch in epochs):
            yield probe, name, [epoch.items.get(probe, {}) for epoch in epochs]


def drawn_frames(frames: Frames, first: str | None = None) -> Markup:
    """All frames of one place, the last of the `first` kind in sight; a frame like the one before is drawn once."""
    first = first if first in frames.kinds else next(iter(frames.kinds), None)
    last = max((len(paths) for paths in frames.kinds.values()), default=1) - 1
    elements = []
    for kind, paths in frames.kinds.items():
        words = frames.errors.get(kind, ())
        for place, path in enumerate(paths):
            error = words[place] if place < len(words) else None
            one = picture(path, f"{frames.alt}: {kind}", SIDE)
            is_hidden = (kind, place) != (first, last)
            elements.append(tag("span", one, data_at=place, data_kind=kind, data_error=error, hidden=is_hidden))
    return tag("span", *elements, outline(frames.mask), class_="over", data_last=last)


def outline(mask: Mask | None) -> Markup | None:
    """The borders between hidden and visible patches, as a drawing to lay over a picture."""
    if mask is None:
        return None
    hidden, (rows, columns) = set(mask[0]), mask[1]
    path = []
    for y in range(rows):
        for x in range(columns):
            own = y * columns + x in hidden
            if x + 1 < columns and own != (y * columns + x + 1 in hidden):
                path.append(f"M{x + 1} {y}v1")
            if y + 1 < rows and own != ((y + 1) * columns + x in hidden):
                path.append(f"M{x} {y + 1}h1")
    shape = tag("path", d="".join(path))
    return tag(
        "svg", shape, viewBox=f"0 0 {columns} {rows}", preserveAspectRatio="none", class_="mask", aria_hidden="true"
    )


def names_of(lists: Sequence[Sequence[ProbeEpoch]]) -> list[str]:
    """The names of a slider's places for the epochs of one run or several, whose last places are one."""
    places = max(map(len, lists), default=0)
    return [
        " · ".join(dict.fromkeys(epoch_name(own[round(k * (len(own) - 1) / max(1, places - 1))]) for own in lists))
        for k in range(places)
    ]


def slider(names: Sequence[str]) -> Markup | None:
    """A slider over training with a play button; None where there is one place only."""
    if len(names) < 2:
        return None
    last = len(names) - 1
    place = tag(
        "input", type="range", min=0, max=last, value=last, step=1, data_names="|".join(names),
        aria_label="over training", aria_valuetext=names[-1],
    )  # fmt: skip
    play = tag("button", "play", type="button", class_="play", title="over training")
    return tag("span", play, place, tag("output", names[-1]), class_="slider")


def switch(name: str, kinds: Mapping[str, str]) -> Markup | None:
    """Buttons, of which one is chosen, for the kind of picture that is shown; None for one kind."""
    if len(kinds) < 2:
        return None
    buttons = [
        tag("button", words, type="button", data_kind=kind, aria_pressed="true" if i == 0 else "false")
        for i, (kind, words) in enumerate(kinds.items())
    ]
    return tag("span", *buttons, class_="kinds", role="group", aria_label=name)


def timed(names: Sequence[str], rows: Iterable[Markup], *more: Markup | None) -> Markup:
    """Rows of pictures below one slider."""
    return tag("div", tag("div", slider(names), *more, class_="looking"), *rows, class_="looks")
