"""CMT-MAE: The Dynamic Duo of Collaborative Masking and Target for Advanced Masked Autoencoder Learning
(Mo, AAAI 2025; arXiv 2412.17566).

The paper leaves much open. Each such choice is an option; its default is what the paper says, or else what the most
similar paper says. Ablations, from the controls to the full method, by `--masking` and `--targets`:

    uniform, teacher                teacher targets, random masks
    teacher, pixels                 pixel targets, teacher-guided masks
    teacher, teacher                stage one throughout, as is --stage1-epochs equal to --epochs
    collaborative, teacher          + collaborative masking
    teacher, collaborative          + collaborative targets
    collaborative, collaborative    CMT-MAE
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from ..modeling.decoder import BlendKind, CrossDecoder, SelfDecoder, make_blend
from ..modeling.losses import Loss, l2
from ..modeling.masked_model import MaskedModel, Objective, linear_head
from ..modeling.masking import (
    FUSIONS,
    AttentionGuided,
    AttentionMap,
    CollaborativeAttention,
    MapFusion,
    Masker,
    SamplerName,
    TeacherAttention,
    TokenScore,
    Uniform,
    make_sampler,
)
from ..modeling.objectives import Gate, GateScore, Ranking
from ..modeling.targets import HOG, Features, Pixels, Target
from ..modeling.teachers import EMATeacher, FrozenTeacher, Momentum, OnlineTeacher, load_teacher
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import DecoderShape, Hyperparameters, LrScale, Recipe, Stage, lr_factor, make_loss, once

Guide = FrozenTeacher | EMATeacher | OnlineTeacher


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    teacher: str = "openai/clip-vit-base-patch16",
    teacher_channels: tuple[int, ...] | None = None,
    masking: Literal["collaborative", "teacher", "uniform"] | TokenScore = "collaborative",
    targets: Literal["collaborative", "teacher", "pixels"] = "collaborative",
    student_weight: float = 0.3,
    alpha: float | None = None,
    target_student_weight: float | None = None,
    stage1_epochs: float | None = None,
    restart: bool = False,
    visible: float = 0.25,
    predicted: float | None = None,
    draw: SamplerName = "gumbel",
    temperature: float = 1.0,
    noise: float = 0.25,
    fusion: Literal[
        "linear", "attention-weighted", "geometric", "maximum", "product", "mean-rank", "entropy-gated", "learned"
    ] = "linear",
    map_norm: Literal["sum", "minmax", "rank", "none"] = "sum",
    map_clip: float | None = None,
    query: Literal["cls", "mean", "all"] = "cls",
    layer: int = -1,
    teacher_heads: tuple[int, ...] | None = None,
    student_heads: tuple[int, ...] | None = None,
    student: Literal["momentum", "online"] = "momentum",
    momentum: float = 0.996,
    momentum_end: float = 1.0,
    momentum_schedule: Literal["cosine", "linear", "constant"] = "cosine",
    teacher_features: int = 1,
    student_features: int = 1,
    projected: bool = False,
    target_norm: Literal["layer", "l2", "none"] = "layer",
    loss: Literal["smooth-l1", "cosine", "l2", "l1"] = "smooth-l1",
    beta: float = 2.0,
    positions: Literal["predicted", "all"] = "predicted",
    pixels: float = 0.0,
    hog: float = 0.0,
    norm_pix: bool = True,
    decoder: Literal["self", "cross"] = "self",
    blend: BlendKind = "none",
    shape: DecoderShape = DecoderShape(),
    lr_scale: LrScale = "none",
) -> Recipe:
    """CMT-MAE: a frozen teacher and the student's own average decide together what is hidden and what is predicted.

    teacher: the frozen encoder: a file, a folder, a run, a name on the hub, or random as a control
    teacher_channels: which channels of an image the teacher reads, counted from 1; by default all
    masking: attention that decides what is hidden: of teacher and student in stage two, of the teacher alone, or none;
        or a score of your own, FILE.py:NAME
    targets: features that are predicted: of teacher and student in stage two, of the teacher alone, or pixels instead
    student_weight: the student's share in masks and targets in stage two; 0 leaves it out, 1 the teacher
    alpha: the paper's letter for student_weight; used instead of it where it is given
    target_student_weight: the student's share in the targets alone; by default as in the masks
    stage1_epochs: epochs with the teacher alone, 0 for none, all for a teacher throughout; by default an eighth of all
    restart: warm up and decay the learning rate in each stage, instead of once over both
    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    draw: hide the most attended (hard), the most attended after noise is added (noisy), all but a few of these (hint),
        a sample in proportion to attention (gumbel), the least attended (low), or all but a sample (keep)
    temperature: of the gumbel and keep draws; higher draws more evenly
    noise: share of noise in the map of the noisy draw
    fusion: how the two maps are combined; learned is a gate that is trained to predict where losses are large
    map_norm: what is done to each map before they are fused: sum to one, to [0, 1], ranks, or nothing
    map_clip: quantile at which a map is cut off; by default it is not
    query: attention of the class token (cls), of one query that is the mean of all patches', or the mean over patches
    layer: block whose attention is read, from the end below 0
    teacher_heads: heads of the teacher whose attention is averaged, counted from 0; by default all
    student_heads: heads of the student whose attention is averaged, counted from 0; by default all
    student: weights of the student that guides: its moving average, or the current ones (online)
    momentum: momentum of the student's moving average, at first
    momentum_end: momentum at the end of training
    momentum_schedule: how the momentum moves from the one to the other
    teacher_features: number of the teacher's last blocks whose features are averaged
    student_features: number of the student's last blocks whose features are averaged
    projected: take the teacher's features after its output projection, where it has one (CLIP)
    target_norm: normalise each feature target by its own mean and standard deviation, to unit length, or not
    loss: smooth absolute error, 2 - 2 cos, squared or absolute error of features
    beta: error below which the smooth-l1 loss is squared
    positions: which patches are compared: the predicted ones, or the visible ones as well
    pixels: weight of pixels as a further target
    hog: weight of histograms of oriented gradients as a further target (MaskFeat)
    norm_pix: predict each patch normalised by its own mean and standard deviation
    decoder: self-attention over visible and mask tokens, or cross-attention (CrossMAE)
    blend: how encoder maps are blended for the decoder; none reads the last map alone
    lr_scale: multiply the rate by predicted/hidden, by its inverse, or not
    """
    weight = student_weight if alpha is None else alpha
    target_weight = weight if target_student_weight is None else target_student_weight
    stage1 = train.epochs / 8 if stage1_epochs is None else stage1_epochs
    for name, share in (("student_weight", weight), ("target_student_weight", target_weight)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is the student's share, from 0 to 1; got {share}")
    counts = {"teacher_features": (teacher_features, 1), "student_features": (student_features, 1)}
    for name, (value, least) in {**counts, "beta": (beta, 0), "pixels": (pixels, 0), "hog": (hog, 0)}.items():
        if value < least:
            raise ValueError(f"{name} is a number of at least {least}; got {value}")
    if not 0 <= stage1 <= train.epochs:
        raise ValueError(f"stage1_epochs is a part of the {train.epochs:g} epochs, from 0 to all; got {stage1}")

    encoder = train.vit(modality, final_norm=blend == "none")  # else the decoder normalises
    decoder_of = CrossDecoder if decoder == "cross" else SelfDecoder
    blended = make_blend(blend, encoder, shape.decoder_depth if decoder == "cross" else 1)
    patches = decoder_of(modality.name, encoder, *shape.dims, blended, outputs=positions)
    masker = Masker(Uniform() if isinstance(masking, str) else masking, visible, predicted)

    num_features = {"teacher": teacher_features, "student": student_features}
    maps = {
        "teacher": TeacherAttention("teacher", teacher_heads, map_norm, map_clip),
        "student": TeacherAttention("student", student_heads, map_norm, map_clip),
    }
    image_targets: dict[str, tuple[float, Target, Loss]] = {
        "pixels": (pixels or float(targets == "pixels"), Pixels(modality, train.patch, norm_pix), l2),
        "hog": (hog, HOG(modality, train.patch), l2),
    }
    feature_loss = make_loss(loss, beta)
    heads = {name: once(linear_head) for name in (*maps, *image_targets)}  # stages share them
    gate = once(Gate)
    seed = torch.initial_seed()  # of the run: a random teacher is the same one in every stage

    def make_teacher(name: str, spec: FeatureSpec) -> Guide:
        if name == "teacher":
            return load_teacher(teacher, encoder, spec, teacher_channels, seed=seed)
        if student == "online":
            return OnlineTeacher(encoder, spec)
        return EMATeacher(encoder, Momentum(momentum, momentum_end, momentum_schedule), spec)

    def build(mask_weight: float, target_weight: float) -> MaskedModel:
        """A stage, by the student's weight in masks and in targets."""
        in_masks = weights(mask_weight) if masking in ("collaborative", "teacher") else {}
        in_targets = weights(target_weight) if targets != "pixels" else {}
        teachers: dict[str, Guide] = {}
        for name in [name for name in maps if name in {**in_masks, **in_targets}]:
            features = num_features[name] if name in in_targets else 0
            spec = FeatureSpec(query if name in in_masks else None, layer, features, projected and name == "teacher")
            teachers[name] = make_teacher(name, spec)

        feature_targets = {
            name: (share, Features(name, modality.name, teachers[name].dim, target_norm), feature_loss)
            for name, share in in_targets.items()
        }
        dim = shape.decoder_dim
        objectives = [
            Objective(name, "patches", dim, target, loss, share, heads[name](dim, target.dim))
            for name, (share, target, loss) in {**feature_targets, **image_targets}.items()
            if share
        ]
        if not in_masks:
            return MaskedModel(encoder, masker, {"patches": patches}, objectives, teachers)

        fuse: MapFusion = gate() if fusion == "learned" else FUSIONS[fusion]
        attention = fused_map(maps, in_masks, fuse)
        guided = replace(masker, score=AttentionGuided(attention, make_sampler(draw, temperature, noise)))
        is_learned = fusion == "learned" and len(in_masks) == 2
        ranking = [Ranking("gate", objectives, GateScore(gate(), attention))] if is_learned else []
        return MaskedModel(encoder, guided, {"patches": patches}, [*objectives, *ranking], teachers)

    stage2 = (weight if masking == "collaborative" else 0.0, target_weight if targets == "collaborative" else 0.0)
    stages = ((partial(build, 0.0, 0.0), stage1), (partial(build, *stage2), train.epochs - stage1))
    return Recipe(
        encoder,
        stages=tuple(Stage(build, epochs) for build, epochs in stages if epochs > 0),
        optim=train.optim(lr_factor=lr_factor(lr_scale, masker)),
        view=train.view(encoder),
        restart=restart,
    )


def weights(student: float) -> dict[str, float]:
    """The weights of teacher and student, given the student's; one whose weight is 0 is left out."""
    return {name: weight for name, weight in (("teacher", 1 - student), ("student", student)) if weight > 0}


def fused_map(maps: Mapping[str, AttentionMap], weights: Mapping[str, float], fuse: MapFusion) -> AttentionMap:
    """The map that masks are sampled from: of the only one with a weight, or of both (collaborative masking)."""
    if len(weights) == 1:
        return maps[next(iter(weights))]
    return CollaborativeAttention(maps["teacher"], maps["student"], weights["student"], fuse)
