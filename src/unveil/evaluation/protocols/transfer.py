"""Transfer: the same measurement on several data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ..by_name import Measure, measure
from ..features import check_channels
from ..task import Sets, Task, open_sets
from ..types import Score


def transfer(
    task: Task,
    seed: int = 0,
    *,
    to: tuple[str, ...] = (),
    by: Measure = "linear",
    epochs: int | None = None,
    updates: int | None = None,
) -> Score | None:
    """Accuracy on further data sets, each learned by itself, and their mean.

    to: further labelled images, as --data takes them; a folder may hold train and val
    by: knn, knn-whitened, linear, linear-lbfgs, attentive or finetune: what is learned
    epochs: of attentive and finetune
    updates: of finetune, in place of epochs
    """
    if not to:
        raise ValueError("transfer needs data sets to go to: give --to FOLDER ..., beside --data")
    sets = {_name(address, to): _open(address, task, seed) for address in to}
    metrics: dict[str, float] = {}
    settings: dict[str, object] = {}
    last: Score | None = None
    for name, found in sets.items():
        last = measure(replace(task, sets=found, who=f"{task.who} on {name}"), by, seed, epochs, updates)
        if last is None:
            return None
        metrics[f"accuracy_{name}"] = last.metrics["accuracy"]
        settings[name] = {"train_images": len(found.train), "test_images": len(found.test), **last.settings}
    assert last is not None
    return Score(
        metrics={**metrics, "accuracy_mean": fmean(metrics.values())},
        settings={"by": by, "sets": settings},
        card=f"{by} on each of {', '.join(sets)}, and the mean of their accuracies. On {name}: {last.card}",
        trains_encoder=last.trains_encoder,
    )


def _open(address: str, task: Task, seed: int) -> Sets:
    train, test = open_sets(address, None, task.encoder.channels)
    for source in (train, test):
        if source is not None:
            check_channels(task.encoder, source)
    return Sets.of(train, test, seed=seed)


def _name(address: str, all_of_them: tuple[str, ...]) -> str:
    """The last part of an address that no other has; else the address itself."""
    stems = [Path(other).stem for other in all_of_them]
    stem = Path(address).stem
    return stem if stems.count(stem) == 1 else address
