"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., 2022; arXiv 2111.06377)."""

from __future__ import annotations

from ..modeling.decoder import SelfDecoder
from ..modeling.encoder import vit
from ..modeling.masked_model import MaskedModel, Objective
from ..modeling.masking import Masker, Uniform
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
    visible: float = 0.25,
    predicted: float | None = None,
    norm_pix: bool = True,
    decoder_dim: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    epochs: float = 800,
    warmup_epochs: float = 40,
    batch_size: int = 4096,
    lr: float = 1.5e-4,
    weight_decay: float = 0.05,
    clip: float | None = None,
    crop_scale: float = 0.2,
    flip: Flip = "h",
) -> Recipe:
    """MAE: hide three quarters of the patches, encode the rest, predict the hidden pixels.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    visible: share of the patches that the encoder reads
    predicted: share of all patches that is predicted; by default all that are hidden
    norm_pix: predict each patch normalised by its own mean and standard deviation
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
    encoder = vit(size, patch, image_size, (modality,))

    masker = Masker(Uniform(), visible, 1 - visible if predicted is None else predicted)

    def build() -> MaskedModel:
        return MaskedModel(
            encoder,
            masker,
            decoders={"pixels": SelfDecoder(modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)},
            objectives=[Objective("pixels", "pixels", decoder_dim, Pixels(modality, patch, norm_pix))],
        )

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
