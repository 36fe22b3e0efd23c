"""Tiny: a ViT of two blocks, trained in one stage or in two that share the encoder."""

from unveil.modeling.decoder import CrossDecoder, SelfDecoder
from unveil.modeling.encoder import Encoder
from unveil.modeling.masked_model import MaskedModel, Objective
from unveil.modeling.masking import Masker, Uniform
from unveil.modeling.optim import Optim
from unveil.modeling.targets import Pixels
from unveil.modeling.types import RGB
from unveil.recipes.recipe import Recipe, Stage, View


def recipe(
    *,
    modality=RGB,
    image_size: tuple[int, ...] = (16,),
    patch: int = 4,
    visible: float = 0.25,
    predicted: float = 0.5,
    decoder_heads: int = 2,
    stages: int = 1,
    epochs: float = 3,
    warmup_epochs: float = 1,
    batch_size: int = 10,
    lr: float = 0.05,
    clip: float | None = None,
) -> Recipe:
    encoder = Encoder([modality], image_size, patch, dim=16, depth=2, heads=2)
    masker = Masker(Uniform(), visible, predicted)

    def model(decoder, dim):
        objective = Objective("pixels", "pixels", dim, Pixels(modality, patch))
        return MaskedModel(encoder, masker, {"pixels": decoder}, [objective])

    def first():
        return model(SelfDecoder(modality.name, encoder, 16, 1, decoder_heads), 16)

    def second():
        return model(CrossDecoder(modality.name, encoder, 32, 1, decoder_heads, None), 32)

    parts = tuple(Stage(build, epochs / stages) for build in (first, second)[:stages])
    return Recipe(encoder, parts, Optim(lr, batch_size, warmup_epochs, clip=clip), View(encoder.image_size))
