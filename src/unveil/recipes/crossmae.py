"""CrossMAE: Rethinking Patch Dependence for Masked Autoencoders (Fu et al., 2025; arXiv 2401.14391)."""

from __future__ import annotations

from typing import Literal

from ..modeling.decoder import Blend, CrossDecoder, choose_maps
from ..modeling.encoder import vit
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
from ..modeling.optim import Optim
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import Flip, Recipe, Stage, View, check_words


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.25,
    predicted: float = 0.25,
    norm_pix: bool = True,
    decoder_dim: int = 512,
    decoder_depth: int = 12,
    decoder_heads: int = 16,
    blend: Literal["linear", "softmax", "project", "none"] = "linear",
    blend_init: Literal["paper", "released"] = "paper",
    num_maps: int | None = None,
    maps: tuple[int, ...] | None = None,
    use_input: bool = True,
    self_attention: bool = False,
    epochs: float = 800,
    warmup_epochs: float = 40,
    batch_size: int = 4096,
    lr: float = 1.5e-4,
    lr_scale: Literal["predicted", "inverse", "none"] = "predicted",
    weight_decay: float = 0.05,
    clip: float | None = None,
    crop_scale: float = 0.2,
    flip: Flip = "h",
) -> Recipe:
    """CrossMAE: MAE that predicts a part of what is hidden and decodes by cross-attention alone.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted, at most 1 - visible
    norm_pix: predict each patch normalised by its own mean and standard deviation
    decoder_dim: width of the decoder
    decoder_depth: number of the decoder's blocks
    decoder_heads: number of the decoder's attention heads
    blend: how encoder maps are blended for each decoder block; none reads the last map alone
    blend_init: first weights of the blend, as the paper says or as the released code draws them
    num_maps: how many encoder blocks are blended, evenly spread; by default all
    maps: which encoder blocks are blended, counted from 1; instead of num_maps
    use_input: blend the patch embeddings too
    self_attention: let the queries read one another first (the paper's ablation)
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    lr_scale: multiply the rate by predicted/hidden, by its inverse, or not
    weight_decay: of AdamW, on matrices and tokens
    clip: largest norm of the gradient; none by default
    crop_scale: smallest share of the image's area that a view shows
    flip: none, h, hv, or turns (flips and quarter turns: satellite, microscopy)
    """
    check_words(recipe, locals())
    encoder = vit(size, patch, image_size, (modality,), final_norm=blend == "none")  # else the decoder normalises
    masker = Masker(Uniform(), visible, predicted)
    read = choose_maps(encoder.depth, num_maps, maps, use_input)

    def build() -> MaskedModel:
        blended = None
        if blend != "none":
            blended = Blend(read, decoder_depth, encoder.dim, blend == "softmax", blend == "project", blend_init)
        shape = (modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)
        return MaskedModel(
            encoder,
            masker,
            decoders={"pixels": CrossDecoder(*shape, blended, self_attention)},
            objectives=[Objective("pixels", "pixels", decoder_dim, Pixels(modality, patch, norm_pix))],
        )

    share = predicted / (1 - visible)
    factor = {"predicted": share, "inverse": 1 / share, "none": 1.0}[lr_scale]
    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, clip=clip, lr_factor=factor),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
