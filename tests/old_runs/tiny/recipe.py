"""Tiny: a ViT of two blocks, trained in one stage or in two that share the encoder."""

from unveil.decoder import CrossDecoder, SelfDecoder
from unveil.encoder import Encoder
from unveil.masking import Masker, Uniform
from unveil.model import MaskedModel, Objective
from unveil.optim import Optim
from unveil.recipe import Recipe, Stage, View
from unveil.records import RGB
from unveil.targets import Pixels


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
