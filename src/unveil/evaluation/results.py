"""What an evaluation leaves behind: a JSON file per protocol in the run folder, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..runs import console
from ..runs.atomic import write_json


@dataclass(frozen=True)
class Result:
    """One protocol's outcome on one encoder, beside that of the baselines.

    Metrics are shares in [0, 1], but for errors (in metres) and PSNR (in decibels); `details` are those of each part,
    such as a class, for this run.
    """

    protocol: str
    data: str
    test_data: str | None
    pool: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, object]
    card: str
    seconds: float
    date: str
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def write_results(run_dir: Path | str, results: Iterable[Result], at_epoch: float | None = None) -> list[Path]:
    """Write `eval/<protocol>.json` for each result, of weights on the way `eval/epoch-<epoch>/<protocol>.json`.

    A file is replaced whole or not at all, others stay as they are.
    """
    folder = Path(run_dir) / "eval" / ("" if at_epoch is None else f"epoch-{at_epoch:g}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for result in results:
        path = folder / f"{result.protocol}.json"
        write_json(path, result.to_dict())
        written.append(path)
    return written


_SHOWN = {  # metrics that stand for a protocol where it has no accuracy, in words, and how they are written
    "miou": ("mIoU", "{:.1%}"),
    "pixel_accuracy": ("pixel accuracy", "{:.1%}"),
    "delta1": ("delta1", "{:.1%}"),
    "abs_rel": ("relative error", "{:.3f}"),
    "rmse": ("RMSE", "{:.3f} m"),
    "psnr": ("PSNR", "{:.2f} dB"),
    "loss": ("loss", "{:.4f}"),
}


PARTS = {"iou": "IoU of each class"}


def table(results: Sequence[Result]) -> str:
    """Accuracies in per cent, and what other protocols measure, as plain text: a column per baseline, this run last.

    A row per protocol, or, where one has several accuracies and none stands for all, a row for each of these, with
    half of its interval where there is one.
    """
    columns = list(dict.fromkeys(name for result in results for name in result.baselines))
    rows = [["protocol", *columns, "this run"]]
    for result in results:
        found = [result.baselines.get(name, {}) for name in columns] + [result.metrics]
        parts = [name.removeprefix("accuracy_") for name in result.metrics if name.startswith("accuracy_")]
        rows += [
            [f"{result.protocol} {part}".strip(), *(_cell(metrics, part) for metrics in found)]
            for part in ([""] if "accuracy" in result.metrics else parts)
        ]
        shown = [(name, *words) for name in result.metrics if (words := _shown(name))]
        rows += [
            [f"{result.protocol} {words}", *(form.format(m[name]) if name in m else "-" for m in found)]
            for name, words, form in shown
        ]
    return console.table(rows)


_WIDTH = 100  # characters of a line


def parts_table(results: Sequence[Result]) -> str:
    """What metrics of this run are means of, such as the IoU of each class: a block each, down its columns."""
    blocks = []
    for result in results:
        for what, values in result.details.items():
            cells = [(n, f"{value:.1%}" if what == "iou" else f"{value:.4g}") for n, value in values.items()]
            widest = max((len(name) + len(value) for name, value in cells), default=0)
            count = -(-len(cells) // max(1, _WIDTH // (widest + 4)))  # 4 spaces between names and values
            cells += [("", "")] * (-len(cells) % max(1, count))
            lines = console.table([sum(cells[row::count], ()) for row in range(count)], "lr" * len(cells))
            blocks.append(f"{result.protocol}, {PARTS.get(what, what)}\n{lines}")
    return "\n\n".join(blocks)


def _shown(metric: str) -> tuple[str, str] | None:
    """A metric in words, and its form: `psnr_0.75` is PSNR 0.75. None for one that the table leaves out."""
    known = next((name for name in _SHOWN if metric == name or metric.startswith(f"{name}_")), None)
    if known is None:
        return None
    words, form = _SHOWN[known]
    return f"{words} {metric.removeprefix(known).strip('_').replace('_', ' ')}".strip(), form


def _cell(metrics: Mapping[str, float], part: str) -> str:
    name = f"accuracy_{part}" if part else "accuracy"
    if name not in metrics:
        return "-"
    half = metrics.get(f"plus_minus_{part}")
    return f"{100 * metrics[name]:.1f} {'' if half is None else f'± {100 * half:.1f} '}%"
