"""MultiMAE (Bachmann et al., 2022; arXiv 2204.01678) with masks guided by its own attention.

The method (a student project, TU Darmstadt, 2023) continues a public MultiMAE for 100 epochs on the tail of its
schedule: `--init-from ... --continue-schedule tail --epochs 100`. By itself the recipe trains 400 epochs from scratch.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from ..modeling.encoder import Encoder
from ..modeling.masked_model import LossTerm, MaskedModel, Teacher
from ..modeling.masking import (
    AttentionGuided,
    AttentionMap,
    ByModality,
    CollaborativeAttention,
    IfObserved,
    LossMap,
    Masker,
    RandomHeads,
    Sampler,
    SamplerName,
    TeacherAttention,
    TokenScore,
    Uniform,
    make_sampler,
)
from ..modeling.objectives import FeatureLossPrediction, Ranking
from ..modeling.teachers import (
    DistilledAttention,
    EMATeacher,
    EveryNSteps,
    LowResolutionTeacher,
    MeasuredLossTeacher,
    Momentum,
    OnlineTeacher,
    PredictedLossTeacher,
)
from ..modeling.types import DEPTH, RGB, SEMSEG, FeatureSpec, Modality
from .multimodal import MultiMAEOptions, make_budget, make_decoders
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modalities: tuple[Modality, ...] = (RGB, DEPTH, SEMSEG),
    train: Hyperparameters = Hyperparameters(epochs=400, warmup_epochs=40, batch_size=2048, lr=1e-4),
    visible: float = 1 / 6,
    predicted: float | None = None,
    guide: Literal["attention", "error", "foreseen"] = "attention",
    draw: SamplerName = "hard",
    noise: float = 0.25,
    guide_heads: Literal["all", "random"] = "all",
    heads_drawn: Literal["step", "image"] = "step",
    query: Literal["cls", "mean", "all"] = "cls",
    layer: int = -1,
    student: Literal["online", "momentum"] = "online",
    guide_warmup: float = 0.0,
    guide_every: int = 1,
    guide_scale: Literal["full", "half"] = "full",
    guidance: Literal["faithful", "fast"] = "faithful",
    student_weight: float = 0.3,
    shared: MultiMAEOptions = MultiMAEOptions(),
) -> Recipe:
    """MultiMAE with guided masks: in each modality the patches that the model itself attends to most are hidden.

    visible: share of the patches of all modalities that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    guide: what is hidden first: the most attended (attention), the largest loss, measured with two complementary masks
        (error), or the largest loss predicted by a head (foreseen)
    draw: hide the most attended (hard), the most attended after noise is added (noisy), all but a few of these (hint),
        a sample in proportion to attention (gumbel), the least attended (low), or all but a sample (keep)
    noise: share of noise in the map of the noisy draw
    guide_heads: average the attention of all heads, or of a random few
    heads_drawn: draw the random few heads once a step, as the project did, or for each image
    query: attention of the class token (cls), of one query that is the mean of all patches', or the mean over patches
    layer: block whose attention is read, from the end below 0
    student: weights of the student that guides: its moving average, or the current ones (online)
    guide_warmup: share of the training in which masks are random at first
    guide_every: masks are guided every so many steps and random in between
    guide_scale: image size at which the guide's attention is computed: full, or half
    guidance: attention of the whole pass (faithful), or what the first blocks foretell of it (fast): a regression that
        is fitted to the whole pass in every 16th step
    student_weight: the student's share in the attention to RGB that is blended with a teacher's (CMT-MAE)
    """
    if guide == "error" and shared.has_feature_targets:
        raise ValueError(
            f"guide=error measures losses before teachers are read; use --target maps or hog, not {shared.target}"
        )
    if guidance == "fast" and (guide != "attention" or guide_heads == "random"):
        raise ValueError(
            "guidance=fast predicts the mean attention of all heads: it goes with no --guide or --guide-heads"
        )
    is_blended = shared.teacher is not None and (guide == "attention" or not shared.teaches)
    if guide != "attention" and (guide_heads, guide_scale, is_blended) != ("all", "full", False):
        raise ValueError(f"guide={guide} reads no attention: it goes with no --guide-heads, --guide-scale or --teacher")
    if guide == "foreseen" and shared.budget == "joint":
        raise ValueError("errors are foreseen inside each modality, not across; use --budget dirichlet or adaptive")
    if is_blended and shared.budget == "joint":
        raise ValueError("a teacher of RGB has no say across modalities; use --budget dirichlet or adaptive")
    encoder = shared.encoder(train, modalities)

    sampler = make_sampler(draw, noise=noise)
    score = guided_score(encoder, guide, sampler, shared.budget, student_weight if is_blended else None)
    if guide_heads == "random":
        score = RandomHeads("student", score, heads_drawn)
    score = IfObserved("student", score, ByModality(Uniform()))

    def build() -> MaskedModel:
        target_teachers = shared.teachers(encoder, in_masks=is_blended)
        decoders, objectives = make_decoders(modalities, encoder, shared, target_teachers)
        hide = shared.hider(encoder)
        terms: list[LossTerm] = [*objectives]
        spec = FeatureSpec(query, layer, features=0)
        guide_teacher: Teacher = OnlineTeacher(encoder, spec)
        if guide == "error":
            guide_teacher = MeasuredLossTeacher(decoders, objectives, hide)
        elif guide == "foreseen":  # only the order of the losses matters, so the heads have no bias
            heads = {m.name: nn.Linear(encoder.dim, 1, bias=False) for m in encoder.modalities if m.role == "both"}
            guide_teacher = PredictedLossTeacher(heads)
            for name, head in heads.items():
                of_modality = [o for o in objectives if decoders[o.decoder].modality == name]
                terms.append(Ranking(f"{name}_order", of_modality, FeatureLossPrediction("student", head)))
        elif student == "momentum":
            guide_teacher = EMATeacher(encoder, Momentum(shared.momentum), spec)
        if guide_scale == "half":
            guide_teacher = LowResolutionTeacher(guide_teacher, encoder)
        if guidance == "fast":
            guide_teacher = DistilledAttention(guide_teacher, encoder, stride=guide_every, after=guide_warmup)
        teachers: dict[str, Teacher] = {"student": EveryNSteps(guide_teacher, guide_every, guide_warmup)}
        if is_blended and not shared.teaches:
            target_teachers["teacher"] = EveryNSteps(target_teachers["teacher"], guide_every, guide_warmup)
        teachers |= target_teachers
        masker = Masker(make_budget(score, encoder, objectives, shared), visible, predicted)
        return MaskedModel(encoder, masker, decoders, terms, teachers, hide)

    return Recipe(encoder, (Stage(build, train.epochs),), shared.optim(train), train.view(encoder))


def guided_score(
    encoder: Encoder, guide: str, sampler: Sampler, budget: str, student_weight: float | None
) -> TokenScore:
    """Tokens are hidden by the student's attention or by their loss: over all modalities in a joint budget, else within
    each. With a `student_weight`, RGB is hidden by the teacher's attention and the student's, fused."""
    student: AttentionMap = TeacherAttention("student") if guide == "attention" else LossMap("student")
    score = AttentionGuided(student, sampler)
    if budget == "joint":
        return score
    scores: dict[str, TokenScore] = {}
    if guide != "attention":  # a modality that is not predicted has no loss
        scores = {m.name: Uniform() for m in encoder.modalities if m.role == "input"}
    if student_weight is not None:
        fused = CollaborativeAttention(TeacherAttention("teacher"), student, student_weight)
        scores["rgb"] = AttentionGuided(fused, sampler)
    return ByModality(score, scores)
