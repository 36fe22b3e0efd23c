"""The section on single classes: how many of each were right, and what the others were taken for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .analyses import shaded
from .comparisons import title_of
from .markup import Markup, html_table, percent, remark, tag
from .run_files import mapping, number
from .run_record import Evaluation, RunRecord
from .sections import Runs, by_run

_Z = 1.96  # of a 95 % interval
_MOST_DRAWN = 22  # classes of a confusion matrix; of so many a result holds every pair
_MOST_CLASSES = 1 << 14
_MOST_ROWS = 40  # of the table: the classes that were right least often


@dataclass(frozen=True)
class Classes:
    """What a result holds of classes: names, numbers of test samples and of right ones, and the confused pairs."""

    names: list[str]
    count: list[int]
    right: list[int]
    confused: dict[int, dict[int, int]]
    unit: str

    @property
    def known(self) -> list[int]:
        """The classes that the test samples have."""
        return [k for k, n in enumerate(self.count) if n]


def classes(runs: Runs) -> Markup | None:
    """Of each protocol that classifies, the classes from the worst to the best, and the confusion matrix."""
    explained = (
        "Of each class how many of its test samples were right, the worst first, with the 95 % interval (Wilson) and"
        " what the class was mostly taken for. Samples of segmentation, of patches and of several draws are not"
        " independent: they have no interval. In the matrix a row is a true class and a column what it was taken for,"
        " in per cent of the row."
    )
    return by_run("Classes", runs, _of_run, explained)


def _of_run(run: RunRecord) -> list[Markup | None]:
    blocks: list[Markup | None] = []
    for evaluation in run.evaluations:
        parts = mapping(evaluation.shown.get("parts"))
        each = {title_of(evaluation.protocol): evaluation.shown}
        each |= {title_of(evaluation.protocol, f"accuracy_{name}"): mapping(part) for name, part in parts.items()}
        for title, shown in each.items():
            if (read := read_classes(shown)) is not None:
                blocks += _drawn(title, evaluation, read)
    return blocks


def _drawn(title: str, evaluation: Evaluation, read: Classes) -> list[Markup | None]:
    shares = {k: read.right[k] / read.count[k] for k in read.known}
    order = sorted(read.known, key=lambda k: (shares[k], read.names[k]))
    heading = tag("h3", title, tag("span", f" on {evaluation.data}", class_="aside"))
    rows = []
    for k in order[:_MOST_ROWS]:
        others = read.confused.get(k, {})
        most = max(others, key=lambda other: others[other], default=None)
        taken = "–" if most is None else f"{read.names[most]}, {percent(others[most] / read.count[k])}"
        interval = "–" if read.unit else "{} to {}".format(*(percent(v) for v in wilson(read.right[k], read.count[k])))
        rows.append([read.names[k], f"{read.count[k]:,}", percent(shares[k]), interval, taken])
    head = ["class", f"test {read.unit or 'images'}", "right", "95 % interval", "mostly taken for"]
    more = remark(f"The worst {_MOST_ROWS} of {len(order)} classes.") if len(order) > _MOST_ROWS else None
    return [heading, tag("p", _sentence(read, shares, order)), _matrix(read), html_table(head, rows), more]


def _sentence(read: Classes, shares: Mapping[int, float], order: list[int]) -> str:
    """The best and the worst class, and the pair that is confused most often."""
    best, worst = order[-1], order[0]
    words = f"Best {read.names[best]} with {percent(shares[best])}, worst {read.names[worst]} with "
    words += f"{percent(shares[worst])}."
    pairs = {(k, other): n for k, others in read.confused.items() for other, n in others.items()}
    if pairs:
        k, other = max(pairs, key=lambda pair: pairs[pair])
        words += f" Confused most often: {read.names[k]}, taken for {read.names[other]}"
        words += f" in {percent(pairs[k, other] / read.count[k])} of its {read.unit or 'images'}."
    return words


def _matrix(read: Classes) -> Markup | None:
    """The confusion matrix of few classes, each row in per cent."""
    size = len(read.names)
    if not 2 <= size <= _MOST_DRAWN:
        return None
    rows = []
    for k in read.known:
        cells = {**read.confused.get(k, {}), k: read.right[k]}
        shares = [cells.get(other, 0) / read.count[k] for other in range(size)]
        rows.append([read.names[k], *(shaded(100 * share, share, ".0f") for share in shares)])
    return html_table(["true class", *read.names], rows, class_="cka confusion")


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, z = right / count, _Z**2 / count
    half = _Z * math.sqrt(share * (1 - share) / count + z / 4 / count)
    low, high = ((share + z / 2 + side) / (1 + z) for side in (-half, half))
    return max(0.0, low), min(1.0, high)


def read_classes(shown: Mapping[str, Any]) -> Classes | None:
    """What a result's file says of its classes; None where it says nothing, or nothing that agrees with itself."""
    content = mapping(shown.get("classes"))
    count, right = (_counts(content.get(name)) for name in ("count", "right"))
    if not (0 < len(count) == len(right) <= _MOST_CLASSES and any(count)):
        return None
    if any(r > n for r, n in zip(right, count, strict=True)):
        return None
    size, names = len(count), content.get("names")
    named = [str(name)[:80] for name in names] if isinstance(names, list) and len(names) == size else None
    confused: dict[int, dict[int, int]] = {}
    pairs = content.get("confused")
    for pair in pairs if isinstance(pairs, list) else []:
        values = _counts(pair)
        if len(values) == 3 and values[0] < size and values[1] < size and 0 < values[2] <= count[values[0]]:
            confused.setdefault(values[0], {})[values[1]] = values[2]
    return Classes(named or list(map(str, range(size))), count, right, confused, str(content.get("unit") or "")[:40])


def _counts(values: object) -> list[int]:
    """Whole numbers from 0 on; nothing where one is none."""
    read = [number(v) for v in values] if isinstance(values, list) else []
    return [int(v) for v in read] if all(0 <= v < 1e15 for v in read) else []
