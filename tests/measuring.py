"""Protocols by name on an encoder: what `unveil evaluate` does, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unveil.data.sources import Source
from unveil.evaluation.datasets import ImageSplit
from unveil.evaluation.dense.data import DenseData
from unveil.evaluation.registry import choose
from unveil.evaluation.results import Result
from unveil.evaluation.run import run_protocols
from unveil.evaluation.types import THIS_RUN, Context, EvaluationProtocol, FeatureEncoder, Score

Encoders = Mapping[str, FeatureEncoder]


def on_images(
    encoder: FeatureEncoder,
    names: Sequence[str],
    train: Source,
    test: Source | None = None,
    baselines: Encoders | None = None,
    options: Mapping[str, object] | None = None,
    **context: Any,
) -> list[Result]:
    """Protocols on labelled images."""
    protocols, made = choose(names, options), Context(**context)
    data = ImageSplit.of(train, test, made.limit, made.seed)
    return run_protocols(protocols, {THIS_RUN: encoder, **(baselines or {})}, data, made)


def on_dense(
    encoder: FeatureEncoder,
    names: Sequence[str],
    data: str,
    test_data: str | None = None,
    baselines: Encoders | None = None,
    options: Mapping[str, object] | None = None,
    **context: Any,
) -> list[Result]:
    """Protocols on images with a label per pixel, 16 at a time."""
    made = Context(**{"micro_batch": 16, **context})
    subjects = {THIS_RUN: encoder, **(baselines or {})}
    return run_protocols(choose(names, options), subjects, DenseData(data, test_data), made)


def score(protocol: EvaluationProtocol, encoder: Any, data: ImageSplit, **context: Any) -> Score | None:
    """One protocol on one encoder, which reads the mean of the patches."""
    made = Context(**{"pool": "mean", **context})
    return protocol.run(encoder, data.features(encoder, made) if protocol.needs == "features" else data, made)
