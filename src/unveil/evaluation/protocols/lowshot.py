"""Few labels: the same measurement on stratified draws of the training images."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..by_class import of_draws
from ..datasets import ImageSplit
from ..registry import Repeated, find_protocol
from ..run import run_cached
from ..statistics import estimate
from ..types import Context, FeatureEncoder, FeatureSplit, Needs, Score, check_trainable

MIN_PER_CLASS = 2


@dataclass(frozen=True)
class Lowshot(Repeated):
    """Accuracy from few labelled images, as the mean over draws, with its 95 % interval where there are several.

    shots: how many training images: a share (1%), a number (500), thousands (10k); what the set cannot give is left out
    draws: how many times images are drawn for each number
    otherwise: what measures raw pixels, which no protocol can fine-tune, on the same draws; by default nothing
    """

    shots: tuple[str, ...] = ("1%", "10%", "10k", "20k")
    draws: int = 5
    otherwise: Literal["knn", "knn-whitened", "linear-lbfgs"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws are at least 1, and 2 for an interval; got {self.draws}")
        for shot in self.shots:
            count_of(shot, 1)

    @property
    def needs(self) -> Needs:
        return self.repeated().needs

    def run(self, subject: FeatureEncoder, data: FeatureSplit | ImageSplit, context: Context) -> Score | None:
        """Mean accuracies; None where the repeated protocol cannot measure the encoder."""
        protocol, name = self.repeated(), str(self.by)
        if self.otherwise and isinstance(data, ImageSplit) and check_trainable(subject) is None:
            protocol, name = find_protocol(self.otherwise)(), self.otherwise
            data = data.features(subject, context).to(subject.device)
        labels = data.train_labels.cpu()
        counts = self._possible(labels, context)
        metrics: dict[str, float] = {}
        outcomes: dict[str, list[Any]] = {}
        parts: dict[str, Any] = {}
        score: Score | None = None
        for shot, count in counts.items():
            accuracies, shown = [], []
            for draw in range(self.draws):
                few = data.subset(stratified_draw(labels, count, context.seed * 1000 + draw))
                score = run_cached(name, protocol, subject, few, replace(context, seed=context.seed + draw))
                if score is None:
                    return None
                accuracies.append(score.metrics["accuracy"])
                shown.append(score.shown)
                if "accuracy" in score.outcomes:
                    outcomes.setdefault(f"accuracy_{shot}", []).append(score.outcomes["accuracy"])
            interval = estimate(accuracies)
            parts |= {shot: by_class} if (by_class := of_draws(shown)) else {}
            metrics[f"accuracy_{shot}"] = interval.mean
            if interval.half is not None:
                metrics[f"plus_minus_{shot}"] = interval.half
        assert score is not None
        drawn = "once" if self.draws == 1 else f"{self.draws} times"
        spread = (
            " The mean accuracy, and half of its 95 % interval by Student's t over the draws: it says how much the"
            " drawn images matter, not how much pretraining varies."
        )
        return Score(
            metrics=metrics,
            settings={"by": self.by, "draws": self.draws, "images": counts, "last": score.settings},
            card=(
                f"{self.by} on {' and '.join(f'{shot} ({count:,})' for shot, count in counts.items())} of"
                f" {len(labels):,} training images, drawn {drawn} with the classes in proportion; all test images."
                f"{spread if self.draws > 1 else ''} {score.card}"
                + (f" Raw pixels are measured by {self.otherwise}." if self.otherwise else "")
            ),
            trains_encoder=score.trains_encoder,
            outcomes=outcomes,
            shown={"parts": parts} if parts else {},
        )

    def _possible(self, labels: Int[Tensor, " N"], context: Context) -> dict[str, int]:
        """The number of images of each shot that the set can give."""
        counts = {shot: count_of(shot, len(labels)) for shot in self.shots}
        fewest = MIN_PER_CLASS * len(labels.unique())
        possible = {shot: count for shot, count in counts.items() if fewest <= count < len(labels)}
        if not possible:
            raise ValueError(
                f"none of {', '.join(self.shots)} can be drawn from {len(labels):,} training images: {fewest:,} are"
                " needed, 2 of each class, and fewer than all; give other --shots"
            )
        for shot in counts.keys() - possible.keys():
            context.note(
                f"lowshot: {shot} of {len(labels):,} training images is left out: it needs {fewest:,} and not all"
            )
        return possible


def count_of(shot: str, total: int) -> int:
    """How many of `total` images: `1%`, `500` or `10k`. Raises ValueError for other words."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?)(%|k|)", shot)
    if read is None:
        raise ValueError(f"shots are shares or numbers of images, such as 1% or 500 or 10k; got {shot!r}")
    number = float(read[1])
    return int(total * number / 100 + 1e-9) if read[2] == "%" else int(number * (1000 if read[2] else 1))


def stratified_draw(labels: Int[Tensor, " N"], count: int, seed: int) -> Int[Tensor, " K"]:
    """So many rows, ascending: of every class its share, by largest remainders, and at least two where it has them."""
    rng = torch.Generator().manual_seed(seed)
    classes, sizes = labels.unique(return_counts=True)
    exact = sizes.double() * count / len(labels)
    wanted = exact.floor().long().clamp_min(MIN_PER_CLASS).minimum(sizes)
    while (missing := count - int(wanted.sum())) != 0:  # the class that is furthest from its share gives or takes one
        off = exact - wanted
        if missing > 0:
            off[wanted >= sizes] = -torch.inf
            wanted[off.argmax()] += 1
        else:
            off[wanted <= MIN_PER_CLASS] = torch.inf
            wanted[off.argmin()] -= 1
    rows = []
    for label, number in zip(classes.tolist(), wanted.tolist(), strict=True):
        own = (labels == label).nonzero()[:, 0]
        rows.append(own[torch.randperm(len(own), generator=rng)[:number]])
    return torch.cat(rows).sort().values
