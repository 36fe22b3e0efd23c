"""What the recipes of several modalities share: decoders, objectives and budgets, built from their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..modeling.adaptive_budget import AdaptiveBudget
from ..modeling.decoder import BlendKind, CrossDecoder, Decoder, Readout, TaskDecoder, make_blend
from ..modeling.encoder import Encoder
from ..modeling.layers import QkvInit, separate_qkv
from ..modeling.losses import LOSSES, Loss, cross_entropy, l1, l2
from ..modeling.masked_model import Blank, Hide, Objective, Teacher, drop
from ..modeling.masking import DirichletBudget, TaskSampling, TokenScore
from ..modeling.objectives import UncertaintyWeighted
from ..modeling.optim import Decayed, Optim
from ..modeling.targets import HOG, Classes, Features, Pixels, Target
from ..modeling.teachers import EMATeacher, FrozenTeacher, Momentum, load_teacher
from ..modeling.types import FeatureSpec, Modality
from .recipe import Hyperparameters, make_loss

DecoderKind = Literal["task", "cross", "cross-self", "linear"]
BudgetKind = Literal["dirichlet", "adaptive", "joint"]

BETA = 2.0  # of the smooth-l1 loss of features: dBOT's, data2vec's and so CMT-MAE's


@dataclass(frozen=True)
class MultiMAEOptions:
    """What the variants of MultiMAE share: how visible patches are shared out, and the decoders.

    budget: how visible patches are shared out: a Dirichlet draw, one that follows the losses, or all patches as one
    concentration: of the Dirichlet, one for all modalities or one for each; 1 draws all shares alike
    tasks: let all modalities take part, or draw a set of them uniformly for each image
    harder_gets: whether the adaptive budget shows or hides more of the modality whose loss falls least
    budget_temperature: of the adaptive budget; higher keeps shares more equal
    budget_floor: smallest concentration of the adaptive budget
    decoder: MultiMAE's decoders (task), cross-attention (CrossMAE), that with self-attention before it, or one linear
        layer
    blend: how encoder maps are blended for each block of a cross decoder; none reads the last map alone
    decoder_dim: width of each decoder
    decoder_depth: number of each decoder's self-attention blocks, or of its blocks if it is a cross decoder
    decoder_heads: number of each decoder's attention heads
    extra_norm_pix: predict RGB patches normalised by their own mean and standard deviation too, by their own decoder
    weighting: add the losses up, or weigh each by a learned uncertainty
    hide: leave hidden tokens out, or put a mask token in their place
    target: what is predicted: the maps, histograms of the gradients of those that are no classes, a frozen teacher's
        features of RGB, those of the student's average of every map (data2vec), or both of these (CMT-MAE)
    teacher: a frozen encoder of RGB: its features are targets, its attention is blended with that of a student that
        guides; none by default
    target_student_weight: the student's share in collaborative targets
    target_features: number of the last blocks whose features are averaged into a target
    momentum: momentum of the student's moving average, at first; 1 at the end
    weight_decay_on: matrices and tokens (MAE), or all, norms and biases too, as MultiMAE's released code and so --paper
    qkv_init: first weights of queries, keys and values as those of one matrix (fused: MAE) or of one each (separate:
        MultiMAE's released code and so --paper)
    """

    budget: BudgetKind = "dirichlet"
    concentration: tuple[float, ...] = (1.0,)
    tasks: TaskSampling = "all"
    harder_gets: Literal["visible", "hidden"] = "visible"
    budget_temperature: float = 1.0
    budget_floor: float = 0.1
    decoder: DecoderKind = "task"
    blend: BlendKind = "none"
    decoder_dim: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    extra_norm_pix: bool = True
    weighting: Literal["sum", "uncertainty"] = "sum"
    hide: Literal["drop", "blank"] = "drop"
    target: Literal["maps", "hog", "teacher", "student", "collaborative"] = "maps"
    teacher: str | None = None
    target_student_weight: float = 0.3
    target_features: int = 1
    momentum: float = 0.996
    weight_decay_on: Decayed = "matrices"
    qkv_init: QkvInit = "fused"

    def __post_init__(self) -> None:
        if self.decoder in ("task", "linear") and self.blend != "none":
            raise ValueError(f"blend={self.blend} has no place in decoder={self.decoder}; use --decoder cross")
        if self.decoder == "linear" and self.hide == "drop":
            raise ValueError("decoder=linear reads hidden patches at their own places, so it needs --hide blank")
        if self.teaches and self.teacher is None:
            raise ValueError(f"target={self.target} needs --teacher with the address of an encoder of RGB")
        if not 0 < self.target_student_weight < 1:
            raise ValueError(
                f"target_student_weight is the student's share in two targets, between 0 and 1; got"
                f" {self.target_student_weight}: for one of the two use --target teacher or --target student"
            )
        if self.target_features < 1:
            raise ValueError(f"target_features is a number of blocks of at least 1; got {self.target_features}")

    def encoder(self, train: Hyperparameters, modalities: Sequence[Modality]) -> Encoder:
        """A new encoder. It normalises its output, unless the decoders do so as they blend its maps, or are tasks'."""
        encoder = train.vit(*modalities, final_norm=self.decoder != "task" and self.blend == "none")
        if self.qkv_init == "separate":
            separate_qkv(encoder)
        return encoder

    def optim(self, train: Hyperparameters) -> Optim:
        return replace(train.optim(), weight_decay_on=self.weight_decay_on)

    @property
    def teaches(self) -> bool:
        """Whether a frozen teacher's features are predicted."""
        return self.target in ("teacher", "collaborative")

    @property
    def has_feature_targets(self) -> bool:
        return self.teaches or self.target == "student"

    def teachers(self, encoder: Encoder, in_masks: bool = False) -> dict[str, Teacher]:
        """The teachers of the targets, and with `in_masks` the frozen one whose attention guides masks."""
        teachers: dict[str, Teacher] = {}
        if self.teacher is not None and (self.teaches or in_masks):
            spec = FeatureSpec("cls" if in_masks else None, features=self.target_features * self.teaches)
            teachers["teacher"] = load_teacher(self.teacher, encoder, spec, modality="rgb", seed=torch.initial_seed())
        if self.target in ("student", "collaborative"):
            spec = FeatureSpec(None, features=self.target_features)
            teachers["average"] = EMATeacher(encoder, Momentum(self.momentum), spec)
        return teachers

    def hider(self, encoder: Encoder) -> Hide:
        return Blank(encoder) if self.hide == "blank" else drop


def make_decoders(
    modalities: Sequence[Modality], encoder: Encoder, options: MultiMAEOptions, teachers: Mapping[str, Teacher]
) -> tuple[dict[str, Decoder], list[Objective]]:
    """A decoder for every modality that is an output and its objectives, and a second pair for normalised RGB.

    The first objective of a modality has its name, which an adaptive budget follows.
    """
    decoders: dict[str, Decoder] = {}
    objectives: list[Objective] = []
    kind = UncertaintyWeighted if options.weighting == "uncertainty" else Objective
    width = encoder.dim if options.decoder == "linear" else options.decoder_dim
    for modality in modalities:
        if modality.role == "input":
            continue
        student = modality.role == "both" and "average" in teachers
        share = options.target_student_weight if student and options.target == "collaborative" else 0.0
        for name, target in modality_targets(modality, encoder, options, teachers).items():
            decoders[name] = make_decoder(modality, encoder, options)
            if options.qkv_init == "separate":
                separate_qkv(decoders[name])
            loss = make_loss("smooth-l1", BETA) if isinstance(target, Features) else modality_loss(modality)
            loss = l2 if isinstance(target, HOG) else loss
            objectives.append(kind(name, name, width, target, loss, modality.weight * (1 - share)))
        if share:
            own = Features("average", modality.name, encoder.dim)
            error, weight = make_loss("smooth-l1", BETA), modality.weight * share
            objectives.append(kind(f"{modality.name}_student", modality.name, width, own, error, weight))
    if not objectives:
        raise ValueError("nothing is to be predicted: every modality is an input only")
    return decoders, objectives


def make_decoder(modality: Modality, encoder: Encoder, options: MultiMAEOptions) -> Decoder:
    """The decoder of a modality. Where mask tokens are encoded, the queries of a task decoder are mask tokens, too."""
    shape = (modality.name, encoder, options.decoder_dim, options.decoder_depth, options.decoder_heads)
    if options.decoder == "linear":
        return Readout(modality.name, encoder)
    if options.decoder == "task":
        return TaskDecoder(*shape, own_tokens=options.hide == "drop")
    blended = make_blend(options.blend, encoder, options.decoder_depth)
    return CrossDecoder(*shape, blended, options.decoder == "cross-self")


def modality_targets(
    modality: Modality, encoder: Encoder, options: MultiMAEOptions, teachers: Mapping[str, Teacher]
) -> dict[str, Target]:
    """The targets of a modality, by the name of the decoder that predicts each."""
    name, teacher = modality.name, teachers.get("teacher")
    if options.teaches and isinstance(teacher, FrozenTeacher):
        if name == teacher.modality:
            return {name: Features("teacher", name, teacher.dim)}
    elif options.target == "student" and modality.role == "both":
        return {name: Features("average", name, encoder.dim)}
    if modality.kind == "categorical":
        return {name: Classes(modality, encoder.patch)}
    if options.target == "hog":
        return {name: HOG(modality, encoder.patch)}
    plain: dict[str, Target] = {name: Pixels(modality, encoder.patch, norm_pix=False)}
    if options.extra_norm_pix and name == "rgb":
        plain["norm_rgb"] = Pixels(modality, encoder.patch)
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
    guide: TokenScore, encoder: Encoder, objectives: Sequence[Objective], options: MultiMAEOptions
) -> TokenScore:
    """The score that shares visible tokens out to modalities; joint lets the guide's own order do so."""
    names, concentration = [m.name for m in encoder.modalities], options.concentration
    if len(concentration) not in (1, len(names)):
        raise ValueError(
            f"concentration is one number, or one for each of {', '.join(names)}; got {len(concentration)} numbers"
        )
    if options.budget == "joint":
        return guide
    if options.budget == "adaptive":
        if len(concentration) > 1 or options.tasks != "all":
            raise ValueError("an adaptive budget begins with one concentration and takes all tasks")
        known = {o.name for o in objectives}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"an adaptive budget follows losses, and {', '.join(unknown)} has none: it is no output")
        followed = {name: name for name in names}
        shares = (options.harder_gets, options.budget_temperature, options.budget_floor)
        return AdaptiveBudget(guide, followed, concentration[0], *shares)
    each = dict(zip(names, list(concentration) * (len(names) // len(concentration)), strict=True))
    return DirichletBudget(guide, each, options.tasks)
