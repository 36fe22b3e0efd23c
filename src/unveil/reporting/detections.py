"""The section on detection: precision over recall, and images with what is there beside what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Line, line_chart
from .markup import Markup, figure, remark, tag
from .run_record import RunRecord
from .sections import Runs, section

_MOST_TEXT = 2_000_000  # letters of one picture, beyond which it is none that evaluation wrote
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
_EVENLY, _WORST = "spread", "worst"


def detections(runs: Runs) -> Markup | None:
    """Of each run that was evaluated by detection, the curves of all together and its images."""
    own = [
        (i, run, e.shown) for i, run in enumerate(runs) for e in run.evaluations if e.protocol == "detect" and e.shown
    ]
    if not own:
        return None
    charts = [_curves(kind, own) for kind in ("box", "mask")]
    galleries = [_gallery(run, shown, len(own) > 1) for _, run, shown in own]
    explained = (
        "Precision at each recall, the mean over classes, where boxes (or masks) count from an overlap of one half."
        " Images: what is there on the left, what was found with a score of 30 % or more on the right."
    )
    blocks = [block for block in (*charts, *galleries) if block is not None]
    return section("Detection", *blocks, explained=explained, folds=True) if blocks else None


def _curves(kind: str, own: Sequence[tuple[int, RunRecord, Mapping[str, Any]]]) -> Markup | None:
    lines = []
    for place, run, shown in own:
        curves = shown.get("curves")
        curve = curves.get(kind) if isinstance(curves, Mapping) else None
        if isinstance(curve, list) and len(curve) > 1 and all(isinstance(p, (int, float)) for p in curve):
            recalls = [100 * k / (len(curve) - 1) for k in range(len(curve))]
            lines.append(Line(run.name, recalls, [100 * p for p in curve], place))
    title = "precision of boxes" if kind == "box" else "precision of masks"
    return line_chart(title, lines, x_label="recall, %", note="%", from_zero=True) if lines else None


def _gallery(run: RunRecord, shown: Mapping[str, Any], is_named: bool) -> Markup | None:
    images = shown.get("images")
    entries = [one for one in images if isinstance(one, Mapping)] if isinstance(images, list) else []
    blocks = []
    for kind, heading in ((_EVENLY, "test images"), (_WORST, "the worst test images")):
        pairs = [pair for one in entries if one.get("kind") == kind if (pair := _pair(one)) is not None]
        if pairs:
            title = f"{run.name}: {heading}" if is_named else heading.capitalize()
            blocks += [tag("h3", title), tag("div", *pairs, class_="pairs")]
    if not blocks:
        return None
    note = "The F1 score of an image counts objects found at an overlap of one half; the worst are those of the lowest."
    return tag("div", *blocks, remark(note), class_="looks")


def _pair(one: Mapping[str, Any]) -> Markup | None:
    """An image with its objects and the same with what was found; None where the file holds no pictures."""
    pictures = [_picture(one.get(name), f"{one.get('name')}: {name}") for name in ("true", "found")]
    if None in pictures:
        return None
    share = one.get("share")
    score = f", F1 {figure(share)}" if isinstance(share, (int, float)) else ""
    return tag("figure", *pictures, tag("figcaption", f"{str(one.get('name'))[:80]}{score}"), class_="pair")


def _picture(text: object, alt: str) -> Markup | None:
    """A PNG that a results file holds as base64; None for anything else, for the file may be a stranger's."""
    if not isinstance(text, str) or not text.startswith("iVBOR") or len(text) > _MOST_TEXT or set(text) - _LETTERS:
        return None
    return tag("img", src=f"data:image/png;base64,{text}", alt=alt, loading="lazy")
