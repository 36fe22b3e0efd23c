"""Run protocols on an encoder and its baselines: features are extracted once per encoder and shared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from ..data.sources import Source
from .cache import Kept, checksum
from .features import FeatureEncoder, Pool, check_channels
from .registry import choose, dials_of, protocols, wants_features
from .results import Result
from .task import Sets, Task, Tell, silent, unnoted
from .types import Score

THIS_RUN = "this run"
UNTRAINED = "untrained"
SCRATCH = "from scratch"


def run_protocols(
    encoder: FeatureEncoder,
    names: Sequence[str],
    train: Source,
    test: Source | None = None,
    pool: Pool = "cls",
    baselines: Mapping[str, FeatureEncoder] | None = None,
    seed: int = 0,
    micro_batch: int = 256,
    limit: int | None = None,
    dials: Mapping[str, object] | None = None,
    tell: Tell = silent,
    note: Callable[[str], None] = unnoted,
    kept: Kept | None = None,
) -> list[Result]:
    """One result per protocol, in the order asked; without a test source, a fifth of every class is held out.

    `limit` caps the images of each source, evenly spaced. Each protocol takes those of `dials` that it has. `tell`
    hears (what is done, images done, images in all). `kept` spares what a stopped evaluation has measured on images;
    features are extracted anew. The baseline named "untrained" starts from scratch where a
    protocol trains the encoder; one that a protocol cannot measure is left out. The same call gives the same numbers.
    Raises ValueError, before any image is read, for an unknown protocol or dial, labels that cannot be learned from,
    and channels that do not fit.
    """
    chosen, dials, kept = choose(names, dials or {}), dials or {}, kept or Kept(None)
    models = {**(baselines or {}), THIS_RUN: encoder}
    sets = Sets.of(train, test, limit, seed)
    for model in models.values():
        for source in (train, test):
            if source is not None:
                check_channels(model, source)

    scores: dict[str, dict[str, Score]] = {name: {} for name in chosen}
    seconds = dict.fromkeys(chosen, 0.0)
    facts: dict[str, Mapping[str, object]] = {}
    for who, model in models.items():
        task = Task(model, sets, pool, micro_batch, who, who != UNTRAINED, tell, note, kept=kept)
        for name, protocol in chosen.items():
            on_features = wants_features(protocols()[name])
            given = task.split if on_features else task
            started = time.perf_counter()
            if on_features:
                score = protocol(given, seed)
            else:
                key: dict[str, object] = {"protocol": name, "who": who, "pool": pool, "seed": seed}
                key |= {"weights": checksum(model), "image_size": model.image_size, "images": sets.identity}
                key |= {"dials": {dial: value for dial, value in dials.items() if dial in dials_of(protocols()[name])}}
                score = kept.find(key) or protocol(given, seed)
                if score is not None:
                    kept.keep(key, score)
            seconds[name] += time.perf_counter() - started
            if score is not None:
                scores[name][SCRATCH if score.trains_encoder and who == UNTRAINED else who] = score
            elif who == THIS_RUN:
                raise ValueError(f"{name} trains on the encoder's tokens, and this encoder gives features only")
            facts[name] = task.facts() if on_features else {}

    common = {"seed": seed, "image_sizes": {name: list(other.image_size) for name, other in models.items()}}
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
            settings={**found[THIS_RUN].settings, **facts[name], **common},
            card=found[THIS_RUN].card + held_out,
            seconds=round(seconds[name], 2),
            date=date,
        )
        for name, found in scores.items()
    ]
