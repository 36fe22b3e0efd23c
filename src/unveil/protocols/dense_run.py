"""Run dense protocols on an encoder and its baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from .dense import DenseTask
from .dials import choose
from .features import FeatureEncoder
from .protocol import Score
from .results import Result
from .run import SCRATCH, THIS_RUN, UNTRAINED
from .task import Tell, silent, unnoted


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
) -> list[Result]:
    """One result per protocol, in the order asked; a baseline that a protocol cannot measure is left out.

    As `run_protocols`, for protocols that open images with a truth at every pixel themselves.
    """
    chosen, results = choose(names, dials or {}), []
    models = {THIS_RUN: encoder, **(baselines or {})}
    for name, protocol in chosen.items():
        started = time.perf_counter()
        found: dict[str, Score] = {}
        for who, model in models.items():
            task = DenseTask(model, data, test_data, micro_batch, limit, who, who != UNTRAINED, tell, note)
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
