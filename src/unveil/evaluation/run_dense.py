"""Run protocols that judge every pixel: on an encoder and its baselines, or on whatever their tasks hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from .cache import Kept
from .dense import DenseTask
from .dense.reconstruction import RestoringTask
from .features import FeatureEncoder
from .registry import choose
from .results import Result
from .run_protocols import SCRATCH, THIS_RUN, UNTRAINED
from .task import Tell, silent, unnoted
from .types import Score


def run_dense(
    encoder: FeatureEncoder,
    names: Sequence[str],
    data: str,
    test_data: str | None = None,
    baselines: Mapping[str, FeatureEncoder] | None = None,
    seed: int = 0,
    micro_batch: int = 16,
    limit: int | None = None,
    dials: Mapping[str, object] | None = None,
    tell: Tell = silent,
    note: Callable[[str], None] = unnoted,
    kept: Kept | None = None,
) -> list[Result]:
    """One result per protocol, in the order asked; a baseline that a protocol cannot measure is left out.

    As `run_protocols`, for protocols that open images with a truth at every pixel themselves; `kept` spares trainings.
    """
    tasks = dense_tasks({THIS_RUN: encoder, **(baselines or {})}, data, test_data, micro_batch, limit, tell, note, kept)
    return run_tasks(tasks, names, data, test_data, seed, dials)


def dense_tasks(
    models: Mapping[str, FeatureEncoder],
    data: str,
    test_data: str | None = None,
    micro_batch: int = 16,
    limit: int | None = None,
    tell: Tell = silent,
    note: Callable[[str], None] = unnoted,
    kept: Kept | None = None,
) -> dict[str, DenseTask]:
    """The same task for several encoders, by name; the one named "untrained" starts from scratch where it learns."""
    return {
        who: DenseTask(model, data, test_data, micro_batch, limit, who, who != UNTRAINED, tell, note, kept or Kept())
        for who, model in models.items()
    }


def run_tasks(
    tasks: Mapping[str, DenseTask] | Mapping[str, RestoringTask],
    names: Sequence[str],
    data: str,
    test_data: str | None = None,
    seed: int = 0,
    dials: Mapping[str, object] | None = None,
) -> list[Result]:
    """One result per protocol: the task named "this run" beside the others. The same call gives the same numbers.

    Raises ValueError for an unknown protocol or dial, and for a run that a protocol cannot measure.
    """
    results = []
    for name, protocol in choose(names, dials or {}).items():
        started = time.perf_counter()
        found: dict[str, Score] = {}
        for who, task in tasks.items():
            score = protocol(task, seed)
            if score is not None:
                found[SCRATCH if score.trains_encoder and who == UNTRAINED else who] = score
        if THIS_RUN not in found:
            raise ValueError(f"{name} reads the encoder's tokens, and this encoder gives features only")
        own = found.pop(THIS_RUN)
        results.append(
            Result(
                protocol=name,
                data=data,
                test_data=test_data,
                pool="tokens",
                metrics=own.metrics,
                baselines={**own.beside, **{who: score.metrics for who, score in found.items()}},
                settings={**own.settings, "seed": seed},
                card=own.card,
                seconds=round(time.perf_counter() - started, 2),
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                details=own.details,
            )
        )
    return results
