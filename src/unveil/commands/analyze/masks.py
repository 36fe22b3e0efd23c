"""`unveil analyze masks`: cheaper ways to guide masks, what each costs, and how far its masks are the faithful ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...evaluation.analysis.mask_overlap import MaskOverlap, guided_mask, mask_overlaps
from ...evaluation.visualize import load_samples
from ...modeling.encoder import Encoder
from ...modeling.masked_model import MaskedModel, Objective, Teacher, mean_loss
from ...modeling.masking import ByModality, DirichletBudget, Masker, Uniform
from ...modeling.targets import Classes, Pixels
from ...modeling.teachers import EMATeacher, LowResolutionTeacher, OnlineTeacher
from ...modeling.types import Batch, FeatureSpec, Observation, Tokens
from ...recipes.run import Run
from ...runs.atomic import write_json
from ...runs.console import table
from ...runs.folder import check_writable
from ..open_run import Opened, device_of, open_run

_BATCH = 32
_LAYERS = 6  # at most so many earlier layers are tried, evenly spread
EVERY = {2: "every 2nd step", 4: "every 4th step", 8: "every 8th step"}  # guided there, random in between
FAITHFUL, RANDOM = "faithful", "random masks"


@dataclass(frozen=True)
class Way:
    """A way to guide masks: its name, what kind of saving it is, and who looks."""

    name: str
    kind: str
    teacher: Teacher


class NullTeacher(nn.Module):
    """A teacher that does not look."""

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return Observation(tokens.layout)


def analyze_masks(
    run: str, *, data: str | None = None, untrained: bool = False, limit: int = 128, device: str = "auto"
) -> dict[str, Any]:
    """Cheaper ways to guide masks by attention, beside the faithful one: printed, kept in the run's
    `analysis/masks.json`, and drawn in its report.

    Faithful is a whole pass without gradient, of which the last layer's attention is read: in each modality the most
    attended is hidden (attention-guided MultiMAE). Of each cheaper look: the operations of a training step beside one
    with random masks, and how much its masks have in common with the faithful ones of the same samples, under the same
    budget and the same chance. Random masks are the level of chance: what is beyond it is 0 for them, 1 for the
    faithful ones.

    data: samples to look at; by default the run's own held-out ones
    untrained: take the recipe's weights as they were before training
    limit: look at most at so many samples, evenly spread
    device: cpu, cuda, mps; auto takes the best
    """
    if limit < 1:
        raise ValueError(f"--limit is 1 or more; got {limit}")
    stored = Run.open(run)
    path, opened = stored.path, open_run(stored, data, device=device)
    if untrained:
        opened = replace(opened, model=stored.model(trained=False).to(device_of(opened.model)), epoch=0.0)
    _check(opened.model, path)
    check_writable(path)
    seen = load_samples(opened.samples, opened.modalities, opened.model.encoder.image_size, limit)
    if not len(seen):
        raise ValueError(f"no sample of {opened.samples.address} can be read; see `unveil inspect`")
    whole = seen.batch(device_of(opened.model))
    told = {
        "data": opened.samples.address,
        "samples": len(seen),
        "epoch": opened.epoch,
        "visible": opened.model.masker.visible,
        "ways": [*_told(opened.model, whole)],
    }
    (path / "analysis").mkdir(parents=True, exist_ok=True)
    write_json(path / "analysis" / "masks.json", told)
    print(_table(opened, told))
    return told


def ways_of(model: MaskedModel) -> list[Way]:
    """The looks that a model can take: the faithful one first, then cheaper ones, no look last."""
    encoder = model.encoder
    stride = max(1, encoder.depth // _LAYERS)
    found = [Way(FAITHFUL, "whole", OnlineTeacher(encoder, FeatureSpec(features=0)))]
    found += [
        Way(f"layer {k}", "layer", OnlineTeacher(encoder, FeatureSpec(layer=k - 1, features=0)))
        for k in range(stride, encoder.depth, stride)
    ]
    if not (encoder.grid[0] % 2 or encoder.grid[1] % 2):
        found.append(
            Way(
                "half resolution",
                "half",
                LowResolutionTeacher(OnlineTeacher(encoder, FeatureSpec(features=0)), encoder),
            )
        )
    if average := [part for part in model.modules() if isinstance(part, EMATeacher)]:
        looks = copy.copy(average[0])
        looks.spec = FeatureSpec(features=0)
        found.append(Way("averaged weights", "average", looks))
    return [*found, Way(RANDOM, "random", NullTeacher())]


@torch.no_grad()
def _told(model: MaskedModel, whole: Batch) -> Iterator[dict[str, Any]]:
    """Each way with its cost and its overlap with the faithful one, as JSON holds it."""
    ways = ways_of(model)
    found: dict[str, dict[str, MaskOverlap]] = {}
    for start in range(0, len(whole), _BATCH):
        batch = whole[start : start + _BATCH]
        tokens = model.encoder.embed(batch)
        seen = {way.name: way.teacher.observe(batch, tokens, model.encoder) for way in ways}
        masks = {name: guided_mask(model, batch, tokens, observation) for name, observation in seen.items()}
        for name, mask in masks.items():
            sums = found.setdefault(name, {})
            for modality, one in mask_overlaps(masks[FAITHFUL], mask, tokens).items():
                sums[modality] = sums[modality] + one if modality in sums else one
    step, *looks = costs(model, whole[:1], ways)
    by_chance = found[RANDOM]
    for way, look in zip(ways, looks, strict=True):
        yield _way(way.name, way.kind, 1 + look / step, found[way.name], by_chance)
    for k, name in EVERY.items():
        mixed = {m: one * (1 / k) + by_chance[m] * (1 - 1 / k) for m, one in found[FAITHFUL].items()}
        yield _way(name, "steps", 1 + looks[0] / step / k, mixed, by_chance)


def _way(
    name: str, kind: str, cost: float, found: dict[str, MaskOverlap], by_chance: dict[str, MaskOverlap]
) -> dict[str, Any]:
    both = {"all": (_sum(found), _sum(by_chance)), **{m: (found[m], by_chance[m]) for m in found}}
    overlap = {m: _figures(one, chance) for m, (one, chance) in both.items()}
    return {"name": name, "kind": kind, "cost": cost, "overlap": overlap}


def _sum(found: dict[str, MaskOverlap]) -> MaskOverlap:
    first, *others = found.values()
    for other in others:
        first += other
    return first


def _figures(one: MaskOverlap, by_chance: MaskOverlap) -> dict[str, float]:
    level = by_chance.hidden_in_common
    return {
        "hidden_in_common": one.hidden_in_common,
        "visible_in_common": one.visible_in_common,
        "jaccard": one.jaccard,
        "beyond_chance": (one.hidden_in_common - level) / max(1 - level, 1e-12),
    }


def costs(model: MaskedModel, one: Batch, ways: list[Way]) -> list[int]:
    """Operations on one sample of a training step with random masks, then of each look on top of it.

    Matrix products alone, counted on the meta device as the bench counts them. The tokens of a look at full size are
    embedded already.
    """
    plain, teachers = copy.deepcopy((model, [way.teacher for way in ways]))
    own, batch = plain.masker, one.on("meta")
    masker = Masker(DirichletBudget(ByModality(Uniform())), own.visible, own.predicted, unit=own.unit)
    step = MaskedModel(plain.encoder, masker, plain.decoders, plain.objectives, hide=plain.hide).to("meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        mean_loss(step(batch)).backward()
    found = [counter.get_total_flops()]
    tokens = step.encoder.embed(batch)
    for teacher in teachers:
        assert isinstance(teacher, nn.Module)
        teacher.to("meta")
        with FlopCounterMode(display=False) as counter:
            teacher.observe(batch, tokens, step.encoder)
        found.append(counter.get_total_flops())
    return found


def _check(model: MaskedModel, path: Path) -> None:
    """Raise ValueError for a model whose step is no step without its teachers."""
    if not all(isinstance(o, Objective) and isinstance(o.target, Pixels | Classes) for o in model.objectives):
        raise ValueError(
            f"{path} predicts more than pixels and classes, so its teachers look in every step whatever guides the"
            " masks; compare looks in a run of multimae, multimae-attention, mae or crossmae"
        )


def _table(opened: Opened, told: dict[str, Any]) -> str:
    ways, when = told["ways"], "untrained" if not opened.epoch else f"epoch {opened.epoch:.4g}"
    modalities = [name for name in ways[0]["overlap"] if name != "all"]
    several = modalities if len(modalities) > 1 else []
    head = ["", "cost of a step", "hidden in common", "visible in common", "Jaccard", "beyond chance", *several]
    rows = []
    for way in ways:
        overlap = way["overlap"]
        figures = [
            overlap["all"][name] for name in ("hidden_in_common", "visible_in_common", "jaccard", "beyond_chance")
        ]
        rows.append([way["name"], way["cost"], *figures, *(overlap[m]["beyond_chance"] for m in several)])
    lead = (
        f"{opened.name}, {when}: masks of {told['samples']} samples, {1 - told['visible']:.0%} hidden, beside the"
        " faithful ones; a step of random masks costs 1"
        + ("; of each modality what is beyond chance" if several else "")
    )
    return f"{lead}\n{table([head, *rows])}"
