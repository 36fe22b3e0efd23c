"""Any of the classifying protocols by its name: what protocols that are made of others share."""

from __future__ import annotations

from typing import Literal

from .cache import checksum
from .protocols.attentive import attentive
from .protocols.finetune import finetune
from .protocols.knn import knn
from .protocols.knn_whitened import knn_whitened
from .protocols.linear import linear
from .protocols.linear_lbfgs import linear_lbfgs
from .task import Task
from .types import Score

Measure = Literal["knn", "knn-whitened", "linear", "linear-lbfgs", "attentive", "finetune"]
ON_FEATURES = {"knn": knn, "knn-whitened": knn_whitened, "linear": linear, "linear-lbfgs": linear_lbfgs}


def measure(task: Task, by: Measure, seed: int, epochs: int | None = None, updates: int | None = None) -> Score | None:
    """What a protocol finds on a task, with its own defaults; `epochs` and `updates` reach those that have them."""
    if by in ON_FEATURES:
        return ON_FEATURES[by](task.split, seed)
    if by == "attentive":
        return attentive(task, seed, epochs=epochs)
    key: dict[str, object] = {"by": by, "seed": seed, "epochs": epochs, "updates": updates}
    key |= {"who": task.who, "pool": task.pool}
    key |= {"weights": checksum(task.encoder), "images": task.sets.identity, "image_size": task.encoder.image_size}
    found = task.kept.find(key) or finetune(task, seed, epochs=epochs, updates=updates)
    if found is not None:
        task.kept.keep(key, found)
    return found
