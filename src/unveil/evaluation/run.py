"""Runs protocols on a subject and its baselines, and collects one result per protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from ..data.kept_views import KeptViews
from .baselines import MeasuredBaseline, MeasuredBaselines
from .datasets import ImageSplit
from .dense.data import DenseData
from .detection.data import DetectionData
from .kept_heads import KeptHead
from .normalizers import described, reads
from .results import Result, checksum
from .types import THIS_RUN, Context, EvaluationProtocol, FeatureSplit, HeldOutSamples, Score
from .videos.data import VideoData

UNTRAINED, SCRATCH = "untrained", "from scratch"


def run_protocols(
    protocols: Mapping[str, EvaluationProtocol],
    subjects: Mapping[str, Any],
    data: ImageSplit | DenseData | DetectionData | VideoData | HeldOutSamples,
    context: Context | None = None,
    reuse: bool = False,
    keep: Callable[[str, KeptHead], None] | None = None,
) -> list[Result]:
    """One result per protocol, in their order: the subject named "this run" beside the others, its baselines.

    Features are extracted once per subject. The baseline named "untrained" is training from scratch where a protocol
    trains the encoder; one that a protocol cannot measure is left out. With `reuse` scores of baselines are taken from
    an earlier evaluation of the same images, and kept for the next. `keep` is called with a protocol's name and the
    head that it has trained for this run. The same call gives the same numbers. Raises ValueError, before any image is
    read, for channels that do not fit, and for a run that a protocol cannot measure.
    """
    context = context or Context()
    if isinstance(data, ImageSplit):
        for encoder in subjects.values():
            data.check_channels(encoder)
    if len(subjects) > 1 and context.views is None:
        context = replace(context, views=KeptViews())
    scores: dict[str, dict[str, Score]] = {name: {} for name in protocols}
    seconds = dict.fromkeys(protocols, 0.0)
    measured = MeasuredBaselines(data, context) if reuse and isinstance(data, ImageSplit) else None
    for subject, model in subjects.items():
        own = replace(context, subject=subject, is_trained=subject != UNTRAINED)
        is_baseline = subject != THIS_RUN and any(p.needs == "features" for p in protocols.values())
        known = measured.of(model, own) if measured and is_baseline else None
        features: FeatureSplit | None = None
        for name, protocol in protocols.items():
            score = known.score(name, protocol, own.seed) if known else None
            if score is not None:
                own.note(f"{name} of {subject}: as measured before on the same images (--no-cache measures it again)")
            else:
                if protocol.needs == "features" and features is None:
                    assert isinstance(data, ImageSplit)
                    features = _features(data, model, own, known)
                given = features if protocol.needs == "features" else data
                start = time.perf_counter()
                keeping = partial(keep, name) if keep is not None and subject == THIS_RUN else None
                score = run_cached(name, protocol, model, given, replace(own.of(protocol), keep=keeping))
                seconds[name] += time.perf_counter() - start
                if isinstance(given, FeatureSplit) and score is not None:
                    score = replace(score, settings={**score.settings, **given.facts})
                    if known:
                        known.keep_score(name, protocol, own.seed, score)
            if score is None:
                if subject == THIS_RUN:
                    raise ValueError(f"{name} reads the encoder's tokens, and this encoder gives features only")
                continue
            scores[name][SCRATCH if score.trains_encoder and subject == UNTRAINED else subject] = score

    common: dict[str, object] = {"seed": context.seed}
    if not isinstance(data, HeldOutSamples):  # whose models compute in float32
        common |= context.precision_facts(subjects[THIS_RUN].device)
    held_out = read = ""
    if isinstance(data, ImageSplit):
        common["image_sizes"] = {subject: list(model.image_size) for subject, model in subjects.items()}
        common |= reads(subjects[THIS_RUN])
        read = described(subjects[THIS_RUN])
        if data.is_held_out:
            held_out = f" No test set was given: a fifth of every class was held out (seed {context.seed})."
    results = []
    for name, of_subjects in scores.items():
        outcomes = {subject: score.outcomes for subject, score in of_subjects.items() if score.outcomes}
        score = of_subjects.pop(THIS_RUN)
        results.append(
            Result(
                protocol=name,
                data=data.address,
                test_data=data.test_address,
                pool=context.of(protocols[name]).pool if isinstance(data, ImageSplit) else "tokens",
                metrics=score.metrics,
                baselines={**score.baselines, **{subject: other.metrics for subject, other in of_subjects.items()}},
                settings={**score.settings, **common},
                card=score.card + read + held_out,
                seconds=round(seconds[name], 2),
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                details=score.details,
                outcomes=outcomes,
                shown=_named(score.shown, data),
            )
        )
    return results


def _named(shown: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
    """What is shown, and each of its parts, with the names of the classes where the data are labelled images."""
    if not isinstance(data, ImageSplit):
        return shown
    named = dict(shown)
    if "classes" in shown:
        named["classes"] = {"names": list(data.class_names), **shown["classes"]}
    if "parts" in shown:
        named["parts"] = {name: _named(part, data) for name, part in shown["parts"].items()}
    return named


def _features(data: ImageSplit, model: Any, context: Context, known: MeasuredBaseline | None) -> FeatureSplit:
    """The features of a subject, on its device; those of a baseline are taken from an earlier evaluation, or kept."""
    if known is not None and (earlier := known.features()) is not None:
        context.note(f"features of {context.subject}: as extracted before (--no-cache extracts them again)")
        return earlier.to(model.device)
    features = data.features(model, context)
    if known is not None:
        known.keep_features(features)
    return features.to(model.device)


def run_cached(name: str, protocol: EvaluationProtocol, subject: Any, data: Any, context: Context) -> Score | None:
    """The score of a protocol, from the cache where an interrupted evaluation has stored it."""
    if (identity := getattr(data, "identity", None)) is None:
        return protocol.run(subject, data, context)
    key = {"protocol": name, "options": asdict(cast("Any", protocol)), "seed": context.seed}
    key |= {"subject": context.subject, "weights": context.cache.checksum(subject), "image_size": subject.image_size}
    key |= {"pool": context.pool, "images": identity, **reads(subject)}
    if (normalizer := getattr(subject, "normalizer", None)) is not None:
        key["normalizer"] = checksum(normalizer)
    key |= context.precision_facts(subject.device)
    key |= {"keep": True} if context.keep is not None else {}  # a score that was stored has no head
    if (stored := context.cache.get(key)) is not None:
        return Score(**stored)
    score = protocol.run(subject, data, context)
    if score is not None:
        context.cache.put(key, asdict(score))
    return score
