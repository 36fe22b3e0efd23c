"""The results of an evaluation: a JSON file per protocol, a table, and the cache of an interrupted one."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runs import console
from ..runs.atomic import make_folder, write_json
from ..runs.launcher import is_rank_zero
from ..runs.regular_files import read_text
from .outcomes import write_outcomes

EARLIER = "earlier"  # folder in `eval/`: results that were replaced by those of other data, settings or weights


@dataclass(frozen=True)
class Result:
    """One protocol's outcome on one encoder, beside that of the baselines.

    Metrics are shares in [0, 1], but for errors (in metres) and PSNR (in decibels); `details` are those of each part,
    such as a class, for this run. `outcomes` are those of each test sample, by subject and metric, in a file of their
    own. `weights` says which were measured: a checksum, and of a run step and epoch. `shown` is what the report draws.
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
    outcomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


def write_results(
    run_dir: Path | str, results: Iterable[Result], at_epoch: float | None = None, step: int | None = None
) -> list[Path]:
    """Write `eval/<protocol>.json` for each result, of weights on the way `eval/epoch-<epoch>/<protocol>.json`; what
    became of each test sample goes to `outcomes/` in the same way.

    With `step`, that of the weights, it is among the settings. A file is replaced whole or not at all, others stay as
    they are; one that says what was measured otherwise (other data, settings or weights) is kept in `earlier/`.
    """
    if step is not None:
        results = [replace(result, settings={**result.settings, "step": step}) for result in results]
    place = "" if at_epoch is None else f"epoch-{at_epoch:g}"
    folder = Path(run_dir) / "eval" / place
    make_folder(folder)
    files = {folder / f"{result.protocol}.json": result for result in results}
    for file, result in files.items():
        content = {name: value for name, value in asdict(result).items() if name != "outcomes"}
        if not result.shown:
            del content["shown"]
        _keep_other(file, content)
        write_json(file, content)
        write_outcomes(Path(run_dir), result.protocol, result.outcomes, place)
    return list(files)


def _keep_other(file: Path, content: Mapping[str, Any]) -> None:
    """Keep the result in a file that another is about to replace, unless both were measured in the same way."""
    try:
        before = json.loads(read_text(file))
        compared = json.loads(json.dumps(content))
        name = f"{file.stem}-{re.sub('[^0-9T]', '', before['date'][:19])}.json"
    except (OSError, ValueError, TypeError, KeyError):  # none, or a damaged one
        return
    if any(before.get(key) != compared[key] for key in ("data", "test_data", "pool", "settings", "weights")):
        make_folder(file.parent / EARLIER)
        write_json(file.parent / EARLIER / name, before)
        data = console.quoted(str(before.get("data")))
        console.log(f"note: the earlier result of {file.stem} on {data} is kept as eval/{EARLIER}/{name}")


_FORMS = {  # metrics that the table shows, beside accuracies: their label and format
    "mean_class_accuracy": ("mean over classes", "{:.1%}"),
    "most_frequent_class": ("most frequent class", "{:.1%}"),
    "miou": ("mIoU", "{:.1%}"),
    "pixel_accuracy": ("pixel accuracy", "{:.1%}"),
    "jf_mean": ("J&F", "{:.1%}"),
    "j_mean": ("J", "{:.1%}"),
    "f_mean": ("F", "{:.1%}"),
    "delta1": ("delta1", "{:.1%}"),
    "abs_rel": ("relative error", "{:.3f}"),
    "rmse": ("RMSE", "{:.3f} m"),
    "psnr": ("PSNR", "{:.2f} dB"),
    "loss": ("loss", "{:.4f}"),
    "box_ap": ("box AP", "{:.1%}"),
    "box_ap50": ("box AP50", "{:.1%}"),
    "box_ap75": ("box AP75", "{:.1%}"),
    "mask_ap": ("mask AP", "{:.1%}"),
    "mask_ap50": ("mask AP50", "{:.1%}"),
    "mask_ap75": ("mask AP75", "{:.1%}"),
}
_DETAILS = {
    "iou": "IoU of each class",
    "box_ap": "box AP of each class",
    "mask_ap": "mask AP of each class",
    "jf": "J&F of each video",
}


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
    half = metrics.get(f"plus_minus_{metric}" if form else metric.replace("accuracy", "plus_minus"))
    if form and (half is None or not form.endswith("%}")):
        return form.format(metrics[metric])
    return f"{100 * metrics[metric]:.1f} {'' if half is None else f'± {100 * half:.1f} '}%"


_WIDTH = 100  # characters of a line


def details_table(results: Sequence[Result]) -> str:
    """The details of each metric of this run, such as the IoU of each class, in columns of names and values."""
    blocks = []
    for result in results:
        for kind, values in result.details.items():
            cells = [(n, f"{value:.1%}" if kind in _DETAILS else f"{value:.4g}") for n, value in values.items()]
            widest = max((len(name) + len(value) for name, value in cells), default=0)
            count = -(-len(cells) // max(1, _WIDTH // (widest + 4)))  # 4 spaces between names and values
            cells += [("", "")] * (-len(cells) % max(1, count))
            lines = console.table([sum(cells[row::count], ()) for row in range(count)], "lr" * len(cells))
            blocks.append(f"{result.protocol}, {_DETAILS.get(kind, kind)}\n{lines}")
    return "\n\n".join(blocks)


Key = Mapping[str, object]


def checksum(module: nn.Module) -> int:
    """A checksum of a module's parameters and buffers."""
    total = 0
    for tensor in module.state_dict().values():
        total = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), total)
    return total


class ResultCache:
    """A folder of scores, and of checkpoints of trainings on the way to one, each under all that it depends on.

    Without a folder nothing is cached.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.used: set[Path] = set()
        self._checksums: dict[int, tuple[object, int]] = {}

    def get(self, key: Key) -> dict[str, Any] | None:
        path = self._path(key, "json")
        if path is None or not path.exists():
            return None
        self.used.add(path)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def put(self, key: Key, content: Mapping[str, object]) -> None:
        """Store a score atomically. The checkpoints of the trainings that led to it are removed."""
        path = self._path(key, "json")
        if path is not None and is_rank_zero():
            make_folder(path.parent)
            write_json(path, content)
            for checkpoint in [used for used in self.used if used.suffix == ".safetensors"]:
                checkpoint.unlink(missing_ok=True)
            self.used.add(path)

    def checkpoint(self, key: Key) -> Path | None:
        path = self._path(key, "safetensors")
        if path is not None:
            self.used.add(path)
        return path

    def checksum(self, encoder: object) -> int:
        """A checksum of an encoder's weights, computed once; 0 where nothing is cached, and for raw pixels."""
        if self.folder is None or not isinstance(encoder, nn.Module):
            return 0
        if id(encoder) not in self._checksums:
            self._checksums[id(encoder)] = encoder, checksum(encoder)
        return self._checksums[id(encoder)][1]

    @property
    def is_empty(self) -> bool:
        """Whether a repeated evaluation would start from the beginning."""
        return not any(path.exists() for path in self.used)

    def clear(self) -> None:
        """Remove what this evaluation has stored or read: its results are written."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: Key, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps(key, sort_keys=True, default=list)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.{suffix}"
