"""MultiMAE: Multi-modal Multi-task Masked Autoencoders (Bachmann et al., 2022; arXiv 2204.01678)."""

from __future__ import annotations

from typing import Literal

from ..modeling.encoder import vit
from ..modeling.masked_model import MaskedModel
from ..modeling.masking import ByModality, Masker
from ..modeling.optim import Optim
from ..modeling.types import DEPTH, RGB, SEMSEG, Modality
from .multimodal import PATTERNS, answers, budgeted
from .recipe import Flip, Recipe, Stage, View, check_words


def recipe(
    *,
    modalities: tuple[Modality, ...] = (RGB, DEPTH, SEMSEG),
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
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
    blend: Literal["linear", "softmax", "project", "none"] = "none",
    decoder_dim: int = 256,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    extra_norm_pix: bool = True,
    weighting: Literal["sum", "uncertainty"] = "sum",
    epochs: float = 1600,
    warmup_epochs: float = 40,
    batch_size: int = 2048,
    lr: float = 1e-4,
    weight_decay: float = 0.05,
    clip: float | None = None,
    crop_scale: float = 0.2,
    flip: Flip = "h",
) -> Recipe:
    """MultiMAE: from a few patches of all modalities together, predict the others of every one.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
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
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    weight_decay: of AdamW, on matrices and tokens
    clip: largest norm of the gradient; none by default
    crop_scale: smallest share of the image's area that a view shows
    flip: none, h, hv, or turns (flips and quarter turns: satellite, microscopy)
    """
    check_words(recipe, locals())
    if decoder == "task" and blend != "none":
        raise ValueError(f"blend={blend} has no place in decoder=task; use --decoder cross")
    encoder = vit(size, patch, image_size, modalities, final_norm=decoder != "task" and blend == "none")

    def build() -> MaskedModel:
        decoders, objectives = answers(
            modalities, encoder, decoder, blend, decoder_dim, decoder_depth, decoder_heads, extra_norm_pix, weighting
        )
        score = budgeted(
            ByModality(PATTERNS[masking]), encoder, objectives, budget, concentration, tasks, harder_gets,
            budget_temperature, budget_floor,
        )  # fmt: skip
        masker = Masker(score, visible, 1 - visible if predicted is None else predicted)
        return MaskedModel(encoder, masker, decoders, objectives)

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
