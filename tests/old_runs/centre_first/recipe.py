"""Centre-first masking on MAE."""

from dataclasses import dataclass

from unveil.decoder import SelfDecoder
from unveil.encoder import vit
from unveil.masking import Masker
from unveil.model import MaskedModel, Objective
from unveil.optim import Optim
from unveil.recipe import Recipe, Stage, View
from unveil.records import RGB, Batch, Modality, Observations, Tokens
from unveil.targets import Pixels


@dataclass(frozen=True)
class CentreFirst:
    """A score: high is hidden first. `pull` 0 is uniform noise, 1 always hides the middle."""

    pull: float = 0.5

    def __call__(self, tokens: Tokens, observations: Observations, batch: Batch):
        rows, columns = tokens.layout.grid
        y = (tokens.cells // columns + 0.5) / rows - 0.5
        x = (tokens.cells % columns + 0.5) / columns - 0.5
        nearness = 1 - 2 * y.abs().maximum(x.abs())  # B N, from 0 at the edge to 1 in the middle
        noise = batch.chance.uniform("centre first", tokens.ids.shape[1])  # B N, from (seed, epoch, sample) alone
        return (1 - self.pull) * noise + self.pull * nearness


def recipe(
    *,
    modality: Modality = RGB,
    size: str = "base",
    patch: int = 16,
    image_size: tuple[int, ...] = (224,),
    visible: float = 0.25,
    pull: float = 0.5,
    decoder_dim: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    epochs: float = 800,
    warmup_epochs: float = 40,
    batch_size: int = 4096,
    lr: float = 1.5e-4,
) -> Recipe:
    """MAE that hides the middle first.

    visible: share of the patches that the encoder reads
    pull: how much more often the middle is hidden, from 0 to 1
    """
    encoder = vit(size, patch, image_size, (modality,))

    def build() -> MaskedModel:
        return MaskedModel(
            encoder,
            masker=Masker(CentreFirst(pull), visible, predicted=1 - visible),
            decoders={"pixels": SelfDecoder(modality.name, encoder, decoder_dim, decoder_depth, decoder_heads)},
            objectives=[Objective("pixels", "pixels", decoder_dim, Pixels(modality, patch))],
        )

    return Recipe(
        encoder,
        stages=(Stage(build, epochs),),
        optim=Optim(lr, batch_size, warmup_epochs),
        view=View(encoder.image_size),
    )
