"""MultiMAE: Multi-modal Multi-task Masked Autoencoders (Bachmann et al., 2022; arXiv 2204.01678)."""

from __future__ import annotations

from typing import Literal

from ..modeling.decoder import BlendKind
from ..modeling.masked_model import MaskedModel
from ..modeling.masking import PATTERNS, ByModality, Masker
from ..modeling.types import DEPTH, RGB, SEMSEG, Modality
from .multimodal import make_budget, make_decoders
from .recipe import Hyperparameters, Recipe, Stage


def recipe(
    *,
    modalities: tuple[Modality, ...] = (RGB, DEPTH, SEMSEG),
    train: Hyperparameters = Hyperparameters(epochs=1600, warmup_epochs=40, batch_size=2048, lr=1e-4),
    visible: float = 1 / 6,
    predicted: float | None = None,
    masking: Literal["uniform", "block", "inverse-block", "grid"] = "uniform",
    budget: Literal["dirichlet", "adaptive", "joint"] = "dirichlet",
    concentration: tuple[float, ...] = (1.0,),
    tasks: Literal["all", "uniform"] = "all",
    harder_gets: Literal["visible", "hidden"] = "visible",
    budget_temperature: float = 1.0,
    budget_floor: float = 0.1,
    decoder: Literal["task", "cross", "cross-self"] = "task",
    blend: BlendKind = "none",
    decoder_dim: int = 256,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    extra_norm_pix: bool = True,
    weighting: Literal["sum", "uncertainty"] = "sum",
) -> Recipe:
    """MultiMAE: from a few patches of all modalities together, predict the others of every one.

    visible: share of the patches of all modalities that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    masking: the order in which the patches of a modality are hidden
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
    if decoder == "task" and blend != "none":
        raise ValueError(f"blend={blend} has no place in decoder=task; use --decoder cross")
    encoder = train.vit(*modalities, final_norm=decoder != "task" and blend == "none")

    def build() -> MaskedModel:
        decoders, objectives = make_decoders(
            modalities, encoder, decoder, blend, decoder_dim, decoder_depth, decoder_heads, extra_norm_pix, weighting
        )
        score = make_budget(
            ByModality(PATTERNS[masking]), encoder, objectives, budget, concentration, tasks, harder_gets,
            budget_temperature, budget_floor,
        )  # fmt: skip
        masker = Masker(score, visible, predicted)
        return MaskedModel(encoder, masker, decoders, objectives)

    return Recipe(encoder, (Stage(build, train.epochs),), train.optim(), train.view(encoder))
