"""The results of an evaluation: a JSON file per protocol in the run folder, and a table on the terminal."""

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


_FORMS = {  # metrics that the table shows, beside accuracies: their label and format
    "miou": ("mIoU", "{:.1%}"),
    "pixel_accuracy": ("pixel accuracy", "{:.1%}"),
    "delta1": ("delta1", "{:.1%}"),
    "abs_rel": ("relative error", "{:.3f}"),
    "rmse": ("RMSE", "{:.3f} m"),
    "psnr": ("PSNR", "{:.2f} dB"),
    "loss": ("loss", "{:.4f}"),
}
_DETAILS = {"iou": "IoU of each class"}


def table(results: Sequence[Result]) -> str:
    """The main metrics as plain text: a row per protocol and metric, a column per baseline, this run last.

    Accuracies are in per cent, with half of their interval where there is one; where one stands for all, the others are
    left out. Of a protocol without any of the metrics in `_FORMS`, all are shown.
    """
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    rows = [["protocol", *baselines, "this run"]]
    for result in results:
        columns = [result.baselines.get(name, {}) for name in baselines] + [result.metrics]
        rows += [
            [f"{result.protocol} {label}".strip(), *(_cell(column, metric, form) for column in columns)]
            for metric, label, form in _main(result.metrics)
        ]
    return console.table(rows)


def _main(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """The metrics that the table shows, each with its label and format: `psnr_0.75` is PSNR 0.75."""
    names = [name for name in metrics if name.startswith("accuracy_")] if "accuracy" not in metrics else ["accuracy"]
    rows = [(name, name.removeprefix("accuracy").strip("_"), "") for name in names]
    for name in metrics:
        for known, (label, form) in _FORMS.items():
            if name == known or name.startswith(f"{known}_"):
                rows.append((name, f"{label} {name.removeprefix(known).strip('_').replace('_', ' ')}".strip(), form))
    return rows or [(name, name.replace("_", " "), "{:.4g}") for name in metrics]


def _cell(metrics: Mapping[str, float], metric: str, form: str) -> str:
    if metric not in metrics:
        return "-"
    if form:
        return form.format(metrics[metric])
    half = metrics.get(metric.replace("accuracy", "plus_minus"))
    return f"{100 * metrics[metric]:.1f} {'' if half is None else f'± {100 * half:.1f} '}%"


_WIDTH = 100  # characters of a line


def details_table(results: Sequence[Result]) -> str:
    """The details of each metric of this run, such as the IoU of each class, in columns of names and values."""
    blocks = []
    for result in results:
        for kind, values in result.details.items():
            cells = [(n, f"{value:.1%}" if kind == "iou" else f"{value:.4g}") for n, value in values.items()]
            widest = max((len(name) + len(value) for name, value in cells), default=0)
            count = -(-len(cells) // max(1, _WIDTH // (widest + 4)))  # 4 spaces between names and values
            cells += [("", "")] * (-len(cells) % max(1, count))
            lines = console.table([sum(cells[row::count], ()) for row in range(count)], "lr" * len(cells))
            blocks.append(f"{result.protocol}, {_DETAILS.get(kind, kind)}\n{lines}")
    return "\n\n".join(blocks)
