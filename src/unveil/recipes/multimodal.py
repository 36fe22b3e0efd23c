"""What the recipes of several modalities share: decoders, objectives and budgets, built from their options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..modeling.adaptive_budget import AdaptiveBudget
from ..modeling.decoder import BlendKind, CrossDecoder, Decoder, TaskDecoder, make_blend
from ..modeling.encoder import Encoder
from ..modeling.losses import LOSSES, Loss, cross_entropy, l1, l2
from ..modeling.masked_model import Objective
from ..modeling.masking import DirichletBudget, TaskSampling, TokenScore
from ..modeling.objectives import UncertaintyWeighted
from ..modeling.targets import Classes, Pixels, Target
from ..modeling.types import Modality

DecoderKind = Literal["task", "cross", "cross-self"]
BudgetKind = Literal["dirichlet", "adaptive", "joint"]


def make_decoders(
    modalities: Sequence[Modality],
    encoder: Encoder,
    decoder: DecoderKind,
    blend: BlendKind,
    dim: int,
    depth: int,
    heads: int,
    extra_norm_pix: bool,
    weighting: Literal["sum", "uncertainty"],
) -> tuple[dict[str, Decoder], list[Objective]]:
    """A decoder and an objective for every modality that is an output, and a second pair for normalised RGB."""
    decoders: dict[str, Decoder] = {}
    objectives: list[Objective] = []
    kind = UncertaintyWeighted if weighting == "uncertainty" else Objective
    for modality in modalities:
        if modality.role == "input":
            continue
        for name, target in modality_targets(modality, encoder.patch, extra_norm_pix).items():
            shape = (modality.name, encoder, dim, depth, heads)
            if decoder == "task":
                decoders[name] = TaskDecoder(*shape)
            else:
                blended = make_blend(blend, encoder, depth)
                decoders[name] = CrossDecoder(*shape, blended, decoder == "cross-self")
            objectives.append(kind(name, name, dim, target, modality_loss(modality), modality.weight))
    if not objectives:
        raise ValueError("nothing is to be predicted: every modality is an input only")
    return decoders, objectives


def modality_targets(modality: Modality, patch: int, extra_norm_pix: bool) -> dict[str, Target]:
    """The targets of a modality, by the name of the decoder that predicts each."""
    if modality.kind == "categorical":
        return {modality.name: Classes(modality, patch)}
    plain: dict[str, Target] = {modality.name: Pixels(modality, patch, norm_pix=False)}
    if extra_norm_pix and modality.name == "rgb":
        plain["norm_rgb"] = Pixels(modality, patch)
    return plain


def modality_loss(modality: Modality) -> Loss:
    """A modality's own loss, or MultiMAE's: cross-entropy of classes, absolute error of maps that each image
    normalises by its own pixels (depth), squared error of others (RGB). Raises ValueError for one of another kind."""
    if (modality.loss == "cross-entropy") != (modality.kind == "categorical") and modality.loss != "auto":
        raise ValueError(f"{modality.name!r} is {modality.kind}, which the loss {modality.loss} is not for")
    if modality.loss != "auto":
        return LOSSES[modality.loss]
    if modality.kind == "categorical":
        return cross_entropy
    return l2 if modality.normalise == "fixed" else l1


def make_budget(
    guide: TokenScore,
    encoder: Encoder,
    objectives: Sequence[Objective],
    budget: BudgetKind,
    concentration: Sequence[float],
    tasks: TaskSampling,
    harder_gets: Literal["visible", "hidden"],
    temperature: float,
    floor: float,
) -> TokenScore:
    """The score that shares visible tokens out to modalities; joint lets the guide's own order do so."""
    names = [m.name for m in encoder.modalities]
    if len(concentration) not in (1, len(names)):
        raise ValueError(
            f"concentration is one number, or one for each of {', '.join(names)}; got {len(concentration)} numbers"
        )
    if budget == "joint":
        return guide
    if budget == "adaptive":
        if len(concentration) > 1 or tasks != "all":
            raise ValueError("an adaptive budget begins with one concentration and takes all tasks")
        known = {o.name for o in objectives}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"an adaptive budget follows losses, and {', '.join(unknown)} has none: it is no output")
        followed = {name: name for name in names}
        return AdaptiveBudget(guide, followed, concentration[0], harder_gets, temperature, floor)
    each = dict(zip(names, list(concentration) * (len(names) // len(concentration)), strict=True))
    return DirichletBudget(guide, each, tasks)
