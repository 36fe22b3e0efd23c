"""`unveil analyze masks`: cheaper ways to guide masks by attention, what each costs and how similar its masks are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...data.columns import with_columns
from ...data.given_types import Data
from ...evaluation.analysis.conclusions import of_masks
from ...evaluation.analysis.mask_overlap import MaskOverlap, guided_mask, mask_overlaps
from ...modeling.encoder import Encoder
from ...modeling.masked_model import MaskedModel, Objective, Teacher, mean_loss
from ...modeling.masking import ByModality, DirichletBudget, Masker, Uniform
from ...modeling.targets import Classes, Pixels
from ...modeling.teachers import DistilledAttention, EMATeacher, LowResolutionTeacher, OnlineTeacher
from ...modeling.types import Batch, FeatureSpec, Observation, Tokens
from ...recipes.options import accept_python_values, as_text
from ...recipes.run import Run
from ...runs.console import table
from ...runs.folder import check_writable
from ..subject import Subject, chunks, print_conclusions, write_analysis

_LAYERS = 6  # at most so many earlier layers are tried, evenly spread
EVERY = {2: "every 2nd step", 4: "every 4th step", 8: "every 8th step"}  # guided there, random in between
FAITHFUL, FAST, RANDOM = "faithful", "predicted (--guidance fast)", "random masks"


@dataclass(frozen=True)
class Guidance:
    """A way to guide masks: its name, the kind of saving, and the teacher whose attention they follow."""

    name: str
    kind: str
    teacher: Teacher


class PredictedAttention(nn.Module):
    """The attention that a run with `--guidance fast` predicts between two whole passes."""

    def __init__(self, teacher: DistilledAttention):
        super().__init__()
        self.teacher = teacher

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return self.teacher.predict(tokens, student)


class NullTeacher(nn.Module):
    """A teacher that observes nothing, so that masks are random."""

    def observe(self, batch: Batch, tokens: Tokens, student: Encoder) -> Observation:
        return Observation(tokens.layout)


@accept_python_values
def analyze_masks(
    run: str | PathLike[str] | Run,
    *,
    data: Data | None = None,
    image_column: str | None = None,
    untrained: bool = False,
    limit: int = 128,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Compare cheaper ways to guide masks by attention with the faithful one; printed, and written to
    `analysis/masks.json`.

    Faithful is attention-guided MultiMAE: a full forward pass without gradient gives the last layer's attention, and
    in each modality the most attended tokens are hidden. For each cheaper way: the operations of a training step, in
    steps with random masks, and how much its masks have in common with the faithful ones of the same samples, under
    the same budget and random numbers. `above chance` is 0 for random masks and 1 for the faithful ones.

    data: samples to measure on; by default those that the run held out
    image_column: the column of a Parquet file that holds the images, where there are several
    untrained: take the weights as they were before training
    limit: use at most so many samples, evenly spread
    device: cpu, cuda, mps; auto takes the best
    trust: execute the run's own recipe file where you have not run it before: this needs its whole model

    >>> import unveil
    >>> measured = unveil.analyze_masks("runs/a", limit=2)
    a, epoch 0.5: masks of 2 samples, 75% of the tokens hidden ...
    >>> [way["name"] for way in measured["ways"]][:2]
    ['faithful', 'layer 1']
    """
    if limit < 1:
        raise ValueError(f"--limit is 1 or more; got {limit}")
    stored = Run.open(as_text(run), trust)
    subject = Subject.of_run(stored, with_columns(as_text(data), image_column), device, trained=not untrained)
    _check(subject.model, stored.path)
    check_writable(stored.path)
    views, batch = subject.load(limit)
    hidden: dict[str, list[Tensor]] = {}
    ways = list(_compare(subject.model, batch, hidden))
    visible = subject.model.masker.visible
    content = {
        "data": subject.samples.address,
        "samples": len(views),
        "epoch": subject.epoch or 0.0,
        "weights": {} if untrained else stored.checkpoint().identity,
        "visible": visible,
        "ways": ways,
        "conclusions": of_masks(ways, {name: torch.cat(both) for name, both in hidden.items()}, FAITHFUL, RANDOM),
    }
    write_analysis(stored.path, "masks", content)
    modalities = [name for name in ways[0]["overlap"] if name != "all"]
    several = modalities if len(modalities) > 1 else []
    print(f"{subject.title}: masks of {len(views)} samples, {1 - visible:.0%} of the tokens hidden")
    keys = {"hidden_in_common": "hidden in common", "visible_in_common": "visible in common", "jaccard": "Jaccard"}
    rows: list[list[object]] = [["", "cost", *keys.values(), "above chance", *several]]
    for way in ways:
        overlap = way["overlap"]
        values = [overlap["all"][key] for key in (*keys, "beyond_chance")]
        rows.append([way["name"], way["cost"], *values, *(overlap[m]["beyond_chance"] for m in several)])
    print(table(rows))
    print(
        "cost: operations of a training step; 1 is a step with random masks\n"
        "in common, Jaccard: with the faithful masks, those of the last layer's attention\n"
        f"above chance{' (also by modality)' if several else ''}: hidden in common, 0 for random masks, 1 for faithful"
    )
    print_conclusions(content)
    return content


def guidance_of(model: MaskedModel) -> list[Guidance]:
    """The ways to guide masks that a model allows: the faithful one first, then cheaper ones, random masks last."""
    encoder, spec = model.encoder, FeatureSpec(features=0)
    faithful = OnlineTeacher(encoder, spec)
    ways = [Guidance(FAITHFUL, "whole", faithful)]
    for k in range(stride := max(1, encoder.depth // _LAYERS), encoder.depth, stride):
        ways.append(Guidance(f"layer {k}", "layer", OnlineTeacher(encoder, FeatureSpec(layer=k - 1, features=0))))
    if not (encoder.grid[0] % 2 or encoder.grid[1] % 2):
        ways.append(Guidance("half resolution", "half", LowResolutionTeacher(faithful, encoder)))
    if ema := [module for module in model.modules() if isinstance(module, EMATeacher)]:
        teacher = copy.copy(ema[0])
        teacher.spec = spec
        ways.append(Guidance("averaged weights", "average", teacher))
    if distilled := [module for module in model.modules() if isinstance(module, DistilledAttention)]:
        ways.append(Guidance(FAST, "distilled", PredictedAttention(distilled[0])))
    return [*ways, Guidance(RANDOM, "random", NullTeacher())]


@torch.no_grad()
def _compare(model: MaskedModel, batch: Batch, hidden: dict[str, list[Tensor]]) -> Iterator[dict[str, Any]]:
    """Each way with its cost and the overlap of its masks with the faithful ones, as JSON holds it.

    `hidden` gets, of each way that is measured, the tokens of each sample that it and the faithful one hide.
    """
    ways = guidance_of(model)
    overlaps: dict[str, dict[str, MaskOverlap]] = {way.name: {} for way in ways}
    for chunk in chunks(batch):
        tokens = model.encoder.embed(chunk)
        observed = {way.name: way.teacher.observe(chunk, tokens, model.encoder) for way in ways}
        masks = {name: guided_mask(model, chunk, tokens, observation) for name, observation in observed.items()}
        there = torch.ones_like(masks[FAITHFUL]) if tokens.missing is None else ~tokens.missing
        for name, mask in masks.items():
            hidden.setdefault(name, []).append((mask & masks[FAITHFUL] & there).sum(1).double().cpu())
            sums = overlaps[name]
            for modality, overlap in mask_overlaps(masks[FAITHFUL], mask, tokens).items():
                sums[modality] = sums[modality] + overlap if modality in sums else overlap
    step, *guidance = costs(model, batch[:1], ways)
    random = overlaps[RANDOM]
    for way, operations in zip(ways, guidance, strict=True):
        cost = float(operations)
        if isinstance(way.teacher, PredictedAttention):  # and a whole pass in every n-th step
            share = 1 / way.teacher.teacher.every
            cost += share * guidance[0]
            hidden[way.name] = [
                both * (1 - share) + whole * share
                for both, whole in zip(hidden[way.name], hidden[FAITHFUL], strict=True)
            ]
            overlaps[way.name] = {
                m: overlap * (1 - share) + overlaps[FAITHFUL][m] * share for m, overlap in overlaps[way.name].items()
            }
        yield _way(way.name, way.kind, 1 + cost / step, overlaps[way.name], random)
    for k, name in EVERY.items():
        mixed = {m: overlap * (1 / k) + random[m] * (1 - 1 / k) for m, overlap in overlaps[FAITHFUL].items()}
        yield _way(name, "steps", 1 + guidance[0] / step / k, mixed, random)


def _way(
    name: str, kind: str, cost: float, overlaps: dict[str, MaskOverlap], random: dict[str, MaskOverlap]
) -> dict[str, Any]:
    whole = (reduce(add, overlaps.values()), reduce(add, random.values()))
    pairs = {"all": whole, **{m: (overlaps[m], random[m]) for m in overlaps}}
    return {"name": name, "kind": kind, "cost": cost, "overlap": {m: _metrics(*pair) for m, pair in pairs.items()}}


def _metrics(overlap: MaskOverlap, random: MaskOverlap) -> dict[str, float]:
    chance = random.hidden_in_common
    return {
        "hidden_in_common": overlap.hidden_in_common,
        "visible_in_common": overlap.visible_in_common,
        "jaccard": overlap.jaccard,
        "beyond_chance": (overlap.hidden_in_common - chance) / max(1 - chance, 1e-12),
    }


def costs(model: MaskedModel, sample: Batch, ways: list[Guidance]) -> list[int]:
    """The operations of a training step with random masks on one sample, then those that each way adds.

    Matrix products only, counted on the meta device as the bench counts them. At full resolution the tokens are
    embedded already.
    """
    plain, teachers = copy.deepcopy((model, [way.teacher for way in ways]))
    own, batch = plain.masker, sample.on("meta")
    masker = Masker(DirichletBudget(ByModality(Uniform())), own.visible, own.predicted, unit=own.unit)
    step = MaskedModel(plain.encoder, masker, plain.decoders, plain.objectives, hide=plain.hide).to("meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        mean_loss(step(batch)).backward()
    operations = [counter.get_total_flops()]
    tokens = step.encoder.embed(batch)
    for teacher in teachers:
        assert isinstance(teacher, nn.Module)
        teacher.to("meta")
        with FlopCounterMode(display=False) as counter:
            teacher.observe(batch, tokens, step.encoder)
        operations.append(counter.get_total_flops())
    return operations


def _check(model: MaskedModel, path: Path) -> None:
    """Raise ValueError for a model whose objectives need teachers, whatever guides its masks."""
    if not all(isinstance(o, Objective) and isinstance(o.target, Pixels | Classes) for o in model.objectives):
        raise ValueError(
            f"{path} predicts more than pixels and classes, so its teachers run in every step whatever guides the"
            " masks; give a run of multimae, multimae-attention, mae or crossmae"
        )
