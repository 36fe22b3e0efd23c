"""MILAN: Masked Image Pretraining on Language Assisted Representation (Hou et al., 2022; arXiv 2208.06049).

The loss is the mean over all tokens, as the paper's is: visible and hidden patches, and the class token. Images reach
the teacher normalised as it was trained, where the public code hands it images normalised for ImageNet.
"""

from __future__ import annotations

from typing import Literal

import torch

from ..modeling.decoder import PromptingDecoder
from ..modeling.encoder import vit
from ..modeling.losses import cosine
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Attention, Guided, Gumbel, Masker, Reversed
from ..modeling.objectives import ClassToken
from ..modeling.optim import Optim
from ..modeling.targets import Features
from ..modeling.teachers import load_teacher
from ..modeling.types import RGB, FeatureSpec, Modality
from .recipe import Flip, Recipe, Stage, View, check_words


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    teacher: str = "openai/clip-vit-base-patch16",
    teacher_channels: tuple[int, ...] | None = None,
    projected: bool = True,
    visible: float = 0.25,
    positions: Literal["predicted", "all"] = "all",
    decoder_dim: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    epochs: float = 400,
    warmup_epochs: float = 40,
    batch_size: int = 4096,
    lr: float = 1.5e-4,
    weight_decay: float = 0.05,
    clip: float | None = None,
    crop_scale: float = 0.2,
    flip: Flip = "h",
) -> Recipe:
    """MILAN: keep what a teacher attends to, predict its features of every patch.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    teacher: the frozen encoder: a file, a folder, a run, a name on the hub, or random as a control
    teacher_channels: which channels of an image the teacher sees, counted from 1; by default all
    projected: take the teacher's features after its output projection, where it has one (CLIP)
    visible: share of the patches that the encoder reads
    positions: which tokens are compared: the predicted patches, or all patches and the class token
    decoder_dim: width of the decoder
    decoder_depth: number of the decoder's blocks
    decoder_heads: number of the decoder's attention heads
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
    encoder = vit(size, patch, image_size, (modality,))
    masker = Masker(Guided(Attention("teacher"), Reversed(Gumbel())), visible, 1 - visible)
    shape = (modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)

    is_all = positions == "all"
    share = 1 / (encoder.grid[0] * encoder.grid[1] + 1) if is_all else 0.0  # of the class token among all tokens
    seed = torch.initial_seed()

    def build() -> MaskedModel:
        reading = FeatureSpec(projected=projected, class_token=is_all)
        guide = load_teacher(teacher, encoder, reading, teacher_channels, seed=seed)
        decoder = PromptingDecoder(*shape, answers=positions)
        target = Features("teacher", modality.name, guide.dim, "none")
        features = Objective("features", "features", decoder_dim, target, cosine, weight=1 - share)
        whole = [ClassToken("class token", "teacher", decoder, features, share)] if is_all else []
        return MaskedModel(encoder, masker, {"features": decoder}, [features, *whole], {"teacher": guide})

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
