"""What the recipes of several modalities share: decoders, objectives and budgets, built from their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class MultiMAEOptions:
    """What the variants of MultiMAE share: how visible patches are shared out, and the decoders.

    budget: how visible patches are shared out: a Dirichlet draw, one that follows the losses, or all patches as one
    concentration: of the Dirichlet, one for all modalities or one for each; 1 draws all shares alike
    tasks: let all modalities take part, or draw a set of them uniformly for each image
    harder_gets: whether the adaptive budget shows or hides more of the modality whose loss falls least
    budget_temperature: of the adaptive budget; higher keeps shares more equal
    budget_floor: smallest concentration of the adaptive budget
    decoder: MultiMAE's decoders (task), cross-attention (CrossMAE), or that with self-attention before it
    blend: how encoder maps are blended for each block of a cross decoder; none reads the last map alone
    decoder_dim: width of each decoder
    decoder_depth: number of each decoder's self-attention blocks, or of its blocks if it is a cross decoder
    decoder_heads: number of each decoder's attention heads
    extra_norm_pix: predict RGB patches normalised by their own mean and standard deviation too, by their own decoder
    weighting: add the losses up, or weigh each by a learned uncertainty
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

    def __post_init__(self) -> None:
        if self.decoder == "task" and self.blend != "none":
            raise ValueError(f"blend={self.blend} has no place in decoder=task; use --decoder cross")

    @property
    def final_norm(self) -> bool:
        """Whether the encoder normalises its output; a decoder that blends its maps does so itself."""
        return self.decoder != "task" and self.blend == "none"

    def decoders(self, modalities: Sequence[Modality], encoder: Encoder) -> tuple[dict[str, Decoder], list[Objective]]:
        shape = (self.decoder_dim, self.decoder_depth, self.decoder_heads)
        return make_decoders(modalities, encoder, self.decoder, self.blend, *shape, self.extra_norm_pix, self.weighting)

    def budget_score(self, guide: TokenScore, encoder: Encoder, objectives: Sequence[Objective]) -> TokenScore:
        adaptive = (self.harder_gets, self.budget_temperature, self.budget_floor)
        return make_budget(guide, encoder, objectives, self.budget, self.concentration, self.tasks, *adaptive)


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
