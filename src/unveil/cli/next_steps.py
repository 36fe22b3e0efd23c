"""The last line of every command: the next useful one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def after_demo() -> str:
    """The demo is over: the user's own images."""
    return "unveil pretrain crossmae --data FOLDER_OF_YOUR_IMAGES --out runs/mine"


def after_pretrain(run: str | Path) -> str:
    """A run is there: look at it."""
    return f"unveil report {_quoted(run)}"


def after_save_config(file: str | Path) -> str:
    """The options are in a file: train with them."""
    return f"unveil pretrain --config {_quoted(file)}"


def after_evaluate(run: str | Path) -> str:
    """Figures are there: see them beside the pictures."""
    return f"unveil report {_quoted(run)}"


def after_report(runs: Sequence[str | Path]) -> str:
    """The report is written: measure what has not been measured, else use the features."""
    unmeasured = [run for run in runs if not any((Path(run) / "eval").glob("*.json"))]
    if unmeasured:
        return f"unveil evaluate {_quoted(unmeasured[0])} --data LABELLED_IMAGES --protocol knn linear"
    return f"unveil embed {_quoted(runs[0])} --data FOLDER_OF_YOUR_IMAGES --out features.npz"


def after_study(words: Sequence[str], folder: Path | None) -> str:
    """The study is done: its runs side by side. After a dry run: the same study in earnest."""
    if folder is None:
        return shlex.join(["unveil", "study", *(word for word in words if not word.startswith("--dry-run"))])
    runs = [_quoted(run) for run in sorted((folder / "runs").iterdir())[:4]]
    return f"unveil report {' '.join(runs)}"


def after_embed(features: str | Path) -> str:
    """After `unveil embed`: a command that opens the file of features."""
    opened = f"import numpy; print({{k: v.shape for k, v in numpy.load({str(features)!r}).items()}})"
    return f"python -c {_quoted(opened)}"


def after_look(run: str | Path | None, recipe: str | None) -> str:
    """The picture is there: the numbers behind it, or for a recipe the run itself."""
    if run is not None:
        return f"unveil report {_quoted(run)}"
    return f"unveil pretrain {_quoted(recipe or 'crossmae')} --data FOLDER_OF_YOUR_IMAGES --out runs/a"


def after_analyze(runs: Sequence[str | Path]) -> str:
    """The numbers are kept: see them on the page."""
    return f"unveil report {' '.join(map(_quoted, runs))}"


def after_inspect(data: str, modalities: Sequence[str] = ()) -> str:
    """The data is known: learn from it, from all its maps where it has several."""
    if modalities:
        words = " ".join(map(_quoted, modalities))
        return f"unveil pretrain multimae --data {_quoted(data)} --modalities {words} --out runs/a"
    return f"unveil pretrain crossmae --data {_quoted(data)} --out runs/a"


def after_bench() -> str:
    """The machine is measured: use it."""
    return "unveil pretrain crossmae --data FOLDER_OF_YOUR_IMAGES --out runs/a"


def after_doctor(is_well: bool) -> str:
    """All is well: the demo. If not: the same again once it is put right."""
    return "unveil demo" if is_well else "unveil doctor"


def after_recipes(name: str) -> str:
    """The recipes are listed: one recipe's dials."""
    return f"unveil pretrain {name} --help"


def _quoted(word: str | Path) -> str:
    return shlex.quote(str(word))
