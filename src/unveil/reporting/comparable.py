"""Which numbers of several runs compare: losses of the same target on the same data, features of the same images."""

from __future__ import annotations

from collections.abc import Sequence

from .run_record import RunRecord

FACTS: dict[str, tuple[str, ...]] = {
    "recipe": ("recipe",),
    "size": ("options", "size"),
    "data": ("data", "address"),
    "images": ("data", "count"),
    "image size": ("data", "image_size"),
    "channels": ("data", "channels"),
    "status": ("status",),
}


def data_differ(runs: Sequence[RunRecord]) -> list[str]:
    """In what of their data the runs differ: address, number of images, size or channels of an image."""
    names = ("data", "images", "image size", "channels")
    return [name for name in names if len({run.text(*FACTS[name]) for run in runs}) > 1]


def losses_differ(runs: Sequence[RunRecord]) -> list[str]:
    """Why the losses of runs do not compare: their data, what is predicted, or how much of an image is hidden."""
    facts: dict[str, set[object]] = {
        "target": {(run.text("model", "norm_pix"), run.text("options", "target"), _losses(run)) for run in runs},
        "share hidden": {_share_hidden(run) for run in runs},
    }
    return [*data_differ(runs), *(name for name, values in facts.items() if len(values) > 1)]


def _losses(run: RunRecord) -> tuple[str, ...]:
    """The names of a run's losses, where there are several: one alone is named as its recipe likes."""
    names = sorted({name for s in run.steps[:1] for name in s.losses})
    return tuple(names) if len(names) > 1 else ()


def listed(words: Sequence[str]) -> str:
    """Words with commas, and an `and` before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _share_hidden(run: RunRecord) -> str:
    visible, tokens = run.number("model", "num_visible"), run.number("model", "num_tokens")
    return f"{visible / tokens:.3f}" if tokens > 0 else run.text("options", "visible")
