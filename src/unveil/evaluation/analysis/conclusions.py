"""What the numbers of `unveil analyze` say, in sentences; after ± half of a 95 % interval over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..features import rankme
from ..statistics import Estimate, estimate, jackknife
from .layer_features import LayerFeatures, linear_cka

NEARLY_EVEN = 0.98  # normalised entropy from which masks that are drawn from a map are nearly random
_GROUPS = 10  # of images that are left out in turn


def of_attention(samples: Sequence[Mapping[str, float]]) -> list[str]:
    """What the `attention_metrics` of single samples say of masks, of the map, of a teacher and of the foreground."""

    def values(name: str) -> list[float]:
        return [metrics[name] for metrics in samples if name in metrics]

    def difference(one: str, other: str) -> Estimate:
        return estimate([m[one] - m[other] for m in samples if one in m and other in m])

    beyond = difference("hidden_attention", "hidden_tokens")
    words = {1: "so they follow attention", -1: "so they spare what is attended to"}
    said = words.get(_sign(beyond), "which is nothing that these samples show: masks do not follow attention")
    sentences = [
        f"Masks hide {_share(values('hidden_attention'))} of the attention and {_share(values('hidden_tokens'))} of the"
        f" patches: a difference of {_points(beyond)}, {said}."
    ]
    guided = "guide_evenness" if values("guide_evenness") else "student_evenness"
    even, of = estimate(values(guided)), "map that masks follow" if guided.startswith("guide") else "attention"
    said = "nearly even, masks from it are nearly random" if even.mean >= NEARLY_EVEN else "some patches stand out"
    sentences.append(f"The {of} has {_number(even)} of the entropy of an even map: {said}.")
    if ranks := values("rank_correlation"):
        agreement = estimate(ranks)
        known = "they agree" if _sign(agreement) > 0 else "they do not agree"
        sentences.append(
            f"Teacher and student order the patches alike to {_number(agreement)} (rank correlation): {known};"
            f" {_share(values('top_overlap'))} of the most attended quarter are the same, 25.0 % by chance."
        )
    if values("foreground_area"):
        more = difference("student_foreground", "foreground_area")
        words = {1: "attention prefers the foreground", -1: "attention avoids the foreground"}
        sentences.append(
            f"{_share(values('student_foreground'))} of the student's attention is on the foreground, which is"
            f" {_share(values('foreground_area'))} of the area: a difference of {_points(more)},"
            f" {words.get(_sign(more), 'so attention prefers neither foreground nor background')}."
        )
    return sentences


def of_blocks(decoder: str, errors: Float[Tensor, "N K"]) -> list[str]:
    """Which block of a decoder lowers the loss most, from the losses of each sample up to each part of the sum."""
    gains = [estimate(gain.tolist()) for gain in (errors[:, :-1] - errors[:, 1:]).T]
    if not gains:
        return []
    best = max(range(len(gains)), key=lambda k: gains[k].mean)
    idle = [str(k + 1) for k, gain in enumerate(gains) if _sign(gain) <= 0]
    first, last = float(errors[:, 0].mean()), float(errors[:, -1].mean())
    whole = f"all together take it from {first:.3f} to {last:.3f}."
    if _sign(gains[best]) <= 0:
        return [f"Decoder {decoder}: these samples show of no block that it lowers the loss; {whole}"]
    sentence = f"Decoder {decoder}: block {best + 1} of {len(gains)} lowers the loss most, by {_number(gains[best])};"
    sentence += f" {whole}"
    if idle:
        sentence += f" Of block{'s' * (len(idle) > 1)} {', '.join(idle)} these samples show no gain."
    return [sentence]


def of_masks(
    ways: Sequence[Mapping[str, Any]], both: Mapping[str, Float[Tensor, " N"]], faithful: str, random: str
) -> list[str]:
    """Which cheaper guidance comes nearest to the faithful one.

    both: for each measured way, the tokens of each sample that its mask and the faithful one hide
    """
    cost = {str(way["name"]): float(way["cost"]) for way in ways}
    cheaper = [name for name in both if name not in (faithful, random) and cost[name] < cost[faithful]]
    if not cheaper:
        return []

    def beyond(name: str, rows: Tensor) -> float:
        hidden, chance = (float(both[n][rows].sum()) for n in (faithful, random))
        return (float(both[name][rows].sum()) - chance) / max(hidden - chance, 1e-12)

    shares = {name: _jackknifed(len(both[name]), partial(beyond, name)) for name in cheaper}
    best = max(cheaper, key=lambda name: shares[name].mean)
    sentences = [
        f"Of the cheaper ways {best} comes nearest to the faithful masks: {_percent(shares[best])} of what they have"
        f" beyond chance, at {cost[best]:.2f} times a step with random masks in place of {cost[faithful]:.2f}."
    ]
    if shares[best].mean < 0.5:
        sentences.append("That is less than guidance on every 2nd step gives, which is 50 % by definition.")
    return sentences


def of_layers(names: Sequence[str], first: Sequence[LayerFeatures], second: Sequence[LayerFeatures]) -> list[str]:
    """How alike the last layers of two encoders are, where they part, and how many dimensions they use."""
    count = len(first[0].features)

    def alike(k: int, j: int) -> Estimate:
        return _jackknifed(count, lambda rows: linear_cka(first[k].features[rows], second[j].features[rows]))

    a, b = names
    last = alike(-1, -1)
    sentences = [f"The last layers of {a} and {b} are alike to {_number(last)} (linear CKA; 1: but for a rotation)."]
    if len(first) == len(second) > 1:
        least = min(range(len(first)), key=lambda k: linear_cka(first[k].features, second[k].features))
        sentences.append(f"Of layers at one depth those at {least + 1} differ most: {_number(alike(least, least))}.")
    used = [_jackknifed(count, partial(_dimensions, layers[-1].features)) for layers in (first, second)]
    sentences.append(f"At the last layer {a} uses {_few(used[0])} dimensions and {b} {_few(used[1])} (RankMe).")
    return sentences


def _dimensions(features: Float[Tensor, "N D"], rows: Tensor) -> float:
    return rankme(features[rows])


def _jackknifed(count: int, of: Callable[[Tensor], float]) -> Estimate:
    """A statistic of all samples, with the interval of a jackknife that leaves out groups of them."""
    groups = min(_GROUPS, count)
    rows = torch.arange(count)
    without = [of(rows[rows % groups != group]) for group in range(groups)] if groups > 2 else []
    return Estimate(of(rows), jackknife(without) if without else None, count)


def _sign(value: Estimate) -> int:
    """1 or -1 where the interval is on one side of 0, else 0."""
    half = value.half or 0.0
    return (value.mean > half) - (value.mean < -half)


def _with(mean: str, half: str | None, unit: str = "") -> str:
    return f"{mean}{unit}" if half is None else f"{mean} ± {half}{unit}"


def _number(value: Estimate) -> str:
    return _with(f"{value.mean:.3f}", None if value.half is None else f"{value.half:.3f}")


def _few(value: Estimate) -> str:
    return _with(f"{value.mean:.1f}", None if value.half is None else f"{value.half:.1f}")


def _percent(value: Estimate) -> str:
    return _with(f"{100 * value.mean:.1f}", None if value.half is None else f"{100 * value.half:.1f}", " %")


def _share(values: Sequence[float]) -> str:
    return f"{100 * estimate(values).mean:.1f} %"


def _points(value: Estimate) -> str:
    return _with(f"{100 * value.mean:+.1f}", None if value.half is None else f"{100 * value.half:.1f}", " points")
