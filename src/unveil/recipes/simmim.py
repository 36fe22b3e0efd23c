"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., 2022; arXiv 2111.09886), on a ViT."""

from __future__ import annotations

from ..modeling.decoder import Readout
from ..modeling.encoder import vit
from ..modeling.losses import l1
from ..modeling.masked_model import Blank, MaskedModel, Objective
from ..modeling.masking import Masker, Uniform, units_of
from ..modeling.optim import Optim
from ..modeling.targets import Pixels
from ..modeling.types import RGB, Modality
from .recipe import Flip, Recipe, Stage, View


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.4,
    mask_unit: int = 32,
    norm_pix: bool = False,
    epochs: float = 800,
    warmup_epochs: float = 20,
    batch_size: int = 2048,
    lr: float = 0.5e-4,
    weight_decay: float = 0.05,
    clip: float | None = 5.0,
    crop_scale: float = 0.67,
    flip: Flip = "h",
) -> Recipe:
    """SimMIM: hide squares behind a mask token, encode everything, predict the raw pixels with one linear layer.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    visible: share of the image that is not masked
    mask_unit: side in pixels of the squares that are hidden whole, a multiple of the patch
    norm_pix: predict each patch normalised by its own mean and standard deviation
    epochs: passes over the data
    warmup_epochs: epochs in which the learning rate rises
    batch_size: images per update, over all devices and micro-batches
    lr: learning rate per 256 images of the batch
    weight_decay: of AdamW, on matrices and tokens
    clip: largest norm of the gradient; none for no limit
    crop_scale: smallest share of the image's area that a view shows
    flip: none, h, hv, or turns (flips and quarter turns: satellite, microscopy)
    """
    encoder = vit(size, patch, image_size, (modality,))
    masker = Masker(Uniform(), visible, 1 - visible, unit=units_of(mask_unit, patch))

    def build() -> MaskedModel:
        return MaskedModel(
            encoder,
            masker,
            decoders={"pixels": Readout(modality.name, encoder)},
            objectives=[Objective("pixels", "pixels", encoder.dim, Pixels(modality, patch, norm_pix), l1)],
            hide=Blank(encoder),
        )

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, betas=(0.9, 0.999), clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
