"""Run protocols on an encoder and its baselines: features are extracted once per encoder and shared."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import torch

from ..data.sources import Source
from .features import FeatureEncoder, Features, Pool, check_channels, extract
from .labels import check_labels, shared_numbers, stratified_split
from .protocol import Protocol, Score, Split
from .results import Result

TEST_SHARE = 0.2
NAMES_KEPT = 20
THIS_RUN = "this run"

Progress = Callable[[str, int, int], None]


def protocols() -> dict[str, Protocol]:
    """Every protocol by its user's name: a file of this folder that holds a function of its own name."""
    folder = importlib.import_module(__name__.rpartition(".")[0])
    found = {}
    for file in pkgutil.iter_modules(folder.__path__):
        function = getattr(importlib.import_module(f"{folder.__name__}.{file.name}"), file.name, None)
        if callable(function):
            found[file.name.replace("_", "-")] = function
    return found


def run_protocols(
    encoder: FeatureEncoder,
    names: Sequence[str],
    train: Source,
    test: Source | None = None,
    pool: Pool = "cls",
    baselines: Mapping[str, FeatureEncoder] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """One result per protocol, in the order asked; without a test source, a fifth of every class is held out.

    `limit` caps the images of each source, evenly spaced. `progress` is told (whose features, done, total). The same
    call gives the same numbers. Raises ValueError, before any image is read, for an unknown protocol, labels that
    cannot be learned from, and channels that do not fit.
    """
    chosen = {name: _protocol(name) for name in names}
    models = {**(baselines or {}), THIS_RUN: encoder}
    check_labels(train)
    numbers = None if test is None else shared_numbers(train, test)
    for model in models.values():
        for source in (train, test):
            if source is not None:
                check_channels(model, source)

    scores: dict[str, dict[str, Score]] = {name: {} for name in chosen}
    seconds = dict.fromkeys(chosen, 0.0)
    facts: dict[str, object] = {}
    for who, model in models.items():
        started = time.perf_counter()
        tell = None if progress is None else _reporter(progress, who)
        learned = extract(model, train, pool, batch_size, tell, limit)
        judged = None if test is None else extract(model, test, pool, batch_size, tell, limit)
        split = _split(learned, judged, numbers, seed, model.device)
        unreadable = learned.unreadable + (judged.unreadable if judged else ())
        facts = {
            "seed": seed,
            "train_images": len(split.train),
            "test_images": len(split.test),
            "unreadable": len(unreadable),
            "unreadable_names": list(unreadable[:NAMES_KEPT]),
            "feature_dim": split.train.shape[1],
            "feature_seconds": round(time.perf_counter() - started, 1),
            "image_sizes": {name: list(other.image_size) for name, other in models.items()},
        }
        for name, protocol in chosen.items():
            started = time.perf_counter()
            scores[name][who] = protocol(split, seed)
            seconds[name] += time.perf_counter() - started

    held_out = f" No test set was given: a fifth of every class was held out (seed {seed})." if test is None else ""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Result(
            protocol=name,
            data=train.address,
            test_data=None if test is None else test.address,
            pool=pool,
            metrics=found[THIS_RUN].metrics,
            baselines={who: score.metrics for who, score in found.items() if who != THIS_RUN},
            settings={**found[THIS_RUN].settings, **facts},
            card=found[THIS_RUN].card + held_out,
            seconds=round(seconds[name], 2),
            date=date,
        )
        for name, found in scores.items()
    ]


def _protocol(name: str) -> Protocol:
    known = protocols()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        meant = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"there is no protocol {name!r}{meant} there are {', '.join(sorted(known))}")
    return known[name]


def _reporter(progress: Progress, who: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(who, done, total)


def _split(
    learned: Features, judged: Features | None, numbers: Mapping[int, int] | None, seed: int, device: torch.device
) -> Split:
    """Where the protocols work: the two sets of features on the encoder's device, under the first one's labels."""
    assert learned.labels is not None
    num_classes = int(learned.labels.max()) + 1
    if judged is None or numbers is None:
        kept, held = stratified_split(learned.labels, TEST_SHARE, seed)
        train, train_labels = learned.values[kept], learned.labels[kept]
        test, test_labels = learned.values[held], learned.labels[held]
    else:
        assert judged.labels is not None
        train, train_labels, test = learned.values, learned.labels, judged.values
        test_labels = torch.tensor([numbers[label] for label in judged.labels.tolist()])
        num_classes = max(num_classes, int(test_labels.max()) + 1)  # a class may have lost its images to `limit`
    return Split(train.to(device), train_labels.to(device), test.to(device), test_labels.to(device), num_classes)
