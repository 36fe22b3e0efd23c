"""HPM: Hard Patches Mining for Masked Image Modeling (Wang et al., 2023; arXiv 2304.05919)."""

from __future__ import annotations

from ..modeling.decoder import SelfDecoder
from ..modeling.encoder import vit
from ..modeling.masked_model import MaskedModel, Objective, linear_head
from ..modeling.masking import HardestFirst, Masker
from ..modeling.objectives import DecoderLossPrediction, Ranking
from ..modeling.optim import Optim
from ..modeling.targets import Pixels
from ..modeling.teachers import EMALossPredictor, Momentum
from ..modeling.types import RGB, Modality
from .recipe import Flip, Recipe, Stage, View


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.25,
    norm_pix: bool = True,
    hardest: float = 0.0,
    hardest_end: float = 0.5,
    momentum: float = 0.999,
    momentum_end: float = 0.9999,
    momentum_epochs: float = 100,
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
    """HPM: a second decoder predicts how hard each patch is; more and more of the hardest ones are hidden.

    size: width and depth of the ViT: nano, tiny, small, base, large, huge
    patch: side of a patch in pixels
    image_size: side of a training view in pixels, or its height and width
    visible: share of the patches that the encoder reads
    norm_pix: predict each patch normalised by its own mean and standard deviation
    hardest: share of the hidden patches that are the hardest, at first; the others are drawn at random
    hardest_end: and at the end of training
    momentum: how much of itself the average keeps at a step, at first
    momentum_end: and after momentum_epochs
    momentum_epochs: epochs in which the momentum rises
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
    masker = Masker(HardestFirst("student", 1 - visible, hardest, hardest_end), visible, 1 - visible)
    follows = Momentum(momentum, momentum_end, "linear", until=max(momentum_epochs / epochs, 1e-9))
    shape = (modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)

    def build() -> MaskedModel:
        pixels = Objective("pixels", "pixels", decoder_dim, Pixels(modality, patch, norm_pix))
        predictor, head = SelfDecoder(*shape), linear_head(decoder_dim, 1, bias=False)  # a rank knows no offset
        return MaskedModel(
            encoder,
            masker,
            decoders={"pixels": SelfDecoder(*shape), "errors": predictor},
            objectives=[pixels, Ranking("errors", [pixels], DecoderLossPrediction("errors", head))],
            teachers={"student": EMALossPredictor(encoder, predictor, head, follows)},
        )

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs, weight_decay, clip=clip),
        view=View(encoder.image_size, (crop_scale, 1.0), flip=flip),
    )
