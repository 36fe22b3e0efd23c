"""Masked image modelling with one option for each part, so that any combination runs from the command line."""

from __future__ import annotations

from typing import Literal

import torch

from ..modeling.decoder import BlendKind, CrossDecoder, Decoder, Readout, SelfDecoder, choose_maps, make_blend
from ..modeling.losses import LOSSES
from ..modeling.masked_model import Blank, MaskedModel, Objective, drop
from ..modeling.masking import (
    PATTERNS,
    SAMPLERS,
    AttentionGuided,
    Masker,
    SamplerName,
    TeacherAttention,
    Uniform,
    unit_in_tokens,
)
from ..modeling.targets import HOG, Features, Pixels, Target
from ..modeling.teachers import EMATeacher, FrozenTeacher, Momentum, load_teacher
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import DecoderShape, Hyperparameters, LrScale, Recipe, Stage, lr_factor


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    masking: Literal["uniform", "block", "inverse-block", "grid", "attention"] = "uniform",
    draw: SamplerName = "gumbel",
    teacher: str | None = None,
    teacher_channels: tuple[int, ...] | None = None,
    momentum: float = 0.996,
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
    target: Literal["norm-pixels", "pixels", "hog", "features"] = "norm-pixels",
    loss: Literal["l2", "l1", "smooth-l1", "cosine"] = "l2",
    lr_scale: LrScale = "none",
) -> Recipe:
    """Masked image modelling: choose each part. With its defaults it is MAE.

    masking: the order in which tokens are hidden; attention is that of the teacher
    draw: hide the most attended (hard), the most attended after noise is added (noisy), all but a few of these (hint),
        a sample in proportion to attention (gumbel), the least attended (low), or all but a sample (keep)
    teacher: source of attention and features: student (its moving average) or a frozen encoder: a file, a folder, a
        run, a name on the hub, or random as a control
    teacher_channels: which channels of an image a frozen encoder reads, counted from 1; by default all
    momentum: momentum of the student's moving average, at first; 1 at the end
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
    target: what is predicted: pixels, also normalised patch by patch, histograms of gradients, a teacher's features
    loss: squared, absolute or smooth absolute error, or 2 - 2 cos
    lr_scale: multiply the rate by predicted/hidden, by its inverse, or not
    """
    if decoder == "linear" and hide == "drop":
        raise ValueError("decoder=linear reads hidden patches at their own places, so it needs --hide blank")
    if blend != "none" and (decoder == "linear" or (decoder == "self" and hide == "blank")):
        raise ValueError(f"blend={blend} has no place in decoder={decoder} with hide={hide}; use --decoder cross")
    if teacher is None and (masking == "attention" or target == "features"):
        raise ValueError("masking=attention and target=features need --teacher student, or an encoder's address")
    encoder = train.vit(modality, final_norm=blend == "none")
    guided = AttentionGuided(TeacherAttention("teacher"), SAMPLERS[draw])
    score = guided if masking == "attention" else PATTERNS[masking]
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
        spec = FeatureSpec("cls" if masking == "attention" else None, features=int(target == "features"))
        if teacher is None or not (spec.attention or spec.features):
            return {}
        if teacher == "student":
            return {"teacher": EMATeacher(encoder, Momentum(momentum), spec)}
        return {"teacher": load_teacher(teacher, encoder, spec, teacher_channels, seed=torch.initial_seed())}

    def build() -> MaskedModel:
        width = encoder.dim if decoder == "linear" else shape.decoder_dim
        teachers = build_teachers()
        truth: Target = Pixels(modality, train.patch, target == "norm-pixels")
        if target == "hog":
            truth = HOG(modality, train.patch)
        elif target == "features":
            truth = Features("teacher", modality.name, teachers["teacher"].dim)
        name: str = "pixels" if isinstance(truth, Pixels) else target
        decoders = {name: build_decoder()}
        objectives = [Objective(name, name, width, truth, LOSSES[loss])]
        hidden = Blank(encoder) if hide == "blank" else drop
        return MaskedModel(encoder, masker, decoders, objectives, teachers, hidden)

    optim = train.optim(lr_factor=lr_factor(lr_scale, masker))
    return Recipe(encoder, (Stage(build, train.epochs),), optim, train.view(encoder))
