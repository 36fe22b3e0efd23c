"""CrossMAE: Rethinking Patch Dependence for Masked Autoencoders (Fu et al., 2025; arXiv 2401.14391)."""

from __future__ import annotations

from typing import Literal

from ..modeling.decoder import BlendKind, CrossDecoder, choose_maps, make_blend
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import DecoderShape, Hyperparameters, LrScale, Recipe, Stage, lr_factor


def recipe(
    *,
    modality: Modality = RGB,
    train: Hyperparameters = Hyperparameters(epochs=800, warmup_epochs=40, batch_size=4096, lr=1.5e-4),
    visible: float = 0.25,
    predicted: float = 0.25,
    norm_pix: bool = True,
    shape: DecoderShape = DecoderShape(decoder_depth=12),
    blend: BlendKind = "linear",
    blend_init: Literal["paper", "released"] = "paper",
    num_maps: int | None = None,
    maps: tuple[int, ...] | None = None,
    use_input: bool = True,
    self_attention: bool = False,
    lr_scale: LrScale = "predicted",
) -> Recipe:
    """CrossMAE: MAE that predicts a part of what is hidden and decodes by cross-attention alone.

    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted, at most 1 - visible
    norm_pix: predict each patch normalised by its own mean and standard deviation
    blend: how encoder maps are blended for each decoder block; none reads the last map alone
    blend_init: first weights of the blend, as the paper says or as the released code draws them
    num_maps: how many encoder blocks are blended, evenly spread; by default all
    maps: which encoder blocks are blended, counted from 1; instead of num_maps
    use_input: blend the patch embeddings too
    self_attention: let the queries read one another first (the paper's ablation)
    lr_scale: multiply the rate by predicted/hidden, by its inverse, or not
    """
    encoder = train.vit(modality, final_norm=blend == "none")  # else the decoder normalises
    masker = Masker(Uniform(), visible, predicted)
    read = choose_maps(encoder.depth, num_maps, maps, use_input)

    def build() -> MaskedModel:
        blended = make_blend(blend, encoder, shape.decoder_depth, read, blend_init)
        decoders = {"pixels": CrossDecoder(modality.name, encoder, *shape.dims, blended, self_attention)}
        objectives = [Objective("pixels", "pixels", shape.decoder_dim, Pixels(modality, train.patch, norm_pix))]
        return MaskedModel(encoder, masker, decoders, objectives)

    optim = train.optim(lr_factor=lr_factor(lr_scale, masker))
    return Recipe(encoder, (Stage(build, train.epochs),), optim, train.view(encoder))
