"""Masked image modelling with one option for each part, so that any combination runs from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..modeling.decoder import BlendKind, CrossDecoder, Decoder, Readout, SelfDecoder, choose_maps, make_blend
from ..modeling.masked_model import Blank, MaskedModel, Objective, drop
from ..modeling.masking import (
    SAMPLERS,
    AttentionGuided,
    Masker,
    SamplerName,
    TeacherAttention,
    TokenScore,
    Uniform,
    pattern,
    unit_in_tokens,
)
from ..modeling.targets import HOG, Features, Pixels, Target
from ..modeling.teachers import EMATeacher, FrozenTeacher, Momentum, load_teacher
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import DecoderShape, Hyperparameters, LrScale, Recipe, Stage, lr_factor, make_loss


@dataclass(frozen=True)
class FeatureTarget:
    """What a target of features is where the options leave it open."""

    teacher: str | None = None
    blocks: int = 1
    loss: str = "l2"
    beta: float = 1.0


FEATURE_TARGETS = {
    "features": FeatureTarget(),
    # data2vec, arXiv 2202.03555, section 3.3 and its released code: the last 6 of 12 blocks, each layer-normalised
    "data2vec": FeatureTarget("student", 6, "smooth-l1", 2.0),
    # MaskDistill, arXiv 2210.10615
    "maskdistill": FeatureTarget("openai/clip-vit-base-patch16", 1, "smooth-l1"),
}


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    masking: Literal["uniform", "block", "inverse-block", "grid", "attention"] | TokenScore = "uniform",
    draw: SamplerName = "gumbel",
    teacher: str | None = None,
    teacher_channels: tuple[int, ...] | None = None,
    momentum: float = 0.996,
    momentum_end: float = 1.0,
    mask_unit: int | None = None,
    visible: float = 0.25,
    predicted: float | None = None,
    ask: Literal["uniform", "hardest"] = "uniform",
    hide: Literal["drop", "blank"] = "drop",
    decoder: Literal["self", "cross", "cross-self", "linear"] = "self",
    blend: BlendKind = "none",
    blend_init: Literal["paper", "released"] = "paper",
    num_maps: int | None = None,
    maps: tuple[int, ...] | None = None,
    use_input: bool = True,
    shape: DecoderShape = DecoderShape(),
    target: Literal["norm-pixels", "pixels", "hog", "features", "data2vec", "maskdistill"] = "norm-pixels",
    teacher_features: int | None = None,
    target_norm: Literal["layer", "instance", "l2", "none"] = "layer",
    loss: Literal["l2", "l1", "smooth-l1", "cosine"] | None = None,
    beta: float | None = None,
    lr_scale: LrScale = "none",
) -> Recipe:
    """Masked image modelling: choose each part. With its defaults it is MAE.

    masking: the order in which tokens are hidden; attention is that of the teacher; or a score of your own,
        FILE.py:NAME
    draw: hide the most attended (hard), the most attended after noise is added (noisy), all but a few of these (hint),
        a sample in proportion to attention (gumbel), the least attended (low), or all but a sample (keep)
    teacher: source of attention and features: student (its moving average) or a frozen encoder: a file, a folder, a
        run, a name on the hub, or random as a control
    teacher_channels: which channels of an image a frozen encoder reads, counted from 1; by default all
    momentum: momentum of the student's moving average, at first
    momentum_end: momentum at the end of training
    mask_unit: side in pixels of the squares that are hidden whole; by default one patch
    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    ask: which of the hidden patches are predicted: a uniform draw, or those that masking hides first
    hide: leave hidden tokens out, or put a mask token in their place
    decoder: self-attention, cross-attention, both, or one linear layer
    blend: how encoder maps are blended for the decoder; none reads the last map alone
    blend_init: first weights of the blend, as the paper says or as the released code draws them
    num_maps: how many encoder blocks are blended, evenly spread; by default all
    maps: which encoder blocks are blended, counted from 1; instead of num_maps
    use_input: blend the patch embeddings too
    target: what is predicted: pixels, also normalised patch by patch, histograms of gradients, a teacher's features,
        those of data2vec (last blocks of the student's average) or of MaskDistill (last block of a frozen CLIP)
    teacher_features: number of the teacher's last blocks whose features are averaged; by default 6 for data2vec, else 1
    target_norm: normalise each feature target by its own mean and standard deviation, each channel of an image
        (instance), to unit length, or not
    loss: squared, absolute or smooth absolute error, or 2 - 2 cos; by default the smooth one for data2vec and
        maskdistill, else the squared one
    beta: error below which the smooth-l1 loss is squared; by default 2 for data2vec, else 1
    lr_scale: multiply the rate by predicted/hidden, by its inverse, or not
    """
    if decoder == "linear" and hide == "drop":
        raise ValueError("decoder=linear reads hidden patches at their own places, so it needs --hide blank")
    if blend != "none" and (decoder == "linear" or (decoder == "self" and hide == "blank")):
        raise ValueError(f"blend={blend} has no place in decoder={decoder} with hide={hide}; use --decoder cross")
    kind = FEATURE_TARGETS.get(target)
    teacher = teacher or (kind.teacher if kind else None)
    if teacher is None and (masking == "attention" or kind):
        raise ValueError("masking=attention and target=features need --teacher student, or an encoder's address")
    if kind and kind.teacher and (teacher == "student") != (kind.teacher == "student"):
        raise ValueError(
            f"target={target} is the features of {kind.teacher}, not of {teacher}; use --target features, or leave"
            " --teacher out"
        )
    if teacher_features is not None and teacher_features < 1:
        raise ValueError(f"teacher_features is a number of blocks of at least 1; got {teacher_features}")
    encoder = train.vit(modality, final_norm=blend == "none")
    guided = AttentionGuided(TeacherAttention("teacher"), SAMPLERS[draw])
    score = guided if masking == "attention" else pattern(masking)
    unit = unit_in_tokens(mask_unit, train.patch) if mask_unit else 1
    masker = Masker(score, visible, predicted, predict_score=score if ask == "hardest" else Uniform(), unit=unit)
    read = choose_maps(encoder.depth, num_maps, maps, use_input)

    place = (modality.name, encoder)

    def build_decoder() -> Decoder:
        if decoder == "linear":
            return Readout(*place)
        if decoder == "self" and hide == "blank":
            return Readout(*place, *shape.dims)
        blended = make_blend(blend, encoder, 1 if decoder == "self" else shape.decoder_depth, read, blend_init)
        if decoder == "self":
            return SelfDecoder(*place, *shape.dims, blended)
        return CrossDecoder(*place, *shape.dims, blended, self_attention=decoder == "cross-self")

    def build_teachers() -> dict[str, EMATeacher | FrozenTeacher]:
        query: Literal["cls"] | None = "cls" if masking == "attention" else None
        blocks = (teacher_features or min(kind.blocks, encoder.depth)) if kind else 0
        spec = FeatureSpec(query, features=blocks, norm="instance" if target_norm == "instance" else "layer")
        if teacher is None or not (spec.attention or spec.features):
            return {}
        if teacher == "student":
            return {"teacher": EMATeacher(encoder, Momentum(momentum, momentum_end), spec)}
        return {"teacher": load_teacher(teacher, encoder, spec, teacher_channels, seed=torch.initial_seed())}

    def build() -> MaskedModel:
        width = encoder.dim if decoder == "linear" else shape.decoder_dim
        teachers = build_teachers()
        truth: Target = Pixels(modality, train.patch, target == "norm-pixels")
        if target == "hog":
            truth = HOG(modality, train.patch)
        elif kind:
            norm = "none" if target_norm == "instance" else target_norm  # which the teacher has done
            truth = Features("teacher", modality.name, teachers["teacher"].dim, norm)
        name = "pixels" if isinstance(truth, Pixels) else "features" if kind else "hog"
        decoders = {name: build_decoder()}
        defaults = kind or FeatureTarget()
        error = make_loss(loss or defaults.loss, defaults.beta if beta is None else beta)
        objectives = [Objective(name, name, width, truth, error)]
        hidden = Blank(encoder) if hide == "blank" else drop
        return MaskedModel(encoder, masker, decoders, objectives, teachers, hidden)

    optim = train.optim(lr_factor=lr_factor(lr_scale, masker))
    return Recipe(encoder, (Stage(build, train.epochs),), optim, train.view(encoder))
