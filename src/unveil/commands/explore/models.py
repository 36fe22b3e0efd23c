"""The models that a page shows: runs, whose recipe is executed by consent alone, and public ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.modality_config import Declared
from ...evaluation.analysis.attention import record_inputs
from ...evaluation.results import checksum
from ...modeling.image_encoder import FeatureExtractor, ImageEncoder
from ...modeling.masked_model import ForwardOutput, MaskedModel
from ...modeling.masking import Masker
from ...modeling.public_vits import is_public_vit, load_encoder
from ...modeling.types import Batch, Layout, Modality, Observations, Tokens
from ...recipes.run import Run
from ...runs.checkpoint_state import lost, weights_by_step
from ...runs.hardware import choose_device
from ...runs.trust import UntrustedCodeError


@dataclass(frozen=True)
class Explored:
    """An encoder, and the masked model that it belongs to where there is one, in eval mode on one device.

    `identity` stands for the weights, `notes` say what is not there and why.
    """

    name: str
    extractor: FeatureExtractor
    modalities: tuple[Modality, ...]
    identity: str
    model: MaskedModel | None = None
    declared: tuple[Declared, ...] = ()
    run: Run | None = None
    step: int = 0
    epoch: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that the encoder reads."""
        return tuple(m.name for m in self.extractor.modalities)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        height, width = self.extractor.image_size
        return height // self.extractor.patch, width // self.extractor.patch

    @property
    def newer(self) -> bool:
        """Whether the folder has weights of a later step than these."""
        return self.run is not None and max(weights_by_step(self.run.path), default=0) > self.step


def open_explored(address: str, device: str = "auto", trust: bool = False) -> Explored:
    """The run or the public ViT at an address, with its newest weights.

    Of a stranger's recipe, which is not executed, the encoder alone. Raises as `Run.open` and `load_encoder` do, and
    ValueError for a run without weights.
    """
    where = choose_device(device)
    if is_public_vit(address):
        vit = load_encoder(address).to(where).eval()
        note = "An encoder alone, without a decoder: nothing is predicted."
        return Explored(address, vit, vit.modalities, f"crc32:{checksum(vit):08x}", notes=(note,))
    run = Run.open(address, trust)
    state = run.checkpoint().state
    identity = str(sorted(run.checkpoint().identity.items()))
    try:
        model = run.model().to(where)
    except ValueError as error:
        if not run.imported and not isinstance(error, UntrustedCodeError):
            raise
        encoder = run.encoder().to(where)
        modalities = tuple(m for m in run.modalities if m.name in {own.name for own in encoder.modalities})
        note = f"The encoder alone, without its masks and predictions: {error}"
        own: MaskedModel | None = None
    else:
        encoder, modalities, note, own = ImageEncoder(model.encoder), run.modalities, "", model
    step = max(weights_by_step(run.path), default=0)
    older = [f"These are not the newest weights: {reason}." for reason in lost(run.path)]
    notes = tuple(filter(None, (note, *older)))
    return Explored(run.name, encoder, modalities, identity, own, run.declared, run, step, float(state["epoch"]), notes)


@dataclass(frozen=True)
class Blocks:
    """What every block of an encoder made of a whole image: its output, and the input of its attention.

    `outputs` have prefix tokens and patches, B K D; `inputs` are the arguments of each block's attention.
    """

    layout: Layout
    outputs: list[Float[Tensor, "B K D"]]
    inputs: list[tuple[object, ...]] = field(repr=False)


@dataclass(frozen=True)
class Unmasked:
    """All that is computed of one image before any is hidden, once: tokens, observations of teachers, blocks."""

    batch: Batch
    blocks: Blocks
    tokens: Tokens | None = None
    observations: Observations = field(default_factory=dict)


def read_unmasked(explored: Explored, batch: Batch) -> Unmasked:
    """The passes of encoder and teachers over a whole image."""
    extractor, model = explored.extractor, explored.model
    maps = {name: batch.maps[name] for name in explored.inputs if name in batch.maps}
    grid = explored.grid
    layout = Layout(
        {name: slice(i * grid[0] * grid[1], (i + 1) * grid[0] * grid[1]) for i, name in enumerate(maps)}, grid
    )
    with record_inputs([block.attn for block in extractor.blocks]) as calls:
        outputs = extractor.tokens(batch, range(1, extractor.depth + 1))
    blocks = Blocks(layout, outputs, [inputs for _, inputs in calls])
    if model is None:
        return Unmasked(batch, blocks)
    tokens = model.encoder.embed(batch)
    observations = {name: teacher.observe(batch, tokens, model.encoder) for name, teacher in model.teachers.items()}
    return Unmasked(batch, blocks, tokens, observations)


def predict(model: MaskedModel, unmasked: Unmasked, masker: Masker) -> ForwardOutput:
    """`MaskedModel.encode_decode` of an image whose tokens and observations are there already."""
    assert unmasked.tokens is not None
    tokens, observations = unmasked.tokens, unmasked.observations
    mask = masker(tokens, observations, unmasked.batch)
    queries = {name: decoder.make_queries(mask, tokens.layout) for name, decoder in model.decoders.items()}
    latents = model.encoder(model.hide(tokens, mask), model.keep)
    decoded = {name: decoder(latents, queries[name]) for name, decoder in model.decoders.items()}
    return ForwardOutput(observations, mask, latents, queries, decoded)


def attention(explored: Explored, blocks: Blocks, layer: int, query: str | int | None = None) -> Float[Tensor, "H N"]:
    """The attention that each token gets in a block, counted from 1, by head.

    The query is the class token's (cls), the mean of all (mean, where there is no class token), or that of one token.
    """
    attn = explored.extractor.blocks[layer - 1].attn
    x, keys, _, rotation = (*blocks.inputs[layer - 1], None, None, None)[:4]
    prefix = explored.extractor.num_prefix
    if isinstance(query, int):
        return attn.between_patches(x, prefix, rotation)[0, :, query]  # type: ignore[arg-type]  # as the block calls it
    how = query or ("cls" if explored.extractor.has_class_token else "mean")
    return attn.attention_to_patches(x, how, prefix, keys, rotation)[0]  # type: ignore[arg-type]


def patch_features(explored: Explored, blocks: Blocks, layer: int) -> Float[Tensor, "N D"]:
    """The tokens of an image after a block, counted from 1, normalised: the last by the encoder's norm."""
    x = blocks.outputs[layer - 1][0].float()
    norm = explored.extractor.final_norm
    if layer == explored.extractor.depth and not isinstance(norm, torch.nn.Identity):
        x = norm(x)
    else:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x[explored.extractor.num_prefix :]


def by_modality(layout: Layout, values: Float[Tensor, " N"]) -> Mapping[str, Float[Tensor, "h w"]]:
    """Values of tokens as maps of each modality."""
    return {name: values[span].unflatten(0, layout.grid) for name, span in layout.spans.items()}
